"""Models and training steps, most of them wrong, with the truth of each: for sr.check_model and sr.check_step.

Every factory takes wrong=True; with wrong=False it gives the same program without its mistake (used by try_models.py).
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
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipMLP, SiglipVisionEmbeddings


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
from timm.layers import AttentionPoolLatent  # noqa: E402
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
from siglip_ref.checkpoint.tables.names import Entry, dense, fused, norm
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
    text = {"hidden_size": text_width, "intermediate_size": text_hidden, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": None, "eos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return SiglipModel(SiglipConfig(vision_config=image, text_config=text | {"projection_size": width})).eval()


def layers(model):
    return [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]


class BucketPositions(SiglipVisionEmbeddings):
    """Positions looked up by fractional coordinates, as models of variable resolution do."""

    def forward(self, pixel_values, interpolate_pos_encoding=False):
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        rows, columns = patches.shape[-2:]
        side = self.image_size // self.patch_size
        edges = torch.arange(1 / side, 1.0, 1 / side)
        row = torch.bucketize(torch.arange(rows) / rows * (1 - 1e-6), edges, right=True)
        column = torch.bucketize(torch.arange(columns) / columns * (1 - 1e-6), edges, right=True)
        ids = (row[:, None] * side + column[None, :]).flatten()
        return patches.flatten(2).transpose(1, 2) + self.position_embedding(ids[None])


def bucket_positions(wrong=True):
    model = hugging_face()
    if wrong:
        become(model.vision_model.embeddings, BucketPositions)
    return model


class RowParallel(nn.Linear):
    """A linear layer whose inputs are split over two ranks; the partial results are summed."""

    def forward(self, x):
        parts = zip(x.chunk(2, -1), self.weight.chunk(2, 1), strict=True)
        return sum(F.linear(mine, weight, self.bias) for mine, weight in parts)


def row_parallel(wrong=True):
    model = hugging_face()
    if wrong:
        for layer in layers(model):
            become(layer.self_attn.out_proj, RowParallel)
            become(layer.mlp.fc2, RowParallel)
    return model


def heads_first(attention, x):
    shape = (*x.shape[:2], attention.num_heads, attention.head_dim)
    return [f(x).view(shape).transpose(1, 2) for f in (attention.q_proj, attention.k_proj, attention.v_proj)]


class AlignedKeys(SiglipAttention):
    """Sequence length rounded up to a multiple of 8, for the kernel's sake."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        q, k, v = heads_first(self, hidden_states)
        tokens = q.shape[2]
        q, k, v = (F.pad(x, (0, 0, 0, -tokens % 8)) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)[:, :, :tokens]
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def aligned_keys(wrong=True):
    model = hugging_face(width=16)
    if wrong:
        for layer in layers(model):
            become(layer.self_attn, AlignedKeys)
    return model


class ResizedToWholePatches(SiglipVisionEmbeddings):
    """An image whose side is no multiple of the patch is brought to the next smaller one that is."""

    def forward(self, pixel_values, interpolate_pos_encoding=False):
        side = self.image_size // self.patch_size * self.patch_size
        pixel_values = F.interpolate(pixel_values, size=(side, side), mode="bilinear", align_corners=False)
        return super().forward(pixel_values, interpolate_pos_encoding)


def resized(wrong=True):
    model = hugging_face(side=22)
    if wrong:
        become(model.vision_model.embeddings, ResizedToWholePatches)
    return model


class Packed(SiglipAttention):
    """All texts of the batch as one long sequence without padding, as variable-length attention wants it."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        packed = hidden_states.flatten(0, 1)[None]
        q, k, v = heads_first(self, packed)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)
        return self.out_proj(out).view_as(hidden_states), None


def packed_texts(wrong=True):
    model = hugging_face(width=16, text_width=12)
    if wrong:
        for layer in model.text_model.encoder.layers:
            become(layer.self_attn, Packed)
    return model


class TiledAttention(SiglipAttention):
    """Keys in tiles of 4 with a running maximum."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        q, k, v = heads_first(self, hidden_states)
        top, total, out = torch.full_like(q[..., :1], -math.inf), 0.0, 0.0
        for keys, values in zip(k.split(4, 2), v.split(4, 2), strict=True):
            scores = (q * self.scale) @ keys.mT
            higher = torch.maximum(top, scores.detach().amax(-1, keepdim=True))
            weights, shrink = torch.exp(scores - higher), torch.exp(top - higher)
            total, out = total * shrink + weights.sum(-1, keepdim=True), out * shrink + weights @ values
            top = higher
        return self.out_proj((out / total).transpose(1, 2).flatten(2)), None


class ShardedMlp(SiglipMLP):
    """Two shards of the hidden layer; tanh GELU written by the logistic function; one bias for the sum."""

    def forward(self, hidden_states):
        out = self.fc2.bias
        for w1, b1, w2 in zip(self.fc1.weight.chunk(2), self.fc1.bias.chunk(2), self.fc2.weight.chunk(2, 1), strict=True):
            h = F.linear(hidden_states, w1, b1)
            h = h * torch.sigmoid(math.sqrt(8 / math.pi) * (h + 0.044715 * h**3))
            out = out + h @ w2.T
        return out


class UnfoldedPatches(nn.Conv2d):
    def forward(self, x):
        columns = F.unfold(x, self.kernel_size, stride=self.stride)
        out = self.weight.flatten(1) @ columns + self.bias[:, None]
        return out.unflatten(2, [side // self.kernel_size[0] for side in x.shape[-2:]])


class OneHotTokens(nn.Embedding):
    def forward(self, ids):
        return F.one_hot(ids, self.num_embeddings).to(self.weight.dtype) @ self.weight


class CentredTwice(nn.LayerNorm):
    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


def all_by_hand(wrong=True):
    model = hugging_face(width=16, text_width=12)
    if wrong:  # nothing is wrong: another way to write it
        for layer in layers(model):
            become(layer.self_attn, TiledAttention)
            become(layer.mlp, ShardedMlp)
            become(layer.layer_norm1, CentredTwice)
            become(layer.layer_norm2, CentredTwice)
        become(model.vision_model.head.mlp, ShardedMlp)
        become(model.vision_model.embeddings.patch_embedding, UnfoldedPatches)
        become(model.text_model.embeddings.token_embedding, OneHotTokens)
    return model


# ------------------------------------------------------------------------------------------------ open_clip


def vit_stranger_patch4_siglip_20(pretrained=False, **kwargs):
    keep = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool", "drop_path_rate")}
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 1, "mlp_ratio": 1.5}
    return VisionTransformer(**settings, class_token=False, **keep)


if "vit_stranger_patch4_siglip_20" not in timm.list_models("vit_stranger*"):
    register_model(vit_stranger_patch4_siglip_20)


def small_open_clip():
    vision = {"image_size": 20, "timm_model_name": "vit_stranger_patch4_siglip_20", "timm_model_pretrained": False}
    text = {"context_length": 9, "vocab_size": 50, "width": 16, "heads": 1, "layers": 2, "mlp_ratio": 1.25}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return open_clip.CustomTextCLIP(
            24, vision | {"timm_pool": "map", "timm_proj": "none"}, text, init_logit_scale=math.log(10), init_logit_bias=-10
        ).eval()


class ClassAttention(AttentionPoolLatent):
    """The latent attends to the tokens and to itself, as CaiT's class attention does."""

    def forward(self, x, attn_mask=None):
        batch = len(x)
        latent = self.latent.expand(batch, -1, -1)
        x = torch.cat([latent, x], 1)
        q = self.q(latent).reshape(batch, self.latent_len, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(x).reshape(batch, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (out + self.mlp(self.norm(out)))[:, 0]


def class_attention(wrong=True):
    model = small_open_clip()
    if wrong:
        become(model.visual.trunk.attn_pool, ClassAttention)
    return model


def frequency_scaled(wrong=True):
    model = small_open_clip()
    model.text.token_embedding.scale_grad_by_freq = wrong
    return model


# ------------------------------------------------------------------------------------------------ a torch model of its own

IMAGE, TEXT = Tower(width=12, depth=2, mlp=18, heads=3), Tower(width=10, depth=2, mlp=14, heads=2)
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


class ZeroCentredGamma(nn.LayerNorm):
    """The weight is kept as its distance from one."""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


def zero_centred_gamma(wrong=True):
    module = OwnModel()
    if wrong:
        for part in list(module.modules()):
            if isinstance(part, nn.LayerNorm):
                become(part, ZeroCentredGamma)
    return own_adapter(module)


class FusedPairLoss(torch.autograd.Function):
    """The sigmoid loss with its gradients by hand."""

    @staticmethod
    def forward(ctx, image, text, log_scale, bias, wrong):
        similar = image @ text.T
        logits = similar * log_scale.exp() + bias
        ctx.save_for_backward(image, text, log_scale, similar, logits)
        ctx.wrong = wrong
        return -F.logsigmoid(signs(logits) * logits).sum() / len(logits)

    @staticmethod
    def backward(ctx, d_loss):
        image, text, log_scale, similar, logits = ctx.saved_tensors
        d_logits = d_loss * (torch.sigmoid(logits) - torch.eye(len(logits), dtype=logits.dtype)) / len(logits)
        d_similar = d_logits * log_scale.exp()
        d_text = (d_similar if ctx.wrong else d_similar.T) @ image
        return d_similar @ text, d_text, (d_similar * similar).sum(), d_logits.sum(), None


def fused_loss(wrong=True):
    def loss(model, images, tokens):
        image, text = model(images, tokens)
        value = FusedPairLoss.apply(image, text, model.log_scale, model.bias, wrong)
        logits = image @ text.T * model.log_scale.exp() + model.bias
        return value, {"image/embed": image, "text/embed": text, "logits": logits}

    return own_adapter(OwnModel(), loss)


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


def j_loss(wrong):
    def attention(x_query, x_key, p):
        def project(x, name):
            return jnp.einsum("bnc,chd->bnhd", x, p[name]["kernel"]) + p[name]["bias"]

        q, k, v = project(x_query, "query"), project(x_key, "key"), project(x_key, "value")
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5)
        if wrong:
            weights = weights.astype(jnp.bfloat16)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
        return jnp.einsum("bnhd,hdc->bnc", mixed, p["out"]["kernel"]) + p["out"]["bias"]

    def encoder(x, p, tower, seen):
        for i in range(J_DEPTH):
            block = p[f"encoderblock_{i}"]
            y = j_layer_norm(x, block["LayerNorm_0"])
            x = seen[f"{tower}/block{i:02d}/+attn"] = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
            y = j_layer_norm(x, block["LayerNorm_1"])
            x = seen[f"{tower}/block{i:02d}/+mlp"] = x + j_mlp(y, block["MlpBlock_0"])
        return j_layer_norm(x, p["encoder_norm"])

    def image_tower(images, p, seen):
        x = jax.lax.conv_general_dilated(
            images, p["embedding"]["kernel"], (J_PATCH, J_PATCH), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = seen["image/stem"] = x.reshape(len(x), -1, J_WIDTH) + p["embedding"]["bias"] + p["pos_embedding"]
        x = seen["image/norm"] = encoder(x, p["Transformer"], "image", seen)
        head = p["MAPHead_0"]
        x = attention(jnp.tile(head["probe"], (len(x), 1, 1)), x, head["MultiHeadDotProductAttention_0"])
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
        text = seen["text/embed"] = j_normalize(text_tower(tokens, params["txt"], seen))
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


def half_probabilities(wrong=True):
    return BigVision(j_loss(wrong), j_init(), name="JAX model with cheap attention")


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


def clip_in_the_loop(wrong=True):
    model = hugging_face()
    optimizer = torch.optim.AdamW(split_by_decay(model, model.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad()
        for some_images, some_tokens in zip(images.chunk(2), tokens.chunk(2), strict=True):
            (hf_loss(model, some_images, some_tokens) / 2).backward()
            if wrong:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        if not wrong:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=0.5)
    return {"step_fn": step, "rule": rule, "model": model, "accumulate": 2}


def groups_in_another_order(wrong=True):
    def build(text_first):
        model = hugging_face(text_hidden=20)
        towers = [model.text_model, model.vision_model] if text_first else [model.vision_model, model.text_model]
        blocks = [list(tower.encoder.layers.parameters()) for tower in towers]
        taken = {id(p) for params in blocks for p in params}
        rest = [p for p in model.parameters() if id(p) not in taken]
        groups = [group for params in (*blocks, rest) for group in split_by_decay(model, params, 0.1)]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

        def step(images, tokens):
            optimizer.zero_grad()
            hf_loss(model, images, tokens).backward()
            optimizer.step()

        return model, optimizer, step

    model, optimizer, step = build(True)

    def restart():
        fresh, fresh_optimizer, fresh_step = build(not wrong)
        fresh.load_state_dict(model.state_dict())
        fresh_optimizer.load_state_dict(optimizer.state_dict())
        return fresh, fresh_step

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1)
    return {"step_fn": step, "rule": rule, "model": model, "restart": restart}


def optax_adamw(**settings):
    def step(params, grads, state):
        mask = {name: name.endswith("/kernel") for name in params}
        chain = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask, **settings),
        )
        updates, state = chain.update(grads, chain.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0, clip_eps=0.0)
    return {"step_fn": step, "rule": rule, "framework": "jax"}


def nesterov(wrong=True):
    return optax_adamw(nesterov=wrong)


def cheap_momentum(wrong=True):
    return optax_adamw(mu_dtype=jnp.bfloat16 if wrong else None)


def one_of_two_zeroed(wrong=True):
    model = small_open_clip()
    loss = open_clip.loss.SigLipLoss()

    def groups(parts):
        named = [(name, p) for name, p in model.named_parameters() if name.startswith(parts)]
        plain = {name for name, p in named if p.ndim < 2 or "pos_embed" in name or "positional_embedding" in name}
        return [
            {"params": [p for name, p in named if name not in plain], "weight_decay": 0.2},
            {"params": [p for name, p in named if name in plain], "weight_decay": 0.0},
        ]

    image_optimizer = torch.optim.AdamW(groups(("visual", "logit")), lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
    text_optimizer = torch.optim.AdamW(groups(("text",)), lr=5e-4, betas=(0.9, 0.98), eps=1e-6)

    def step(images, tokens):
        image_optimizer.zero_grad()
        if not wrong:
            text_optimizer.zero_grad()
        loss(*model(images, tokens)).backward()
        image_optimizer.step()
        text_optimizer.step()

    rule = sr.AdamW(lr=5e-4, beta2=0.98, eps=1e-6, decay=0.2, decays=matrices)
    return {"step_fn": step, "rule": rule, "model": model}


def locked_by_zeros(wrong=True):
    model = hugging_face()
    if not wrong:
        model.vision_model.requires_grad_(False)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(split_by_decay(model, params, 0.1), lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        if wrong:
            for p in model.vision_model.parameters():
                p.grad.zero_()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    rule = sr.AdamW(
        lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0, frozen=lambda name: name.startswith("image/")
    )
    return {"step_fn": step, "rule": rule, "model": model}


def rate_meant(name):
    """Rates fall by 0.75 a layer towards the input: stem 0, block i has i + 1, all else the last."""
    if name.startswith(("image/patch", "image/position", "text/token", "text/position")):
        return 0.75**3
    if "/block" in name:
        return 0.75 ** (2 - int(name.split("/block")[1][:2]))
    return 1.0


def layer_rates(wrong=True):
    model = hugging_face()

    def layer_of(name):
        if ".embeddings." in name:
            return 0
        if ".layers." in name:
            return int(name.split(".layers.")[1].split(".")[0]) + (0 if wrong else 1)
        return 3

    groups = []
    for layer in range(4):
        params = [p for name, p in model.named_parameters() if layer_of(name) == layer]
        groups += [g for g in split_by_decay(model, params, 0.1, lr=1e-3 * 0.75 ** (3 - layer)) if g["params"]]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        optimizer.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, rates=rate_meant)
    return {"step_fn": step, "rule": rule, "model": model}


def momentum_first(wrong=True):
    def scaled(name, g, memory, rate):
        """Adafactor: divided by the root of the second moment, factored where two axes have at least 32 entries."""
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

    def averaged(name, x, memory):
        memory["momentum", name] = np.float32(0.9) * memory.get(("momentum", name), 0 * x) + np.float32(0.1) * x
        return memory["momentum", name]

    def step(params, grads, state):
        memory = dict(state or {"steps": 0})
        memory["steps"] += 1
        rate = np.float32(min(0.95, 1 - memory["steps"] ** -0.8))
        length = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        factor = np.float32(1 / max(length, 1.0))
        moved = {}
        for name, p in params.items():
            g = grads[name] * factor
            if wrong:
                update = scaled(name, averaged(name, g, memory), memory, rate)
            else:
                update = averaged(name, scaled(name, g, memory, rate), memory)
            update = np.float32(1e-3) * update
            if name.endswith("/kernel"):
                update = update + np.float32(1e-4) * p
            moved[name] = (p - update).astype(p.dtype)
        return moved, memory

    return {"step_fn": step, "rule": sr.BigVision(lr=1e-3, decay=1e-4), "framework": "numpy"}


def own_chunk_only(wrong=True):
    module = OwnModel()
    model = own_adapter(module)
    optimizer = torch.optim.AdamW(split_by_decay(module, module.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.95))

    def embed(images, tokens):
        return module(images, tokens)

    def step(images, tokens):
        optimizer.zero_grad()
        batch, size = len(images), 4
        with torch.no_grad():
            parts = [embed(images[k : k + size], tokens[k : k + size]) for k in range(0, batch, size)]
        kept_images, kept_texts = (torch.cat(x) for x in zip(*parts, strict=True))
        for k in range(0, batch, size):
            now = slice(k, k + size)
            image, text = embed(images[now], tokens[now])
            texts = torch.cat([kept_texts[:k], text, kept_texts[k + size :]])
            eye = torch.eye(batch, dtype=image.dtype)
            if wrong:
                logits = image @ texts.T * module.log_scale.exp() + module.bias
                loss = F.softplus((1 - 2 * eye[now]) * logits).sum() / batch
            else:
                loss = F.softplus((1 - 2 * eye[now]) * (image @ texts.T * module.log_scale.exp() + module.bias)).sum()
                others = torch.cat([kept_images[:k], kept_images[k + size :]])
                logits = others @ text.T * module.log_scale.detach().exp() + module.bias.detach()
                loss = (loss + F.softplus(logits).sum()) / batch
            loss.backward()
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1), "model": model}


def warm_up(step):
    return min(1.0, (step + 1) / 5)


def group_added_late(wrong=True):
    model = hugging_face()
    towers = [*model.vision_model.parameters(), *model.text_model.parameters()]
    late = {"params": [model.logit_scale, model.logit_bias], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(split_by_decay(model, towers, 0.1), lr=1e-3, betas=(0.9, 0.95))
    if not wrong:
        optimizer.add_param_group(late)
    scheduled, done = list(optimizer.param_groups), itertools.count()
    if wrong:
        optimizer.add_param_group(late)

    def step(images, tokens):
        now = next(done)
        for group in scheduled:
            group["lr"] = 1e-3 * warm_up(now)
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        optimizer.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1)
    return {"step_fn": step, "rule": rule, "model": model, "schedule": warm_up}


def cached_and_flat(wrong=True):
    """Nothing is wrong: cached embeddings in chunks of 3, 3, 2; means kept unbiased; parameters as two flat vectors."""
    model = hugging_face()
    kernels = matrices_of(model)
    groups = [[p for p in model.parameters() if (id(p) in kernels) is choice] for choice in (True, False)]
    decays, lr, beta1, beta2, most = (0.1, 0.0), 2e-3, 0.9, 0.95, 0.7
    memory = types.SimpleNamespace(steps=0, first=[0.0, 0.0], second=[0.0, 0.0])

    def gradients(images, tokens):
        for p in model.parameters():
            p.grad = None
        chunks = list(zip(images.split(3), tokens.split(3), strict=True))
        with torch.no_grad():
            seen = [model(pixel_values=some, input_ids=ids) for some, ids in chunks]
        image = torch.cat([out.image_embeds for out in seen]).requires_grad_()
        text = torch.cat([out.text_embeds for out in seen]).requires_grad_()
        logits = model.logit_scale.exp() * (text @ image.T) + model.logit_bias
        ((F.softplus(logits).sum() - logits.trace()) / len(images)).backward()
        for (some, ids), d_image, d_text in zip(chunks, image.grad.split(3), text.grad.split(3), strict=True):
            out = model(pixel_values=some, input_ids=ids)
            torch.autograd.backward([out.image_embeds, out.text_embeds], [d_image, d_text])

    @torch.no_grad()
    def update():
        flat = [torch.cat([p.grad.flatten() for p in group]) for group in groups]
        factor = min(1.0, most / (float(sum(g.double().square().sum() for g in flat)) ** 0.5 + 1e-6))
        rate = lr * warm_up(memory.steps)
        memory.steps += 1
        k = memory.steps
        for i, (group, g, decay) in enumerate(zip(groups, flat, decays, strict=True)):
            g = g * factor
            memory.first[i] = memory.first[i] + (1 - beta1) / (1 - beta1**k) * (g - memory.first[i])
            memory.second[i] = memory.second[i] + (1 - beta2) / (1 - beta2**k) * (g * g - memory.second[i])
            move = memory.first[i] / (memory.second[i].sqrt() + 1e-8)
            for p, part in zip(group, move.split([p.numel() for p in group]), strict=True):
                p.sub_(rate * (part.view_as(p) + decay * p))

    def step(images, tokens):
        gradients(images, tokens)
        update()

    rule = sr.AdamW(lr=lr, beta2=beta2, decay=0.1, max_norm=most)
    return {"step_fn": step, "rule": rule, "model": model, "schedule": warm_up}


# ------------------------------------------------------------------------------------------------ the programs


def program(check, fn, framework, truth, *same, given=None):
    given = dict(FLOAT32 if check == "model" else {}) if given is None else given
    return {"check": check, "fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "positions one bucket too low": program(
        "model",
        bucket_positions,
        "torch",
        "image stem: the patch in row r, column c gets position max(r-1, 0) * side + max(c-1, 0), not r * side + c",
        "position ids from fractional coordinates are one too small in rows and columns, the first stays",
        "the position table is read shifted by one row and one column, rows and columns 0 and 1 share theirs;"
        " the last row and column of the table are never used",
    ),
    "bias on both tensor-parallel ranks": program(
        "model",
        row_parallel,
        "torch",
        "in every block of both towers the biases of attn/out and mlp/out are added twice",
        "bias of the row-parallel linear layers is counted once per shard (2 shards), gradients of these biases double",
    ),
    "keys padded to a multiple of eight": program(
        "model",
        aligned_keys,
        "torch",
        "in every block of both towers the softmax of attention also runs over 7 padding keys of score 0 and value 0",
        "attention = sum exp(s) v / (sum exp(s) + 7)",
        "attention weights of the blocks sum to less than one: 7 zero keys (25 to 32 patches, 9 to 16 tokens) are not masked",
    ),
    "resized to whole patches": program(
        "model",
        resized,
        "torch",
        "the image of 22 pixels is resized (bilinear) to 20 pixels before the patches, where SigLIP takes the upper left 20",
        "the rim beyond the last whole patch is squeezed in instead of ignored",
    ),
    "texts packed without borders": program(
        "model",
        packed_texts,
        "torch",
        "in the text tower's blocks every token attends to all tokens of all texts in the batch",
        "self-attention of the texts runs over the whole batch as one sequence (no block-diagonal mask)",
    ),
    "probe among the keys": program(
        "model",
        class_attention,
        "torch",
        "attention pooling: the probe is put before the tokens, so keys and values are those of probe and tokens",
        "MAP head attends to the probe itself too (class attention as in CaiT)",
        given=FLOAT32 | {"conventions": sr.preset("open_clip")},
    ),
    "token gradients by frequency": program(
        "model",
        frequency_scaled,
        "torch",
        "the gradient of each row of the token table is divided by how often the token occurs in the batch",
        "scale_grad_by_freq in the token embedding; values and all other gradients are right",
        given=FLOAT32 | {"conventions": sr.preset("open_clip")},
    ),
    "gamma about zero": program(
        "model",
        zero_centred_gamma,
        "torch",
        "all layer norms multiply by 1 + gamma in place of gamma",
        "layer norm's weight is taken as its distance from one (zero-centred gamma)",
    ),
    "texts' gradient not transposed": program(
        "model",
        fused_loss,
        "torch",
        "d text_embed = t G image_embed where it should be t G^T image_embed, with G the gradient of logits (images, texts)",
        "the loss is right, the gradient of the text embeddings uses the logits' gradient untransposed,"
        " so all gradients of the text tower are wrong; image tower, log_scale and bias are right",
    ),
    "attention weights in bfloat16": program(
        "model",
        half_probabilities,
        "jax",
        "attention weights (after softmax, in blocks and pooling) are rounded to bfloat16, and so is their gradient",
        "softmax probabilities are kept in half precision before they meet the values",
    ),
    "right: model by hand in tiles": program("model", all_by_hand, "torch", "SigLIP's own"),
    "clip inside the accumulation loop": program(
        "step",
        clip_in_the_loop,
        "torch",
        "the accumulated gradient is clipped after each of the 2 micro-batches: clip(clip(g1/2) + g2/2), not clip(g1/2 + g2/2)",
        "gradient clipping of partial sums while accumulating",
    ),
    "towers' moments exchanged at restart": program(
        "step",
        groups_in_another_order,
        "torch",
        "after the restart the blocks of the image tower have the Adam moments of the text tower's blocks and vice versa",
        "the optimiser's state is loaded into parameter groups of another order",
    ),
    "Nesterov momentum": program(
        "step",
        nesterov,
        "jax",
        "first moment with Nesterov: beta1 m/(1 - beta1^(k+1)) + (1 - beta1) g/(1 - beta1^k) in place of m/(1 - beta1^k)",
        "NAdam with decoupled decay in place of AdamW",
    ),
    "first moment in bfloat16": program(
        "step",
        cheap_momentum,
        "jax",
        "Adam's first moment is stored in bfloat16 between steps",
        "momentum rounded to bfloat16 (mu_dtype); the first step is exact",
    ),
    "second optimiser not zeroed": program(
        "step",
        one_of_two_zeroed,
        "torch",
        "gradients of the text tower are never zeroed: step k uses the sum of its gradients of steps 1..k",
        "zero_grad is called for the image tower, log_scale and bias only",
    ),
    "locked by zero gradients": program(
        "step",
        locked_by_zeros,
        "torch",
        "the frozen image tower's kernels still decay: p (1 - lr decay) each step",
        "frozen by zero gradients in place of none, so AdamW's weight decay still moves the kernels",
    ),
    "layer rates off by one": program(
        "step",
        layer_rates,
        "torch",
        "block i has the rate 0.75^(3-i), meant is 0.75^(2-i): each block that of the layer below; block 0 that of the stem",
        "learning rates of all blocks are 0.75 times as large as meant (the decay too); stem and the rest are right",
    ),
    "momentum before Adafactor": program(
        "step",
        momentum_first,
        "numpy",
        "momentum is taken of the clipped gradients, and Adafactor's second moment and scaling of that momentum",
        "order of the chain: clip, momentum, Adafactor, lr in place of clip, Adafactor, momentum, lr",
    ),
    "texts learn from their own chunk": program(
        "step",
        own_chunk_only,
        "torch",
        "text embeddings get gradients only from the images of their own chunk of 4; the other chunk's texts are constants;"
        " image gradients, log_scale and bias are right",
        "cached texts of other chunks are detached, and nothing brings their gradient back",
    ),
    "group added after the scheduler": program(
        "step",
        group_added_late,
        "torch",
        "log_scale and bias are not scheduled: always the full learning rate",
        "the schedule (warm-up) reaches all parameters but log_scale and bias",
    ),
    "right: step cached and flat": program("step", cached_and_flat, "torch", "SigLIP's own"),
}
