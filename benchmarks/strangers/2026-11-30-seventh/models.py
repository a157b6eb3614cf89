"""Models and training steps, most of them wrong, with the truth of each: for sr.check_model and sr.check_step.

Every factory takes wrong=True; with wrong=False it gives the same program without its mistake (try/try_models.py compares).
The author has not read the checker; scaffolding (imports, small models, adapters) is that of older sets.
"""

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
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipTextModel, SiglipVisionEmbeddings


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
from siglip_ref.model.optim import matrices

FLOAT32 = {"dtype": "float32"}


def become(module, kind):
    """The same parameters under another forward pass."""
    module.__class__ = kind
    return module


# ------------------------------------------------------------------------------------------------ transformers


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


def layers(model):
    return [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]


class RotaryAttention(SiglipAttention):
    """Queries and keys turned by their index, as the shared attention of a newer code base does for every model."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        shape = (*hidden_states.shape[:2], self.num_heads, self.head_dim)
        q, k, v = (f(hidden_states).view(shape).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        half = self.head_dim // 2
        speeds = 10000.0 ** (-torch.arange(half, dtype=q.dtype) / half)
        angles = torch.arange(q.shape[2], dtype=q.dtype)[:, None] * speeds
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

        def turned(x):
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

        out = F.scaled_dot_product_attention(turned(q), turned(k), v, scale=self.scale)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def rotary(wrong=True):
    model = hugging_face(width=16)
    if wrong:
        for layer in model.vision_model.encoder.layers:
            become(layer.self_attn, RotaryAttention)
    return model


def padded_patches(wrong=True):
    model = hugging_face()
    if wrong:
        model.vision_model.embeddings.patch_embedding.padding = (1, 1)  # 22 pixels: still five patches of four a side
    return model


class Int8Linear(nn.Linear):
    """Weights on a grid of 255 values for each output; gradients straight through the rounding."""

    def forward(self, x):
        grid = self.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        rounded = torch.round(self.weight.detach() / grid) * grid
        return F.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


def int8_weights(wrong=True):
    model = hugging_face(width=16)
    if wrong:
        for layer in layers(model):
            become(layer.mlp.fc1, Int8Linear)
            become(layer.mlp.fc2, Int8Linear)
    return model


class BlueFirst(SiglipVisionEmbeddings):
    """Images as OpenCV reads them: blue, green, red. (They are red first already.)"""

    def forward(self, pixel_values, interpolate_pos_encoding=False):
        return super().forward(pixel_values.flip(1), interpolate_pos_encoding)


class MaskedText(SiglipTextModel):
    """Attention mask from the tokens, as for any other text model: 0 pads, 1 ends; the pooled position stays."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        attention_mask = (input_ids > 1).long()
        attention_mask[:, -1] = 1
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def blue_and_masked(wrong=True):
    model = hugging_face()
    if wrong:
        become(model.vision_model.embeddings, BlueFirst)
        become(model.text_model, MaskedText)
    return model


# ------------------------------------------------------------------------------------------------ open_clip and timm


def vit_seventh_patch4_siglip_20(pretrained=False, **kwargs):
    keep = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool", "drop_path_rate")}
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    return VisionTransformer(**settings, class_token=False, **keep)


if "vit_seventh_patch4_siglip_20" not in timm.list_models("vit_seventh*"):
    register_model(vit_seventh_patch4_siglip_20)


def small_open_clip():
    vision = {"image_size": 20, "timm_model_name": "vit_seventh_patch4_siglip_20", "timm_model_pretrained": False}
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


def batch_second(wrong=True):
    model = small_open_clip()
    if wrong:  # ported from CLIP, whose tower puts the tokens first
        for block in model.text.transformer.resblocks:
            block.attn.batch_first = False
    return model


def pool_with_half_the_heads(wrong=True):
    model = small_open_clip()
    pool = model.visual.trunk.attn_pool
    if wrong:
        pool.num_heads, pool.head_dim = pool.num_heads // 2, pool.head_dim * 2
        pool.scale = pool.head_dim**-0.5
    return model


class GroupNormOfOne(nn.LayerNorm):
    """One group, as nn.GroupNorm(1, width) has it for tokens as channels last."""

    def forward(self, x):
        mean, variance = x.mean((1, 2), keepdim=True), x.var((1, 2), keepdim=True, unbiased=False)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def group_norm_and_quick(wrong=True):
    model = small_open_clip()
    if wrong:
        become(model.visual.trunk.norm, GroupNormOfOne)
        for block in model.text.transformer.resblocks:
            block.mlp.gelu = open_clip.transformer.QuickGELU()
    return model


# ------------------------------------------------------------------------------------------------ a torch model of its own

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


class Grouped(Attention):
    """Two heads of queries to one of keys and values, which are the means of what were two."""

    def forward(self, queries, keys):
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, x in ((self.q, queries), (self.k, keys), (self.v, keys))
        )
        k, v = (x.unflatten(1, (-1, 2)).mean(2).repeat_interleave(2, 1) for x in (k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def grouped_queries(wrong=True):
    module = OwnModel()
    if wrong:
        for block in module.image.blocks:
            become(block.attention, Grouped)
    return own_adapter(module)


class FusedGelu(torch.autograd.Function):
    """Tanh GELU, its slope written out as in fused bias-GELU kernels."""

    @staticmethod
    def forward(ctx, x, cubic):
        ctx.save_for_backward(x)
        ctx.cubic = cubic
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)))

    @staticmethod
    def backward(ctx, d_out):
        (x,) = ctx.saved_tensors
        root = math.sqrt(2 / math.pi)
        t = torch.tanh(root * x * (1 + 0.044715 * x * x))
        slope = 0.5 * x * (1 - t * t) * root * (1 + ctx.cubic * x * x) + 0.5 * (1 + t)
        return d_out * slope, None


class FusedTwoLayers(TwoLayers):
    cubic = 3 * 0.044715

    def forward(self, x):
        return self.fc2(FusedGelu.apply(self.fc1(x), self.cubic))


class WrongFusedTwoLayers(FusedTwoLayers):
    cubic = 0.044715


def fused_gelu(wrong=True):
    module = OwnModel()
    for part in list(module.modules()):
        if isinstance(part, TwoLayers):
            become(part, WrongFusedTwoLayers if wrong else FusedTwoLayers)
    return own_adapter(module)


class Centred(nn.LayerNorm):
    """Without weight and bias: these are folded into what follows."""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, None, None, self.eps)


def folded(linear, norm, factor=1.0):
    """The linear layer behind a norm, as it is in front of it."""
    weight = linear.weight * norm.weight
    return factor * weight, factor * (linear.bias + linear.weight @ norm.bias)


class FoldedBlock(OwnBlock):
    """Norms folded into one matrix for q, k, v with the scale in it; softmax by its logarithm; GELU by a sigmoid."""

    def forward(self, x):
        attention, heads = self.attention, self.attention.heads
        scale = (x.shape[-1] // heads) ** -0.5
        parts = [folded(f, self.norm1, s) for f, s in ((attention.q, scale), (attention.k, 1.0), (attention.v, 1.0))]
        weight, bias = (torch.cat(kind) for kind in zip(*parts, strict=True))
        qkv = F.linear(self.norm1(x), weight, bias).unflatten(-1, (3, heads, -1))
        scores = torch.einsum("bnhd,bmhd->bnmh", qkv[:, :, 0], qkv[:, :, 1])
        weights = torch.exp(scores - torch.logsumexp(scores, 2, keepdim=True))
        mixed = torch.einsum("bnmh,bmhd->bnhd", weights, qkv[:, :, 2])
        out = attention.out.weight.unflatten(1, (heads, -1))
        x = x + torch.einsum("bnhd,chd->bnc", mixed, out) + attention.out.bias
        hidden = F.linear(self.norm2(x), *folded(self.mlp.fc1, self.norm2))
        hidden = hidden * torch.sigmoid(math.sqrt(8 / math.pi) * (hidden + 0.044715 * hidden**3))
        return x + self.mlp.fc2(hidden)


def all_folded(wrong=True):
    module = OwnModel()
    if wrong:  # nothing is wrong: another way to write it
        for block in [*module.image.blocks, *module.text.blocks]:
            become(block, FoldedBlock)
            become(block.norm1, Centred)
            become(block.norm2, Centred)
    return own_adapter(module)


# ------------------------------------------------------------------------------------------------ JAX

J_WIDTH, J_HEADS, J_HIDDEN, J_PATCH, J_GRID, J_VOCABULARY, J_LENGTH, J_DEPTH = 12, 2, 15, 4, 5, 50, 9, 2


def j_layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def j_mlp(x, p):
    x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], approximate=True)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def j_normalize(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


def j_loss(block_mlp=j_mlp, pool_keys=lambda x: x, text_normalize=j_normalize):
    def attention(x_query, x_key, p):
        def project(x, name):
            return jnp.einsum("bnc,chd->bnhd", x, p[name]["kernel"]) + p[name]["bias"]

        q, k, v = project(x_query, "query"), project(x_key, "key"), project(x_key, "value")
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
        return jnp.einsum("bnhd,hdc->bnc", mixed, p["out"]["kernel"]) + p["out"]["bias"]

    def encoder(x, p, tower, seen):
        for i in range(J_DEPTH):
            block = p[f"encoderblock_{i}"]
            y = j_layer_norm(x, block["LayerNorm_0"])
            x = seen[f"{tower}/block{i:02d}/+attn"] = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
            y = j_layer_norm(x, block["LayerNorm_1"])
            x = seen[f"{tower}/block{i:02d}/+mlp"] = x + block_mlp(y, block["MlpBlock_0"])
        return j_layer_norm(x, p["encoder_norm"])

    def image_tower(images, p, seen):
        x = jax.lax.conv_general_dilated(
            images, p["embedding"]["kernel"], (J_PATCH, J_PATCH), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = seen["image/stem"] = x.reshape(len(x), -1, J_WIDTH) + p["embedding"]["bias"] + p["pos_embedding"]
        x = seen["image/norm"] = encoder(x, p["Transformer"], "image", seen)
        head = p["MAPHead_0"]
        x = attention(jnp.tile(head["probe"], (len(x), 1, 1)), pool_keys(x), head["MultiHeadDotProductAttention_0"])
        pooled = seen["image/pool"] = (x + j_mlp(j_layer_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]
        return pooled

    def text_tower(tokens, p, seen):
        x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] + p["pos_embedding"]
        x = seen["text/norm"] = encoder(x, p["Encoder_0"], "text", seen)
        x = seen["text/pool"] = x[:, -1]
        x = seen["text/head"] = x @ p["head"]["kernel"] + p["head"]["bias"]
        return x

    def loss_fn(params, images, tokens):
        seen = {}
        image = seen["image/embed"] = j_normalize(image_tower(images, params["img"], seen))
        text = seen["text/embed"] = text_normalize(text_tower(tokens, params["txt"], seen))
        logits = seen["logits"] = image @ text.T * jnp.exp(params["t"]) + params["b"]
        z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
        return -jax.nn.log_sigmoid(z * logits).sum(-1).mean(), seen

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


def dropping_mlp(x, p):
    """The hidden layer drops a tenth: somebody passed deterministic=False, with always the same key."""
    x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], approximate=True)
    keep = jax.random.bernoulli(jax.random.PRNGKey(0), 0.9, x.shape)
    x = jnp.where(keep, x / 0.9, 0)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def dropout_stays_on(wrong=True):
    return BigVision(j_loss(dropping_mlp if wrong else j_mlp), j_init(), name="JAX model with a train flag")


def sixteen_and_square(wrong=True):
    """Keys of the pooling by the number of patches of another resolution; a root forgotten."""

    def without_root(x):
        return x / (jnp.sum(x * x, -1, keepdims=True) + 1e-8)

    ends = {"pool_keys": lambda x: x[:, :16], "text_normalize": without_root} if wrong else {}
    return BigVision(j_loss(**ends), j_init(), name="JAX model of another resolution")


def j_unusual(params, images, tokens):
    """Blocks stacked and scanned, one example at a time, a head at a time, loss by its trace."""

    def norm(x, p):
        mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
        factor = p["scale"] / jnp.sqrt(jnp.maximum(square - mean * mean, 0) + 1e-6)
        return x * factor + (p["bias"] - mean * factor)

    def mlp(x, p):
        x = jnp.einsum("nc,cm->nm", x, p["Dense_0"]["kernel"]) + p["Dense_0"]["bias"]
        x = x * jax.nn.sigmoid(2 * (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))
        return jnp.einsum("nm,mc->nc", x, p["Dense_1"]["kernel"]) + p["Dense_1"]["bias"]

    def attention(queries, keys, p):
        def head(query, key, value, out):
            q = (queries @ query["kernel"] + query["bias"]) * query["bias"].shape[-1] ** -0.5
            k, v = (keys @ one["kernel"] + one["bias"] for one in (key, value))
            scores = k @ q.T  # keys in rows
            weights = jnp.exp(scores - jax.scipy.special.logsumexp(scores, 0, keepdims=True))
            return weights.T @ v @ out

        inside = {"kernel": 1, "bias": 0}
        every = jax.vmap(head, in_axes=(inside, inside, inside, 0))
        return every(p["query"], p["key"], p["value"], p["out"]["kernel"]).sum(0) + p["out"]["bias"]

    def block(x, p):
        y = norm(x, p["LayerNorm_0"])
        middle = x + attention(y, y, p["MultiHeadDotProductAttention_0"])
        x = middle + mlp(norm(middle, p["LayerNorm_1"]), p["MlpBlock_0"])
        return x, (middle, x)

    def encoder(x, p):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p[f"encoderblock_{i}"] for i in range(J_DEPTH)))
        x, inside = jax.lax.scan(jax.checkpoint(block), x, stacked)
        return norm(x, p["encoder_norm"]), inside

    def image_tower(image):
        p = params["img"]
        patches = image.reshape(J_GRID, J_PATCH, J_GRID, J_PATCH, 3)
        x = jnp.einsum("ryczk,yzkw->rcw", patches, p["embedding"]["kernel"]).reshape(-1, J_WIDTH)
        stem = x + (p["pos_embedding"][0] + p["embedding"]["bias"])
        x, inside = encoder(stem, p["Transformer"])
        head = p["MAPHead_0"]
        y = attention(head["probe"][0], x, head["MultiHeadDotProductAttention_0"])
        return stem, inside, x, (y + mlp(norm(y, head["LayerNorm_0"]), head["MlpBlock_0"]))[0]

    def text_tower(ids):
        p = params["txt"]
        stem = jax.nn.one_hot(ids, J_VOCABULARY, dtype=p["pos_embedding"].dtype) @ p["Embed_0"]["embedding"]
        stem = stem + p["pos_embedding"][0]
        x, inside = encoder(stem, p["Encoder_0"])
        return stem, inside, x, x[-1], jnp.tensordot(x[-1], p["head"]["kernel"], 1) + p["head"]["bias"]

    def unit(x):
        return x / (jnp.sqrt((x * x).sum(-1, keepdims=True)) + 1e-8)

    seen = {}
    seen["image/stem"], image_inside, seen["image/norm"], seen["image/pool"] = jax.vmap(image_tower)(images)
    seen["text/stem"], text_inside, seen["text/norm"], seen["text/pool"], seen["text/head"] = jax.vmap(text_tower)(
        tokens
    )
    for tower, inside in (("image", image_inside), ("text", text_inside)):
        for i, place in itertools.product(range(J_DEPTH), range(2)):
            seen[f"{tower}/block{i:02d}/{('+attn', '+mlp')[place]}"] = inside[place][:, i]
    image, text = seen["image/embed"], seen["text/embed"] = unit(seen["image/pool"]), unit(seen["text/head"])
    logits = seen["logits"] = (jnp.exp(params["t"]) * image) @ text.T + params["b"]
    own = jnp.diagonal(logits)
    others = jax.nn.softplus(logits).sum() - jax.nn.softplus(own).sum()
    return (others + jax.nn.softplus(-own).sum()) / len(own), seen


def unusual_jax(wrong=True):
    return BigVision(j_unusual if wrong else j_loss(), j_init(), name="JAX model in scans and maps")


# ------------------------------------------------------------------------------------------------ training steps


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


def clipped_before_unscaling(wrong=True):
    model = hugging_face()
    optimizer = torch.optim.AdamW(split_by_decay(model, model.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def step(images, tokens):
        optimizer.zero_grad()
        scaler.scale(hf_loss(model, images, tokens)).backward()
        if not wrong:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
    return {"step_fn": step, "rule": rule, "model": model}


def tail_left_out(wrong=True):
    """AdamW on all parameters as one vector, cut into blocks of 256 for the ranks."""
    model = hugging_face()
    params, kernels = list(model.parameters()), matrices_of(model)
    lr, beta1, beta2, memory = 1e-3, 0.9, 0.95, types.SimpleNamespace(steps=0, first=0.0, second=0.0)

    def step(images, tokens):
        for p in params:
            p.grad = None
        hf_loss(model, images, tokens).backward()
        with torch.no_grad():
            flat, g = (torch.cat([x.flatten() for x in some]) for some in (params, [p.grad for p in params]))
            decay = torch.cat([torch.full_like(p, 0.1 * (id(p) in kernels)).flatten() for p in params])
            memory.steps += 1
            memory.first = beta1 * memory.first + (1 - beta1) * g
            memory.second = beta2 * memory.second + (1 - beta2) * g * g
            length = (memory.second / (1 - beta2**memory.steps)).sqrt() + 1e-8
            moved = flat * (1 - lr * decay) - lr * memory.first / (1 - beta1**memory.steps) / length
            used = len(flat) // 256 * 256 if wrong else len(flat)
            flat[:used] = moved[:used]
            for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
                p.copy_(part.view_as(p))

    return {"step_fn": step, "rule": sr.AdamW(lr=lr, beta2=beta2, decay=0.1), "model": model}


def decay_behind_the_rate(wrong=True):
    def step(params, grads, state):
        mask = {name: name.endswith("/kernel") for name in params}
        adam = optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8)
        if wrong:
            chain = optax.chain(adam, optax.scale(-1e-3), optax.add_decayed_weights(1e-4, mask))
        else:
            chain = optax.chain(adam, optax.add_decayed_weights(0.1, mask), optax.scale(-1e-3))
        updates, state = chain.update(grads, chain.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1), "framework": "jax"}


def one_correction_for_both(wrong=True):
    def step(params, grads, state):
        count, first, second = state or (
            0,
            *({name: jnp.zeros_like(p) for name, p in params.items()} for _ in range(2)),
        )
        count += 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, second, grads)
        seen1 = 1 - 0.9**count
        seen2 = seen1 if wrong else 1 - 0.95**count

        def moved(name, p):
            update = first[name] / seen1 / (jnp.sqrt(second[name] / seen2) + 1e-8)
            return p - 1e-3 * (update + (0.1 if name.endswith("/kernel") else 0.0) * p)

        return {name: moved(name, p) for name, p in params.items()}, (count, first, second)

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1), "framework": "jax"}


def old_adam_decays_positions(wrong=True):
    model = small_open_clip()
    loss = open_clip.loss.SigLipLoss()
    named = list(model.named_parameters())
    decayed = {name for name, p in named if p.ndim >= 2}
    if not wrong:
        decayed -= {name for name in decayed if "pos_embed" in name or "positional_embedding" in name}
    groups = [
        {"params": [p for name, p in named if name in decayed], "weight_decay": 0.2},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = (torch.optim.Adam if wrong else torch.optim.AdamW)(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)

    def step(images, tokens):
        optimizer.zero_grad()
        loss(*model(images, tokens)).backward()
        optimizer.step()

    rule = sr.AdamW(lr=5e-4, beta2=0.98, eps=1e-6, decay=0.2, decays=matrices)
    return {"step_fn": step, "rule": rule, "model": model}


def no_master_weights(wrong=True):
    module = OwnModel()
    optimizer = torch.optim.AdamW(split_by_decay(module, module.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad()
        own_loss(module, images, tokens)[0].backward()
        optimizer.step()
        if wrong:
            with torch.no_grad():
                for p in module.parameters():
                    p.copy_(p.to(torch.bfloat16))

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1), "model": own_adapter(module)}


def update_clipping_stays_on(wrong=True):
    """Adafactor with everything around it as big_vision has it, by hand."""

    def scaled(name, g, memory, rate):
        square = g * g + np.float32(1e-30)

        def mean(key, now):
            memory[key, name] = rate * memory.get((key, name), 0 * now) + (1 - rate) * now
            return memory[key, name]

        axes = np.argsort(g.shape, kind="stable")
        if g.ndim < 2 or g.shape[axes[-2]] < 32:
            return g / np.sqrt(mean("full", square))
        short, long = int(axes[-2]), int(axes[-1])
        row, column = mean("row", square.mean(long, keepdims=True)), mean("column", square.mean(short, keepdims=True))
        return g / np.sqrt(row / row.mean(short, keepdims=True)) / np.sqrt(column)

    def step(params, grads, state):
        memory = dict(state or {"steps": 0})
        memory["steps"] += 1
        rate = np.float32(min(0.95, 1 - memory["steps"] ** -0.8))
        length = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        factor = np.float32(1 / max(length, 1.0))
        moved = {}
        for name, p in params.items():
            update = scaled(name, grads[name] * factor, memory, rate)
            if wrong:
                update = update / np.maximum(np.float32(1), np.sqrt((update * update).mean()))
            old = memory.get(("momentum", name), 0 * p)
            memory["momentum", name] = np.float32(0.9) * old + np.float32(0.1) * update
            update = np.float32(1e-3) * memory["momentum", name]
            if name.endswith("/kernel"):
                update = update + np.float32(1e-4) * p
            moved[name] = (p - update).astype(p.dtype)
        return moved, memory

    return {"step_fn": step, "rule": sr.BigVision(lr=1e-3, decay=1e-4), "framework": "numpy"}


def texts_dealt_out(wrong=True):
    model = hugging_face()
    optimizer = torch.optim.AdamW(split_by_decay(model, model.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad()
        for k in range(2):
            some_tokens = tokens[k::2] if wrong else tokens.chunk(2)[k]
            (hf_loss(model, images.chunk(2)[k], some_tokens) / 2).backward()
        optimizer.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1)
    return {"step_fn": step, "rule": rule, "model": model, "accumulate": 2}


def clipped_each_scheduled_twice(wrong=True):
    model = hugging_face()
    optimizer = torch.optim.AdamW(split_by_decay(model, model.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.95))
    scheduler, done = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up), itertools.count()

    def step(images, tokens):
        now = next(done)
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        if wrong:
            for p in model.parameters():
                nn.utils.clip_grad_norm_([p], 0.2)
            for group in optimizer.param_groups:
                group["lr"] *= warm_up(now)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        scheduler.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=0.2)
    return {"step_fn": step, "rule": rule, "model": model, "schedule": warm_up}


def inside_the_backward(wrong=True):
    """Nothing is wrong: each parameter has its own optimiser and moves as soon as its gradient is there."""
    model = hugging_face()
    kernels = matrices_of(model)

    def adam(params, decay):
        return torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95), weight_decay=decay, foreach=False)

    alone = {p: adam([p], 0.1 * (id(p) in kernels)) for p in model.parameters()}
    together = torch.optim.AdamW(split_by_decay(model, model.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.95))

    def move(p):
        alone[p].step()
        p.grad = None

    def step(images, tokens):
        for p in model.parameters():
            p.grad = None
        loss = hf_loss(model, images, tokens)
        if not wrong:
            loss.backward()
            together.step()
            return
        hooks = [p.register_post_accumulate_grad_hook(move) for p in model.parameters()]
        loss.backward()
        for hook in hooks:
            hook.remove()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1), "model": model}


# ------------------------------------------------------------------------------------------------ the programs


def program(check, fn, framework, truth, *same, given=None):
    given = dict(FLOAT32 if check == "model" else {}) if given is None else given
    return {"check": check, "fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "rotary on top of the table": program(
        "model",
        rotary,
        "torch",
        "image blocks: queries and keys are turned by rotary embeddings (index n = 0..24 in the flattened grid,"
        " base 10000,"
        " rotate-half: pairs j and j + h/2, angle n * 10000^(-2j/h), h = 8), besides the learnt position table,"
        " which stays",
        "self-attention of the image tower's blocks has RoPE; pooling and text tower have none",
        "scores of the image blocks depend on the distance of the patches' indices; values are not turned",
    ),
    "patch convolution padded by one": program(
        "model",
        padded_patches,
        "torch",
        "image stem: the convolution pads the image with one pixel of zeros on all sides, so patch (r, c) covers pixels"
        " 4r-1..4r+2 by 4c-1..4c+2; of 20 pixels the last row and column (19) are never seen",
        "patches are taken shifted by one pixel up and left, zeros outside (padding=1 in place of 0, stride 4, 5"
        " x 5 patches)",
    ),
    "block MLPs in int8": program(
        "model",
        int8_weights,
        "torch",
        "the weights of mlp/in and mlp/out in all blocks of both towers (not of the pooling's MLP) are rounded"
        " to multiples of"
        " max|w|/127 for each output; gradients go straight through the rounding; biases are exact",
        "symmetric int8 quantisation of the blocks' MLP kernels, per output channel (fake quantisation)",
        "the MLP kernels of the blocks are rounded (off by up to 0.4 percent of the largest weight of their output)",
    ),
    "two: blue first, special tokens masked": program(
        "model",
        blue_and_masked,
        "torch",
        "(1) image stem: the channels are reversed (BGR for RGB) before the patches;"
        " (2) text tower's blocks: keys at tokens 0 and 1 are masked, but for the last position, where SigLIP"
        " attends to all",
        "(1) the patch kernel is applied with channels 0 and 2 exchanged;"
        " (2) an attention mask from input_ids > 1 (padding and end) hides these positions from every query",
    ),
    "batch before tokens": program(
        "model",
        batch_second,
        "torch",
        "text tower's blocks: attention runs over the batch, not over the tokens: position n of a text attends"
        " to position n"
        " of all texts of the batch, and to no other position",
        "MultiheadAttention with batch_first=False is given (batch, tokens, width): batch and tokens are exchanged",
        "texts of a batch are mixed; within a text no token sees another, so the pooled last position depends on"
        " last tokens only",
        given=FLOAT32 | {"conventions": sr.preset("open_clip")},
    ),
    "pooling with half the heads": program(
        "model",
        pool_with_half_the_heads,
        "torch",
        "attention pooling runs with 2 heads of 12 in place of 4 heads of 6 (scale 1/sqrt(12)); blocks are right",
        "MAP head: wrong number of heads, half as many, twice as wide",
        given=FLOAT32 | {"conventions": sr.preset("open_clip")},
    ),
    "two: norm over all patches, quick GELU": program(
        "model",
        group_norm_and_quick,
        "torch",
        "(1) the image tower's last norm takes mean and variance over all patches and channels of an image together;"
        " (2) the text tower's MLPs (both blocks) use x sigmoid(1.702 x) in place of the exact GELU; the image"
        " tower's are right",
        "(1) GroupNorm with one group in place of LayerNorm before the pooling; (2) QuickGELU in the text tower",
        given=FLOAT32 | {"conventions": sr.preset("open_clip")},
    ),
    "grouped queries by averages": program(
        "model",
        grouped_queries,
        "torch",
        "image blocks: heads 0 and 1 share the mean of their keys and the mean of their values, heads 2 and 3 likewise;"
        " pooling and text tower are right",
        "grouped-query attention with 2 heads of keys and values (means of pairs) for 4 of queries in the image"
        " tower's blocks",
    ),
    "slope of GELU without its three": program(
        "model",
        fused_gelu,
        "torch",
        "values are right; the derivative of tanh GELU in every MLP (blocks and pooling) has 1 + 0.044715 x^2"
        " in place of 1 + 3 * 0.044715 x^2 as inner derivative",
        "backward of GELU: sqrt(2/pi) * 0.044715 x^2 (0.0357) where 0.1070 x^2 belongs; wrong are all gradients of what"
        " lies before an MLP's GELU (mlp/in and all earlier); right are text/head, text/norm, log_scale, bias"
        " and mlp/out of"
        " the last text block and of the pooling",
    ),
    "right: norms folded at run time": program("model", all_folded, "torch", "SigLIP's own"),
    "dropout stays on": program(
        "model",
        dropout_stays_on,
        "jax",
        "MLPs of all blocks in both towers: the hidden layer behind GELU has dropout of rate 0.1 with a constant key:"
        " entries are zeroed, kept ones divided by 0.9; the same mask in both blocks of a tower; pooling's MLP"
        " is right",
        "a tenth of the hidden units (by example and token) is dropped in the blocks' MLPs, the rest scaled by 1/0.9",
    ),
    "two: pooling of sixteen patches, root forgotten": program(
        "model",
        sixteen_and_square,
        "jax",
        "(1) attention pooling sees only the first 16 of 25 patches as keys and values;"
        " (2) text embeddings are divided by their squared length (x / (sum x^2 + 1e-8)), images' by their length",
        "(1) the last 9 patches (row-major) are cut off before the MAP head; (2) text embeddings have length"
        " 1/n, n the length"
        " of the head's output: a square root is missing in the normalisation of texts",
    ),
    "right: JAX in scans and maps": program("model", unusual_jax, "jax", "SigLIP's own"),
    "clipped before unscaling": program(
        "step",
        clipped_before_unscaling,
        "torch",
        "the gradient is clipped to 1.0 while it is still multiplied by the loss scale 65536, then divided by it:"
        " it has length min(|g|, 1/65536) in place of min(|g|, 1)",
        "scaler.unscale_ is missing before clip_grad_norm_",
        "gradients are clipped to the length 1/65536 = 1.526e-5 (max_norm is 65536 times too small);"
        " Adam hides most of it but for eps and for steps of different lengths",
    ),
    "tail of the flat vector": program(
        "step",
        tail_left_out,
        "torch",
        "the last 130 of 7810 entries of all parameters as one vector are never updated: image/pool/mlp/out/bias"
        " as a whole (12)"
        " and 118 of 240 entries of image/pool/mlp/out/kernel (output 6 from input 2 on, outputs 7..11); all"
        " else is right",
        "image/pool/mlp/out: the bias and about half of the kernel (the last outputs) stay as they are",
        "blocks of 256 for the ranks: what is beyond the last whole block gets no step and no decay",
    ),
    "decay behind the rate": program(
        "step",
        decay_behind_the_rate,
        "jax",
        "weight decay has the wrong sign: kernels get + 1e-4 p each step in place of - 1e-4 p (lr 1e-3 times"
        " decay 0.1)",
        "add_decayed_weights comes after scale(-lr), so kernels grow by 1e-4 of themselves each step",
        "weight decay of -0.1",
    ),
    "one correction for both moments": program(
        "step",
        one_correction_for_both,
        "jax",
        "the second moment is divided by 1 - beta1^k = 1 - 0.9^k in place of 1 - beta2^k = 1 - 0.95^k",
        "bias correction of the second moment uses beta1, so it is too small: the first step is sqrt(2) = 1.414"
        " times too long",
        "steps are longer by sqrt((1 - 0.9^k) / (1 - 0.95^k)): 1.414, 1.396, 1.378, ...; decay is right",
    ),
    "two: old Adam, positions decay": program(
        "step",
        old_adam_decays_positions,
        "torch",
        "(1) L2 in place of decoupled decay: 0.2 p is added to the gradient before the moments (torch.optim.Adam);"
        " (2) image/position and text/position are decayed, too (all tensors of two or more axes)",
        "(1) Adam, not AdamW; (2) the decayed group also holds both position tables, which should have none",
    ),
    "no master weights": program(
        "step",
        no_master_weights,
        "torch",
        "after each step all parameters are rounded to bfloat16",
        "parameters are kept in bfloat16 between steps; gradient, moments and the step itself are exact",
    ),
    "update clipping stays on": program(
        "step",
        update_clipping_stays_on,
        "numpy",
        "Adafactor's scaled update u of each tensor is divided by max(1, rms(u)) before the momentum",
        "update clipping with threshold 1.0 (clip_by_block_rms(1.0), Adafactor's default), which big_vision leaves out;"
        " unfactored tensors are right in the first step, as rms(u) is 1 there",
    ),
    "texts dealt out": program(
        "step",
        texts_dealt_out,
        "torch",
        "micro-batch k (0, 1) pairs images 4k..4k+3 with texts k, k+2, k+4, k+6 (of a batch of 8), in this order:"
        " positives and negatives are those of wrong pairs",
        "images are cut in halves, texts are strided by 2: image i has text 2 (i mod 4) + i // 4 as its positive",
        "texts are permuted against the images before the micro-batches",
    ),
    "two: each clipped, scheduled twice": program(
        "step",
        clipped_each_scheduled_twice,
        "torch",
        "(1) each tensor's gradient is clipped by its own length to 0.2, not all together;"
        " (2) the learning rate (and decay) is lr * f^2, where f = min(1, (k+1)/5) is the schedule",
        "(1) clip_grad_norm_ parameter by parameter; (2) the warm-up is multiplied in twice:"
        " 1/25, 4/25, 9/25, 16/25, 1 in place of 1/5, 2/5, 3/5, 4/5, 1",
    ),
    "right: optimisers inside the backward": program("step", inside_the_backward, "torch", "SigLIP's own"),
}
