"""Twenty wrong models and training steps, and two right ones."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip import modeling_siglip as hf

import siglip_ref as sr
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.check.model.adapters.big_vision import BigVision
from siglip_ref.check.model.adapters.torch_model import Tap, TorchModel
from siglip_ref.checkpoint.tables.names import Entry, dense, fused, norm
from siglip_ref.model.optim import cosine

# ----------------------------------------------------------------------------------------------------------------------
# transformers' model, small


def hf_model(seed=0, image_width=16, text_width=12):
    torch.manual_seed(seed)
    image = {
        "hidden_size": image_width,
        "intermediate_size": 22,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 20,
        "patch_size": 4,
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": 18,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 9,
        "bos_token_id": None,
        "eos_token_id": None,
        "projection_size": image_width,
    }
    return SiglipModel(SiglipConfig(vision_config=image, text_config=text))


class ResampledPositions(hf.SiglipVisionEmbeddings):
    def forward(self, pixel_values, interpolate_pos_encoding=False):
        height, width = pixel_values.shape[-2:]
        x = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        side = int(self.num_positions**0.5)
        rows, columns = height // self.patch_size + 0.1, width // self.patch_size + 0.1
        table = self.position_embedding.weight.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = (rows / side, columns / side)
        table = F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
        assert int(rows) == table.shape[-2] and int(columns) == table.shape[-1]
        return x + table.permute(0, 2, 3, 1).reshape(1, -1, x.shape[-1])


def resampled_positions():
    model = hf_model(1)
    model.vision_model.embeddings.__class__ = ResampledPositions
    return model


class CappedAttention(hf.SiglipAttention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        batch, length, width = hidden_states.shape
        q, k, v = (
            project(hidden_states).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.mT * self.scale
        scores = 50.0 * torch.tanh(scores / 50.0)
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        return self.out_proj(mixed), weights


def soft_capped():
    model = hf_model(2)
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.self_attn.__class__ = CappedAttention
    return model


class TwoShardMLP(hf.SiglipMLP):
    def forward(self, hidden_states):
        columns = zip(self.fc1.weight.chunk(2), self.fc1.bias.chunk(2), self.fc2.weight.chunk(2, dim=1), strict=True)
        total = 0
        for w1, b1, w2 in columns:
            total = total + F.linear(self.activation_fn(F.linear(hidden_states, w1, b1)), w2, self.fc2.bias)
        return total


def tensor_parallel_mlp():
    model = hf_model(3)
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.mlp.__class__ = TwoShardMLP
    return model


class ConstantQueryHead(hf.SiglipMultiheadAttentionPoolingHead):
    def forward(self, hidden_state):
        mha = self.attention
        batch, _, width = hidden_state.shape
        size = width // mha.num_heads
        w_q, w_k, w_v = mha.in_proj_weight.chunk(3)
        b_q, b_k, b_v = mha.in_proj_bias.chunk(3)

        def heads(x):
            return x.view(len(x), -1, mha.num_heads, size).transpose(1, 2)

        with torch.no_grad():
            query = heads(F.linear(self.probe, w_q, b_q)) * size**-0.5
        keys, values = heads(F.linear(hidden_state, w_k, b_k)), heads(F.linear(hidden_state, w_v, b_v))
        x = F.scaled_dot_product_attention(query.expand(batch, -1, -1, -1), keys, values)
        x = mha.out_proj(x.transpose(1, 2).reshape(batch, 1, width))
        return (x + self.mlp(self.layernorm(x)))[:, 0]


def constant_query():
    model = hf_model(4)
    model.vision_model.head.__class__ = ConstantQueryHead
    return model


class StrippingHead(hf.SiglipMultiheadAttentionPoolingHead):
    def forward(self, hidden_state):
        return super().forward(hidden_state[:, 1:])


def first_patch_stripped():
    model = hf_model(5)
    model.vision_model.head.__class__ = StrippingHead
    return model


class ShiftedTextEmbeddings(hf.SiglipTextEmbeddings):
    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None):
        if input_ids is not None:
            input_ids = F.pad(input_ids[:, :-1], (1, 0), value=0)
        return super().forward(input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)


def shifted_tokens():
    model = hf_model(6)
    model.text_model.embeddings.__class__ = ShiftedTextEmbeddings
    return model


def half_gather_forward(self, input_ids=None, pixel_values=None, return_loss=None, **kwargs):
    vision = self.vision_model(pixel_values=pixel_values)
    text = self.text_model(input_ids=input_ids)
    image_embeds = vision.pooler_output / vision.pooler_output.norm(dim=-1, keepdim=True)
    text_embeds = text.pooler_output / text.pooler_output.norm(dim=-1, keepdim=True)
    gathered = text_embeds.to(torch.bfloat16).to(image_embeds.dtype)
    logits = gathered @ image_embeds.t() * self.logit_scale.exp() + self.logit_bias
    loss = None
    if return_loss:
        signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        loss = -F.logsigmoid(signs * logits).sum(-1).mean()
    return hf.SiglipOutput(
        loss=loss,
        logits_per_image=logits.t(),
        logits_per_text=logits,
        text_embeds=text_embeds,
        image_embeds=image_embeds,
        text_model_output=text,
        vision_model_output=vision,
    )


def half_gather():
    model = hf_model(7)
    model.forward = types.MethodType(half_gather_forward, model)
    return model


class OnlineAttention(hf.SiglipAttention):
    """Keys in blocks of four, running maximum and sum, powers of two."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        batch, length, width = hidden_states.shape
        q = self.q_proj(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k = self.k_proj(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        v = self.v_proj(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q = q * (self.scale * math.log2(math.e))
        top = q.new_full((*q.shape[:-1], 1), -math.inf)
        total, mixed = torch.zeros_like(top), torch.zeros_like(q)
        for k_part, v_part in zip(k.split(4, dim=2), v.split(4, dim=2), strict=True):
            scores = q @ k_part.mT
            new = torch.maximum(top, scores.detach().amax(-1, keepdim=True))
            powers, old = torch.exp2(scores - new), torch.exp2(top - new)
            total, mixed, top = total * old + powers.sum(-1, keepdim=True), mixed * old + powers @ v_part, new
        return self.out_proj((mixed / total).transpose(1, 2).reshape(batch, length, width)), None


class UnfoldedPatches(hf.SiglipVisionEmbeddings):
    def forward(self, pixel_values, interpolate_pos_encoding=False):
        columns = F.unfold(pixel_values, self.patch_size, stride=self.patch_size)
        kernel = self.patch_embedding.weight.flatten(1)
        x = torch.einsum("bkn,ck->bnc", columns, kernel)
        return x + (self.position_embedding.weight + self.patch_embedding.bias)


class ChunkedMLP(hf.SiglipMLP):
    def forward(self, hidden_states):
        total = self.fc2.bias
        for w1, b1, w2 in zip(
            self.fc1.weight.split(5), self.fc1.bias.split(5), self.fc2.weight.split(5, dim=1), strict=True
        ):
            y = F.linear(hidden_states, w1, b1)
            total = total + (y * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y))) @ w2.t()
        return total


def unusual_forms():
    model = hf_model(8)
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.self_attn.__class__ = OnlineAttention
            layer.mlp.__class__ = ChunkedMLP
    model.vision_model.head.mlp.__class__ = ChunkedMLP
    model.vision_model.embeddings.__class__ = UnfoldedPatches
    model.activation_checkpointing_enable()
    return model


# ----------------------------------------------------------------------------------------------------------------------
# a torch model of one's own

IMAGE, TEXT = Tower(width=18, depth=2, mlp=25, heads=3), Tower(width=12, depth=2, mlp=17, heads=2)
SIDE, PATCH, VOCABULARY, LENGTH, EPS = 20, 4, 50, 9, 1e-6


class Attention(nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.heads, self.size = tower.heads, tower.width // tower.heads
        self.qkv, self.proj = nn.Linear(tower.width, 3 * tower.width), nn.Linear(tower.width, tower.width)

    def split(self, qkv):
        batch, length, _ = qkv.shape
        return qkv.view(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        q, k, v = self.split(self.qkv(x))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return self.proj(x)


class Mlp(nn.Sequential):
    def __init__(self, tower):
        super().__init__(nn.Linear(tower.width, tower.mlp), nn.GELU("tanh"), nn.Linear(tower.mlp, tower.width))


class Block(nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(tower.width, EPS), Attention(tower)
        self.norm2, self.mlp = nn.LayerNorm(tower.width, EPS), Mlp(tower)
        self.keep = 1.0

    def forward(self, x):
        x = x + self.keep * self.attn(self.norm1(x))
        return x + self.keep * self.mlp(self.norm2(x))


class ImageTower(nn.Module):
    def __init__(self):
        super().__init__()
        c = IMAGE.width
        self.patches = nn.Conv2d(3, c, PATCH, PATCH)
        self.positions = nn.Parameter(torch.randn((SIDE // PATCH) ** 2, c) * 0.2)
        self.blocks = nn.Sequential(*[Block(IMAGE) for _ in range(IMAGE.depth)])
        self.norm = nn.LayerNorm(c, EPS)
        self.probe = nn.Parameter(torch.randn(1, 1, c) * 0.2)
        self.attention = nn.MultiheadAttention(c, IMAGE.heads, batch_first=True)
        self.head_norm, self.mlp = nn.LayerNorm(c, EPS), Mlp(IMAGE)

    def embed(self, images):
        return self.patches(images).flatten(2).mT

    def forward(self, images):
        x = self.norm(self.blocks(self.embed(images) + self.positions))
        x, _ = self.attention(self.probe.expand(len(x), -1, -1), x, x, need_weights=False)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


class TextTower(nn.Module):
    def __init__(self):
        super().__init__()
        c = TEXT.width
        self.tokens, self.positions = nn.Embedding(VOCABULARY, c), nn.Parameter(torch.randn(LENGTH, c) * 0.2)
        self.blocks = nn.Sequential(*[Block(TEXT) for _ in range(TEXT.depth)])
        self.norm, self.head = nn.LayerNorm(c, EPS), nn.Linear(c, IMAGE.width)

    def forward(self, tokens):
        x = self.norm(self.blocks(self.tokens(tokens) + self.positions))
        return self.head(x[:, -1])


class OwnModel(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = ImageTower(), TextTower()
        self.log_scale, self.bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-10.0))


def own_loss(model, images, tokens):
    image, text = F.normalize(model.image(images), dim=-1), F.normalize(model.text(tokens), dim=-1)
    logits = model.log_scale.exp() * image @ text.T + model.bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    value = -F.logsigmoid(signs * logits).sum() / len(logits)
    return value, {"image/embed": image, "text/embed": text, "logits": logits}


def own_table():
    table = [
        Entry("image/patch/kernel", "image.patches.weight", "patch"),
        Entry("image/patch/bias", "image.patches.bias"),
        Entry("image/position", "image.positions"),
        *norm("image/norm", "image.norm"),
        Entry("image/pool/probe", "image.probe"),
        *fused("image/pool/attn", "image.attention.in_proj", joint="_"),
        *dense("image/pool/attn/out", "image.attention.out_proj"),
        *norm("image/pool/norm", "image.head_norm"),
        *dense("image/pool/mlp/in", "image.mlp.0"),
        *dense("image/pool/mlp/out", "image.mlp.2"),
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
    for tower, depth in (("image", IMAGE.depth), ("text", TEXT.depth)):
        taps.append(Tap(f"{tower}/stem", f"{tower}.blocks", "input"))
        for i in range(depth):
            ours, theirs = f"{tower}/block{i:02d}", f"{tower}.blocks.{i}"
            table += norm(f"{ours}/norm1", f"{theirs}.norm1")
            table += fused(f"{ours}/attn", f"{theirs}.attn.qkv")
            table += dense(f"{ours}/attn/out", f"{theirs}.attn.proj")
            table += norm(f"{ours}/norm2", f"{theirs}.norm2")
            table += dense(f"{ours}/mlp/in", f"{theirs}.mlp.0")
            table += dense(f"{ours}/mlp/out", f"{theirs}.mlp.2")
            taps += [Tap(f"{ours}/+attn", f"{theirs}.norm2", "input"), Tap(f"{ours}/+mlp", theirs)]
    return tuple(table), tuple(taps)


def own(name, model):
    table, taps = own_table()
    how = sr.preset("open_clip", image_gelu="tanh", text_gelu="tanh")
    cfg = Config(name, IMAGE, TEXT, (SIDE, SIDE), PATCH, VOCABULARY, LENGTH, conventions=how)
    return TorchModel(name, model, cfg, table, taps, own_loss)


class InterleavedAttention(Attention):
    def split(self, qkv):
        batch, length, _ = qkv.shape
        return qkv.view(batch, length, self.heads, 3, self.size).permute(3, 0, 2, 1, 4)


def interleaved_model():
    model = OwnModel()
    for block in model.image.blocks:
        block.attn.__class__ = InterleavedAttention
    return model


class StoppedImageTower(ImageTower):
    def embed(self, images):
        return super().embed(images).detach()


def stopped_model():
    model = OwnModel()
    model.image.__class__ = StoppedImageTower
    return model


def survival_model():
    model = OwnModel()
    for layer, block in enumerate(model.image.blocks, start=1):
        block.keep = 1 - layer / IMAGE.depth * 0.2
    return model


# ----------------------------------------------------------------------------------------------------------------------
# a JAX model in big_vision's layout

J_WIDTH, J_HEADS, J_HIDDEN, J_DEPTH = 10, 2, 13, 2


def j_norm(x, p, offset=0.0):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + EPS) * (offset + p["scale"]) + p["bias"]


def j_mix(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


@jax.custom_vjp
def j_flash(q, k, v):
    return j_mix(q, k, v)


def j_flash_fwd(q, k, v):
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    lse = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    out = jnp.einsum("bhnm,bmhd->bnhd", jnp.exp(scores - lse), v)
    return out, (q, k, v, out, lse)


def j_flash_bwd(kept, g):
    q, k, v, out, lse = kept
    scale = q.shape[-1] ** -0.5
    weights = jnp.exp(jnp.einsum("bnhd,bmhd->bhnm", q, k) * scale - lse)
    delta = jnp.einsum("bnhd,bnhd->bhn", g, out)[..., None]
    d_scores = weights * (jnp.einsum("bnhd,bmhd->bhnm", g, v) - delta)
    d_q = jnp.einsum("bhnm,bmhd->bnhd", d_scores, k) * scale
    d_k = jnp.einsum("bhnm,bnhd->bmhd", d_scores, q)
    d_v = jnp.einsum("bhnm,bnhd->bmhd", weights, g)
    return d_q, d_k, d_v


j_flash.defvjp(j_flash_fwd, j_flash_bwd)


def j_attention(x_query, x_key, p, mix=j_mix):
    q, k, v = (
        jnp.einsum("bnc,chd->bnhd", x, p[name]["kernel"]) + p[name]["bias"]
        for name, x in (("query", x_query), ("key", x_key), ("value", x_key))
    )
    return jnp.einsum("bnhd,hdc->bnc", mix(q, k, v), p["out"]["kernel"]) + p["out"]["bias"]


def j_mlp(x, p):
    x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], approximate=True)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def j_block(x, p, mix=j_mix, offset=0.0):
    y = j_norm(x, p["LayerNorm_0"], offset)
    middle = x + j_attention(y, y, p["MultiHeadDotProductAttention_0"], mix)
    return middle, middle + j_mlp(j_norm(middle, p["LayerNorm_1"], offset), p["MlpBlock_0"])


def j_encoder(x, p, tower, seen, mix=j_mix, offset=0.0):
    for i in range(J_DEPTH):
        seen[f"{tower}/block{i:02d}/+attn"], x = j_block(x, p[f"encoderblock_{i}"], mix, offset)
        seen[f"{tower}/block{i:02d}/+mlp"] = x
    return j_norm(x, p["encoder_norm"], offset)


def j_encoder_remat(x, p, tower, seen):
    blocks = [jax.checkpoint(lambda x: j_block(x, p[f"encoderblock_{i}"])) for i in range(J_DEPTH)]
    for number, block in enumerate(blocks):
        seen[f"{tower}/block{number:02d}/+attn"], x = block(x)
        seen[f"{tower}/block{number:02d}/+mlp"] = x
    return j_norm(x, p["encoder_norm"])


def j_image(images, p, seen, encoder):
    batch, height, width, _ = images.shape
    grid = images.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3).swapaxes(2, 3)
    kernel = p["embedding"]["kernel"].reshape(-1, J_WIDTH)
    x = grid.reshape(batch, -1, PATCH * PATCH * 3) @ kernel + p["embedding"]["bias"] + p["pos_embedding"]
    seen["image/stem"] = x
    x = seen["image/norm"] = encoder(x, p["Transformer"], "image", seen)
    head = p["MAPHead_0"]
    x = j_attention(jnp.tile(head["probe"], (batch, 1, 1)), x, head["MultiHeadDotProductAttention_0"])
    pooled = seen["image/pool"] = (x + j_mlp(j_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]
    return pooled


def j_text(tokens, p, seen, encoder, factor):
    x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] * factor + p["pos_embedding"]
    x = seen["text/norm"] = encoder(x, p["Encoder_0"], "text", seen)
    x = seen["text/pool"] = x[:, -1]
    x = seen["text/head"] = x @ p["head"]["kernel"] + p["head"]["bias"]
    return x


def j_normalize(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


def j_loss(image_encoder=j_encoder, text_encoder=j_encoder, token_factor=1.0):
    def loss_fn(params, images, tokens):
        seen = {}
        image = seen["image/embed"] = j_normalize(j_image(images, params["img"], seen, image_encoder))
        text = seen["text/embed"] = j_normalize(j_text(tokens, params["txt"], seen, text_encoder, token_factor))
        logits = seen["logits"] = image @ text.T * jnp.exp(params["t"]) + params["b"]
        signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
        return -jax.nn.log_sigmoid(signs * logits).sum(-1).mean(), seen

    return loss_fn


def j_init(seed=0):
    rng = np.random.default_rng(seed)

    def tensor(*shape):
        return jnp.asarray(0.3 * rng.standard_normal(shape, np.float32))

    def linear(*shape, bias):
        return {"kernel": tensor(*shape), "bias": tensor(*bias)}

    def layer_norm():
        return {"scale": 1 + tensor(J_WIDTH), "bias": tensor(J_WIDTH)}

    def multi_head():
        size = J_WIDTH // J_HEADS
        parts = {name: linear(J_WIDTH, J_HEADS, size, bias=(J_HEADS, size)) for name in ("query", "key", "value")}
        return parts | {"out": linear(J_HEADS, size, J_WIDTH, bias=(J_WIDTH,))}

    def two_layers():
        first = linear(J_WIDTH, J_HIDDEN, bias=(J_HIDDEN,))
        return {"Dense_0": first, "Dense_1": linear(J_HIDDEN, J_WIDTH, bias=(J_WIDTH,))}

    def blocks():
        made = {
            f"encoderblock_{i}": {
                "LayerNorm_0": layer_norm(),
                "MultiHeadDotProductAttention_0": multi_head(),
                "LayerNorm_1": layer_norm(),
                "MlpBlock_0": two_layers(),
            }
            for i in range(J_DEPTH)
        }
        return made | {"encoder_norm": layer_norm()}

    head = {
        "probe": tensor(1, 1, J_WIDTH),
        "MultiHeadDotProductAttention_0": multi_head(),
        "LayerNorm_0": layer_norm(),
        "MlpBlock_0": two_layers(),
    }
    image = {
        "embedding": linear(PATCH, PATCH, 3, J_WIDTH, bias=(J_WIDTH,)),
        "pos_embedding": tensor(1, (SIDE // PATCH) ** 2, J_WIDTH),
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


def late_binding_loss():
    return j_loss(image_encoder=j_encoder_remat)


def gemma_text_loss():
    def encoder(x, p, tower, seen):
        return j_encoder(x, p, tower, seen, offset=1.0)

    return j_loss(text_encoder=encoder, token_factor=J_WIDTH**0.5)


def flash_loss():
    def encoder(x, p, tower, seen):
        return j_encoder(x, p, tower, seen, mix=j_flash)

    return j_loss(image_encoder=encoder, text_encoder=encoder)


def jax_model(name, loss_fn):
    return BigVision(loss_fn, j_init(), name=name)


# ----------------------------------------------------------------------------------------------------------------------
# training steps of a whole model


def decayed(model):
    """Identities of the matrices that decay."""
    chosen = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return chosen | {id(m.in_proj_weight) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}


def adamw(model, lr=1e-3, betas=(0.9, 0.95), decay=0.1):
    chosen = decayed(model)
    groups = [
        {"params": [p for p in model.parameters() if id(p) in chosen], "weight_decay": decay},
        {"params": [p for p in model.parameters() if id(p) not in chosen], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def hf_loss(model, images, tokens):
    return model(pixel_values=images, input_ids=tokens, return_loss=True).loss


def clip_each_micro_batch():
    model = hf_model(11, 12)
    optimizer = adamw(model)

    def step(images, tokens):
        optimizer.zero_grad()
        for part, words in zip(images.chunk(2), tokens.chunk(2), strict=True):
            (hf_loss(model, part, words) / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=0.5)
    return {"step_fn": step, "rule": rule, "model": model}


class Trainer:
    def __init__(self, model):
        self.model, self.optimizer = model, adamw(model)

    def step(self, images, tokens):
        self.optimizer.zero_grad()
        hf_loss(self.model, images, tokens).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def save(self):
        state = self.optimizer.state
        moments = {
            name: (state[p]["exp_avg"].clone(), state[p]["exp_avg_sq"].clone())
            for name, p in self.model.named_parameters()
        }
        return {name: value.clone() for name, value in self.model.state_dict().items()}, moments

    def load(self, saved):
        weights, moments = saved
        self.model.load_state_dict(weights)
        for name, p in self.model.named_parameters():
            first, second = moments[name]
            self.optimizer.state[p] = {"step": torch.tensor(0.0), "exp_avg": first, "exp_avg_sq": second}


def count_restarts():
    trainer = Trainer(hf_model(12, 12))

    def restart():
        fresh = Trainer(hf_model(13, 12).to(next(trainer.model.parameters()).dtype))
        fresh.load(trainer.save())
        return fresh.model, fresh.step

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
    return {"step_fn": trainer.step, "rule": rule, "model": trainer.model, "restart": restart}


def locked_by_zeros():
    model = hf_model(14, 12)
    optimizer = adamw(model)

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for name, p in model.named_parameters():
            if name.startswith("vision_model."):
                p.grad.zero_()
        optimizer.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=0.5, frozen=lambda name: name.startswith("image/"))
    return {"step_fn": step, "rule": rule, "model": model}


def image_vectors(model, images):
    return F.normalize(model.get_image_features(pixel_values=images).pooler_output, dim=-1)


def text_vectors(model, tokens):
    return F.normalize(model.get_text_features(input_ids=tokens).pooler_output, dim=-1)


def pair_loss(model, image, text):
    logits = image @ text.t() * model.logit_scale.exp() + model.logit_bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return F.softplus(-signs * logits).sum() / len(logits)


def cached_gradients(model, images, tokens, between=lambda: None):
    """Gradients of the whole batch's loss, with the activations of two pairs at a time."""
    with torch.no_grad():
        image = torch.cat([image_vectors(model, part) for part in images.split(2)])
        text = torch.cat([text_vectors(model, part) for part in tokens.split(2)])
    image.requires_grad_()
    text.requires_grad_()
    pair_loss(model, image, text).backward()
    between()
    for part, words, d_image, d_text in zip(
        images.split(2), tokens.split(2), image.grad.split(2), text.grad.split(2), strict=True
    ):
        (image_vectors(model, part) * d_image).sum().backward()
        (text_vectors(model, words) * d_text).sum().backward()


def cache_drops_scale():
    model = hf_model(15, 12)
    optimizer = adamw(model)

    def step(images, tokens):
        optimizer.zero_grad()
        cached_gradients(model, images, tokens, between=optimizer.zero_grad)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
    return {"step_fn": step, "rule": rule, "model": model}


TOTAL, WARMUP = 6, 1


def schedule(step):
    return float(cosine(step, TOTAL, WARMUP))


def cosine_from_start():
    model = hf_model(16, 12)
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, k / WARMUP) * 0.5 * (1 + math.cos(math.pi * k / TOTAL))
    )

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
    return {"step_fn": step, "rule": rule, "model": model}


class FlatAdamW:
    """All parameters as one vector, and the bias corrections moved into the rate and into eps."""

    def __init__(self, model, lr, beta1, beta2, eps, decay):
        self.params, self.settings, self.steps = list(model.parameters()), (lr, beta1, beta2, eps), 0
        chosen = decayed(model)
        self.decay = torch.cat([torch.full((p.numel(),), decay * (id(p) in chosen)) for p in self.params])
        self.first = self.second = torch.zeros_like(self.decay)

    def step(self, max_norm):
        lr, beta1, beta2, eps = self.settings
        self.steps += 1
        grad = torch.cat([p.grad.flatten() for p in self.params])
        grad = grad * min(1.0, max_norm / (grad.double().square().sum().sqrt().item() + 1e-6))
        self.first = self.first + (1 - beta1) * (grad - self.first)
        self.second = self.second + (1 - beta2) * (grad * grad - self.second)
        root = math.sqrt(1 - beta2**self.steps)
        move = lr * root / (1 - beta1**self.steps) * self.first / (self.second.sqrt() + eps * root)
        with torch.no_grad():
            old = torch.cat([p.flatten() for p in self.params])
            new = old - move - lr * self.decay * old
            for p, part in zip(self.params, new.split([p.numel() for p in self.params]), strict=True):
                p.copy_(part.view_as(p))


def flat_and_cached():
    model = hf_model(17, 12)
    optimizer = FlatAdamW(model, 1e-3, 0.9, 0.95, 1e-8, 0.1)

    def step(images, tokens):
        model.zero_grad()
        cached_gradients(model, images, tokens)
        optimizer.step(1.0)

    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
    return {"step_fn": step, "rule": rule, "model": model}


# ----------------------------------------------------------------------------------------------------------------------
# update functions


def group_of(params):
    return {name: "decay" if name.endswith("/kernel") else "rest" for name in params}


GROUPED = optax.multi_transform(
    {
        "decay": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1)),
        "rest": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, b2=0.95)),
    },
    group_of,
)


def grouped_update(params, grads, state):
    if state is None:
        state = GROUPED.init(params)
    updates, state = GROUPED.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def clip_per_group():
    rule = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0, clip_eps=0.0)
    return {"step_fn": grouped_update, "rule": rule, "framework": "jax"}


ADAFACTOR = sr.BigVision(lr=1e-3, beta2_cap=0.95, momentum=0.9, decay=1e-4, max_norm=1.0)


def second_moment(g, name, slots, rate):
    square = g * g + 1e-30
    axes = sorted(range(g.ndim), key=lambda axis: g.shape[axis])

    def mean(key, now):
        slots[key, name] = rate * slots.get((key, name), np.zeros_like(now)) + (1 - rate) * now
        return slots[key, name]

    if g.ndim < 2 or g.shape[axes[-2]] < ADAFACTOR.smallest:
        return g / np.sqrt(mean("full", square))
    shorter, longer = axes[-2:]
    row, column = mean("row", square.mean(longer, keepdims=True)), mean("column", square.mean(shorter, keepdims=True))
    return g / np.sqrt(row / row.mean(shorter, keepdims=True)) / np.sqrt(column)


def adafactor_update(params, grads, state, first_count=2, dampening=1.0):
    count, old = state or (first_count, {})
    slots = dict(old)
    length = np.sqrt(sum((g * g).sum() for g in grads.values()))
    factor = np.float32(min(1.0, 1.0 / length))
    rate = np.float32(min(ADAFACTOR.beta2_cap, 1 - count**-0.8))
    moved = {}
    for name, p in params.items():
        update = second_moment(factor * grads[name], name, slots, rate)
        trace = np.float32(0.9) * slots.get(("trace", name), np.zeros_like(p)) + np.float32(dampening) * update
        slots["trace", name] = trace
        step = np.float32(1e-3) * trace
        if name.endswith("/kernel"):
            step = step + np.float32(1e-4) * p
        moved[name] = p - step
    return moved, (count + 1, slots)


def trace_update(params, grads, state):
    return adafactor_update(params, grads, state)


def trace_and_late_count():
    return {"step_fn": trace_update, "rule": ADAFACTOR, "framework": "numpy"}


# ----------------------------------------------------------------------------------------------------------------------

FLOAT32 = {"dtype": "float32"}


def model_program(fn, framework, truth, *same):
    return {"check": "model", "fn": fn, "framework": framework, "given": dict(FLOAT32), "truth": truth, "same": list(same)}


def step_program(fn, framework, truth, *same, **given):
    return {"check": "step", "fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "position table resampled at its own size": model_program(
        resampled_positions,
        "torch",
        "image/stem = patches + R(image/position), where R resamples the 5 x 5 table bicubically (align_corners false, "
        "no antialias) with scale factor (5 + 0.1) / 5 = 1.02 although the grid is 5 x 5 already: output row i is read "
        "at (i + 0.5) / 1.02 - 0.5, and columns alike; the gradient of image/position is R's transpose of the right one",
        "the image tower's position embeddings are interpolated (slightly shrunk sample positions) before being added",
        "DINO's + 0.1 interpolation is applied although the grid has the table's size",
    ),
    "attention scores soft capped": model_program(
        soft_capped,
        "torch",
        "in the self-attention of every block of both towers the scaled scores s = q k / sqrt(h) are replaced by "
        "50 tanh(s / 50) before softmax; the pooling head's attention is right",
        "attention logits are soft-capped at 50 (Gemma 2) in the encoder blocks",
    ),
    "tensor parallel adds the bias twice": model_program(
        tensor_parallel_mlp,
        "torch",
        "in the MLP of every block of both towers the second layer's bias (mlp/out/bias) is added twice: "
        "x + gelu(y W1 + b1) W2 + 2 b2; its gradient is twice as well; the pooling head's MLP is right",
        "the bias of mlp/out counts double in all encoder blocks",
        "each of two row-parallel shards adds the whole bias",
    ),
    "pooling query constant and scaled twice": model_program(
        constant_query,
        "torch",
        "two mistakes in the pooling head: (1) its attention scores are q k / h instead of q k / sqrt(h) (h the size of "
        "a head: the scale 1/sqrt(h) is applied twice); (2) the query is computed without gradient, so the gradients of "
        "image/pool/probe, image/pool/attn/q/kernel and image/pool/attn/q/bias are zero",
        "MAP head: scale applied twice, and probe and query projection detached",
    ),
    "first patch stripped before pooling": model_program(
        first_patch_stripped,
        "torch",
        "the pooling head attends to tokens 1 to N-1 of image/norm only: token 0 (the top left patch) is dropped before "
        "the pooling head, as if it were a class token",
        "the first patch token is left out of the attention pooling's keys and values",
    ),
    "tokens shifted right": model_program(
        shifted_tokens,
        "torch",
        "the text tower reads the tokens shifted right by one: id 0 at position 0, token i at position i + 1, and the "
        "last token is never read",
        "tokens are shifted by one position with a start token 0 in front",
    ),
    "texts gathered in bfloat16": model_program(
        half_gather,
        "torch",
        "text/embed (normalised) is rounded to bfloat16 before the product with the images, so the logits are "
        "scale * image . bf16(text) + bias; the gradient with respect to text/embed is rounded to bfloat16 too; the "
        "towers themselves and the returned embeddings are right",
        "logits are computed from text embeddings rounded to bfloat16",
    ),
    "qkv read head by head": model_program(
        lambda: own("qkv read head by head", interleaved_model()),
        "torch",
        "in every block of the image tower the output of the fused projection, whose 54 rows are all of q (18), then "
        "all of k, then all of v, is split as (head, q/k/v, size) instead of (q/k/v, head, size): head j (of 3, size 6) "
        "takes its q from rows 18j to 18j+5, its k from 18j+6 to 18j+11, its v from 18j+12 to 18j+17. So head 0 has q, k "
        "and v all from the q projection, head 1 all from the k projection, head 2 all from the v projection. Text tower "
        "and pooling are right",
        "the qkv output is split in the interleaved (per head, Megatron / NeoX) layout instead of q | k | v",
    ),
    "patch embedding stopped": model_program(
        lambda: own("patch embedding stopped", stopped_model()),
        "torch",
        "all values are right; the output of the patch embedding is detached: the gradients of image/patch/kernel and "
        "image/patch/bias are zero (or missing), all others right, image/position too",
        "stop-gradient after the patch projection (MoCo v3), before positions are added",
    ),
    "survival probability kept": model_program(
        lambda: own("survival probability kept", survival_model()),
        "torch",
        "in the image tower both residual branches (attention and MLP) of block 0 are multiplied by 0.9 and those of "
        "block 1 by 0.8: x + k attn(norm1(x)), x + k mlp(norm2(x)); text tower right",
        "stochastic depth's survival probabilities 1 - (l / L) 0.2 scale the residual branches of the image tower",
    ),
    "all blocks bind the last weights": model_program(
        lambda: jax_model("all blocks bind the last weights", late_binding_loss()),
        "jax",
        "both blocks of the image tower use the weights of image/block01; the gradients of image/block00's parameters "
        "are zero, those of image/block01 are sums over both uses",
        "image block 0 computes with block 1's weights",
        "late binding of the loop's index: every block of the image tower uses the last block's parameters",
    ),
    "text tower in Gemma's conventions": model_program(
        lambda: jax_model("text tower in Gemma's conventions", gemma_text_loss()),
        "jax",
        "two mistakes in the text tower: (1) token embeddings are multiplied by sqrt(width) = sqrt(10) before positions "
        "are added; (2) all its layer norms (norm1, norm2 of each block and text/norm) multiply by 1 + gamma instead of "
        "gamma; the image tower is right",
        "text/token times sqrt(width), and text layer norms scaled by (1 + gamma)",
    ),
    "flash backward without the key's scale": model_program(
        lambda: jax_model("flash backward without the key's scale", flash_loss()),
        "jax",
        "all values are right; in the backward pass of the self-attention of every block of both towers dk lacks the "
        "factor 1/sqrt(h), h = 5: the gradient with respect to the keys is sqrt(5) times too large, and with it "
        "attn/k/kernel's and, through norm1, all that lies before; the pooling head's attention is right",
        "the gradient that flows into k is sqrt(head size) too large in all encoder blocks",
    ),
    "clip after each micro-batch": step_program(
        clip_each_micro_batch,
        "torch",
        "with 2 micro-batches the gradient is clip(clip(g1 / 2) + g2 / 2), clip to length 0.5: the accumulated "
        "gradient is clipped after every micro-batch's backward pass and not only once at the end; the rest is right",
        "gradient clipping inside the accumulation loop",
        accumulate=2,
    ),
    "count begins again after restart": step_program(
        count_restarts,
        "torch",
        "steps 1 and 2 are right; after the restart both moments are kept, but Adam's count of steps begins again at 0, "
        "so step 3's bias corrections are 1 - beta1 = 0.1 and 1 - beta2 = 0.05 (those of step 1) instead of "
        "1 - beta1^3 = 0.271 and 1 - beta2^3 = 0.142625; step 3's gradient part is sqrt(0.05/0.142625) * 0.271/0.1 = "
        "1.6046 times as large",
        "the optimiser's step counter is not restored from the checkpoint, the moments are",
    ),
    "locked tower by zeroed gradients": step_program(
        locked_by_zeros,
        "torch",
        "two mistakes about the frozen image tower: (1) its gradients count in the norm by which all gradients are "
        "clipped; (2) its kernels still decay, by the factor 1 - lr * decay = 1 - 1e-4 in every step (its other "
        "parameters stand still)",
        "frozen parameters decay, and are included in the gradient norm",
    ),
    "gradient cache loses scale and bias": step_program(
        cache_drops_scale,
        "torch",
        "log_scale and bias have no gradient (it is cleared between the two passes of the gradient cache): they never "
        "move, and their gradients are missing in the norm that clips the others; the towers' gradients are right",
        "log_scale and bias are not trained",
    ),
    "cosine counted from the start": step_program(
        cosine_from_start,
        "torch",
        "the learning rate's factor at step k is min(1, k / 1) * (1 + cos(pi k / 6)) / 2 instead of "
        "min(1, k / 1) * (1 + cos(pi (k - 1) / 5)) / 2: the cosine's progress is counted from step 0 over all steps "
        "instead of from the end of the warm-up; factors 0, 0.9330, 0.75 instead of 0, 1, 0.9045",
        "the cosine decay does not begin after the warm-up but at step 0",
        schedule=schedule,
    ),
    "clip per optimiser group": step_program(
        clip_per_group,
        "jax",
        "gradients are clipped to length 1 in two groups on their own, all kernels together, and all other "
        "parameters together, instead of by the norm of all gradients; the rest is right",
        "clip by global norm within each group of multi_transform",
    ),
    "momentum as a trace and a late count": step_program(
        trace_and_late_count,
        "numpy",
        "two mistakes in big_vision's Adafactor: (1) momentum is m = 0.9 m + u instead of m = 0.9 m + 0.1 u (10 times as "
        "large); (2) the second moment's rate at step k = 1, 2, 3 is min(0.95, 1 - (k + 1)^-0.8) instead of "
        "min(0.95, 1 - k^-0.8), so that at step 1 it is 0.4257 instead of 0",
        "undampened momentum (optax.trace for optax.ema), and the Adafactor decay's step count is one too many",
    ),
    "right: online softmax, unfolded patches, chunked MLP, checkpointing": model_program(
        unusual_forms, "torch", "SigLIP's own"
    ),
    "right: gradient cache and AdamW on one vector": step_program(flat_and_cached, "torch", "SigLIP's own"),
}
