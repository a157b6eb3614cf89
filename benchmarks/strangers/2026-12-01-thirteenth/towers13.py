"""What the models of the thirteenth set stand on: small models, their tables, a plain JAX loss, with hooks."""

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


# ------------------------------------------------------------------------------------------------ open_clip and timm


def vit_thirteenth_patch4_siglip_20(pretrained=False, **kwargs):
    keep = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool", "drop_path_rate")}
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    return VisionTransformer(**settings, class_token=False, **keep)


if "vit_thirteenth_patch4_siglip_20" not in timm.list_models("vit_thirteenth*"):
    register_model(vit_thirteenth_patch4_siglip_20)


def small_open_clip():
    vision = {"image_size": 20, "timm_model_name": "vit_thirteenth_patch4_siglip_20", "timm_model_pretrained": False}
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


def j_attention(x_query, x_key, p):
    def project(x, name):
        return jnp.einsum("bnc,chd->bnhd", x, p[name]["kernel"]) + p[name]["bias"]

    q, k, v = project(x_query, "query"), project(x_key, "key"), project(x_key, "value")
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5)
    mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
    return jnp.einsum("bnhd,hdc->bnc", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def j_last(x, tokens):
    return x[:, -1]


def j_loss(image_attention=j_attention, text_last_norm=j_layer_norm, text_pool=j_last, text_normalize=j_normalize):
    def encoder(x, p, tower, seen, attention, last_norm):
        for i in range(J_DEPTH):
            block = p[f"encoderblock_{i}"]
            y = j_layer_norm(x, block["LayerNorm_0"])
            x = seen[f"{tower}/block{i:02d}/+attn"] = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
            y = j_layer_norm(x, block["LayerNorm_1"])
            x = seen[f"{tower}/block{i:02d}/+mlp"] = x + j_mlp(y, block["MlpBlock_0"])
        return last_norm(x, p["encoder_norm"])

    def image_tower(images, p, seen):
        x = jax.lax.conv_general_dilated(
            images, p["embedding"]["kernel"], (J_PATCH, J_PATCH), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = seen["image/stem"] = x.reshape(len(x), -1, J_WIDTH) + p["embedding"]["bias"] + p["pos_embedding"]
        x = seen["image/norm"] = encoder(x, p["Transformer"], "image", seen, image_attention, j_layer_norm)
        head = p["MAPHead_0"]
        x = j_attention(jnp.tile(head["probe"], (len(x), 1, 1)), x, head["MultiHeadDotProductAttention_0"])
        pooled = seen["image/pool"] = (x + j_mlp(j_layer_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]
        return pooled

    def text_tower(tokens, p, seen):
        x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] + p["pos_embedding"]
        x = seen["text/norm"] = encoder(x, p["Encoder_0"], "text", seen, j_attention, text_last_norm)
        x = seen["text/pool"] = text_pool(x, tokens)
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


