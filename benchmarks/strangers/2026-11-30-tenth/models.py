"""Models and training steps, most of them wrong, with the truth of each: for sr.check_model and sr.check_step.

Every factory takes wrong=True; with wrong=False it gives the same program without its mistake.
The author has not read the checker; scaffolding (imports, small models, adapters) is that of older sets.

In the truths: h is the width of a head, n the number of tokens, lr, decay and so on those of the rule, k = 0, 1, 2 the
step, g the gradient, m and v Adam's means of g and g^2.
"""

import copy
import importlib.machinery
import importlib.util
import itertools
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipMultiheadAttentionPoolingHead


class NoTorchvision:
    """open_clip and timm import torchvision for their data pipelines only: where it is missing, names suffice."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = self.made
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def made(name):
        if name.startswith("__"):
            raise AttributeError(name)
        modes = {mode: mode for mode in ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")}
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None} | modes)


STAND_IN = None if importlib.util.find_spec("torchvision") else NoTorchvision()
if STAND_IN:
    sys.meta_path.append(STAND_IN)
import open_clip  # noqa: E402
import timm  # noqa: E402
from timm.models import register_model  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

if STAND_IN:
    sys.meta_path.remove(STAND_IN)
    for loaded in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[loaded]

import siglip_ref as sr
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.check.model.adapters.big_vision import BigVision
from siglip_ref.check.model.adapters.torch_model import Tap, TorchModel
from siglip_ref.checkpoint.tables.names import Entry, dense, norm

FLOAT32 = {"dtype": "float32"}


def become(module, kind):
    """The same parameters under another forward pass."""
    module.__class__ = kind
    return module


# -- a small model of transformers


def hugging_face(side=20, width=12, text_width=12, text_hidden=22):
    image = {"hidden_size": width, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    image |= {"image_size": side, "patch_size": 4}
    text = {
        "hidden_size": text_width,
        "intermediate_size": text_hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text |= {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": None, "eos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return SiglipModel(SiglipConfig(vision_config=image, text_config=text | {"projection_size": width})).eval()


def vit_tenth_patch4_siglip_20(pretrained=False, **kwargs):
    keep = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool", "drop_path_rate")}
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    return VisionTransformer(**settings, class_token=False, **keep)


if "vit_tenth_patch4_siglip_20" not in timm.list_models("vit_tenth*"):
    register_model(vit_tenth_patch4_siglip_20)


def small_open_clip():
    vision = {"image_size": 20, "timm_model_name": "vit_tenth_patch4_siglip_20", "timm_model_pretrained": False}
    text = {"context_length": 9, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2, "mlp_ratio": 1.25}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return open_clip.CustomTextCLIP(
            24,
            vision | {"timm_pool": "map", "timm_proj": "none"},
            text,
            init_logit_scale=math.log(10),
            init_logit_bias=-10,
        ).eval()


# -- a torch model of its own

IMAGE, TEXT = Tower(width=12, depth=2, mlp=18, heads=4), Tower(width=10, depth=2, mlp=14, heads=2)
CONFIG = Config("own model", IMAGE, TEXT, (12, 20), 4, 50, 9, conventions=sr.preset("huggingface"))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries, keys):
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, x in ((self.q, queries), (self.k, keys), (self.v, keys))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TwoLayers(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class OwnBlock(nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(tower.width, 1e-6), nn.LayerNorm(tower.width, 1e-6)
        self.attention, self.mlp = Attention(tower.width, tower.heads), TwoLayers(tower.width, tower.mlp)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y)
        return x + self.mlp(self.norm2(x))


class OwnImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, IMAGE.width, 4, 4)
        self.positions = nn.Parameter(0.1 * torch.randn(15, IMAGE.width))
        self.blocks = nn.Sequential(*(OwnBlock(IMAGE) for _ in range(IMAGE.depth)))
        self.norm = nn.LayerNorm(IMAGE.width, 1e-6)
        self.probe = nn.Parameter(torch.randn(1, 1, IMAGE.width))
        self.attention, self.mlp = Attention(IMAGE.width, IMAGE.heads), TwoLayers(IMAGE.width, IMAGE.mlp)
        self.head_norm = nn.LayerNorm(IMAGE.width, 1e-6)

    def forward(self, images):
        x = self.norm(self.blocks(self.patches(images).flatten(2).mT + self.positions))
        x = self.attention(self.probe.expand(len(x), -1, -1), x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


class OwnTexts(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(50, TEXT.width)
        self.positions = nn.Parameter(0.1 * torch.randn(9, TEXT.width))
        self.blocks = nn.Sequential(*(OwnBlock(TEXT) for _ in range(TEXT.depth)))
        self.norm = nn.LayerNorm(TEXT.width, 1e-6)
        self.head = nn.Linear(TEXT.width, IMAGE.width)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions))[:, -1])


class OwnModel(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.image, self.text = OwnImages(), OwnTexts()
        self.log_scale, self.bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-10.0))

    def forward(self, images, tokens):
        return tuple(x / x.norm(dim=-1, keepdim=True) for x in (self.image(images), self.text(tokens)))


def own_tables():
    entries = [
        Entry("image/patch/kernel", "image.patches.weight", "patch"),
        Entry("image/patch/bias", "image.patches.bias"),
        Entry("image/position", "image.positions"),
        *norm("image/norm", "image.norm"),
        Entry("image/pool/probe", "image.probe"),
        *norm("image/pool/norm", "image.head_norm"),
        *dense("image/pool/mlp/in", "image.mlp.fc1"),
        *dense("image/pool/mlp/out", "image.mlp.fc2"),
        Entry("text/token", "text.tokens.weight"),
        Entry("text/position", "text.positions"),
        *norm("text/norm", "text.norm"),
        *dense("text/head", "text.head"),
        Entry("log_scale", "log_scale"),
        Entry("bias", "bias"),
    ]
    taps = [
        Tap("image/norm", "image.norm"),
        Tap("image/pool", "image"),
        Tap("text/norm", "text.norm"),
        Tap("text/pool", "text.head", "input"),
        Tap("text/head", "text.head"),
    ]
    for part in ("q", "k", "v", "out"):
        entries += dense(f"image/pool/attn/{part}", f"image.attention.{part}")
    for side, depth in (("image", IMAGE.depth), ("text", TEXT.depth)):
        taps.append(Tap(f"{side}/stem", f"{side}.blocks", "input"))
        for i in range(depth):
            ours, theirs = f"{side}/block{i:02d}", f"{side}.blocks.{i}"
            entries += [*norm(f"{ours}/norm1", f"{theirs}.norm1"), *norm(f"{ours}/norm2", f"{theirs}.norm2")]
            for part in ("q", "k", "v", "out"):
                entries += dense(f"{ours}/attn/{part}", f"{theirs}.attention.{part}")
            entries += dense(f"{ours}/mlp/in", f"{theirs}.mlp.fc1")
            entries += dense(f"{ours}/mlp/out", f"{theirs}.mlp.fc2")
            taps += [Tap(f"{ours}/+attn", f"{theirs}.norm2", "input"), Tap(f"{ours}/+mlp", theirs)]
    return tuple(entries), tuple(taps)


def signs(logits):
    return 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1


def own_loss(model, images, tokens):
    image, text = model(images, tokens)
    logits = image @ text.T * model.log_scale.exp() + model.bias
    value = -F.logsigmoid(signs(logits) * logits).sum() / len(logits)
    return value, {"image/embed": image, "text/embed": text, "logits": logits}


def own_adapter(module, loss=own_loss):
    table, taps = own_tables()
    return TorchModel("own model", module.eval(), CONFIG, table, taps, loss)


# -- models of our own


class QuickTwoLayers(TwoLayers):
    """OpenAI's CLIP."""

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


def clip_gelu(wrong=True):
    module = OwnModel()
    if wrong:
        for part in module.modules():
            if isinstance(part, TwoLayers):
                become(part, QuickTwoLayers)
    return own_adapter(module)


class CausalAttention(Attention):
    def forward(self, queries, keys):
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, x in ((self.q, queries), (self.k, keys), (self.v, keys))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def causal_text(wrong=True):
    module = OwnModel()
    if wrong:
        for block in module.text.blocks:
            become(block.attention, CausalAttention)
    return own_adapter(module)


class AnnotatedNorm(nn.LayerNorm):
    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        std = x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias


def annotated_norm(wrong=True):
    module = OwnModel()
    if wrong:
        for part in module.modules():
            if isinstance(part, nn.LayerNorm):
                become(part, AnnotatedNorm)
    return own_adapter(module)


class CheckpointedImages(OwnImages):
    """Activation checkpointing of the stem saves the memory of the patches."""

    def stem(self, images):
        return self.patches(images).flatten(2).mT + self.positions

    def forward(self, images):
        x = self.norm(self.blocks(checkpoint(self.stem, images, use_reentrant=True)))
        x = self.attention(self.probe.expand(len(x), -1, -1), x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


def checkpointed_stem(wrong=True):
    module = OwnModel()
    if wrong:
        become(module.image, CheckpointedImages)
    return own_adapter(module)


class ProbedImages(OwnImages):
    def forward(self, images):
        x = self.norm(self.blocks(self.patches(images).flatten(2).mT + self.positions))
        probe = self.probe.expand(len(x), -1, -1)
        x = probe + self.attention(probe, x)
        x = x + self.mlp(self.head_norm(x))
        return x.squeeze(1)


class MeanTexts(OwnTexts):
    def forward(self, tokens):
        x = self.norm(self.blocks(self.tokens(tokens) + self.positions))
        return self.head(x.mean(dim=1))


def probe_kept_and_mean(wrong=True):
    module = OwnModel()
    if wrong:
        become(module.image, ProbedImages)
        become(module.text, MeanTexts)
    return own_adapter(module)


# -- transformers


class NormedResidual(SiglipMultiheadAttentionPoolingHead):
    def forward(self, hidden_state):
        probe = self.probe.expand(hidden_state.shape[0], -1, -1)
        x, _ = self.attention(probe, hidden_state, hidden_state, need_weights=False)
        x = self.layernorm(x)
        x = x + self.mlp(x)
        return x[:, 0]


def normed_residual(wrong=True):
    model = hugging_face()
    if wrong:
        become(model.vision_model.head, NormedResidual)
    return model


class FlashAttention(SiglipAttention):
    """The eager path, with F.scaled_dot_product_attention put in its place."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        b, n, c = hidden_states.shape
        q = self.q_proj(hidden_states).view(b, n, self.num_heads, self.head_dim).transpose(1, 2) * self.scale
        k = self.k_proj(hidden_states).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(hidden_states).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.out_proj(out.transpose(1, 2).reshape(b, n, c)), None


def every_layer(model):
    return [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]


def scaled_twice(wrong=True):
    model = hugging_face()
    if wrong:
        for layer in every_layer(model):
            become(layer.self_attn, FlashAttention)
    return model


class TiledAttention(SiglipAttention):
    """One product for q, k and v; keys in tiles of four with a running maximum. Nothing is wrong."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        projections = (self.q_proj, self.k_proj, self.v_proj)
        weight = torch.cat([f.weight for f in projections])
        bias = torch.cat([f.bias for f in projections])
        qkv = F.linear(hidden_states, weight, bias).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q = q * self.scale
        top = q.new_full((*q.shape[:-1], 1), -torch.inf)
        total, mixed = torch.zeros_like(top), torch.zeros_like(q)
        for keys, values in zip(k.split(4, -2), v.split(4, -2), strict=True):
            scores = q @ keys.mT
            now = torch.maximum(top, scores.amax(-1, keepdim=True).detach())
            shrink, weights = torch.exp(top - now), torch.exp(scores - now)
            total = shrink * total + weights.sum(-1, keepdim=True)
            mixed = shrink * mixed + weights @ values
            top = now
        return self.out_proj((mixed / total).transpose(1, 2).flatten(2)), None


class CheckpointedHead(SiglipMultiheadAttentionPoolingHead):
    def forward(self, hidden_state):
        return checkpoint(super().forward, hidden_state, use_reentrant=False)


def tiled_and_checkpointed(wrong=True):
    model = hugging_face()
    if wrong:  # nothing is wrong: another way to write it
        for layer in every_layer(model):
            become(layer.self_attn, TiledAttention)
        become(model.vision_model.head, CheckpointedHead)
    return model


# -- open_clip


def interleaved(self, x, attn_mask=None, is_causal=False):
    b, n, c = x.shape
    qkv = self.qkv(x).reshape(b, n, self.num_heads, 3, c // self.num_heads)
    q, k, v = qkv.permute(3, 0, 2, 1, 4)
    x = F.scaled_dot_product_attention(q, k, v)
    return self.proj(x.transpose(1, 2).reshape(b, n, c))


def heads_before_qkv(wrong=True):
    model = small_open_clip()
    if wrong:
        for block in model.visual.trunk.blocks:
            attention = type(block.attn)
            become(block.attn, type("MegatronAttention", (attention,), {"forward": interleaved}))
    return model


# -- JAX

J_WIDTH, J_HEADS, J_HIDDEN, J_PATCH, J_GRID, J_VOCABULARY, J_LENGTH, J_DEPTH = 12, 2, 15, 4, 5, 50, 9, 2


def j_layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def j_normalize(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


def j_gelu(x):
    return jax.nn.gelu(x, approximate=True)


def j_patches(images):
    """b (h p1) (w p2) c -> b (h w) (p1 p2 c)"""
    x = images.reshape(len(images), J_GRID, J_PATCH, J_GRID, J_PATCH, 3)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), J_GRID * J_GRID, -1)


def j_run(x, p, block):
    middles, ends = [], []
    for i in range(J_DEPTH):
        middle, x = block(x, p[f"encoderblock_{i}"])
        middles.append(middle)
        ends.append(x)
    return x, middles, ends


def j_sigmoid_loss(logits):
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum(-1).mean()


def j_loss(patches=j_patches, gelu=j_gelu, run=j_run, text_place=-1, sigmoid_loss=j_sigmoid_loss):
    def mlp(x, p):
        x = gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
        return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

    def attention(x_query, x_key, p):
        def project(x, name):
            return jnp.einsum("bnc,chd->bnhd", x, p[name]["kernel"]) + p[name]["bias"]

        q, k, v = project(x_query, "query"), project(x_key, "key"), project(x_key, "value")
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
        return jnp.einsum("bnhd,hdc->bnc", mixed, p["out"]["kernel"]) + p["out"]["bias"]

    def block(x, p):
        y = j_layer_norm(x, p["LayerNorm_0"])
        middle = x + attention(y, y, p["MultiHeadDotProductAttention_0"])
        return middle, middle + mlp(j_layer_norm(middle, p["LayerNorm_1"]), p["MlpBlock_0"])

    def encoder(x, p, tower, seen):
        x, middles, ends = run(x, p, block)
        for i in range(J_DEPTH):
            seen[f"{tower}/block{i:02d}/+attn"], seen[f"{tower}/block{i:02d}/+mlp"] = middles[i], ends[i]
        return j_layer_norm(x, p["encoder_norm"])

    def image_tower(images, p, seen):
        x = patches(images) @ p["embedding"]["kernel"].reshape(-1, J_WIDTH) + p["embedding"]["bias"]
        x = seen["image/stem"] = x + p["pos_embedding"]
        x = seen["image/norm"] = encoder(x, p["Transformer"], "image", seen)
        head = p["MAPHead_0"]
        x = attention(jnp.tile(head["probe"], (len(x), 1, 1)), x, head["MultiHeadDotProductAttention_0"])
        x = x + mlp(j_layer_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"])
        seen["image/pool"] = x[:, 0]
        return x[:, 0]

    def text_tower(tokens, p, seen):
        x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] + p["pos_embedding"]
        x = seen["text/norm"] = encoder(x, p["Encoder_0"], "text", seen)
        x = seen["text/pool"] = x[:, text_place]
        x = seen["text/head"] = x @ p["head"]["kernel"] + p["head"]["bias"]
        return x

    def loss_fn(params, images, tokens):
        seen = {}
        image = seen["image/embed"] = j_normalize(image_tower(images, params["img"], seen))
        text = seen["text/embed"] = j_normalize(text_tower(tokens, params["txt"], seen))
        logits = seen["logits"] = image @ text.T * jnp.exp(params["t"]) + params["b"]
        return sigmoid_loss(logits), seen

    return loss_fn


def j_init():
    rng = np.random.default_rng(8)

    def tensor(*shape):
        return jnp.asarray(0.2 * rng.standard_normal(shape, np.float32))

    def kernel(*shape, bias):
        return {"kernel": tensor(*shape), "bias": tensor(*bias)}

    def scale():
        return {"scale": 1 + tensor(J_WIDTH), "bias": tensor(J_WIDTH)}

    def many_heads():
        size = J_WIDTH // J_HEADS
        qkv = {name: kernel(J_WIDTH, J_HEADS, size, bias=(J_HEADS, size)) for name in ("query", "key", "value")}
        return qkv | {"out": kernel(J_HEADS, size, J_WIDTH, bias=(J_WIDTH,))}

    def two_layers():
        first = kernel(J_WIDTH, J_HIDDEN, bias=(J_HIDDEN,))
        return {"Dense_0": first, "Dense_1": kernel(J_HIDDEN, J_WIDTH, bias=(J_WIDTH,))}

    def block():
        return {
            "LayerNorm_0": scale(),
            "MultiHeadDotProductAttention_0": many_heads(),
            "LayerNorm_1": scale(),
            "MlpBlock_0": two_layers(),
        }

    def blocks():
        return {f"encoderblock_{i}": block() for i in range(J_DEPTH)} | {"encoder_norm": scale()}

    head = {"probe": tensor(1, 1, J_WIDTH), "MultiHeadDotProductAttention_0": many_heads()}
    image = {
        "embedding": kernel(J_PATCH, J_PATCH, 3, J_WIDTH, bias=(J_WIDTH,)),
        "pos_embedding": tensor(1, J_GRID * J_GRID, J_WIDTH),
        "Transformer": blocks(),
        "MAPHead_0": head | {"LayerNorm_0": scale(), "MlpBlock_0": two_layers()},
    }
    text = {
        "Embed_0": {"embedding": tensor(J_VOCABULARY, J_WIDTH)},
        "pos_embedding": tensor(1, J_LENGTH, J_WIDTH),
        "Encoder_0": blocks(),
        "head": kernel(J_WIDTH, J_WIDTH, bias=(J_WIDTH,)),
    }
    return {"img": image, "txt": text, "t": 1 + tensor(1), "b": tensor(1) - 1}


def channels_first(images):
    """b (h p1) (w p2) c -> b (h w) (c p1 p2)"""
    x = images.reshape(len(images), J_GRID, J_PATCH, J_GRID, J_PATCH, 3)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(len(images), J_GRID * J_GRID, -1)


def patches_channels_first(wrong=True):
    ports = {"patches": channels_first} if wrong else {}
    return BigVision(j_loss(**ports), j_init(), name="JAX model without a convolution")


def exact_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def exact_gelu_and_first_token(wrong=True):
    ports = {"gelu": exact_gelu, "text_place": 0} if wrong else {}
    return BigVision(j_loss(**ports), j_init(), name="JAX port")


def late_bound(x, p, block):
    layers = [lambda x: block(x, p[f"encoderblock_{i}"]) for i in range(J_DEPTH)]  # noqa: B023
    middles, ends = [], []
    for layer in layers:
        middle, x = layer(x)
        middles.append(middle)
        ends.append(x)
    return x, middles, ends


def last_block_everywhere(wrong=True):
    ports = {"run": late_bound} if wrong else {}
    return BigVision(j_loss(**ports), j_init(), name="JAX model of closures")


@jax.custom_vjp
def fused_loss(logits):
    own = jnp.eye(len(logits), dtype=bool)
    return jax.nn.softplus(jnp.where(own, -logits, logits)).sum() / len(logits)


def fused_forward(logits):
    return fused_loss(logits), logits


def fused_backward(logits, upstream):
    return (upstream * (jax.nn.sigmoid(logits) - jnp.eye(len(logits), dtype=logits.dtype)) / len(logits),)


fused_loss.defvjp(fused_forward, fused_backward)


def scanned(x, p, block):
    def body(x, layer):
        middle, x = jax.checkpoint(block)(x, layer)
        return x, (middle, x)

    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p[f"encoderblock_{i}"] for i in range(J_DEPTH)))
    x, (middles, ends) = jax.lax.scan(body, x, layers, unroll=2)
    return x, middles, ends


@jax.custom_jvp
def tanh_gelu(x):
    return 0.5 * x * (1 + jnp.tanh((2 / np.pi) ** 0.5 * x * (1 + 0.044715 * x * x)))


@tanh_gelu.defjvp
def tanh_gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    c = (2 / np.pi) ** 0.5
    t = jnp.tanh(c * x * (1 + 0.044715 * x * x))
    return 0.5 * x * (1 + t), dx * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 0.134145 * x * x))


def own_derivatives(wrong=True):
    ports = {"run": scanned, "gelu": tanh_gelu, "sigmoid_loss": fused_loss} if wrong else {}  # nothing is wrong
    return BigVision(j_loss(**ports), j_init(), name="JAX model with derivatives by hand")


# -- training steps, torch


def matrices_of(model):
    found = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return found | {id(m.in_proj_weight) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}


def split_by_decay(model, params, decay, **more):
    """Two groups: with decay and without."""
    kernels, params = matrices_of(model), list(params)
    return [
        {"params": [p for p in params if id(p) in kernels], "weight_decay": decay, **more},
        {"params": [p for p in params if id(p) not in kernels], "weight_decay": 0.0, **more},
    ]


def hf_loss(model, images, tokens):
    return model(pixel_values=images, input_ids=tokens, return_loss=True).loss


def warm_up(step):
    return min(1.0, (step + 1) / 5)


def clipped_by_value(wrong=True):
    model = hugging_face()
    groups = split_by_decay(model, model.parameters(), 0.1)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        if wrong:
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=0.1)
    return {"step_fn": step, "rule": rule, "model": model}


def zeroed_in_the_loop(wrong=True):
    model = hugging_face()
    groups = split_by_decay(model, model.parameters(), 0.1)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad()
        for i, (some, theirs) in enumerate(zip(images.chunk(2), tokens.chunk(2), strict=True)):
            if wrong:
                optimizer.zero_grad()
            loss = hf_loss(model, some, theirs) / 2
            loss.backward()
            if (i + 1) % 2 == 0:
                optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1), "model": model, "accumulate": 2}


def scheduler_first(wrong=True):
    model = hugging_face()
    groups = split_by_decay(model, model.parameters(), 0.1)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)

    def step(images, tokens):
        if wrong:
            scheduler.step()
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not wrong:
            scheduler.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
    return {"step_fn": step, "rule": rule, "model": model, "schedule": warm_up}


def optimizer_not_saved(wrong=True):
    model = hugging_face()

    def make():
        groups = split_by_decay(model, model.parameters(), 0.1)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

        def step(images, tokens):
            optimizer.zero_grad(set_to_none=True)
            hf_loss(model, images, tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return optimizer, step

    running, first_step = make()

    def restart():
        checkpoint = {"model": model.state_dict(), "step": 2}
        if not wrong:
            checkpoint["optimizer"] = running.state_dict()
        checkpoint = copy.deepcopy(checkpoint)
        model.load_state_dict(checkpoint["model"])
        optimizer, step = make()
        if "optimizer" in checkpoint:
            optimizer.load_state_dict(checkpoint["optimizer"])
        return step

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
    return {"step_fn": first_step, "rule": rule, "model": model, "restart": restart}


def all_decay(wrong=True):
    model = hugging_face()
    groups = model.parameters() if wrong else split_by_decay(model, model.parameters(), 0.2)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.2)

    def step(images, tokens):
        optimizer.zero_grad()
        loss = hf_loss(model, images, tokens)
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, eps=1e-6, decay=0.2), "model": model}


def slow_images_and_default_betas(wrong=True):
    model = hugging_face()
    images_first = [model.vision_model.parameters()]
    images_first.append(p for name, p in model.named_parameters() if not name.startswith("vision_model."))
    lrs = (1e-4, 1e-3) if wrong else (1e-3, 1e-3)
    groups = [
        group
        for params, lr in zip(images_first, lrs, strict=True)
        for group in split_by_decay(model, params, 0.1, lr=lr)
    ]
    optimizer = torch.optim.AdamW(groups, **({} if wrong else {"betas": (0.9, 0.95)}))

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
    return {"step_fn": step, "rule": rule, "model": model}


def cached_gradients(wrong=True):
    """GradCache in chunks of two pairs, and AdamW over all tensors at once. Nothing is wrong."""
    model = hugging_face()
    params, kernels = list(model.parameters()), matrices_of(model)
    reference = torch.optim.AdamW(split_by_decay(model, params, 0.1), lr=1e-3, betas=(0.9, 0.95))
    decays = [0.1 * (id(p) in kernels) for p in params]
    means = []
    done = itertools.count(1)

    def embed(images, tokens):
        image = model.vision_model(pixel_values=images).pooler_output
        text = model.text_model(input_ids=tokens).pooler_output
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)

    def fused_adam():
        k, lr, beta1, beta2 = next(done), 1e-3, 0.9, 0.95
        grads = [p.grad for p in params]
        if not means:
            means.extend([torch.zeros_like(p) for p in params] for _ in range(2))
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (1.0 / (length + 1e-6)).clamp(max=1.0))
        torch._foreach_lerp_(means[0], grads, 1 - beta1)
        torch._foreach_mul_(means[1], beta2)
        torch._foreach_addcmul_(means[1], grads, grads, 1 - beta2)
        below = torch._foreach_sqrt(means[1])
        torch._foreach_div_(below, math.sqrt(1 - beta2**k))
        torch._foreach_add_(below, 1e-8)
        torch._foreach_mul_(params, [1 - lr * decay for decay in decays])
        torch._foreach_addcdiv_(params, means[0], below, -lr / (1 - beta1**k))

    def step(images, tokens):
        model.zero_grad()
        if not wrong:
            hf_loss(model, images, tokens).backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            reference.step()
            return
        chunks = list(zip(images.split(2), tokens.split(2), strict=True))
        with torch.no_grad():
            cache = [torch.cat(parts).requires_grad_() for parts in zip(*(embed(*one) for one in chunks), strict=True)]
        with torch.enable_grad():
            logits = cache[1] @ cache[0].T * model.logit_scale.exp() + model.logit_bias
            (-F.logsigmoid(signs(logits) * logits).sum() / len(logits)).backward()
        for i, one in enumerate(chunks):
            image, text = embed(*one)
            here = slice(2 * i, 2 * i + 2)
            torch.autograd.backward([image, text], [cache[0].grad[here], cache[1].grad[here]])
        with torch.no_grad():
            fused_adam()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0), "model": model}


# -- training steps, JAX


def kernel_mask(params):
    return {name: name.endswith("/kernel") for name in params}


def with_optax(chain):
    def step(params, grads, state):
        state = chain.init(params) if state is None else state
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def decay_through_adam(wrong=True):
    decay, adam = optax.add_decayed_weights(0.1, mask=kernel_mask), optax.scale_by_adam(b1=0.9, b2=0.95)
    middle = (decay, adam) if wrong else (adam, decay)
    chain = optax.chain(optax.clip_by_global_norm(1.0), *middle, optax.scale(-1e-3))
    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0, clip_eps=0.0)
    return {"step_fn": with_optax(chain), "rule": rule, "framework": "jax"}


def clipped_behind_adam(wrong=True):
    adam, clip = optax.adamw(1e-4, b2=0.95, weight_decay=0.1, mask=kernel_mask), optax.clip_by_global_norm(0.1)
    chain = optax.chain(adam, clip) if wrong else optax.chain(clip, adam)
    rule = sr.AdamW(lr=1e-4, beta2=0.95, decay=0.1, max_norm=0.1, clip_eps=0.0)
    return {"step_fn": with_optax(chain), "rule": rule, "framework": "jax"}


def adam_by_hand(wrong=True):
    lr, beta1, beta2, eps, weight_decay = 1e-3, 0.9, 0.95, 1e-8, 0.1

    @jax.jit
    def update(params, grads, m, v, count):
        m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, grads)
        v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, v, grads)

        def new(name):
            p = params[name]
            if wrong:
                change = m[name] / jnp.sqrt(v[name] + eps)
            else:
                change = m[name] / (1 - beta1**count) / (jnp.sqrt(v[name] / (1 - beta2**count)) + eps)
            if name.endswith("kernel"):
                change = change + weight_decay * p
            return p - lr * change

        return {name: new(name) for name in params}, m, v

    def step(params, grads, state):
        if state is None:
            zeros = jax.tree.map(jnp.zeros_like, params)
            state = (zeros, zeros, 0)
        m, v, count = state
        params, m, v = update(params, grads, m, v, count + 1.0)
        return params, (m, v, count + 1)

    return {"step_fn": step, "rule": sr.AdamW(lr=lr, beta2=beta2, eps=eps, decay=weight_decay), "framework": "jax"}


# -- the programs


def program(check, fn, framework, truth, *same, given=None):
    given = dict(FLOAT32 if check == "model" else {}) if given is None else given
    return {"check": check, "fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "CLIP's GELU": program(
        "model",
        clip_gelu,
        "torch",
        "every MLP (blocks of both towers and the pooling's): x sigmoid(1.702 x) in place of GELU's tanh form",
        "quick GELU everywhere",
        "SiLU with its argument times 1.702: up to 0.0207 off GELU (at |x| = 2.29)",
    ),
    "text is causal": program(
        "model",
        causal_text,
        "torch",
        "self-attention of both text blocks is causal: position i sees positions 0..i only; images and pooling are"
        " right",
        "the text tower has CLIP's causal mask (scores of later keys are -inf); the last position, which is pooled,"
        " sees all, so the last block alone would change nothing in the loss",
    ),
    "norm of the Annotated Transformer": program(
        "model",
        annotated_norm,
        "torch",
        "all LayerNorms of both towers and pooling: (x - mean) / (std + 1e-6) with"
        " std = sqrt(sum (x - mean)^2 / (W - 1)), unbiased, eps outside the root; W = 12 (images), 10 (texts)",
        "variance divided by W - 1, not W: what is normalised is multiplied by sqrt((W - 1) / W) = 0.9574 (images),"
        " 0.9487 (texts), before weight and bias",
        "Bessel's correction in LayerNorm (and eps added to the deviation, which hardly shows)",
    ),
    "stem checkpointed, gradient lost": program(
        "model",
        checkpointed_stem,
        "torch",
        "activations and loss are right; patch kernel, patch bias and image positions get no gradient (None or 0):"
        " reentrant checkpointing of the stem, whose input, the pixels, needs none",
        "the image tower's stem (embedding and position table) is cut off from the backward; every other gradient is"
        " right",
        "image/stem is detached",
    ),
    "two: probe added back, texts averaged": program(
        "model",
        probe_kept_and_mean,
        "torch",
        "(1) attention pooling: x = probe + MHA(probe, tokens), then x + MLP(LN(x)): a residual from the probe;"
        " (2) texts are pooled by the mean of all 9 normed tokens, not the last one",
        "(1) the query is added to what pooling's attention gives; (2) mean pooling of the text tower, before its head",
    ),
    "pooling's residual is normed": program(
        "model",
        normed_residual,
        "torch",
        "image pooling: y = LN(MHA), y + MLP(y), where MHA + MLP(LN(MHA)) belongs",
        "the residual of the pooling's MLP starts behind its LayerNorm, not before",
        "the attention pooling's output is LN(r) + MLP(LN(r)): post-norm-like, r replaced by LN(r)",
    ),
    "scaled twice": program(
        "model",
        scaled_twice,
        "torch",
        "self-attention in all blocks of both towers: scores q.k / h in place of q.k / sqrt(h), h = 6: queries are"
        " multiplied by 6^-0.5 and scaled_dot_product_attention does it again; pooling is right",
        "scores are 0.408 = 6^-0.5 times what they should be",
        "attention scale 1/6 = 0.1667 instead of 0.4082: softmax too flat, in the blocks only",
    ),
    "heads before q, k, v": program(
        "model",
        heads_before_qkv,
        "torch",
        "image blocks: the 72 outputs of the fused qkv layer are read as (head, q/k/v, 6), not (q/k/v, head, 6):"
        " outputs 18 i to 18 i + 17 are q, k, v of head i (4 heads, h = 6); text and pooling are right",
        "the joint projection is cut Megatron's way (interleaved per head): e.g. head 0's keys are what should be"
        " head 1's queries, head 0's values head 2's queries, head 1's query what should be head 3's query",
        "rows of the q, k, v weights are permuted among each other in each image block",
    ),
    "patches channels first": program(
        "model",
        patches_channels_first,
        "jax",
        "image stem: pixels of a patch are flattened as (channel, row, column), the kernel as (row, column, channel):"
        " weights meet wrong pixels within the patch; order of patches is right",
        "pixel number 16 c + 4 r + s of a patch is multiplied by the kernel row of pixel (r', s', c') with"
        " 12 r' + 3 s' + c' the same number",
        "the patch kernel is not permuted from HWC to CHW: as if kernel.reshape(4, 4, 3, W) were read as (3, 4, 4, W)",
    ),
    "two: exact GELU, first token": program(
        "model",
        exact_gelu_and_first_token,
        "jax",
        "(1) all MLPs (both towers, pooling) use GELU by erf, not its tanh form;"
        " (2) texts are pooled at position 0, not the last (8)",
        "(1) x Phi(x): jax.nn.gelu(approximate=False), up to 4.7e-4 off; (2) the text head reads the first token's"
        " output",
    ),
    "last block everywhere": program(
        "model",
        last_block_everywhere,
        "jax",
        "in both towers both blocks compute with the parameters of block 1 (the last): block 0's are not used and have"
        " gradient 0; block 1's have the sum of both uses",
        "late binding in a list of lambdas: block01 runs twice, block00 never",
        "weights are shared between blocks: block 0 = block 1",
    ),
    "right: attention in tiles, head checkpointed": program("model", tiled_and_checkpointed, "torch", "SigLIP's own"),
    "right: JAX with derivatives by hand": program("model", own_derivatives, "jax", "SigLIP's own"),
    "clipped by value": program(
        "step",
        clipped_by_value,
        "torch",
        "every entry of the gradient is clamped to [-0.1, 0.1]; the length of the whole gradient is not clipped to 0.1",
        "clip_grad_value_(0.1) in place of clip_grad_norm_(0.1)",
        "clip by value, not by norm: entries below 0.1 are left as they are, so the gradient's length stays above 0.1",
    ),
    "zeroed in the loop": program(
        "step",
        zeroed_in_the_loop,
        "torch",
        "zero_grad comes before each micro-batch: only the second one (pairs 4 to 7) counts, with its loss / 2;"
        " the gradient of pairs 0 to 3 is thrown away",
        "g = g2 / 2 in place of (g1 + g2) / 2: no accumulation",
        "the step sees the last micro-batch's gradient only, at half its size, which Adam hides",
    ),
    "scheduler first": program(
        "step",
        scheduler_first,
        "torch",
        "step k uses the schedule's factor of step k + 1: lr times 2/5, 3/5, 4/5 in place of 1/5, 2/5, 3/5; the"
        " decay likewise",
        "the schedule is one step ahead: scheduler.step() before the optimiser's first step",
        "the learning rate is 2, 1.5, 1.333 times what it should be in the three steps",
    ),
    "optimiser not saved": program(
        "step",
        optimizer_not_saved,
        "torch",
        "a restart keeps the weights, but not AdamW's state: in the third step m = v = 0 before, and the bias"
        " correction's count is 1 again",
        "steps 0 and 1 are right; after loading, step 2 is a first step of Adam: lr g / (|g| + eps) besides the decay",
        "moments and step count are lost in the checkpoint",
    ),
    "all decay": program(
        "step",
        all_decay,
        "torch",
        "weight decay 0.2 on all parameters: also biases, norms, token and position tables, probe, log_scale (t') and"
        " bias; only kernels of linear layers and of the patches should",
        "AdamW(model.parameters(), weight_decay=0.2) without groups: what should not decay is also multiplied by"
        " 1 - 1e-3 * 0.2 = 0.9998 a step",
    ),
    "two: images ten times slower, default betas": program(
        "step",
        slow_images_and_default_betas,
        "torch",
        "(1) learning rate of the whole image tower 1e-4, a tenth of 1e-3 (its decay, being lr * 0.1, too);"
        " (2) beta2 is 0.999 in place of 0.95",
        "(1) updates of image parameters are 0.1 times as long; (2) Torch's default betas, all parameters:"
        " equal in the first step, which bias correction makes the same, different from the second",
    ),
    "decay through Adam": program(
        "step",
        decay_through_adam,
        "jax",
        "kernels: 0.1 p is added to the (clipped) gradient before Adam's moments (L2), and not lr * 0.1 * p taken"
        " beside them; parameters without decay are right",
        "Adam with L2 regularisation of 0.1 in place of AdamW's decoupled decay: g + 0.1 p goes into m and v",
        "add_decayed_weights stands before scale_by_adam",
    ),
    "clipped behind Adam": program(
        "step",
        clipped_behind_adam,
        "jax",
        "the gradient is not clipped; AdamW's update (lr and decay in it) is clipped to length 0.1 instead, which it"
        " stays below as long as there are less than about a million entries: lr is 1e-4",
        "no gradient clipping: Adam's moments are of the raw gradient",
        "optax.chain(adamw, clip_by_global_norm(0.1)): in the wrong order",
    ),
    "two: uncorrected, eps inside": program(
        "step",
        adam_by_hand,
        "jax",
        "(1) no bias correction: m and v are used as they are; (2) eps 1e-8 is added to v under the root:"
        " m / sqrt(v + 1e-8), not m / (sqrt(v) + 1e-8)",
        "(1) where |g| is far above 5e-4 the first update is 0.1 / sqrt(0.05) = 0.447 times the right one (with equal"
        " gradients 0.608 in the second, 0.718 in the third); (2) eps acts as 1e-4 beside sqrt(v): small gradients move"
        " less",
    ),
    "right: GradCache and AdamW by foreach": program("step", cached_gradients, "torch", "SigLIP's own"),
}
