"""Models and training steps, most of them wrong, with the truth of each: for sr.check_model and sr.check_step.

Every factory takes wrong=True; with wrong=False it gives the same program without its mistake.
The author has not read the checker; scaffolding (imports, small models, adapters) is that of older sets' right programs.
"""

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
        torch.manual_seed(9)
        return SiglipModel(SiglipConfig(vision_config=image, text_config=text | {"projection_size": width})).eval()


class ArgmaxText(SiglipTextModel):
    """Pools as CLIP does: the end-of-text token has the highest id."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        hidden = self.embeddings(input_ids=input_ids, position_ids=position_ids)
        hidden = self.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        hidden = self.final_layer_norm(hidden)
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), input_ids.argmax(dim=-1)]
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self.head(pooled))


def pooled_at_the_highest_id(wrong=True):
    model = hugging_face()
    if wrong:
        become(model.text_model, ArgmaxText)
    return model


class SecondToLast(SiglipVisionModel):
    """Feature layer -2, as LLaVA selects it, then the usual norm and head."""

    feature_layer = -2

    def forward(self, pixel_values, interpolate_pos_encoding=False, **kwargs):
        hidden = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        states = [hidden]
        for layer in self.encoder.layers:
            hidden = layer(hidden, None)
            states.append(hidden)
        hidden = self.post_layernorm(states[self.feature_layer])
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self.head(hidden))


def layer_minus_two(wrong=True):
    model = hugging_face()
    if wrong:
        become(model.vision_model, SecondToLast)
    return model


class FastAttention(SiglipAttention):
    """Monkey patch: attention by scaled_dot_product_attention."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        batch, length, _ = hidden_states.shape
        shape = (batch, length, self.num_heads, self.head_dim)
        q = (self.q_proj(hidden_states) * self.scale).view(shape).transpose(1, 2)
        k = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        v = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.out_proj(out.transpose(1, 2).reshape(batch, length, -1)), None


def scaled_and_scaled(wrong=True):
    model = hugging_face()
    if wrong:
        for layer in [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]:
            become(layer.self_attn, FastAttention)
    return model


# ------------------------------------------------------------------------------------------------ open_clip


def vit_ninth_patch4_siglip_20(pretrained=False, **kwargs):
    keep = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool", "drop_path_rate")}
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    return VisionTransformer(**settings, class_token=False, **keep)


if "vit_ninth_patch4_siglip_20" not in timm.list_models("vit_ninth*"):
    register_model(vit_ninth_patch4_siglip_20)


def small_open_clip(**text_settings):
    vision = {"image_size": 20, "timm_model_name": "vit_ninth_patch4_siglip_20", "timm_model_pretrained": False}
    text = {"context_length": 9, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2, "mlp_ratio": 1.25}
    text |= {"proj_bias": True, "pool_type": "last"} | text_settings
    with torch.random.fork_rng():
        torch.manual_seed(10)
        return open_clip.CustomTextCLIP(
            24,
            vision | {"timm_pool": "map", "timm_proj": "none"},
            text,
            init_logit_scale=math.log(10),
            init_logit_bias=-10,
        ).eval()


SIGLIP_TEXT = {"no_causal_mask": True, "norm_kwargs": {"eps": 1e-6}}


def own_json(wrong=True):
    """A JSON configuration that was begun from a CLIP model's: two lines of SigLIP's are missing."""
    return small_open_clip() if wrong else small_open_clip(**SIGLIP_TEXT)


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

    def embed(self, images):
        return self.patches(images).flatten(2).mT

    def forward(self, images):
        x = self.norm(self.blocks(self.embed(images) + self.positions))
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
            torch.manual_seed(11)
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


class HandWrittenNorm(nn.LayerNorm):
    """The Annotated Transformer's."""

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        std = x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias


def annotated_norm(wrong=True):
    module = OwnModel()
    if wrong:
        for one in [m for m in module.modules() if isinstance(m, nn.LayerNorm)]:
            become(one, HandWrittenNorm)
    return own_adapter(module)


class ErfTwoLayers(TwoLayers):
    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def default_gelu(wrong=True):
    module = OwnModel()
    if wrong:
        for one in [m for m in module.modules() if isinstance(m, TwoLayers)]:
            become(one, ErfTwoLayers)
    return own_adapter(module)


def mean_loss(model, images, tokens):
    image, text = model(images, tokens)
    logits = model.log_scale * image @ text.T + model.bias
    value = -F.logsigmoid(signs(logits) * logits).mean()
    return value, {"image/embed": image, "text/embed": text, "logits": logits}


def raw_scale_and_mean(wrong=True):
    return own_adapter(OwnModel(), mean_loss if wrong else own_loss)


class LinearPatches(OwnImages):
    """A linear layer on patches cut by rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)"); kernel as Conv2d keeps it."""

    def embed(self, images):
        b, c, height, width = images.shape
        x = images.reshape(b, c, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
        return F.linear(x.reshape(b, -1, 4 * 4 * c), self.patches.weight.flatten(1), self.patches.bias)


def patches_channel_last(wrong=True):
    module = OwnModel()
    if wrong:
        become(module.image, LinearPatches)
    return own_adapter(module)


class OnlineAttention(Attention):
    """Keys four at a time, with a running maximum and sum; q, k, v by one matrix where they share their input."""

    def forward(self, queries, keys):
        if queries is keys:
            weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
            bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
            q, k, v = F.linear(queries, weight, bias).chunk(3, dim=-1)
        else:
            q, (k, v) = self.q(queries[:1]).expand(len(keys), -1, -1), (self.k(keys), self.v(keys))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        q = q / math.sqrt(q.shape[-1])
        top = torch.full_like(q[..., :1], -torch.inf)
        total, out = torch.zeros_like(top), torch.zeros_like(q)
        for some_k, some_v in zip(k.split(4, 2), v.split(4, 2), strict=True):
            scores = q @ some_k.mT
            higher = torch.maximum(top, scores.amax(-1, keepdim=True)).detach()
            factor, weights = torch.exp(top - higher), torch.exp(scores - higher)
            total, out = total * factor + weights.sum(-1, keepdim=True), out * factor + weights @ some_v
            top = higher
        return self.out((out / total).transpose(1, 2).flatten(2))


class SplitTwoLayers(TwoLayers):
    """Hidden units in two halves, as under tensor parallelism; the bias is added once."""

    def forward(self, x):
        half = self.fc1.out_features // 2
        parts = zip(self.fc1.weight.split(half), self.fc1.bias.split(half), self.fc2.weight.split(half, 1), strict=True)
        return sum(F.linear(F.gelu(F.linear(x, w, b), approximate="tanh"), out) for w, b, out in parts) + self.fc2.bias


class RightLinearPatches(OwnImages):
    def embed(self, images):
        b, c, height, width = images.shape
        x = images.reshape(b, c, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
        weight = self.patches.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(x.reshape(b, -1, 4 * 4 * c), weight, self.patches.bias)


def row_blocks_loss(model, images, tokens):
    """Two texts at a time: softplus of everything, minus the logits of the pairs."""
    image, text = model(images, tokens)
    scale, total, seen = model.log_scale.exp(), 0.0, []
    for some in text.split(2):
        block = (scale * image) @ some.T + model.bias
        total = total + F.softplus(block).sum()
        seen.append(block)
    pairs = scale * (image * text).sum(-1) + model.bias
    value = (total - pairs.sum()) / len(image)
    return value, {"image/embed": image, "text/embed": text, "logits": torch.cat(seen, 1)}


def all_in_blocks(wrong=True):
    """Nothing is wrong: another way to write it."""
    module = OwnModel()
    if not wrong:
        return own_adapter(module)
    become(module.image, RightLinearPatches)
    for one in list(module.modules()):
        if type(one) is Attention:
            become(one, OnlineAttention)
        elif type(one) is TwoLayers:
            become(one, SplitTwoLayers)
    return own_adapter(module, row_blocks_loss)


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


def j_similarity(image, text):
    return image @ text.T


def j_attention(x_query, x_key, p, divisor=lambda width, size: size**0.5):
    def project(x, name):
        return jnp.einsum("bnc,chd->bnhd", x, p[name]["kernel"]) + p[name]["bias"]

    q, k, v = project(x_query, "query"), project(x_key, "key"), project(x_key, "value")
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / divisor(x_query.shape[-1], q.shape[-1])
    mixed = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores), v)
    return jnp.einsum("bnhd,hdc->bnc", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def j_pool_mlp(x, head):
    return x + j_mlp(j_layer_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"])


def j_head(x, p):
    return x @ p["kernel"] + p["bias"]


def j_sigmoid_loss(image, text, params, similarity=j_similarity):
    logits = similarity(image, text) * jnp.exp(params["t"]) + params["b"]
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum(-1).mean(), logits


def j_patches(images, p):
    x = jax.lax.conv_general_dilated(
        images, p["kernel"], (J_PATCH, J_PATCH), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return x.reshape(len(x), -1, J_WIDTH) + p["bias"]


def j_loss(attention=j_attention, pool_mlp=j_pool_mlp, head=j_head, loss=j_sigmoid_loss, patches=j_patches):
    def encoder(x, p, tower, seen):
        for i in range(J_DEPTH):
            block = p[f"encoderblock_{i}"]
            y = j_layer_norm(x, block["LayerNorm_0"])
            x = seen[f"{tower}/block{i:02d}/+attn"] = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
            y = j_layer_norm(x, block["LayerNorm_1"])
            x = seen[f"{tower}/block{i:02d}/+mlp"] = x + j_mlp(y, block["MlpBlock_0"])
        return j_layer_norm(x, p["encoder_norm"])

    def image_tower(images, p, seen):
        x = seen["image/stem"] = patches(images, p["embedding"]) + p["pos_embedding"]
        x = seen["image/norm"] = encoder(x, p["Transformer"], "image", seen)
        pool = p["MAPHead_0"]
        x = attention(jnp.tile(pool["probe"], (len(x), 1, 1)), x, pool["MultiHeadDotProductAttention_0"])
        x = seen["image/pool"] = pool_mlp(x, pool)[:, 0]
        return x

    def text_tower(tokens, p, seen):
        x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] + p["pos_embedding"]
        x = seen["text/norm"] = encoder(x, p["Encoder_0"], "text", seen)
        x = seen["text/pool"] = x[:, -1]
        x = seen["text/head"] = head(x, p["head"])
        return x

    def loss_fn(params, images, tokens):
        seen = {}
        image = seen["image/embed"] = j_normalize(image_tower(images, params["img"], seen))
        text = seen["text/embed"] = j_normalize(text_tower(tokens, params["txt"], seen))
        value, seen["logits"] = loss(image, text, params)
        return value, seen

    return loss_fn


def j_init():
    rng = np.random.default_rng(12)

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


def residual_behind_the_norm(wrong=True):
    def pool_mlp(x, head):
        x = j_layer_norm(x, head["LayerNorm_0"])
        return x + j_mlp(x, head["MlpBlock_0"])

    return BigVision(j_loss(pool_mlp=pool_mlp) if wrong else j_loss(), j_init(), name="JAX port")


def width_scale_and_no_bias(wrong=True):
    def attention(x_query, x_key, p):
        return j_attention(x_query, x_key, p, divisor=lambda width, size: width**0.5)

    def head(x, p):
        return x @ p["kernel"]

    return BigVision(j_loss(attention=attention, head=head) if wrong else j_loss(), j_init(), name="JAX port")


def logits_in_bfloat16(wrong=True):
    def similarity(image, text):
        return (image.astype(jnp.bfloat16) @ text.astype(jnp.bfloat16).T).astype(image.dtype)

    def loss(image, text, params):
        return j_sigmoid_loss(image, text, params, similarity)

    return BigVision(j_loss(loss=loss) if wrong else j_loss(), j_init(), name="JAX port")


def j_ring(image, text, params):
    """Texts roll by one place a round, as between devices that hold one pair each; a round is computed again backward."""
    size, scale = len(image), jnp.exp(params["t"])

    @jax.checkpoint
    def hop(travelling, k):
        row = (travelling * (scale * image)).sum(-1) + params["b"]
        value = jnp.where(k == 0, jax.nn.softplus(-row), jax.nn.softplus(row)).sum()
        return jnp.roll(travelling, -1, 0), (value, row)

    _, (values, rows) = jax.lax.scan(hop, text, jnp.arange(size))
    own, round_ = jnp.arange(size)[:, None], (jnp.arange(size)[None, :] - jnp.arange(size)[:, None]) % size
    return values.sum() / size, rows[round_, own]


def j_fused(x_query, x_key, p):
    def project(x, name):
        width, heads, size = p[name]["kernel"].shape
        flat = jax.lax.dot_general(x, p[name]["kernel"].reshape(width, -1), (((2,), (0,)), ((), ())))
        return (flat + p[name]["bias"].reshape(-1)).reshape(*x.shape[:2], heads, size)

    query, key, value = project(x_query, "query"), project(x_key, "key"), project(x_key, "value")
    scores = jnp.einsum("bnhd,bmhd->bnmh", query * query.shape[-1] ** -0.5, key)
    weights = jnp.exp(scores - scores.max(2, keepdims=True))
    mixed = jnp.einsum("bnmh,bmhd->bnhd", weights, value) / weights.sum(2)[..., None]
    out = p["out"]["kernel"]
    return mixed.reshape(*mixed.shape[:2], -1) @ out.reshape(-1, out.shape[-1]) + p["out"]["bias"]


def j_matrix_patches(images, p):
    x = images.reshape(len(images), J_GRID, J_PATCH, J_GRID, J_PATCH, 3).swapaxes(2, 3)
    return x.reshape(len(x), J_GRID**2, -1) @ p["kernel"].reshape(-1, J_WIDTH) + p["bias"]


def ring_in_jax(wrong=True):
    """Nothing is wrong."""
    other = j_loss(attention=j_fused, loss=j_ring, patches=j_matrix_patches)
    return BigVision(other if wrong else j_loss(), j_init(), name="JAX model with a ring of texts")


# ------------------------------------------------------------------------------------------------ training steps


def matrices_of(model):
    found = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    attentions = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    return found | {id(m.in_proj_weight) for m in attentions}


def split_by_decay(model, decay):
    """Two groups: with decay and without."""
    kernels, params = matrices_of(model), list(model.parameters())
    return [
        {"params": [p for p in params if id(p) in kernels], "weight_decay": decay},
        {"params": [p for p in params if id(p) not in kernels], "weight_decay": 0.0},
    ]


def adamw(model, decay=0.1):
    return torch.optim.AdamW(split_by_decay(model, decay), lr=1e-3, betas=(0.9, 0.95))


def hf_loss(model, images, tokens):
    return model(pixel_values=images, input_ids=tokens, return_loss=True).loss


def warm_up(step):
    return min(1.0, (step + 1) / 5)


RULE = {"lr": 1e-3, "beta2": 0.95, "decay": 0.1}


def zeroed_in_the_loop(wrong=True):
    model = hugging_face()
    optimizer = adamw(model)

    def step(images, tokens):
        if not wrong:
            optimizer.zero_grad()
        for some_images, some_tokens in zip(images.chunk(2), tokens.chunk(2), strict=True):
            if wrong:
                optimizer.zero_grad()
            (hf_loss(model, some_images, some_tokens) / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model, "accumulate": 2}


def everything_decays(wrong=True):
    model = hugging_face()
    everything = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = everything if wrong else adamw(model)

    def step(images, tokens):
        optimizer.zero_grad(set_to_none=True)
        loss = hf_loss(model, images, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def scheduler_first(wrong=True):
    model = hugging_face()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)

    def step(images, tokens):
        if wrong:
            scheduler.step()
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        optimizer.step()
        if not wrong:
            scheduler.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, "schedule": warm_up}


def negatives_of_a_half(wrong=True):
    model = hugging_face()
    optimizer = adamw(model)

    def step(images, tokens):
        optimizer.zero_grad()
        parts = 2 if wrong else 1
        for some_images, some_tokens in zip(images.chunk(parts), tokens.chunk(parts), strict=True):
            (hf_loss(model, some_images, some_tokens) / parts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def gathered_without_gradient(wrong=True):
    """Two ranks one after the other: own images against all texts, of which torch.distributed.all_gather gives copies."""
    model = small_open_clip(**SIGLIP_TEXT)
    optimizer = adamw(model)
    ranks = 2

    def all_gather(texts, rank):
        gathered = [text.detach() if wrong else text for text in texts]
        gathered[rank] = texts[rank]
        return torch.cat(gathered)

    def step(images, tokens):
        optimizer.zero_grad()
        image = model.encode_image(images, normalize=True).chunk(ranks)
        texts = model.encode_text(tokens, normalize=True).chunk(ranks)
        losses = []
        for rank in range(ranks):
            logits = model.logit_scale.exp() * image[rank] @ all_gather(texts, rank).T + model.logit_bias
            labels = -torch.ones_like(logits)
            labels[:, rank * len(logits) : (rank + 1) * len(logits)] += 2 * torch.eye(len(logits), dtype=logits.dtype)
            losses.append(-F.logsigmoid(labels * logits).sum() / len(logits))
        (sum(losses) / ranks).backward()
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def resumed_from_weights(wrong=True):
    model = hugging_face()
    now = {}

    def prepare():
        now["optimizer"] = adamw(model)
        now["scheduler"] = torch.optim.lr_scheduler.LambdaLR(now["optimizer"], warm_up)

    def step(images, tokens):
        now["optimizer"].zero_grad()
        hf_loss(model, images, tokens).backward()
        now["optimizer"].step()
        now["scheduler"].step()

    def restart():
        saved = {"model": {name: value.clone() for name, value in model.state_dict().items()}}
        if not wrong:
            saved |= {name: one.state_dict() for name, one in now.items()}
        prepare()
        model.load_state_dict(saved["model"])
        for name in now:
            if name in saved:
                now[name].load_state_dict(saved[name])

    prepare()
    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, "schedule": warm_up, "restart": restart}


def optax_step(optimizer, of_grads=lambda grads: grads):
    def step(params, grads, state):
        grads = of_grads(grads)
        updates, state = optimizer.update(grads, optimizer.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    return step


def kernels_only(params):
    decays = sr.AdamW().decays
    return {name: decays(name) for name in params}


def decay_in_the_moments(wrong=True):
    decay, adam = optax.add_decayed_weights(0.1, mask=kernels_only), optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8)
    inner = (decay, adam) if wrong else (adam, decay)
    return {
        "step_fn": optax_step(optax.chain(*inner, optax.scale_by_learning_rate(1e-3))),
        "rule": sr.AdamW(**RULE),
        "framework": "jax",
    }


def of_images(name):
    return name.startswith("image/")


def locked_but_decaying(wrong=True):
    """LiT: gradients of the locked image tower are set to zero, in front of AdamW."""
    optimizer = optax.adamw(1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=kernels_only)
    if not wrong:
        labels = {True: "locked", False: "trained"}
        optimizer = optax.multi_transform(
            {"locked": optax.set_to_zero(), "trained": optimizer},
            lambda params: {name: labels[of_images(name)] for name in params},
        )

    def lock(grads):
        return {name: jnp.zeros_like(grad) if of_images(name) else grad for name, grad in grads.items()}

    rule = sr.AdamW(**RULE, frozen=of_images)
    return {"step_fn": optax_step(optimizer, lock), "rule": rule, "framework": "jax"}


def adam_by_hand(wrong=True):
    lr, b1, b2, eps, wd = 1e-3, 0.9, 0.95, 1e-8, 0.1
    decays = sr.AdamW().decays

    def step(params, grads, state):
        if state is None:
            zeros = jax.tree.map(jnp.zeros_like, params)
            state = {"m": zeros, "v": zeros, "count": 0}
        count = state["count"] + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state["v"], grads)
        first, second = (1.0, 1.0) if wrong else (1 - b1**count, 1 - b2**count)
        new = {}
        for name, p in params.items():
            update = (m[name] / first) / (jnp.sqrt(v[name] / second) + eps)
            new[name] = p - lr * (update + wd * p if decays(name) else update)
        return new, {"m": m, "v": v, "count": count}

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "framework": "jax"}


def embeddings_kept(wrong=True):
    """Nothing is wrong: GradCache. Embeddings without graph, the loss on them, then towers again, two pairs at a time."""
    model = hugging_face()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)

    def embed(images, tokens):
        features = (model.get_image_features(images).pooler_output, model.get_text_features(tokens).pooler_output)
        return [F.normalize(x, dim=-1) for x in features]

    def cached(images, tokens):
        pairs = list(zip(images.split(2), tokens.split(2), strict=True))
        with torch.no_grad():
            parts = [embed(*pair) for pair in pairs]
        image, text = (torch.cat(side).requires_grad_() for side in zip(*parts, strict=True))
        logits = image @ text.T * model.logit_scale.exp() + model.logit_bias
        (-F.logsigmoid(signs(logits) * logits).sum() / len(logits)).backward()
        for pair, *gradients in zip(pairs, image.grad.split(2), text.grad.split(2), strict=True):
            torch.autograd.backward(embed(*pair), gradients)

    def step(images, tokens):
        optimizer.zero_grad()
        if wrong:
            cached(images, tokens)
        else:
            hf_loss(model, images, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model, "schedule": warm_up}


# ------------------------------------------------------------------------------------------------ the programs


def program(check, fn, framework, truth, *same, given=None):
    given = dict(FLOAT32 if check == "model" else {}) if given is None else given
    return {"check": check, "fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "text pooled at the highest id": program(
        "model",
        pooled_at_the_highest_id,
        "torch",
        "the text embedding is taken at position argmax(ids) (the first position that holds the sequence's highest id,"
        " CLIP's end-of-text rule), not at the last position; all else as SigLIP",
        "text/pool is another position's hidden state than the last",
        "text pooling is CLIP's argmax/EOS pooling instead of last",
    ),
    "feature layer minus two": program(
        "model",
        layer_minus_two,
        "torch",
        "the last image block (block 1 of 0..1) is computed but its output not used: final norm and pooling head get"
        " the output of the block before the last",
        "the last block of the image tower is left out / skipped",
        "image/norm is the norm of block00's output",
        "the last image block's parameters have gradient 0",
    ),
    "SDPA of scaled queries": program(
        "model",
        scaled_and_scaled,
        "torch",
        "in every encoder block of both towers the scores are divided by the head size 6, not by sqrt(6): the scale"
        " 6^-0.5 is applied twice; the pooling head's attention is right",
        "attention scores are multiplied by 1/6 instead of 0.408, i.e. 0.408 times the right ones",
        "softmax temperature of self-attention sqrt(6) = 2.449 times too high",
        "attention scale applied twice (q scaled, then SDPA's own scale)",
    ),
    "JSON begun from CLIP's": program(
        "model",
        own_json,
        "torch",
        "two mistakes in the text tower: a causal mask (position n attends to 0..n only), and every layer norm (both of"
        " each block and the final one) has eps 1e-5 instead of 1e-6; image tower right",
        "text attention is causal; text layer norms use Torch's default eps 1e-5 = 10 times 1e-6",
    ),
    "the Annotated Transformer's norm": program(
        "model",
        annotated_norm,
        "torch",
        "all layer norms (blocks, final, pooling head; both towers) divide by s + 1e-6, s the standard deviation with"
        " divisor N-1 (N = width, 12 image, 10 text), instead of sqrt(var + 1e-6) with divisor N",
        "layer norm uses the unbiased variance (ddof 1, Bessel's correction); its normalised output is sqrt((N-1)/N) of"
        " the right one, 0.9574 (width 12) and 0.9487 (width 10), before weight and bias",
        "variance 12/11 resp. 10/9 too large; eps is added to the standard deviation, outside the root",
    ),
    "GELU by default": program(
        "model",
        default_gelu,
        "torch",
        "GELU is the exact erf form x*Phi(x) in all MLPs (blocks of both towers and pooling head), not the tanh"
        " approximation",
        "nn.GELU()/F.gelu default (approximate='none') in both towers; convention huggingface asks for gelu_pytorch_tanh",
        "as open_clip/timm's SigLIP 1 configurations compute it",
    ),
    "raw scale and mean over all": program(
        "model",
        raw_scale_and_mean,
        "torch",
        "two mistakes in the loss: logits = log_scale * sim + bias (t' not exponentiated), and the loss is the mean over"
        " all B^2 elements, i.e. 1/B^2 instead of 1/B",
        "the scale is log_scale itself instead of exp(log_scale); the loss (given these logits) and its gradients are"
        " divided by B once too often (B = 4: a quarter)",
    ),
    "patches flattened channel last": program(
        "model",
        patches_channel_last,
        "torch",
        "patch embedding: a patch's 48 pixels are flattened (row, column, channel) but multiplied by the kernel flattened"
        " (channel, row, column): pixel number k of one order meets weight number k of the other",
        "the patch kernel is scrambled/reshaped without transposing; layout of the patch kernel is wrong",
        "image/stem is wrong from the patch embedding on; order of patches, bias, positions are right",
    ),
    "residual behind the norm": program(
        "model",
        residual_behind_the_norm,
        "jax",
        "pooling head: pool = LN(r) + MLP(LN(r)) instead of r + MLP(LN(r)), r the output of the probe's attention; the"
        " encoder blocks are right",
        "the residual of the MAP head's MLP is taken after the layer norm",
        "the MAP head's skip connection carries the normalised attention output",
    ),
    "scale by the width, head without bias": program(
        "model",
        width_scale_and_no_bias,
        "jax",
        "two mistakes: all attention (blocks of both towers and pooling head) divides the scores by sqrt(width) ="
        " sqrt(12) instead of sqrt(head size) = sqrt(6); and the bias of the text head is not added (its gradient is 0)",
        "attention scores are 1/sqrt(2) = 0.7071 of the right ones (2 heads); text/head = x @ kernel",
    ),
    "similarities in bfloat16": program(
        "model",
        logits_in_bfloat16,
        "jax",
        "both normalised embeddings are rounded to bfloat16 for the product image @ text.T, whose result is bfloat16"
        " too and then cast back; scale, bias and loss are float32; towers right",
        "the logits' matrix product is computed in bfloat16 (8 bits, relative error up to 2^-9 per rounding)",
        "logits are right to about 3 digits only; cosine similarities rounded to bfloat16",
    ),
    "right: everything in blocks": program("model", all_in_blocks, "torch", "SigLIP's own"),
    "right: a ring in JAX": program("model", ring_in_jax, "jax", "SigLIP's own"),
    "zero_grad in the loop": program(
        "step",
        zeroed_in_the_loop,
        "torch",
        "gradients are set to zero in front of each of the 2 micro-batches: the step's gradient is half the last"
        " micro-batch's (pairs 4..7), the first (pairs 0..3) has no effect",
        "only the last micro-batch counts; the gradients of all others are lost",
        "gradient is 1/2 of micro-batch 1's instead of the mean of both (the half is nearly invisible behind Adam)",
    ),
    "everything decays": program(
        "step",
        everything_decays,
        "torch",
        "decay 0.1 (times lr 1e-3) applies to every parameter: also biases, norms, token and position embeddings, probe,"
        " logit scale and bias; gradients, clip and Adam are right",
        "no decay mask: parameters that should not decay shrink by 1e-4 of themselves each step",
    ),
    "scheduler first": program(
        "step",
        scheduler_first,
        "torch",
        "the scheduler moves before the optimiser: step k has the rate of step k+1, 0.4, 0.6, 0.8 of 1e-3 instead of"
        " 0.2, 0.4, 0.6",
        "the schedule is one step ahead (off by one)",
        "all moves are 2, 1.5, 1.33 times too long in steps 0, 1, 2 (decay included)",
    ),
    "accumulation instead of a batch": program(
        "step",
        negatives_of_a_half,
        "torch",
        "the 8 pairs are cut into 2 micro-batches of 4, each with its own negatives only, losses averaged: pairs of"
        " different halves never see each other",
        "32 of 64 logits (the off-diagonal blocks, negatives across micro-batches) are missing from the loss",
        "accumulate=2 where all pairs should see each other; negatives local to a micro-batch/rank of 4",
    ),
    "gather without gradient": program(
        "step",
        gathered_without_gradient,
        "torch",
        "2 simulated ranks of 4 pairs: each compares its images with all 8 texts, those of the other rank detached: a"
        " text gets gradient from its own rank's images only, not from the other rank's 4; loss value, image gradients,"
        " scale and bias are right",
        "text gradients miss the cross-rank (off-diagonal 4x4) blocks: all_gather is not differentiable",
        "the image tower, logit scale and bias move rightly in the first step; the text tower's gradient lacks the"
        " negatives of the other half (4 of 8 rows of its column of G), which Adam's first step nearly hides",
    ),
    "resumed from weights alone": program(
        "step",
        resumed_from_weights,
        "torch",
        "two mistakes at the restart between steps 1 and 2: the optimiser's state is lost (moments zero, count 0, so the"
        " third step is Adam's first: about lr*sign(g)), and the schedule begins anew (factor 0.2 instead of 0.6)",
        "steps 0 and 1 are right; step 2 is computed with empty moments, bias correction of step 1, and the rate of"
        " step 0, a third of the right one",
        "only the model's state_dict is saved and loaded",
    ),
    "decay in the moments": program(
        "step",
        decay_in_the_moments,
        "jax",
        "L2 instead of decoupled decay: 0.1*p is added to the gradient of the kernels before Adam's moments, and no"
        " decay is applied behind them",
        "Adam with weight_decay (coupled) instead of AdamW; add_decayed_weights before scale_by_adam",
        "g + 0.1 p in the moments; only parameters that decay (kernels) move wrongly",
    ),
    "locked, but decaying": program(
        "step",
        locked_but_decaying,
        "jax",
        "the locked (frozen) image tower still decays: its kernels shrink by lr*decay = 1e-3*0.1 = 1e-4 of themselves at"
        " each step instead of staying; the rest is right",
        "frozen parameters have gradient zero but weight decay is still applied to the image kernels",
        "image/ kernels move by -1e-4 p per step though frozen; image biases, norms, positions stay",
    ),
    "Adam by hand": program(
        "step",
        adam_by_hand,
        "jax",
        "Adam without bias correction of either moment: the update is m/(sqrt(v)+eps), 0.4472 of the right one in the"
        " first step (0.1/sqrt(0.05)); about 0.6085 and 0.7176 in the second and third for a constant gradient; decay"
        " and rate right",
        "no bias correction (debiasing) of m and v",
        "m not divided by 1-0.9^k, v not by 1-0.95^k",
    ),
    "right: embeddings kept": program("step", embeddings_kept, "torch", "SigLIP's own"),
}
