"""Models and training steps of a year of pull requests: 20 wrong ones with the truth of each, and 2 right ones."""

import importlib
import importlib.machinery
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoder, SiglipVisionEmbeddings
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

import siglip_ref as sr
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.check.model.adapters.big_vision import BigVision
from siglip_ref.check.model.adapters.torch_model import Tap, TorchModel
from siglip_ref.checkpoint.tables.names import Entry, dense, norm
from siglip_ref.model.optim import cosine

# ---------------------------------------------------------------------------------------------------------------------
# Small models of the libraries


def hf_model(image_size=20, seed=0):
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"hidden_size": 24, "intermediate_size": 40, "vocab_size": 50, "max_position_embeddings": 9}
    text |= {"bos_token_id": None, "eos_token_id": None, "projection_size": 16}
    image = tower | {"hidden_size": 16, "intermediate_size": 28, "image_size": image_size, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SiglipModel(SiglipConfig(vision_config=image, text_config=text))


def naflex_model(seed=0):
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"hidden_size": 24, "intermediate_size": 40, "vocab_size": 50, "max_position_embeddings": 9}
    text |= {"bos_token_id": None, "eos_token_id": None, "projection_size": 16}
    image = tower | {"hidden_size": 16, "intermediate_size": 28, "num_patches": 25, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Siglip2Model(Siglip2Config(vision_config=image, text_config=text))


class _Empty(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode" or name[0].islower():
            return mock.MagicMock()
        return type(name, (nn.Module,), {})


class _Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


def imported(*names):
    """Import timm or open_clip, also where torchvision, of which their models need nothing, is not installed."""
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, m in sys.modules.items() if isinstance(m, _Empty)]:
            del sys.modules[name]


def timm_tower(seed=0):
    (timm,) = imported("timm")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"img_size": 20, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
        return timm.create_model("vit_base_patch16_siglip_224", num_classes=0, **sizes)


def open_clip_model(seed=0):
    imported("timm", "open_clip")
    from open_clip.model import CustomTextCLIP
    from timm.models import is_model, register_model

    if not is_model("vit_small_stranger_siglip_20"):

        def vit_small_stranger_siglip_20(pretrained=False, **kwargs):
            from timm.models.vision_transformer import VisionTransformer

            sizes = {"img_size": 20, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
            kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None), kwargs.pop("cache_dir", None)
            return VisionTransformer(class_token=False, **sizes, **kwargs)

        vit_small_stranger_siglip_20.__module__ = "timm.models.vision_transformer"
        register_model(vit_small_stranger_siglip_20)
    vision = {"image_size": 20, "timm_model_name": "vit_small_stranger_siglip_20", "timm_model_pretrained": False}
    vision |= {"timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": 9, "vocab_size": 50, "width": 24, "heads": 2, "layers": 2, "no_causal_mask": True}
    text |= {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}, "mlp_ratio": 2.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CustomTextCLIP(16, vision, text, init_logit_scale=np.log(10), init_logit_bias=-10.0)


def become(model, cls, chosen):
    """The chosen modules get another class: their parameters and names stay."""
    for name, module in model.named_modules():
        if chosen(name):
            module.__class__ = cls
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Models in Torch


class TiledAttention(SiglipAttention):
    """Attention for a kernel that wants a whole number of tiles of keys."""

    tile = 8

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        shape = hidden_states.shape[:-1]
        q, k, v = (
            project(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        more = -k.shape[2] % self.tile
        k, v = F.pad(k, (0, 0, 0, more)), F.pad(v, (0, 0, 0, more))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out_proj(out.transpose(1, 2).reshape(*shape, -1)), None


def tiled_keys():
    return become(hf_model(seed=1), TiledAttention, lambda n: n.startswith("vision") and n.endswith("self_attn"))


class CachedAttention(SiglipAttention):
    """Keys and values go through the cache that generation uses, too."""

    def forward(self, hidden_states, attention_mask=None, cache=None, **kwargs):
        shape = hidden_states.shape[:-1]

        def heads(x):
            return x.view(*shape, -1, self.head_dim).transpose(1, 2)

        slot = getattr(self, "layer_idx", 0)
        if slot not in cache:
            cache[slot] = heads(self.k_proj(hidden_states)), heads(self.v_proj(hidden_states))
        k, v = cache[slot]
        out = F.scaled_dot_product_attention(heads(self.q_proj(hidden_states)), k, v, scale=self.scale)
        return self.out_proj(out.transpose(1, 2).reshape(*shape, -1)), None


class CachingEncoder(SiglipEncoder):
    def forward(self, inputs_embeds, attention_mask=None, **kwargs):
        return super().forward(inputs_embeds, attention_mask, cache={}, **kwargs)


def cached_keys():
    model = become(hf_model(seed=2), CachedAttention, lambda n: n.startswith("text") and n.endswith("self_attn"))
    return become(model, CachingEncoder, lambda n: n == "text_model.encoder")


class ScaledLinear(nn.Linear):
    """The product is made with a kernel whose rows reach at most 1, as a small format needs it."""

    def forward(self, x):
        scale = self.weight.detach().abs().amax(1)
        return F.linear(x, self.weight / scale[:, None], self.bias) * scale


def scaled_linear():
    return become(
        hf_model(seed=3), ScaledLinear, lambda n: n.startswith("vision_model.encoder") and n.endswith((".fc1", ".fc2"))
    )


class FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        mean = x.mean(-1, keepdim=True)
        rstd = torch.rsqrt((x - mean).square().mean(-1, keepdim=True) + eps)
        hat = (x - mean) * rstd
        ctx.save_for_backward(hat, rstd, weight)
        return hat * weight + bias

    @staticmethod
    def backward(ctx, d):
        hat, rstd, weight = ctx.saved_tensors
        g = d * weight
        dx = rstd * (g - hat * (g * hat).mean(-1, keepdim=True))
        rows = tuple(range(d.dim() - 1))
        return dx, (d * hat).sum(rows), d.sum(rows), None


class FusedLayerNorm(nn.LayerNorm):
    def forward(self, x):
        return FusedNorm.apply(x, self.weight, self.bias, self.eps)


def fused_norm():
    model = hf_model(seed=4)
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and n.startswith("text")}
    return become(model, FusedLayerNorm, norms.__contains__)


class WindowEmbeddings(SiglipVisionEmbeddings):
    """Patches leave in windows of 2 x 2, so that a window's patches are neighbours in memory."""

    def forward(self, pixel_values, interpolate_pos_encoding=False):
        x = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, c)
        return x + self.position_embedding(self.position_ids)


def windows():
    return become(hf_model(image_size=24, seed=5), WindowEmbeddings, lambda n: n == "vision_model.embeddings")


class AlignedEmbeddings(Siglip2VisionEmbeddings):
    @staticmethod
    def resize_positional_embeddings(positional_embeddings, spatial_shapes, max_length):
        table = positional_embeddings.permute(2, 0, 1).unsqueeze(0)
        rows = []
        for height, width in spatial_shapes.tolist():
            x = F.interpolate(
                table.float() if table.dtype != torch.float64 else table,
                size=(height, width), mode="bilinear", align_corners=True, antialias=True,
            )  # fmt: skip
            x = x.flatten(2)[0].T.to(table.dtype)
            rows.append(torch.cat([x, x[:1].expand(max_length - len(x), -1)]))
        return torch.stack(rows)


def aligned_corners():
    return become(naflex_model(seed=6), AlignedEmbeddings, lambda n: n == "vision_model.embeddings")


def normed_pool():
    model = timm_tower(seed=7)

    class NormedPool(type(model.attn_pool)):
        """Queries and keys of the pooling are normalised for stability."""

        def forward(self, x, attn_mask=None):
            b, n, c = x.shape
            q = self.q(self.latent.expand(b, -1, -1)).reshape(b, 1, self.num_heads, self.head_dim).transpose(1, 2)
            k, v = self.kv(x).reshape(b, n, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            q, k = (F.layer_norm(a, (self.head_dim,), eps=1e-6) for a in (q, k))
            x = F.scaled_dot_product_attention(q, k, v)
            x = self.proj(x.transpose(1, 2).reshape(b, 1, c))
            return (x + self.mlp(self.norm(x)))[:, 0]

    model.attn_pool.__class__ = NormedPool
    return model


class LightGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, approximate):
        ctx.save_for_backward(x.bfloat16())
        ctx.approximate = approximate
        return F.gelu(x, approximate=approximate)

    @staticmethod
    def backward(ctx, d):
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(d, x.to(d.dtype), approximate=ctx.approximate), None


class LightActivation(nn.GELU):
    """Keeps half as many bytes for the backward pass."""

    def forward(self, x):
        return LightGelu.apply(x, self.approximate)


def light_gelu():
    model = open_clip_model(seed=8)
    gelus = {n for n, m in model.named_modules() if isinstance(m, nn.GELU) or type(m).__name__ == "GELU"}
    return become(model, LightActivation, gelus.__contains__)


class BaseLinear(nn.Linear):
    """The frozen part below an adapter."""

    def forward(self, x):
        return F.linear(x, self.weight.detach(), self.bias.detach())


def after_lora():
    model = become(hf_model(seed=9), BaseLinear, lambda n: n.startswith("text") and n.endswith((".q_proj", ".v_proj")))
    model.text_model.embeddings.token_embedding.scale_grad_by_freq = True
    return model


# A project's own model, split over two workers that are simulated one after another.
IMAGE, TEXT = Tower(width=16, depth=2, mlp=28, heads=2), Tower(width=24, depth=2, mlp=40, heads=4)
SIDE, PATCH, VOCABULARY, LENGTH, EPS = 20, 4, 50, 9, 1e-6


class Attention(nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.heads = tower.heads
        self.q, self.k, self.v, self.out = (nn.Linear(tower.width, tower.width) for _ in range(4))

    def forward(self, query, x):
        q, k, v = (f(a).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f, a in self.inputs(query, x))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def inputs(self, query, x):
        return (self.q, query), (self.k, x), (self.v, x)


class Mlp(nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(tower.width, tower.mlp), nn.Linear(tower.mlp, tower.width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SplitAttention(Attention):
    workers = 2

    def forward(self, query, x):
        width = self.q.in_features // self.workers
        here, scale = self.heads // self.workers, (width // self.heads) ** -0.5
        parts = []
        for rank in range(self.workers):
            rows = slice(rank * width, (rank + 1) * width)
            q, k, v = (
                F.linear(a, f.weight[rows], f.bias[rows]).unflatten(-1, (here, -1)).transpose(1, 2)
                for f, a in self.inputs(query, x)
            )
            mixed = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
            parts.append(mixed @ self.out.weight[:, rows].T)
        return sum(parts) + self.out.bias


class SplitMlp(Mlp):
    workers = 2

    def forward(self, x):
        parts = []
        for w1, b1, w2 in zip(*(t.chunk(2, axis) for t, axis in
                                ((self.fc1.weight, 0), (self.fc1.bias, 0), (self.fc2.weight, 1))), strict=True):  # fmt: skip
            parts.append(F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, self.fc2.bias))
        return sum(parts)


class Block(nn.Module):
    def __init__(self, tower, attention, mlp):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(tower.width, EPS), nn.LayerNorm(tower.width, EPS)
        self.attention, self.mlp = attention(tower), mlp(tower)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y)
        return x + self.mlp(self.norm2(x))


class ImageTower(nn.Module):
    def __init__(self, *kinds):
        super().__init__()
        c = IMAGE.width
        self.patches = nn.Conv2d(3, c, PATCH, PATCH)
        self.positions = nn.Parameter(torch.randn((SIDE // PATCH) ** 2, c))
        self.blocks = nn.Sequential(*(Block(IMAGE, *kinds) for _ in range(IMAGE.depth)))
        self.norm, self.head_norm = nn.LayerNorm(c, EPS), nn.LayerNorm(c, EPS)
        self.probe = nn.Parameter(torch.randn(1, 1, c))
        self.attention, self.mlp = Attention(IMAGE), Mlp(IMAGE)

    def forward(self, images):
        x = self.norm(self.blocks(self.patches(images).flatten(2).mT + self.positions))
        x = self.attention(self.probe.expand(len(x), -1, -1), x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


class TextTower(nn.Module):
    def __init__(self, *kinds):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, TEXT.width)
        self.positions = nn.Parameter(torch.randn(LENGTH, TEXT.width))
        self.blocks = nn.Sequential(*(Block(TEXT, *kinds) for _ in range(TEXT.depth)))
        self.norm = nn.LayerNorm(TEXT.width, EPS)
        self.head = nn.Linear(TEXT.width, IMAGE.width)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions))[:, -1])


class OwnModel(nn.Module):
    def __init__(self, *kinds):
        super().__init__()
        self.image, self.text = ImageTower(*kinds), TextTower(*kinds)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-10.0))

    def forward(self, images, tokens):
        image, text = (F.normalize(x, dim=-1) for x in (self.image(images), self.text(tokens)))
        return image, text, self.log_scale.exp() * image @ text.T + self.bias


def own_table():
    table = [
        Entry("image/patch/kernel", "image.patches.weight", "patch"),
        Entry("image/patch/bias", "image.patches.bias"),
        Entry("image/position", "image.positions"),
        *norm("image/norm", "image.norm"),
        Entry("image/pool/probe", "image.probe"),
        *norm("image/pool/norm", "image.head_norm"),
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
    places = [("image/pool", "image")]
    for tower, depth in (("image", IMAGE.depth), ("text", TEXT.depth)):
        taps.append(Tap(f"{tower}/stem", f"{tower}.blocks", "input"))
        for i in range(depth):
            ours, theirs = f"{tower}/block{i:02d}", f"{tower}.blocks.{i}"
            places.append((ours, theirs))
            table += [*norm(f"{ours}/norm1", f"{theirs}.norm1"), *norm(f"{ours}/norm2", f"{theirs}.norm2")]
            taps += [Tap(f"{ours}/+attn", f"{theirs}.norm2", "input"), Tap(f"{ours}/+mlp", theirs)]
    for ours, theirs in places:
        for part in ("q", "k", "v", "out"):
            table += dense(f"{ours}/attn/{part}", f"{theirs}.attention.{part}")
        table += [*dense(f"{ours}/mlp/in", f"{theirs}.mlp.fc1"), *dense(f"{ours}/mlp/out", f"{theirs}.mlp.fc2")]
    return tuple(table), tuple(taps)


def own_loss(model, images, tokens):
    image, text, logits = model(images, tokens)
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    value = -F.logsigmoid(signs * logits).sum() / len(logits)
    return value, {"image/embed": image, "text/embed": text, "logits": logits}


def own_model(*kinds):
    conventions = sr.preset("open_clip", image_gelu="tanh", text_gelu="tanh")
    config = Config("own model", IMAGE, TEXT, (SIDE, SIDE), PATCH, VOCABULARY, LENGTH, conventions=conventions)
    with torch.random.fork_rng():
        torch.manual_seed(10)
        return TorchModel("own model", OwnModel(*kinds), config, *own_table(), own_loss)


def split_over_workers():
    return own_model(SplitAttention, SplitMlp)


# ---------------------------------------------------------------------------------------------------------------------
# Models in JAX, on big_vision's tree of parameters

J_WIDTH, J_HEADS, J_HIDDEN, J_PATCH, J_GRID, J_DEPTH = 16, 2, 28, 4, 5, 2


def j_norm(x, p):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + EPS) * p["scale"] + p["bias"]


def j_project(x, p):
    return jnp.einsum("bnc,chd->bnhd", x, p["kernel"]) + p["bias"]


def j_out(x, p):
    return jnp.einsum("bnhd,hdc->bnc", x, p["kernel"]) + p["bias"]


def j_mlp(x, p):
    x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], approximate=True)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def j_attention(query, x, p):
    q, k, v = j_project(query, p["query"]), j_project(x, p["key"]), j_project(x, p["value"])
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5)
    return j_out(jnp.einsum("bhnm,bmhd->bnhd", weights, v), p["out"])


def j_attention_constant_sum(query, x, p):
    """The log of the sum is kept from the forward pass, so that weights can be made again tile by tile."""
    q, k, v = j_project(query, p["query"]), j_project(x, p["key"]), j_project(x, p["value"])
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    kept = jax.lax.stop_gradient(jax.nn.logsumexp(scores, axis=-1, keepdims=True))
    return j_out(jnp.einsum("bhnm,bmhd->bnhd", jnp.exp(scores - kept), v), p["out"])


def j_attention_folded(query, x, p):
    """1 / sqrt(h) is folded into the query's kernel, as an export does it."""
    kernel = p["query"]["kernel"]
    q = j_project(query, {"kernel": kernel * kernel.shape[-1] ** -0.5, "bias": p["query"]["bias"]})
    k, v = j_project(x, p["key"]), j_project(x, p["value"])
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k))
    return j_out(jnp.einsum("bhnm,bmhd->bnhd", weights, v), p["out"])


def j_pool(x, head, attention):
    x = attention(jnp.tile(head["probe"], (len(x), 1, 1)), x, head["MultiHeadDotProductAttention_0"])
    return (x + j_mlp(j_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]


def j_pool_resampler(x, head, attention):
    """One latent of a resampler; it looks at the patches and at itself."""
    latent = jnp.tile(head["probe"], (len(x), 1, 1))
    x = attention(latent, jnp.concatenate([x, latent], 1), head["MultiHeadDotProductAttention_0"])
    return (x + j_mlp(j_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]


def j_normalize(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


def j_loss(attention=j_attention, pool=j_pool):
    def encoder(x, p, tower, seen):
        for i in range(J_DEPTH):
            block = p[f"encoderblock_{i}"]
            y = j_norm(x, block["LayerNorm_0"])
            y = attention(y, y, block["MultiHeadDotProductAttention_0"])
            x = seen[f"{tower}/block{i:02d}/+attn"] = x + y
            x = seen[f"{tower}/block{i:02d}/+mlp"] = x + j_mlp(j_norm(x, block["LayerNorm_1"]), block["MlpBlock_0"])
        return j_norm(x, p["encoder_norm"])

    def loss_fn(params, images, tokens):
        seen, img, txt = {}, params["img"], params["txt"]
        x = seen["image/stem"] = j_patches(images, img)
        x = seen["image/norm"] = encoder(x, img["Transformer"], "image", seen)
        x = seen["image/pool"] = pool(x, img["MAPHead_0"], attention)
        image = seen["image/embed"] = j_normalize(x)
        x = seen["text/stem"] = txt["Embed_0"]["embedding"][tokens] + txt["pos_embedding"]
        x = seen["text/norm"] = encoder(x, txt["Encoder_0"], "text", seen)
        x = seen["text/pool"] = x[:, -1]
        x = seen["text/head"] = x @ txt["head"]["kernel"] + txt["head"]["bias"]
        text = seen["text/embed"] = j_normalize(x)
        logits = seen["logits"] = image @ text.T * jnp.exp(params["t"]) + params["b"]
        signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
        return -jax.nn.log_sigmoid(signs * logits).sum(-1).mean(), seen

    return loss_fn


def j_patches(images, p):
    batch, height, width, _ = images.shape
    grid = images.reshape(batch, height // J_PATCH, J_PATCH, width // J_PATCH, J_PATCH, 3).swapaxes(2, 3)
    x = grid.reshape(batch, -1, J_PATCH * J_PATCH * 3) @ p["embedding"]["kernel"].reshape(-1, J_WIDTH)
    return x + p["embedding"]["bias"] + p["pos_embedding"]


def j_absorbed(query, x, p):
    """Attention of one query: the key's kernel goes to the query, the value's kernel comes after the mean."""
    q = jnp.einsum("bc,chd->bhd", query, p["query"]["kernel"]) + p["query"]["bias"]
    looks = jnp.einsum("bhd,chd->bhc", q, p["key"]["kernel"])
    scores = jnp.einsum("bhc,bmc->bhm", looks, x) + (q * p["key"]["bias"]).sum(-1)[..., None]
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5)
    mean = jnp.einsum("bhm,bmc->bhc", weights, x)
    v = jnp.einsum("bhc,chd->bhd", mean, p["value"]["kernel"]) + p["value"]["bias"]
    return jnp.einsum("bhd,hdc->bc", v, p["out"]["kernel"]) + p["out"]["bias"]


def j_loss_lean(params, images, tokens):
    """In the text tower's last block only the last token is computed, for nobody reads the others."""
    img, txt = params["img"], params["txt"]

    def block(x, p):
        y = j_norm(x, p["LayerNorm_0"])
        x = x + j_attention(y, y, p["MultiHeadDotProductAttention_0"])
        return x + j_mlp(j_norm(x, p["LayerNorm_1"]), p["MlpBlock_0"])

    def stack(p, count):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p[f"encoderblock_{i}"] for i in range(count)))

    x, _ = jax.lax.scan(lambda x, p: (block(x, p), None), j_patches(images, img), stack(img["Transformer"], J_DEPTH))
    head = img["MAPHead_0"]
    x = j_norm(x, img["Transformer"]["encoder_norm"])
    probe = jnp.broadcast_to(head["probe"][0], (len(x), J_WIDTH))
    x = j_absorbed(probe, x, head["MultiHeadDotProductAttention_0"])
    image = x + j_mlp(j_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"])

    p = txt["Encoder_0"]
    x = jnp.take(txt["Embed_0"]["embedding"], tokens, axis=0) + txt["pos_embedding"]
    x, _ = jax.lax.scan(lambda x, p: (block(x, p), None), x, stack(p, J_DEPTH - 1))
    last, p_last = x[:, -1], p[f"encoderblock_{J_DEPTH - 1}"]
    y = j_norm(x, p_last["LayerNorm_0"])
    last = last + j_absorbed(y[:, -1], y, p_last["MultiHeadDotProductAttention_0"])
    last = last + j_mlp(j_norm(last, p_last["LayerNorm_1"]), p_last["MlpBlock_0"])
    text = j_norm(last, p["encoder_norm"]) @ txt["head"]["kernel"] + txt["head"]["bias"]

    lengths = [jnp.sqrt((a * a).sum(-1)) + 1e-8 for a in (image, text)]
    logits = jnp.exp(params["t"]) * (image @ text.T) / jnp.outer(*lengths) + params["b"]
    match = jnp.eye(len(logits), dtype=bool)
    return jnp.where(match, jax.nn.softplus(-logits), jax.nn.softplus(logits)).sum() / len(logits)


def j_init(seed=0):
    rng = np.random.default_rng(seed)

    def tensor(*shape):
        return jnp.asarray(0.3 * rng.standard_normal(shape, np.float32))

    def linear(*shape, bias):
        return {"kernel": tensor(*shape), "bias": tensor(*bias)}

    def a_norm():
        return {"scale": 1 + tensor(J_WIDTH), "bias": tensor(J_WIDTH)}

    def multi_head():
        size = J_WIDTH // J_HEADS
        qkv = {name: linear(J_WIDTH, J_HEADS, size, bias=(J_HEADS, size)) for name in ("query", "key", "value")}
        return qkv | {"out": linear(J_HEADS, size, J_WIDTH, bias=(J_WIDTH,))}

    def two_layers():
        return {
            "Dense_0": linear(J_WIDTH, J_HIDDEN, bias=(J_HIDDEN,)),
            "Dense_1": linear(J_HIDDEN, J_WIDTH, bias=(J_WIDTH,)),
        }

    def blocks():
        block = {
            f"encoderblock_{i}": {
                "LayerNorm_0": a_norm(),
                "MultiHeadDotProductAttention_0": multi_head(),
                "LayerNorm_1": a_norm(),
                "MlpBlock_0": two_layers(),
            }
            for i in range(J_DEPTH)
        }
        return block | {"encoder_norm": a_norm()}

    head = {
        "probe": tensor(1, 1, J_WIDTH),
        "MultiHeadDotProductAttention_0": multi_head(),
        "LayerNorm_0": a_norm(),
        "MlpBlock_0": two_layers(),
    }
    image = {
        "embedding": linear(J_PATCH, J_PATCH, 3, J_WIDTH, bias=(J_WIDTH,)),
        "pos_embedding": tensor(1, J_GRID * J_GRID, J_WIDTH),
        "Transformer": blocks(),
        "MAPHead_0": head,
    }
    text = {
        "Embed_0": {"embedding": tensor(VOCABULARY, J_WIDTH)},
        "pos_embedding": tensor(1, LENGTH, J_WIDTH),
        "Encoder_0": blocks(),
        "head": linear(J_WIDTH, J_WIDTH, bias=(J_WIDTH,)),
    }
    return {"img": image, "txt": text, "t": tensor(1), "b": tensor(1)}


def constant_sum():
    return BigVision(j_loss(attention=j_attention_constant_sum), j_init(1), name="attention by tiles")


def resampler():
    return BigVision(j_loss(pool=j_pool_resampler), j_init(2), name="pooling by a resampler")


def folded():
    return BigVision(j_loss(attention=j_attention_folded), j_init(3), name="a folded scale")


def lean():
    return BigVision(j_loss_lean, j_init(4), name="lean")


# ---------------------------------------------------------------------------------------------------------------------
# Training steps


def step_model(seed=20):
    tower = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": None, "eos_token_id": None}
    image = tower | {"image_size": 20, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SiglipModel(SiglipConfig(vision_config=image, text_config=text | {"projection_size": 12}))


def kernels_of(model):
    """The matrices of linear layers, which SigLIP decays, and all the rest."""
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    matrices |= {id(m.in_proj_weight) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    parameters = list(model.parameters())
    return [p for p in parameters if id(p) in matrices], [p for p in parameters if id(p) not in matrices]


def adamw(model, lr=1e-3, decay=0.1):
    decayed, others = kernels_of(model)
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def loss_of(model, images, tokens):
    return model(pixel_values=images, input_ids=tokens, return_loss=True).loss


class AveragingTrainer:
    """Keeps a slow mean of the weights for the evaluation."""

    def __init__(self, model):
        self.model, self.optimizer, self.mean = model, adamw(model), None

    def average(self, keep=0.99):
        if self.mean is None:
            self.mean = self.model.state_dict()
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.mean[name].mul_(keep).add_(value, alpha=1 - keep)

    def step(self, images, tokens):
        self.optimizer.zero_grad()
        loss_of(self.model, images, tokens).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average()


def averaged():
    model = step_model(20)
    return {"step_fn": AveragingTrainer(model).step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0), "model": model}


class LossScale:
    def __init__(self, scale=1024.0, interval=2):
        self.scale, self.interval, self.good = scale, interval, 0

    def update(self, finite):
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good == self.interval:
            self.scale, self.good = self.scale * 2, 0


class ScalingTrainer:
    """Multiplies the loss, as float16 needs it; a longer run of finite gradients makes the factor larger."""

    def __init__(self, model):
        self.model, self.optimizer, self.scaler = model, adamw(model), LossScale()

    def step(self, images, tokens):
        self.optimizer.zero_grad()
        (loss_of(self.model, images, tokens) * self.scaler.scale).backward()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        finite = all(bool(torch.isfinite(g).all()) for g in grads)
        self.scaler.update(finite)
        if finite:
            for g in grads:
                g.div_(self.scaler.scale)
            self.optimizer.step()


def scaled():
    model = step_model(21)
    return {"step_fn": ScalingTrainer(model).step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1), "model": model}


def ten_steps(step):
    return cosine(step, total=10, warmup=0)


class AccumulatingTrainer:
    def __init__(self, model, micro=2):
        self.model, self.micro, self.optimizer = model, micro, adamw(model)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda k: float(ten_steps(k)))

    def step(self, images, tokens):
        self.optimizer.zero_grad()
        for i, (some, texts) in enumerate(zip(images.chunk(self.micro), tokens.chunk(self.micro), strict=True)):
            (loss_of(self.model, some, texts) / self.micro).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.25)
            if i + 1 == self.micro:
                self.optimizer.step()
            self.scheduler.step()


def accumulated():
    model = step_model(22)
    return {"step_fn": AccumulatingTrainer(model).step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=0.25), "model": model}


class SavingTrainer:
    def __init__(self, model):
        self.model, self.optimizer = model, adamw(model)

    def step(self, images, tokens):
        self.optimizer.zero_grad()
        loss_of(self.model, images, tokens).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def save(self):
        """Small files: what the optimiser remembers needs few digits."""
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            i: {k: v.bfloat16() if k.startswith("exp_avg") else v.clone() for k, v in slots.items()}
            for i, slots in optimizer["state"].items()
        }
        return {k: v.clone() for k, v in self.model.state_dict().items()}, optimizer

    def load(self, model, optimizer):
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)


def saved():
    trainer = SavingTrainer(step_model(23))

    def restart():
        fresh = SavingTrainer(step_model(24))
        fresh.load(*trainer.save())
        return fresh.model, fresh.step

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
    return {"step_fn": trainer.step, "rule": rule, "model": trainer.model, "restart": restart}


def all_but_vectors(name):
    """What the project means to decay: everything but norms, biases and the scale."""
    return not name.endswith(("/gamma", "/beta", "bias", "log_scale"))


class NamingTrainer:
    def __init__(self, model):
        self.model = model
        skip = ("bias", "layer_norm")
        named = list(model.named_parameters())
        groups = [
            {"params": [p for n, p in named if not any(s in n for s in skip)], "weight_decay": 0.1},
            {"params": [p for n, p in named if any(s in n for s in skip)], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))

    def step(self, images, tokens):
        self.optimizer.zero_grad()
        loss_of(self.model, images, tokens).backward()
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 1.0)
        self.optimizer.step()


def named():
    model = step_model(25)
    rule = sr.AdamW(lr=3e-3, beta2=0.95, decay=0.1, max_norm=1.0, decays=all_but_vectors)
    return {"step_fn": NamingTrainer(model).step, "rule": rule, "model": model}


def jax_adamw(params, grads, state):
    """AdamW on a tree; the count of steps goes up at the end."""
    lr, b1, b2, eps, decay = 1e-3, 0.9, 0.95, 1e-8, 0.1
    if state is None:
        state = {"count": 0, "mu": jax.tree.map(jnp.zeros_like, params), "nu": jax.tree.map(jnp.zeros_like, params)}
    length = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, 1.0 / (length + 1e-6)), grads)
    t = max(state["count"], 1)
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["mu"], grads)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state["nu"], grads)

    def moved(name):
        step = mu[name] / (1 - b1**t) / (jnp.sqrt(nu[name] / (1 - b2**t)) + eps)
        return params[name] - lr * step - (lr * decay * params[name] if name.endswith("/kernel") else 0)

    return {name: moved(name) for name in params}, {"count": state["count"] + 1, "mu": mu, "nu": nu}


def late_count():
    return {"step_fn": jax_adamw, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)}


def numpy_adafactor(params, grads, state):
    """big_vision's optimiser, with the update of another library's Adafactor."""
    lr, decay, smallest = 1e-3, 1e-4, 32
    state = state or {"steps": 0}
    steps, state = state["steps"] + 1, dict(state)
    state["steps"] = steps
    rate = min(1 - steps**-0.8, 0.95)
    length = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    new = {}
    for name, p in params.items():
        g = grads[name] * np.asarray(1 / max(length, 1.0), p.dtype)
        square = g * g + 1e-30
        axes = np.argsort(g.shape, kind="stable")
        if g.ndim < 2 or g.shape[axes[-2]] < smallest:
            second = rate * state.get(("second", name), 0) + (1 - rate) * square
            state["second", name] = second
            update = g / np.sqrt(second)
        else:
            shorter, longer = int(axes[-2]), int(axes[-1])
            row = rate * state.get(("row", name), 0) + (1 - rate) * square.mean(longer, keepdims=True)
            column = rate * state.get(("column", name), 0) + (1 - rate) * square.mean(shorter, keepdims=True)
            state["row", name], state["column", name] = row, column
            update = g / np.sqrt(row / row.mean(shorter, keepdims=True)) / np.sqrt(column)
        update = update * max(1e-3, float(np.sqrt((p * p).mean())))
        first = state["first", name] = 0.9 * state.get(("first", name), 0) + 0.1 * update
        step = lr * first + (decay * p if name.endswith("/kernel") else 0)
        new[name] = (p - step).astype(p.dtype)
    return new, state


def scale_parameter():
    return {"step_fn": numpy_adafactor, "rule": sr.BigVision(lr=1e-3), "framework": "numpy"}


class FlatTrainer:
    """AdamW on two flat vectors; embeddings are computed in parts and kept; the loss is scaled by a power of two."""

    def __init__(self, model, part=2, scale=256.0):
        self.model, self.part, self.scale = model, part, scale
        self.groups, self.decays, self.moments, self.steps = kernels_of(model), (0.1, 0.0), None, 0

    def embed(self, images, tokens):
        return (
            self.model.vision_model(pixel_values=images).pooler_output,
            self.model.text_model(input_ids=tokens).pooler_output,
        )

    def gradients(self, images, tokens):
        for p in self.model.parameters():
            p.grad = None
        parts = list(zip(images.split(self.part), tokens.split(self.part), strict=True))
        with torch.no_grad():
            kept = [self.embed(*some) for some in parts]
        x, y = (torch.cat(side).requires_grad_() for side in zip(*kept, strict=True))
        logits = self.model.logit_scale.exp() * (F.normalize(x) @ F.normalize(y).T) + self.model.logit_bias
        match = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        loss = F.softplus(torch.where(match, -logits, logits)).sum()
        (self.scale * loss / len(x)).backward()
        for some, dx, dy in zip(parts, x.grad.split(self.part), y.grad.split(self.part), strict=True):
            torch.autograd.backward(self.embed(*some), (dx, dy))

    def step(self, images, tokens, lr=1e-3, b1=0.9, b2=0.95, eps=1e-8):
        self.gradients(images, tokens)
        self.steps += 1
        flat = [torch.cat([p.grad.flatten() for p in group]) / self.scale for group in self.groups]
        length = torch.stack([g.norm() for g in flat]).norm()
        flat = [g * (1.0 / (length + 1e-6)).clamp(max=1.0) for g in flat]
        if self.moments is None:
            self.moments = [(torch.zeros_like(g), torch.zeros_like(g)) for g in flat]
        with torch.no_grad():
            for group, g, (m, v), decay in zip(self.groups, flat, self.moments, self.decays, strict=True):
                m.lerp_(g, 1 - b1)
                v.mul_(b2).addcmul_(g, g, value=1 - b2)
                update = (m / (1 - b1**self.steps)) / ((v / (1 - b2**self.steps)).sqrt() + eps)
                theta = torch.cat([p.flatten() for p in group])
                theta = theta - lr * (update + decay * theta)
                for p, new in zip(group, theta.split([p.numel() for p in group]), strict=True):
                    p.copy_(new.view_as(p))


def flat():
    model = step_model(26)
    return {"step_fn": FlatTrainer(model).step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0), "model": model}


# ---------------------------------------------------------------------------------------------------------------------


def a_model(fn, framework, truth, *same, given=None):
    return {"check": "model", "fn": fn, "framework": framework, "given": given or {"dtype": "float32"}, "truth": truth, "same": list(same)}  # fmt: skip


def a_step(fn, framework, truth, *same, given=None):
    return {"check": "step", "fn": fn, "framework": framework, "given": given or {}, "truth": truth, "same": list(same)}


PROGRAMS = {
    "keys padded to whole tiles": a_model(
        tiled_keys, "torch",
        "attention of every image block: weight_ij = exp(s_ij) / (7 + sum over the 25 patches of exp(s_ij)), "
        "s = q.k / sqrt(h); pooling head and text tower right",
        "7 extra keys and values of zero, not masked, in each image block's attention",
        "the 25 keys are padded with zeros to 32 (a multiple of 8) and the padding takes part in the softmax",
    ),
    "one cache slot for all layers": a_model(
        cached_keys, "torch",
        "text block 1 attends with the keys and values that text block 0 computed (from block 0's normed input, with "
        "block 0's k and v kernels); its own k and v are not used and have gradient zero; block 0's k and v collect "
        "the gradients of both blocks",
        "keys and values of the text tower's first block are reused in its second",
        "the key/value cache is not kept by layer",
    ),
    "bias scaled with the product": a_model(
        scaled_linear, "torch",
        "both MLP layers of every image block: y_o = (x W)_o + s_o b_o, s_o = max_i |W_io| (a constant for the "
        "gradient), so the gradient of b_o is s_o times what it should be; pooling head's MLP right",
        "the biases of mlp/in and mlp/out in image blocks are multiplied by the largest |weight| of their output",
        "the dequantisation scale is applied after the bias was added",
    ),
    "layer norm with another norm's backward": a_model(
        fused_norm, "torch",
        "values right; in every layer norm of the text tower (norm1, norm2, final) dx = (g - xhat mean(g xhat)) / std "
        "with g = gamma dy: the term - mean(g) / std is missing; d gamma and d beta right",
        "RMSNorm's backward pass on a layer norm's forward pass, text tower",
        "the gradient through the mean is missing in the text tower's layer norms",
    ),
    "patches in windows": a_model(
        windows, "torch",
        "patches leave in the order of 2 x 2 windows (windows row by row, within a window row by row), and get the "
        "positions 0..35 in that order: patch (r, c) gets position 4 (3 floor(r/2) + floor(c/2)) + 2 (r mod 2) + c mod 2 "
        "instead of 6 r + c",
        "the patches are permuted against the position table (window order instead of row-major)",
        "the position table is read in another order than the patches': 2 x 2 windows",
    ),
    "naflex positions with aligned corners": a_model(
        aligned_corners, "torch",
        "the position table is resized (bilinear, antialias) with align_corners=True: target row i looks at table row "
        "i (5 - 1) / (height - 1) instead of (i + 1/2) 5 / height - 1/2; columns alike",
        "align_corners=True in the resizing of the image position table",
    ),
    "normed queries and keys in the pooling": a_model(
        normed_pool, "torch",
        "pooling head: scores = LN(q).LN(k) / sqrt(h), LN over each head's h channels without gamma and beta, eps 1e-6; "
        "blocks right",
        "QK-norm in the attention pooling: queries and keys of each head are layer-normalised before the product",
    ),
    "activations kept in bfloat16": a_model(
        light_gelu, "torch",
        "values right; all GELUs of both towers (blocks and pooling head): dx = dy gelu'(bfloat16(x)), the derivative is "
        "taken at the input rounded to bfloat16",
        "the GELU's backward pass uses its input rounded to bfloat16",
        "gradients carry rounding errors of bfloat16 (about 1e-3), which arise in the MLPs' activation; loss exact",
    ),
    "what a low-rank adapter left": a_model(
        after_lora, "torch",
        "values right; two mistakes in gradients of the text tower: (1) kernels and biases of q and v in all text blocks "
        "have gradient zero (detached; the gradient to their inputs is right), (2) row v of the token table's gradient "
        "is divided by how often token v is in the batch",
        "text q and v are frozen, and the token embedding has scale_grad_by_freq=True",
    ),
    "tensor parallel over two workers": a_model(
        split_over_workers, "torch",
        "two mistakes, in the blocks of both towers, not in the pooling head: (1) the scores are divided by sqrt(h/2) "
        "instead of sqrt(h), so sqrt(2) times as large; (2) the MLP's output bias is added twice (its gradient is twice "
        "as large)",
        "attention scale computed from half the head dimension, and the bias of mlp/out added once per worker (2 x)",
    ),
    "attention with a constant sum": a_model(
        constant_sum, "jax",
        "values right; in every attention (blocks of both towers and pooling head) the softmax's denominator is a "
        "constant for the gradient: d s_j = p_j d p_j, without - p_j sum_k p_k d p_k",
        "stop_gradient on the logsumexp of the attention scores",
    ),
    "probe among the keys": a_model(
        resampler, "jax",
        "pooling head: keys and values are made from the patches and the probe itself (N + 1 = 26 of them, the probe "
        "appended), through the same k and v; everything else right",
        "the pooling's probe also attends to itself, as in a Perceiver resampler",
    ),
    "scale folded into the kernel only": a_model(
        folded, "jax",
        "every attention (blocks of both towers, pooling head): scores = (x Wq / sqrt(h) + bq).k, the query's bias is "
        "not divided by sqrt(h): it acts sqrt(h) times too strongly",
        "the query's bias is multiplied by sqrt(h) = sqrt(8)",
        "1/sqrt(h) is applied to the query's product but not to its bias",
    ),
    "right: lean text tower and absorbed keys": a_model(lean, "jax", "SigLIP's own"),
    "average that shares memory": a_step(
        averaged, "torch",
        "after each AdamW step every parameter (norms, biases, log_scale and bias too) is multiplied by "
        "0.99 (2 - 0.99) = 0.9999: the moving average is the model's own memory",
        "each step multiplies all parameters by 0.9999 after the update",
        "an extra decay of 1e-4 a step (0.1 at lr 1e-3) of all parameters, applied after the update",
    ),
    "loss scale that grows too early": a_step(
        scaled, "torch",
        "the gradient of the second of three steps is halved (divided by the doubled loss scale), before the moments; "
        "steps one and three use right gradients",
        "at every second step the gradient is half as large as it should be",
        "the scaler is updated before the gradients are unscaled",
    ),
    "clip and schedule inside the micro-batches": a_step(
        accumulated, "torch",
        "two mistakes: (1) the accumulated gradient is clipped after each micro-batch: clip(clip(g1/2) + g2/2) with "
        "max_norm 0.25, instead of clip(g1/2 + g2/2); (2) the schedule advances once per micro-batch: step k uses "
        "schedule(2k + 1) instead of schedule(k)",
        "clipping in the inner loop and scheduler.step() in the inner loop",
        given={"accumulate": 2, "schedule": ten_steps},
    ),
    "moments saved in bfloat16": a_step(
        saved, "torch",
        "first two steps right; at the restart both moments of AdamW are rounded to bfloat16 (the step count and the "
        "parameters are not), so the third step is off by some 1e-3 of itself",
        "the saved optimiser state is rounded to bfloat16",
    ),
    "groups by name, clip by group": a_step(
        named, "torch",
        "two mistakes: (1) image/norm/gamma, image/pool/norm/gamma and log_scale are decayed too; (2) clipping looks "
        "only at the decayed group (kernels, token table, positions, probe, and the three above): its length is that "
        "of these gradients alone, only these are shortened, the gradients of all other parameters are not clipped",
        "decay also on post_layernorm, head.layernorm and logit_scale; clip_grad_norm_ over the first group only",
    ),
    "count that goes up at the end": a_step(
        late_count, "jax",
        "both bias corrections of AdamW at step k = 0, 1, 2 use max(k, 1) = 1, 1, 2 instead of k + 1 = 1, 2, 3",
        "from the second step on the bias correction is that of the step before",
    ),
    "Adafactor with scale_parameter": a_step(
        scale_parameter, "numpy",
        "each parameter's Adafactor update is multiplied by max(1e-3, rms(p)), p before the step, before it enters the "
        "momentum; clip, factored moments, momentum, lr, decay right",
        "the learning rate is relative to the parameter's root mean square (scale_parameter=True), floor 1e-3",
    ),
    "right: flat AdamW on kept embeddings": a_step(flat, "torch", "SigLIP's own"),
}  # fmt: skip
