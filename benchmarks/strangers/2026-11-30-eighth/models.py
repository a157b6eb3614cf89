"""Models and training steps, most of them wrong, with the truth of each: for sr.check_model and sr.check_step.

Every factory takes wrong=True; with wrong=False it gives the same program without its mistakes (try_models.py compares).
The author ran no check. Scaffolding (stand-in for torchvision, adapters, table of names) is that of older sets' right
entries.
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
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipMLP


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

import siglip_ref as sr  # noqa: E402
from siglip_ref.architecture.sizes import Config, Tower  # noqa: E402
from siglip_ref.check.model.adapters.big_vision import BigVision  # noqa: E402
from siglip_ref.check.model.adapters.torch_model import Tap, TorchModel  # noqa: E402
from siglip_ref.checkpoint.tables.names import Entry, dense, norm  # noqa: E402


def become(module, kind):
    """The same parameters under another forward pass."""
    module.__class__ = kind
    return module


# ------------------------------------------------------------------------------------------------ transformers


def hugging_face(width=24, text_width=16):
    image = {"hidden_size": width, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3}
    image |= {"image_size": 24, "patch_size": 4}
    text = {"hidden_size": text_width, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 60, "max_position_embeddings": 10, "bos_token_id": None, "eos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return SiglipModel(SiglipConfig(vision_config=image, text_config=text | {"projection_size": width})).eval()


def split_heads(attention, x):
    shape = (*x.shape[:-1], -1, attention.head_dim)
    return (f(x).view(shape).transpose(1, 2) for f in (attention.q_proj, attention.k_proj, attention.v_proj))


class FlashAttention(SiglipAttention):
    """Flash kernels take 16 bits only, so everything is cast for them and back."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        q, k, v = (x.to(torch.bfloat16) for x in split_heads(self, hidden_states))
        mixed = F.scaled_dot_product_attention(q, k, v).to(hidden_states.dtype)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def flash_in_sixteen_bits(wrong=True):
    model = hugging_face()
    for layer in model.vision_model.encoder.layers if wrong else ():
        become(layer.self_attn, FlashAttention)
    return model


class CausalAttention(SiglipAttention):
    """As in CLIP's text tower."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        q, k, v = split_heads(self, hidden_states)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def clips_causal_mask(wrong=True):
    model = hugging_face()
    for layer in model.text_model.encoder.layers if wrong else ():
        become(layer.self_attn, CausalAttention)
    return model


class FusedAttention(SiglipAttention):
    """Nothing is wrong: one product for queries, keys and values, and the scale on the queries."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        parts = (self.q_proj, self.k_proj, self.v_proj)
        weight, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        b, n, c = hidden_states.shape
        qkv = torch.addmm(bias, hidden_states.reshape(b * n, c), weight.T)
        q, k, v = qkv.view(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        scores = scores - scores.amax(-1, keepdim=True).detach()
        weights = scores.exp()
        mixed = (weights @ v) / weights.sum(-1, keepdim=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(b, n, c)), None


class SigmoidMLP(SiglipMLP):
    """Nothing is wrong: tanh-GELU as x sigmoid(2u)."""

    def forward(self, hidden_states):
        x = self.fc1(hidden_states)
        return self.fc2(x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)))


def fused_projections(wrong=True):
    model = hugging_face()
    if wrong:  # nothing is wrong: another way to write it
        for layer in [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]:
            become(layer.self_attn, FusedAttention)
            become(layer.mlp, SigmoidMLP)
        become(model.vision_model.head.mlp, SigmoidMLP)
    return model


# ------------------------------------------------------------------------------------------------ open_clip


def vit_eighth_patch4_siglip_24(pretrained=False, **kwargs):
    keep = {key: value for key, value in kwargs.items() if key in ("num_classes", "global_pool", "drop_path_rate")}
    settings = {"img_size": 24, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 1.5}
    return VisionTransformer(**settings, class_token=False, **keep)


if "vit_eighth_patch4_siglip_24" not in timm.list_models("vit_eighth*"):
    register_model(vit_eighth_patch4_siglip_24)


def quick_gelu_in_texts(wrong=True):
    vision = {"image_size": 24, "timm_model_name": "vit_eighth_patch4_siglip_24", "timm_model_pretrained": False}
    text = {"context_length": 10, "vocab_size": 60, "width": 16, "heads": 2, "layers": 2, "mlp_ratio": 1.75}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    with torch.random.fork_rng():
        torch.manual_seed(12)
        return open_clip.CustomTextCLIP(
            24,
            vision | {"timm_pool": "map", "timm_proj": "none"},
            text,
            quick_gelu=wrong,  # timm's image tower does not read it
            init_logit_scale=math.log(10),
            init_logit_bias=-10,
        ).eval()


# ------------------------------------------------------------------------------------------------ a port to plain torch

IMAGE, TEXT = Tower(width=16, depth=2, mlp=26, heads=4), Tower(width=12, depth=2, mlp=20, heads=3)
CONFIG = Config("plain port", IMAGE, TEXT, (16, 24), 4, 60, 10, conventions=sr.preset("huggingface"))


class AnnotatedNorm(nn.LayerNorm):
    """LayerNorm as in The Annotated Transformer."""

    def forward(self, x):
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias


class Ways:
    """How the port is made of its parts."""

    def __init__(self, norm=nn.LayerNorm, eps=1e-6, gelu="tanh"):
        self.gelu, self.norm = gelu, lambda width: norm(width, eps)


class Heads(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries, keys):
        def split(x):
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(split(self.q(queries)), split(self.k(keys)), split(self.v(keys)))
        return self.out(mixed.transpose(1, 2).flatten(2))


class TwoLayers(nn.Module):
    def __init__(self, width, hidden, ways):
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.GELU(ways.gelu)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class PortBlock(nn.Module):
    def __init__(self, tower, ways):
        super().__init__()
        self.norm1, self.norm2 = ways.norm(tower.width), ways.norm(tower.width)
        self.attention, self.mlp = Heads(tower.width, tower.heads), TwoLayers(tower.width, tower.mlp, ways)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y)
        return x + self.mlp(self.norm2(x))


class PortImages(nn.Module):
    def __init__(self, ways):
        super().__init__()
        self.patches = nn.Conv2d(3, IMAGE.width, 4, 4)
        self.positions = nn.Parameter(0.1 * torch.randn(24, IMAGE.width))
        self.blocks = nn.Sequential(*(PortBlock(IMAGE, ways) for _ in range(IMAGE.depth)))
        self.norm = ways.norm(IMAGE.width)
        self.probe = nn.Parameter(torch.randn(1, 1, IMAGE.width))
        self.attention, self.mlp = Heads(IMAGE.width, IMAGE.heads), TwoLayers(IMAGE.width, IMAGE.mlp, ways)
        self.head_norm = ways.norm(IMAGE.width)

    def forward(self, images):
        x = self.norm(self.blocks(self.patches(images).flatten(2).mT + self.positions))
        x = self.attention(self.probe.expand(len(x), -1, -1), x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


class PortTexts(nn.Module):
    def __init__(self, ways):
        super().__init__()
        self.tokens = nn.Embedding(60, TEXT.width)
        self.positions = nn.Parameter(0.1 * torch.randn(10, TEXT.width))
        self.blocks = nn.Sequential(*(PortBlock(TEXT, ways) for _ in range(TEXT.depth)))
        self.norm = ways.norm(TEXT.width)
        self.head = nn.Linear(TEXT.width, IMAGE.width)

    def forward(self, tokens):
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions))[:, -1])


class Port(nn.Module):
    def __init__(self, ways):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(13)
            self.image, self.text = PortImages(ways), PortTexts(ways)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-10.0))

    def forward(self, images, tokens):
        return tuple(F.normalize(x, dim=-1) for x in (self.image(images), self.text(tokens)))


def port_tables():
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


def pieces(image, text, logits):
    return {"image/embed": image, "text/embed": text, "logits": logits}


def port_loss(model, images, tokens):
    image, text = model(images, tokens)
    logits = image @ text.T * model.log_scale.exp() + model.bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits), pieces(image, text, logits)


def port(ways=None, loss=port_loss):
    entries, taps = port_tables()
    return TorchModel("plain port", Port(ways or Ways()).eval(), CONFIG, entries, taps, loss)


def torchs_defaults(wrong=True):
    """nn.GELU() and nn.LayerNorm(width), as they come."""
    return port(Ways(eps=1e-5, gelu="none") if wrong else None)


def annotated_norms(wrong=True):
    return port(Ways(norm=AnnotatedNorm) if wrong else None)


def mean_binary_cross_entropy(model, images, tokens):
    image, text = model(images, tokens)
    logits = image @ text.T * model.log_scale.exp() + model.bias
    labels = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, labels), pieces(image, text, logits)


def mean_of_all_pairs(wrong=True):
    return port(loss=mean_binary_cross_entropy if wrong else port_loss)


def scale_as_a_number(model, images, tokens):
    image, text = model(images, tokens)
    scale = model.log_scale.exp().item()  # for the log, too
    logits = image @ text.T * scale + model.bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits), pieces(image, text, logits)


def scale_by_item(wrong=True):
    return port(loss=scale_as_a_number if wrong else port_loss)


# ------------------------------------------------------------------------------------------------ JAX

J_WIDTH, J_HEADS, J_HIDDEN, J_PATCH, J_GRID, J_VOCABULARY, J_LENGTH, J_DEPTH = 16, 4, 22, 4, 6, 60, 10, 2


def j_norm(x, p):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def j_mlp(x, p):
    x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], approximate=True)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def j_unit(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


def heads_last(mixed):  # (B, H, N, h) -> (B, N, W)
    return mixed.transpose(0, 2, 1, 3).reshape(mixed.shape[0], mixed.shape[2], -1)


def heads_left_in_front(mixed):
    return mixed.reshape(mixed.shape[0], mixed.shape[2], -1)


def last_token(x, tokens):
    return x[:, -1]


def end_of_text(x, tokens):
    """CLIP's: the end token has the highest number."""
    return x[jnp.arange(len(x)), tokens.argmax(-1)]


def rows_first(patches):  # (B, rows, columns, W)
    return patches.reshape(len(patches), -1, J_WIDTH)


def columns_first(patches):  # "b h w c -> b (w h) c"
    return patches.swapaxes(1, 2).reshape(len(patches), -1, J_WIDTH)


def j_logits(image, text, params):
    return image @ text.T * jnp.exp(params["t"]) + params["b"]


def bias_inside(image, text, params):
    return (image @ text.T + params["b"]) * jnp.exp(params["t"])


def rows_summed(logits):
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum(-1).mean()


def both_directions(logits):
    """Nothing is wrong: images to texts, texts to images, and half of each."""
    labels = jnp.eye(len(logits), dtype=logits.dtype)

    def one(rows):
        return (labels * jax.nn.softplus(-rows) + (1 - labels) * jax.nn.softplus(rows)).sum(1).mean()

    return (one(logits) + one(logits.T)) / 2


def j_model(
    merge=heads_last, pooled=last_token, flatten=rows_first, residual=False, logits_of=j_logits, loss_of=rows_summed
):
    def attention(queries, keys, p):
        def project(x, name):
            return jnp.einsum("bnc,chd->bhnd", x, p[name]["kernel"]) + p[name]["bias"][:, None]

        q, k, v = project(queries, "query"), project(keys, "key"), project(keys, "value")
        weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / math.sqrt(J_WIDTH // J_HEADS))
        return merge(weights @ v) @ p["out"]["kernel"].reshape(J_WIDTH, J_WIDTH) + p["out"]["bias"]

    def encoder(x, p, tower, seen):
        for i in range(J_DEPTH):
            block = p[f"encoderblock_{i}"]
            y = j_norm(x, block["LayerNorm_0"])
            x = seen[f"{tower}/block{i:02d}/+attn"] = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
            y = j_norm(x, block["LayerNorm_1"])
            x = seen[f"{tower}/block{i:02d}/+mlp"] = x + j_mlp(y, block["MlpBlock_0"])
        return j_norm(x, p["encoder_norm"])

    def image_tower(images, p, seen):
        kernel, stride = p["embedding"]["kernel"], (J_PATCH, J_PATCH)
        x = jax.lax.conv_general_dilated(
            images, kernel, stride, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = seen["image/stem"] = flatten(x + p["embedding"]["bias"]) + p["pos_embedding"]
        x = seen["image/norm"] = encoder(x, p["Transformer"], "image", seen)
        head = p["MAPHead_0"]
        probe = jnp.tile(head["probe"], (len(x), 1, 1))
        x = attention(probe, x, head["MultiHeadDotProductAttention_0"]) + (probe if residual else 0)
        x = seen["image/pool"] = (x + j_mlp(j_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]
        return x

    def text_tower(tokens, p, seen):
        x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] + p["pos_embedding"]
        x = seen["text/norm"] = encoder(x, p["Encoder_0"], "text", seen)
        x = seen["text/pool"] = pooled(x, tokens)
        x = seen["text/head"] = x @ p["head"]["kernel"] + p["head"]["bias"]
        return x

    def loss_fn(params, images, tokens):
        seen = {}
        image = seen["image/embed"] = j_unit(image_tower(images, params["img"], seen))
        text = seen["text/embed"] = j_unit(text_tower(tokens, params["txt"], seen))
        logits = seen["logits"] = logits_of(image, text, params)
        return loss_of(logits), seen

    return loss_fn


def j_init():
    rng = np.random.default_rng(14)

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
        attention, mlp = many_heads(), two_layers()
        return {
            "LayerNorm_0": scale(),
            "MultiHeadDotProductAttention_0": attention,
            "LayerNorm_1": scale(),
            "MlpBlock_0": mlp,
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


def in_jax(wrong, **ways):
    return BigVision(j_model(**ways) if wrong else j_model(), j_init(), name="JAX port")


def probe_kept(wrong=True):
    return in_jax(wrong, residual=True)


def pooled_at_highest_token(wrong=True):
    return in_jax(wrong, pooled=end_of_text)


def heads_not_moved_back(wrong=True):
    return in_jax(wrong, merge=heads_left_in_front)


def columns_and_bias(wrong=True):
    return in_jax(wrong, flatten=columns_first, logits_of=bias_inside)


def two_directions(wrong=True):
    return in_jax(wrong, loss_of=both_directions)


# ------------------------------------------------------------------------------------------------ training steps


def hf_loss(model, images, tokens):
    return model(pixel_values=images, input_ids=tokens, return_loss=True).loss


def matrices_of(model):
    found = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return found | {id(m.in_proj_weight) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}


def right_groups(model, decay=0.1):
    """SigLIP's: kernels decay, all else does not."""
    kernels, params = matrices_of(model), list(model.parameters())
    return [
        {"params": [p for p in params if id(p) in kernels], "weight_decay": decay},
        {"params": [p for p in params if id(p) not in kernels], "weight_decay": 0.0},
    ]


def adamw(model):
    return torch.optim.AdamW(right_groups(model), lr=1e-3, betas=(0.9, 0.95))


RULE = {"lr": 1e-3, "beta2": 0.95, "decay": 0.1}


def groups_by_name(wrong=True):
    """The list of names is that of BERT's scripts; only the towers are asked for their parameters."""
    model = hugging_face()
    if wrong:
        named = [*model.vision_model.named_parameters(), *model.text_model.named_parameters()]
        no_decay = ["bias", "LayerNorm.weight"]
        groups = [
            {"params": [p for n, p in named if not any(nd in n for nd in no_decay)], "weight_decay": 0.1},
            {"params": [p for n, p in named if any(nd in n for nd in no_decay)], "weight_decay": 0.0},
        ]
    optimizer = torch.optim.AdamW(groups if wrong else right_groups(model), lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def never_zeroed(wrong=True):
    model = hugging_face()
    optimizer = adamw(model)

    def step(images, tokens):
        if not wrong:
            optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        optimizer.step()

    model.zero_grad()
    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def clipped_in_the_loop(wrong=True):
    model = hugging_face()
    optimizer = adamw(model)

    def step(images, tokens):
        optimizer.zero_grad()
        for some_images, some_tokens in zip(images.chunk(2), tokens.chunk(2), strict=True):
            (hf_loss(model, some_images, some_tokens) / 2).backward()
            if wrong:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        if not wrong:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=0.5), "model": model, "accumulate": 2}


def warm_up(step):
    return min(1.0, (step + 1) / 5)


def scheduler_first(wrong=True):
    model = hugging_face()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        if wrong:
            scheduler.step()
            optimizer.step()
        else:
            optimizer.step()
            scheduler.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, "schedule": warm_up}


def only_weights_saved(wrong=True):
    model = hugging_face()
    now = types.SimpleNamespace()

    def start():
        now.optimizer = adamw(model)
        now.scheduler = torch.optim.lr_scheduler.LambdaLR(now.optimizer, warm_up)

    def step(images, tokens):
        now.optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        now.optimizer.step()
        now.scheduler.step()

    def restart():
        saved = {name: value.clone() for name, value in model.state_dict().items()}
        others = now.optimizer.state_dict(), now.scheduler.state_dict()
        start()
        model.load_state_dict(saved)
        if not wrong:
            now.optimizer.load_state_dict(others[0])
            now.scheduler.load_state_dict(others[1])

    start()
    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, "schedule": warm_up, "restart": restart}


def batch_in_two(wrong=True):
    """To save memory; it is meant to be the step of the whole batch."""
    model = hugging_face()
    optimizer = adamw(model)

    def step(images, tokens):
        optimizer.zero_grad()
        parts = 2 if wrong else 1
        for some_images, some_tokens in zip(images.chunk(parts), tokens.chunk(parts), strict=True):
            (hf_loss(model, some_images, some_tokens) / parts).backward()
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def embeddings_cached(wrong=True):
    """Nothing is wrong: GradCache, so that two chunks of towers see all negatives; clipped by hand."""
    model = hugging_face()
    optimizer = adamw(model)

    def embed(images, tokens):
        image = model.vision_model(pixel_values=images).pooler_output
        text = model.text_model(input_ids=tokens).pooler_output
        return image, text

    def cached(images, tokens):
        parts = list(zip(images.split(3), tokens.split(3), strict=True))
        with torch.no_grad():
            kept = [torch.cat(all_of) for all_of in zip(*(embed(*part) for part in parts), strict=True)]
        kept = [x.requires_grad_() for x in kept]
        image, text = (F.normalize(x, dim=-1) for x in kept)
        logits = model.logit_scale.exp() * image @ text.T + model.logit_bias
        positive = logits.diagonal()
        all_negative = F.softplus(logits)[~torch.eye(len(logits), dtype=torch.bool)].sum()
        ((all_negative + F.softplus(-positive).sum()) / len(logits)).backward()
        for part, d_image, d_text in zip(parts, *(x.grad.split(3) for x in kept), strict=True):
            torch.autograd.backward(embed(*part), (d_image, d_text))

    def step(images, tokens):
        optimizer.zero_grad()
        if wrong:
            cached(images, tokens)
            grads = [p.grad for p in model.parameters()]
            length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            torch._foreach_mul_(grads, (1.0 / (length + 1e-6)).clamp(max=1.0))
        else:
            hf_loss(model, images, tokens).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def kernels_only(params):
    return {name: name.endswith("/kernel") for name in params}


def with_optax(make, **rule):
    """The optimiser alone; make() gives a transformation of optax."""
    optimizer = make()

    @jax.jit
    def moved(params, grads, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(params, grads, state):
        return moved(params, grads, optimizer.init(params) if state is None else state)

    return {"step_fn": step, "rule": sr.AdamW(**RULE | rule), "framework": "jax"}


def decay_before_adam(wrong=True):
    """The order of optax's chain: what is added before Adam is scaled by it."""

    def make():
        decay, adam = optax.add_decayed_weights(0.1, kernels_only), optax.scale_by_adam(b2=0.95)
        return optax.chain(*([decay, adam] if wrong else [adam, decay]), optax.scale_by_learning_rate(1e-3))

    return with_optax(make)


def optaxs_second_beta(wrong=True):
    more = {} if wrong else {"b2": 0.95}
    return with_optax(lambda: optax.adamw(1e-3, weight_decay=0.1, mask=kernels_only, **more))


def clipped_by_component(wrong=True):
    def make():
        clip = optax.clip(0.5) if wrong else optax.clip_by_global_norm(0.5)
        return optax.chain(clip, optax.adamw(1e-3, b2=0.95, weight_decay=0.1, mask=kernels_only))

    return with_optax(make, max_norm=0.5, clip_eps=0.0)


# ------------------------------------------------------------------------------------------------ the programs


def program(check, fn, framework, truth, *same):
    given = {"dtype": "float32"} if check == "model" else {}
    return {"check": check, "fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "flash attention in bfloat16": program(
        "model",
        flash_in_sixteen_bits,
        "torch",
        "image tower, self-attention of both blocks (transformers model, 2 blocks, 3 heads): q, k, v are rounded to"
        " bfloat16 (8 significant bits, unit roundoff 2^-8 ~ 0.4 %), scores, softmax and mixing run in bfloat16"
        " (scaled_dot_product_attention), the mixture is cast back to float32 before out_proj; text tower, pooling and"
        " all else are in float32",
        "rounding to bfloat16 inside the image blocks' attention; relative deviations of some 1e-3 there, no formula is"
        " changed",
        "image attention computes in a lower precision (16 bits, 8 bits of significand) than the rest of the model",
    ),
    "CLIP's causal mask in the text tower": program(
        "model",
        clips_causal_mask,
        "torch",
        "text tower, both blocks: self-attention is causal, token i sees tokens 0..i only (lower-triangular mask);"
        " SigLIP has no mask. Image tower is right",
        "text attention masks the future: scores with key > query are -inf",
        "text blocks use is_causal=True",
    ),
    "torch's default GELU and epsilon": program(
        "model",
        torchs_defaults,
        "torch",
        "two mistakes: (1) the MLPs of all blocks of both towers and of the pooling head use exact GELU, x Phi(x) (erf),"
        " in place of the tanh approximation (differs by at most 4.7e-4); (2) all LayerNorms of both towers and of the"
        " pooling head have epsilon 1e-5 in place of 1e-6",
        "erf-GELU everywhere, and LayerNorm eps ten times too large everywhere",
        "nn.GELU() instead of nn.GELU('tanh'); nn.LayerNorm's default eps 1e-5",
    ),
    "norms of The Annotated Transformer": program(
        "model",
        annotated_norms,
        "torch",
        "all LayerNorms (blocks, final norms, pooling head, both towers): (x - mean) / (std + 1e-6) with the unbiased"
        " std (divisor n-1, n = width: 16 image, 12 text), in place of (x - mean) / sqrt(var + 1e-6) with divisor n; so"
        " the normalised value is too small by sqrt((n-1)/n): 0.9682 (image), 0.9574 (text)",
        "LayerNorm with Bessel's correction (variance by n-1), epsilon outside the root (1e-6 added to std)",
        "normalised values before scale are times sqrt(15/16) in the image tower, sqrt(11/12) in the text tower; the"
        " place of epsilon hardly matters",
        "unbiased variance in every LayerNorm",
    ),
    "mean of the binary cross-entropy": program(
        "model",
        mean_of_all_pairs,
        "torch",
        "the loss is the mean of the binary cross-entropy over all B*B pairs, 1/B^2 sum softplus(-z l), in place of 1/B"
        " sum softplus(-z l): loss and all gradients are divided by B (a factor 1/4 with 4 pairs); towers and logits"
        " are right",
        "divisor B^2 in place of B",
        "loss = right loss / B (0.25 at B = 4), and so is every gradient",
    ),
    "scale through item()": program(
        "model",
        scale_by_item,
        "torch",
        "exp(log_scale) is taken as a Python number (.item()), so log_scale gets no gradient (none, or 0); value of the"
        " loss and all other gradients are right (scale only rounded through float64, exactly)",
        "the scale (temperature) is detached from the graph: its gradient is missing or zero, it is never trained",
    ),
    "quick_gelu in the text tower": program(
        "model",
        quick_gelu_in_texts,
        "torch",
        "open_clip model with quick_gelu=True: the text tower's MLPs (2 blocks) use x sigmoid(1.702 x) in place of exact"
        " GELU (erf, what open_clip's SigLIP 1 text towers have; tanh would be SigLIP 2's); timm's image tower ignores"
        " the flag and keeps exact GELU",
        "text blocks: QuickGELU, x sigmoid(1.702 x), for GELU",
        "the activation of the text MLPs is the sigmoid approximation of GELU",
    ),
    "probe kept in the pooling head": program(
        "model",
        probe_kept,
        "jax",
        "image pooling (MAP head): r = probe + attention(probe, x) in place of r = attention(probe, x); then r +"
        " MLP(LN(r)) as it should be. All else is right",
        "a residual connection around the pooling attention: the probe (query) is added to its output",
        "probe is added once to what pooling attention gives, before the head's norm",
    ),
    "text pooled at the highest token": program(
        "model",
        pooled_at_highest_token,
        "jax",
        "text pooling takes, in each text, the position of the highest token id (tokens.argmax(-1), the first of equal"
        " ones; CLIP's end of text) in place of the last position (-1, i.e. 9 of 0..9)",
        "text is pooled at argmax of the ids, not at the last token",
        "the pooled position depends on the tokens' values: CLIP's EOT pooling",
    ),
    "heads not moved back": program(
        "model",
        heads_not_moved_back,
        "jax",
        "self-attention in all blocks of both towers: the heads' results (B, H, N, h) are reshaped to (B, N, W) without"
        " swapping axes H and N first, so tokens and heads are mixed up: row n, columns j of the result is entry n*W+j"
        " of the flattened (H, N, h) (H = 4, h = 4, W = 16); out projection follows. The pooling head has one query and"
        " so is right",
        "missing transpose(1, 2) before the heads are joined",
        "outputs of heads land at wrong tokens and columns: what token n gets is head 4n // N (integer division; N = 36"
        " or 10), tokens 4n mod N and the next three of the flattened order",
    ),
    "columns first and bias inside": program(
        "model",
        columns_and_bias,
        "jax",
        "two mistakes: (1) patches are flattened column by column ('h w -> (w h)', index c*6+r in place of r*6+c, grid 6"
        " x 6), so every patch gets the position of its mirror at the diagonal; (2) logits = exp(t) (sim + b) in place"
        " of exp(t) sim + b",
        "image positions are transposed (patch order is column-major), and the logit bias is multiplied by the scale",
        "position table is read transposed; logits = t * (cos + b), i.e. the bias is exp(t) times too large",
    ),
    "right: projections fused at run time": program("model", fused_projections, "torch", "SigLIP's own"),
    "right: two directions, halved": program("model", two_directions, "jax", "SigLIP's own"),
    "decay by BERT's names, towers only": program(
        "step",
        groups_by_name,
        "torch",
        "two mistakes: (1) weight decay 0.1 on all of the towers' parameters whose name has no 'bias': besides kernels"
        " also on LayerNorm scales ('layer_norm1.weight' is not 'LayerNorm.weight'), token table, both position tables"
        " and the probe, so that these move by a further -1e-4 p a step; biases do not decay; (2) logit_scale and"
        " logit_bias are not given to the optimiser and never move",
        "norm scales, token embedding, positions and probe decay too (lr * decay = 1e-4 of themselves each step); scale"
        " and bias of the logits are frozen",
        "everything but biases decays; log_scale and bias are not trained",
    ),
    "gradients never zeroed": program(
        "step",
        never_zeroed,
        "torch",
        "zero_grad() is never called: step k uses g_1 + ... + g_k in place of g_k; the first step is right, all of"
        " AdamW is right (lr 1e-3, betas 0.9/0.95, decay 0.1 on kernels)",
        "gradients accumulate over steps: step 2 takes the sum of two, step 3 of three gradients",
        "the gradients of earlier steps are added to each step's",
    ),
    "clipped after each micro-batch": program(
        "step",
        clipped_in_the_loop,
        "torch",
        "two micro-batches of 4 pairs: after each, the gradient gathered so far is clipped to global norm 0.5, so the"
        " step's is clip(clip(g1/2) + g2/2) in place of clip((g1 + g2)/2)",
        "clipping stands in the accumulation loop: the first micro-batch's half gradient is clipped before the second's"
        " is added, so the second has too great a weight",
        "clipped once per micro-batch, not once per step; max_norm 0.5 itself is right",
    ),
    "scheduler stepped before the optimiser": program(
        "step",
        scheduler_first,
        "torch",
        "the learning rate is one step ahead: factors 0.4, 0.6, 0.8 in steps 0, 1, 2 in place of 0.2, 0.4, 0.6 (linear"
        " warm-up (k+1)/5, lr 1e-3); the decay, being times lr, too",
        "step k uses the schedule's factor of step k+1",
        "updates are 2, 1.5 and 1.333 times too large in the first three steps",
    ),
    "only weights are saved": program(
        "step",
        only_weights_saved,
        "torch",
        "two mistakes, both only after the restart between steps 2 and 3: (1) Adam's moments and step count are lost"
        " (both moments zero, bias correction as at a first step); (2) the schedule begins anew: factor 0.2 in place of"
        " 0.6 in the third step (linear warm-up (k+1)/5). Steps 1 and 2 are right",
        "the optimiser's state is not restored; the schedule (warm-up) starts again at step 0",
        "the third step is a first step: moves by 0.2 lr g/(|g| + eps) and decay 0.2 lr 0.1 p",
    ),
    "the batch in two halves": program(
        "step",
        batch_in_two,
        "torch",
        "gradient accumulation in place of the whole batch: two micro-batches of 4 pairs, each with its own negatives"
        " only, their losses averaged, where all 8 pairs should see each other (accumulate=1): 24 of the 56 negatives a"
        " step are used",
        "negatives across micro-batches (32 of 56) are missing: the step is that of accumulate=2",
        "loss is computed per half batch of 4 and averaged",
    ),
    "decay before Adam in the chain": program(
        "step",
        decay_before_adam,
        "jax",
        "weight decay is added to the gradient of kernels before Adam's moments: g + 0.1 p goes into both moments (L2"
        " regularisation, Adam), in place of decoupled decay -lr 0.1 p (AdamW); parameters that do not decay move"
        " rightly",
        "coupled L2 of 0.1 in place of AdamW's decoupled decay, on kernels",
        "optax.chain(add_decayed_weights, scale_by_adam): order swapped",
    ),
    "optax's default second beta": program(
        "step",
        optaxs_second_beta,
        "jax",
        "beta2 = 0.999 (default of optax.adamw) in place of 0.95; the first step is the same up to rounding, steps 2 and"
        " 3 differ; beta1 0.9, eps 1e-8, decay 0.1 on kernels are right",
        "Adam's second moment decays by 0.999 a step",
    ),
    "clipped by component": program(
        "step",
        clipped_by_component,
        "jax",
        "each component of the gradient is clipped to [-0.5, 0.5] (optax.clip) in place of all of them together to"
        " global norm 0.5 (optax.clip_by_global_norm); Adam then is right",
        "clipping by value 0.5, not by norm: g becomes min(max(g, -0.5), 0.5) elementwise",
        "the global norm is not clipped; where no component exceeds 0.5, nothing is clipped at all",
    ),
    "right: embeddings cached, clipped by hand": program("step", embeddings_cached, "torch", "SigLIP's own"),
}
