"""Models and training steps, most of them wrong, with the truth of each: for sr.check_model and sr.check_step.

Every factory takes wrong=True; wrong=False gives the same program without its mistake. The author has not read the checker;
scaffolding (imports, small models, adapters) is that of an older set, without its programs.
"""

import collections
import copy
import functools
import importlib.machinery
import importlib.util
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
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipTextModel, SiglipVisionModel


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


def vit_eleventh_patch4_siglip_20(pretrained=False, **kwargs):
    keep = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool", "drop_path_rate")}
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    return VisionTransformer(**settings, class_token=False, **keep)


if "vit_eleventh_patch4_siglip_20" not in timm.list_models("vit_eleventh*"):
    register_model(vit_eleventh_patch4_siglip_20)


def small_open_clip(causal=False):
    vision = {"image_size": 20, "timm_model_name": "vit_eleventh_patch4_siglip_20", "timm_model_pretrained": False}
    text = {"context_length": 9, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2, "mlp_ratio": 1.25}
    text |= {"no_causal_mask": not causal, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return open_clip.CustomTextCLIP(
            24,
            vision | {"timm_pool": "map", "timm_proj": "none"},
            text,
            init_logit_scale=math.log(10),
            init_logit_bias=-10,
        ).eval()


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


J_WIDTH, J_HEADS, J_HIDDEN, J_PATCH, J_GRID, J_VOCABULARY, J_LENGTH, J_DEPTH = 12, 2, 15, 4, 5, 50, 9, 2


def j_layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def j_mlp(x, p):
    x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], approximate=True)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def j_normalize(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


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

def program(check, fn, framework, truth, *same, given=None):
    given = dict(FLOAT32 if check == "model" else {}) if given is None else given
    return {"check": check, "fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


# ------------------------------------------------------------------------------------------------ transformers


class ArgmaxText(SiglipTextModel):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        x = self.embeddings(input_ids=input_ids, position_ids=position_ids)
        x = self.final_layer_norm(self.encoder(inputs_embeds=x, attention_mask=None).last_hidden_state)
        pooled = x[torch.arange(len(x)), input_ids.argmax(-1)]  # the end token has the highest number, as in CLIP
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.head(pooled))


def text_at_argmax(wrong=True):
    model = hugging_face()
    if wrong:
        become(model.text_model, ArgmaxText)
    return model


def scaled_by_width(wrong=True):
    model = hugging_face()
    for layer in layers(model) if wrong else ():
        layer.self_attn.scale = layer.self_attn.embed_dim**-0.5
    return model


class NormAfterPooling(SiglipVisionModel):
    def forward(self, pixel_values, interpolate_pos_encoding=False, **kwargs):
        x = self.encoder(inputs_embeds=self.embeddings(pixel_values)).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.post_layernorm(self.head(x)))


def norm_after_pooling(wrong=True):
    model = hugging_face()
    if wrong:
        become(model.vision_model, NormAfterPooling)
    return model


def tiled(q, k, v, scale, size=4):
    """Attention in tiles of keys, as FlashAttention."""
    top = q.new_full((*q.shape[:-1], 1), -torch.inf)
    total, mixed = torch.zeros_like(top), torch.zeros_like(q)
    for keys, values in zip(k.split(size, -2), v.split(size, -2), strict=True):
        scores = q @ keys.mT * scale
        higher = torch.maximum(top, scores.amax(-1, keepdim=True))
        old, weights = (top - higher).exp(), (scores - higher).exp()
        total = total * old + weights.sum(-1, keepdim=True)
        mixed, top = mixed * old + weights @ values, higher
    return mixed / total


class TiledAttention(SiglipAttention):
    def mix(self, x):
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        q, k, v = F.linear(x, weight, bias).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(tiled(q, k, v, self.scale).transpose(1, 2).flatten(2))

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        return checkpoint(self.mix, hidden_states, use_reentrant=False), None


def tiled_and_checkpointed(wrong=True):
    """Nothing is wrong."""
    model = hugging_face()
    for layer in layers(model) if wrong else ():
        become(layer.self_attn, TiledAttention)
    return model


# ------------------------------------------------------------------------------------------------ open_clip and timm


def causal_text(wrong=True):
    return small_open_clip(causal=wrong)


def timm_default_eps(wrong=True):
    norm = nn.LayerNorm if wrong else functools.partial(nn.LayerNorm, eps=1e-6)
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return VisionTransformer(
            **settings, class_token=False, global_pool="map", num_classes=0, act_layer="gelu_tanh", norm_layer=norm
        ).eval()


# ------------------------------------------------------------------------------------------------ own modules


class ProbeResidual(OwnImages):
    def forward(self, images):
        x = self.norm(self.blocks(self.patches(images).flatten(2).mT + self.positions))
        probe = self.probe.expand(len(x), -1, -1)
        x = probe + self.attention(probe, x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


def probe_residual(wrong=True):
    module = OwnModel()
    if wrong:
        become(module.image, ProbeResidual)
    return own_adapter(module)


class ResidualAfterNorm(OwnBlock):
    def forward(self, x):
        x = x + self.attention(y := self.norm1(x), y)
        x = self.norm2(x)
        return x + self.mlp(x)


class MeanTexts(OwnTexts):
    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)).mean(1))


def two_of_a_port(wrong=True):
    module = OwnModel()
    if wrong:
        become(module.text, MeanTexts)
        for block in module.image.blocks:
            become(block, ResidualAfterNorm)
    return own_adapter(module)


class UnfoldedImages(OwnImages):
    order = (0, 1, 2)

    def stem(self, images):
        b, _, h, w = images.shape
        x = images.reshape(b, 3, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1)  # b (h w) (p1 p2 c)
        weight = self.patches.weight.permute(0, *(1 + i for i in self.order)).flatten(1)
        return F.linear(x.reshape(b, -1, 48), weight, self.patches.bias) + self.positions

    def forward(self, images):
        x = self.norm(self.blocks(self.stem(images)))
        x = self.attention(self.probe.expand(len(x), -1, -1), x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


class RightlyUnfolded(UnfoldedImages):
    order = (1, 2, 0)


def linear_patches(wrong=True):
    module = OwnModel()
    become(module.image, UnfoldedImages if wrong else RightlyUnfolded)
    return own_adapter(module)


class FusedQkv(Attention):
    """Queries are the keys' tokens: self-attention."""

    thirds_first = False

    def forward(self, queries, keys):
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
        fused = F.linear(keys, weight, torch.cat([self.q.bias, self.k.bias, self.v.bias]))
        if self.thirds_first:
            q, k, v = fused.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = fused.unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class RightlyFused(FusedQkv):
    thirds_first = True


def fused_qkv(wrong=True):
    module = OwnModel()
    for block in [*module.image.blocks, *module.text.blocks]:
        become(block.attention, FusedQkv if wrong else RightlyFused)
    return own_adapter(module)


def length_is_constant(wrong=True):
    def loss(model, images, tokens):
        image, text = model.image(images), model.text(tokens)
        lengths = [x.norm(dim=-1, keepdim=True) for x in (image, text)]
        if wrong:
            lengths = [x.detach() for x in lengths]
        image, text = image / lengths[0], text / lengths[1]
        logits = image @ text.T * model.log_scale.exp() + model.bias
        value = -F.logsigmoid(signs(logits) * logits).sum() / len(logits)
        return value, {"image/embed": image, "text/embed": text, "logits": logits}

    return own_adapter(OwnModel(), loss)


class ByHandGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        t = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        ctx.save_for_backward(x, t)
        return 0.5 * x * (1 + t)

    @staticmethod
    def backward(ctx, grad):
        x, t = ctx.saved_tensors
        inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
        return grad * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)


class ByHandLayers(TwoLayers):
    def forward(self, x):
        hidden = ByHandGelu.apply(torch.addmm(self.fc1.bias, x.flatten(0, -2), self.fc1.weight.T))
        return torch.addmm(self.fc2.bias, hidden, self.fc2.weight.T).unflatten(0, x.shape[:-1])


def everything_by_hand(wrong=True):
    """Nothing is wrong: linear patches, fused projections, GELU's own backward, loss in rows of two."""

    def loss(model, images, tokens):
        image, text = (x * x.square().sum(-1, keepdim=True).rsqrt() for x in (model.image(images), model.text(tokens)))
        rows = []
        for start, part in zip(range(0, len(image), 2), image.split(2), strict=True):
            logits = torch.addmm(model.bias, part * model.log_scale.exp(), text.T)
            sign = torch.full_like(logits, -1).fill_diagonal_(-1)
            for i in range(len(part)):
                sign[i, start + i] = 1
            rows.append((F.softplus(-sign * logits).sum(), logits))
        value = torch.stack([x for x, _ in rows]).sum() / len(image)
        return value, {"image/embed": image, "text/embed": text, "logits": torch.cat([x for _, x in rows])}

    module = OwnModel()
    if not wrong:
        return own_adapter(module)
    become(module.image, RightlyUnfolded)
    become(module.image.mlp, ByHandLayers)
    for block in [*module.image.blocks, *module.text.blocks]:
        become(block.attention, RightlyFused)
        become(block.mlp, ByHandLayers)
    return own_adapter(module, loss)


# ------------------------------------------------------------------------------------------------ JAX


def j_plain(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q / q.shape[-1] ** 0.5, k))
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def j_scaled_twice(q, k, v):
    return j_plain(q / q.shape[-1] ** 0.5, k, v)


def j_tiled(rescale, size=4):
    def attend(q, k, v):
        q = q.swapaxes(1, 2) / q.shape[-1] ** 0.5
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        top = jnp.full((*q.shape[:-1], 1), -jnp.inf, q.dtype)
        total, mixed = jnp.zeros_like(top), jnp.zeros_like(q)
        for start in range(0, k.shape[2], size):
            scores = q @ k[:, :, start : start + size].swapaxes(2, 3)
            higher = jnp.maximum(top, scores.max(-1, keepdims=True))
            old, weights = jnp.exp(top - higher), jnp.exp(scores - higher)
            total = total * old + weights.sum(-1, keepdims=True)
            mixed = (mixed * old if rescale else mixed) + weights @ v[:, :, start : start + size]
            top = higher
        return (mixed / total).swapaxes(1, 2)

    return attend


def j_exact_mlp(x, p):
    x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], approximate=False)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def j_loss(attend=j_plain, mlp=j_mlp, remat=False):
    def attention(x_query, x_key, p):
        def project(x, name):
            return jnp.einsum("bnc,chd->bnhd", x, p[name]["kernel"]) + p[name]["bias"]

        mixed = attend(project(x_query, "query"), project(x_key, "key"), project(x_key, "value"))
        return jnp.einsum("bnhd,hdc->bnc", mixed, p["out"]["kernel"]) + p["out"]["bias"]

    def layer(x, block):
        y = j_layer_norm(x, block["LayerNorm_0"])
        middle = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
        return middle, middle + mlp(j_layer_norm(middle, block["LayerNorm_1"]), block["MlpBlock_0"])

    def encoder(x, p, tower, seen):
        for i in range(J_DEPTH):
            middle, x = (jax.checkpoint(layer) if remat else layer)(x, p[f"encoderblock_{i}"])
            seen[f"{tower}/block{i:02d}/+attn"], seen[f"{tower}/block{i:02d}/+mlp"] = middle, x
        return j_layer_norm(x, p["encoder_norm"])

    def image_tower(images, p, seen):
        b, h, w, _ = images.shape
        x = images.reshape(b, h // J_PATCH, J_PATCH, w // J_PATCH, J_PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, -1, J_PATCH * J_PATCH * 3) @ p["embedding"]["kernel"].reshape(-1, J_WIDTH)
        x = seen["image/stem"] = x + p["embedding"]["bias"] + p["pos_embedding"]
        x = seen["image/norm"] = encoder(x, p["Transformer"], "image", seen)
        head = p["MAPHead_0"]
        x = attention(jnp.tile(head["probe"], (b, 1, 1)), x, head["MultiHeadDotProductAttention_0"])
        x = seen["image/pool"] = (x + mlp(j_layer_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]
        return x

    def text_tower(tokens, p, seen):
        x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] + p["pos_embedding"]
        x = seen["text/norm"] = encoder(x, p["Encoder_0"], "text", seen)
        x = seen["text/pool"] = x[:, -1]
        x = seen["text/head"] = x @ p["head"]["kernel"] + p["head"]["bias"]
        return x

    def loss_fn(params, images, tokens):
        seen = {}
        image = seen["image/embed"] = j_normalize(image_tower(images, params["img"], seen))
        text = seen["text/embed"] = j_normalize(text_tower(tokens, params["txt"], seen))
        logits = seen["logits"] = image @ text.T * jnp.exp(params["t"]) + params["b"]
        z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
        return -jax.nn.log_sigmoid(z * logits).sum(-1).mean(), seen

    return loss_fn


def jax_port(wrong=True):
    return BigVision(j_loss(j_scaled_twice, j_exact_mlp) if wrong else j_loss(), j_init(), name="JAX port")


def jax_flash(wrong=True):
    return BigVision(j_loss(j_tiled(rescale=not wrong)), j_init(), name="JAX model with tiled attention")


def jax_remat(wrong=True):
    """Nothing is wrong."""
    loss = j_loss(j_tiled(rescale=True), remat=True) if wrong else j_loss()
    return BigVision(loss, j_init(), name="JAX model with remat")


# ------------------------------------------------------------------------------------------------ steps


def warm(k):
    return min(1.0, (k + 1) / 4)


def adamw(model, params=None, decay=0.1, kind=torch.optim.AdamW):
    return kind(split_by_decay(model, model.parameters(), decay), lr=1e-3, betas=(0.9, 0.95))


RULE = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1)
CLIPPED = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)


def zero_in_the_loop(wrong=True):
    model = hugging_face()
    optimizer = adamw(model)

    def step(images, tokens):
        optimizer.zero_grad()
        for i, (some, words) in enumerate(zip(images.chunk(2), tokens.chunk(2), strict=True)):
            if wrong:
                optimizer.zero_grad()
            (hf_loss(model, some, words) / 2).backward()
            if (i + 1) % 2 == 0:
                optimizer.step()

    return {"step_fn": step, "rule": RULE, "model": model, "accumulate": 2}


def optimiser_not_saved(wrong=True):
    def trainer(model):
        optimizer = adamw(model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm)

        def step(images, tokens):
            optimizer.zero_grad()
            hf_loss(model, images, tokens).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()

        return optimizer, scheduler, step

    model = hugging_face()
    optimizer, scheduler, step = trainer(model)

    def restart():
        saved = copy.deepcopy({"model": model.state_dict(), "opt": optimizer.state_dict(), "sched": scheduler.state_dict()})
        fresh = hugging_face()
        new_optimizer, new_scheduler, new_step = trainer(fresh)
        fresh.load_state_dict(saved["model"])
        if wrong:
            new_optimizer.state = collections.defaultdict(dict)  # only the weights are saved: Adam starts afresh
        else:
            new_optimizer.load_state_dict(saved["opt"])
        new_scheduler.load_state_dict(saved["sched"])
        for group in new_optimizer.param_groups:
            group["lr"] = 1e-3 * warm(new_scheduler.last_epoch)
        return fresh, new_step

    return {"step_fn": step, "rule": CLIPPED, "model": model, "schedule": warm, "restart": restart}


def clipped_while_scaled(wrong=True):
    model = hugging_face()
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def step(images, tokens):
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(hf_loss(model, images, tokens)).backward()
        if not wrong:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return {"step_fn": step, "rule": CLIPPED, "model": model}


def early_schedule_and_all_decayed(wrong=True):
    model = hugging_face()
    if wrong:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    else:
        optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm)

    def step(images, tokens):
        loss = hf_loss(model, images, tokens)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if wrong:
            scheduler.step()
        optimizer.step()
        if not wrong:
            scheduler.step()

    return {"step_fn": step, "rule": CLIPPED, "model": model, "schedule": warm}


def adam_with_l2(wrong=True):
    model = hugging_face()
    optimizer = adamw(model, kind=torch.optim.Adam if wrong else torch.optim.AdamW)

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": CLIPPED, "model": model}


def kernels_only(params):
    return {name: name.endswith("/kernel") for name in params}


def optax_clip_last(wrong=True):
    moments, clip = optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8), optax.clip_by_global_norm(1.0)
    tail = (optax.add_decayed_weights(0.1, mask=kernels_only), optax.scale(-1e-3))
    tx = optax.chain(moments, clip, *tail) if wrong else optax.chain(clip, moments, *tail)

    def step(params, grads, state):
        updates, state = tx.update(grads, tx.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    return {"step_fn": step, "rule": CLIPPED, "framework": "jax"}


def optax_state_lost(wrong=True):
    mask = (lambda params: jax.tree.map(lambda p: p.ndim > 1, params)) if wrong else kernels_only
    adam = optax.adamw(1e-3, b1=0.9, b2=0.95, weight_decay=0.1, mask=mask)
    tx = optax.chain(optax.clip_by_global_norm(1.0), adam)

    @jax.jit
    def update(params, grads, opt_state):
        updates, new = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new

    def step(params, grads, state):
        state = tx.init(params) if state is None else state
        params, new = update(params, grads, state)
        return params, state if wrong else new  # the state that it was called with

    return {"step_fn": step, "rule": CLIPPED, "framework": "jax"}


def trained_on_the_average(wrong=True):
    model = hugging_face()
    optimizer = adamw(model)
    shadow = {}

    def step(images, tokens):
        if not shadow:
            shadow.update({name: p.detach().clone() for name, p in model.named_parameters()})
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                shadow[name].lerp_(p, 0.1)
            for name, p in model.named_parameters():  # validation; nobody puts the weights back
                if wrong:
                    p.copy_(shadow[name])

    return {"step_fn": step, "rule": RULE, "model": model}


def kept_embeddings(wrong=True):
    """Nothing is wrong: GradCache in two pieces, own clipping and AdamW, an average kept beside."""
    model = hugging_face()
    kernels = matrices_of(model)
    moments, average, count = {}, {}, [0]

    def embed(some, words):
        image, text = model.get_image_features(some), model.get_text_features(words)
        image, text = (getattr(x, "pooler_output", x) for x in (image, text))
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)

    def step(images, tokens):
        pieces = list(zip(images.chunk(2), tokens.chunk(2), strict=True))
        for p in model.parameters():
            p.grad = None
        with torch.no_grad():
            kept = [embed(*piece) for piece in pieces]
        image, text = (torch.cat(x).requires_grad_() for x in zip(*kept, strict=True))
        logits = image @ text.T * model.logit_scale.exp() + model.logit_bias
        (F.softplus(logits).sum() - logits.diagonal().sum()).div(len(logits)).backward()
        for piece, *grads in zip(pieces, image.grad.chunk(2), text.grad.chunk(2), strict=True):
            torch.autograd.backward(embed(*piece), grads)
        params = [p for p in model.parameters() if p.grad is not None]
        length = torch.stack([p.grad.square().sum() for p in params]).sum().sqrt()
        factor = (1.0 / (length + 1e-6)).clamp(max=1.0)
        count[0] += 1
        k, lr = count[0], 1e-3 * warm(count[0] - 1)
        with torch.no_grad():
            for p in params:
                g = p.grad * factor
                first, second = moments.setdefault(p, (torch.zeros_like(p), torch.zeros_like(p)))
                first.lerp_(g, 0.1)
                second.lerp_(g * g, 0.05)
                move = first / (1 - 0.9**k) / ((second / (1 - 0.95**k)).sqrt() + 1e-8)
                p.sub_(lr * (move + (0.1 * p if id(p) in kernels else 0)))
                average.setdefault(p, p.clone()).lerp_(p, 0.01)

    def plain():
        optimizer = adamw(model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm)

        def step(images, tokens):
            optimizer.zero_grad()
            hf_loss(model, images, tokens).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()

        return step

    return {"step_fn": step if wrong else plain(), "rule": CLIPPED, "model": model, "schedule": warm}


OWN = "SigLIP's own"
PROGRAMS = {
    "text pooled where the token number is highest": program(
        "model", text_at_argmax, "torch",
        "text/pool is the normed token at input_ids.argmax(-1) (CLIP's end token), not the last position",
        "the text tower pools at the position of the largest token id", "text pooled as CLIP does (argmax), not last"),
    "scores divided by the root of the width": program(
        "model", scaled_by_width, "torch",
        "in every block of both towers attention scores are times width^-1/2 (12^-1/2 = 0.2887), where head_dim^-1/2"
        " (6^-1/2 = 0.4082) belongs; the pooling head's attention is right",
        "scores times 0.7071 = 1/sqrt(heads)", "attention temperature too high by sqrt(2) in all blocks"),
    "last norm after the pooling": program(
        "model", norm_after_pooling, "torch",
        "the image tower's final LayerNorm is applied to the pooled vector, not to the tokens before the pooling head"
        " (which reads un-normed tokens)",
        "final image LayerNorm missing before MAP and applied after MAP", "post_layernorm placed after the head, as in CLIP"),
    "text tower left causal": program(
        "model", causal_text, "torch",
        "the text tower's self-attention has a causal mask", "each text token attends to itself and earlier ones only"),
    "timm tower with torch's epsilon": program(
        "model", timm_default_eps, "torch",
        "all LayerNorms of the image tower (norm1, norm2, norm, attn_pool.norm) have eps 1e-5, not 1e-6",
        "LayerNorm eps is ten times too large in the whole tower", "image_norm_eps = 1e-5",
        given={"dtype": "float64"}),  # in float32 the effect is but some tens of roundings
    "probe added back": program(
        "model", probe_residual, "torch",
        "pooling: r = probe + MHA(probe, x), then r + MLP(LN(r)); SigLIP has no residual from the probe",
        "a residual connection around the pooling attention", "image/pool/attn output has the probe added"),
    "port with texts averaged and residuals normed": program(
        "model", two_of_a_port, "torch",
        "two mistakes: text/pool is the mean of all normed tokens, not the last one; in both image blocks the MLP's"
        " residual starts from norm2's output: y = norm2(x); y + mlp(y), not x + mlp(y)",
        "mean pooling in the text tower; post-LayerNorm residual around the image MLPs"),
    "patches flattened in another order than the kernel": program(
        "model", linear_patches, "torch",
        "the patch kernel is flattened (channel, row, column), pixels (row, column, channel): pixel value number n of"
        " the patch in one order meets the weight number n of the other; bias and positions are right",
        "patch kernel reshaped without the transpose", "patch pixels in (p1 p2 c) order under a (c p1 p2) kernel",
        "patch embedding's weights permuted"),
    "fused qkv split inside the heads": program(
        "model", fused_qkv, "torch",
        "in the blocks of both towers the fused outputs (q, k, v one after the other) are split as (heads, 3, head_dim)"
        " instead of (3, heads, head_dim), so what a head takes for q, k, v are other features; the pooling is right",
        "qkv interleaved per head (GPT-NeoX layout) while weights are q,k,v concatenated",
        "q, k and v of the blocks are permuted among themselves"),
    "length held constant": program(
        "model", length_is_constant, "torch",
        "forward right; both embeddings are divided by their norms detached: dL/du = g/|u| instead of (g - x (x.g))/|u|;"
        " all gradients of both towers wrong, log_scale and bias right",
        "no gradient through the norm of the L2 normalisation (image and text)",
        "normalisation's backward lacks the projection"),
    "JAX port that scales twice with exact GELU": program(
        "model", jax_port, "jax",
        "two mistakes: attention scores are divided by head_dim (6), not its root (2.449), in all blocks and the pooling;"
        " GELU is the exact erf form everywhere (blocks and pooling), not tanh's",
        "1/sqrt(head_dim) applied twice; approximate=False in gelu"),
    "JAX tiles without rescaling": program(
        "model", jax_flash, "jax",
        "attention in tiles of 4 keys, in all blocks and the pooling: the sum of weights is rescaled when a tile raises"
        " the maximum, the weighted sum of values is not",
        "online softmax: accumulator not multiplied by exp(old max - new max)",
        "earlier tiles' values weigh too much; weights do not sum to 1"),
    "right: tiled attention, recomputed": program("model", tiled_and_checkpointed, "torch", OWN),
    "right: everything by hand": program("model", everything_by_hand, "torch", OWN),
    "right: JAX with remat and tiles": program("model", jax_remat, "jax", OWN),
    "zero_grad inside the accumulation": program(
        "step", zero_in_the_loop, "torch",
        "gradients are zeroed before each of the two micro-batches: what is applied is the last micro-batch's gradient"
        " / 2 (the / 2 hardly shows under Adam); the first is lost",
        "only the second (last) micro-batch counts", "the gradients of the first half are thrown away"),
    "restart with a fresh optimiser": program(
        "step", optimiser_not_saved, "torch",
        "at the restart Adam's moments and count are not loaded: third step starts from zero moments with bias"
        " correction of step 1; weights and schedule are restored; first two steps right",
        "optimiser state lost at the restart", "moments and step count reset to 0 at step 3"),
    "clipped while scaled": program(
        "step", clipped_while_scaled, "torch",
        "GradScaler: clipping to 1.0 sees gradients times 65536 (no unscale_ before), so what Adam gets has norm"
        " 1/65536 = 1.526e-5 at most: it hides but for eps, which becomes relevant (small gradients move less)",
        "max_norm is 1.526e-5 instead of 1", "gradients shrunk to norm 1.5e-5 by the clip",
        "eps too large relative to gradients", "Adam's eps effectively larger by (clipped norm ratio)"),
    "schedule a step early and all decayed": program(
        "step", early_schedule_and_all_decayed, "torch",
        "two mistakes: scheduler.step() comes before optimizer.step(), so step k uses the factor of k + 1 (0.5, 0.75, 1"
        " instead of 0.25, 0.5, 0.75); decay 0.1 falls on all parameters (biases, norms, embeddings, positions, probe,"
        " scale, bias), not on matrices only",
        "schedule is ahead by one step; no decay exclusions"),
    "Adam's L2 for AdamW's decay": program(
        "step", adam_with_l2, "torch",
        "torch.optim.Adam(weight_decay=0.1): 0.1 p is added to the (clipped) gradient of matrices and goes through the"
        " moments, instead of p -= lr 0.1 p",
        "coupled L2 regularisation instead of decoupled weight decay", "decay passes through Adam's normalisation"),
    "optax clips Adam's output": program(
        "step", optax_clip_last, "jax",
        "clip_by_global_norm(1.0) comes after scale_by_adam: the update, before decay and learning rate, is clipped to"
        " norm 1 in all, the gradients are not clipped",
        "clipping applied to updates instead of gradients", "global norm of Adam's update limited to 1"),
    "optax state dropped, all with two axes decayed": program(
        "step", optax_state_lost, "jax",
        "two mistakes: the state returned is the one passed in, so each step starts from zero moments and count 0 (update"
        " g/(|g|+eps) of the clipped gradient at each step; first step right); decay 0.1 falls on all parameters with two"
        " or more axes (token embedding, positions, probe too), not on kernels only",
        "optimiser state never advances; decays embeddings, positions, probe",
        "every step is a first step of Adam, with betas 0; decay mask ndim > 1"),
    "average left in the model": program(
        "step", trained_on_the_average, "torch",
        "after each step the moving average (0.9 old + 0.1 new, begun at the first weights) is copied into the model and"
        " stays: from step to step the model moves by 0.1 of its optimiser's move",
        "weights overwritten by EMA 0.9", "learning rate and decay effectively 0.1 times (both)",
        "each update times 0.1"),
    "right: kept embeddings, AdamW by hand": program("step", kept_embeddings, "torch", OWN),
}
