"""Wrong models and wrong training steps, written on 2026-11-29 by somebody who has not read the checker.

`fn` is a factory without arguments. "check": "model": sr.check_model(fn(), **given). "check": "step": fn() returns a dict
with step_fn, rule and, for a whole step, model; sr.check_step(**fn(), **given).
What is wrong stands here; the models around it are the project's examples (the author had copies of them beside this file).
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import torch
from torch import nn
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip import modeling_siglip as hf

import siglip_ref as sr
from siglip_ref.check.model.adapters.big_vision import BigVision
from siglip_ref.check.model.adapters.torch_model import TorchModel
from siglip_ref.model.optim import cosine

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))
import check_jax_model as ej
import check_torch_model as et


def small_model(cls=SiglipModel):
    torch.manual_seed(0)
    tower = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = tower | {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": None, "eos_token_id": None}
    image = tower | {"image_size": 20, "patch_size": 4}
    model = cls(SiglipConfig(vision_config=image, text_config=text | {"projection_size": 12}))
    return model.eval()


# ------------------------------------------------------------------------------------------ models of Hugging Face
class ColumnsFirst(hf.SiglipVisionEmbeddings):
    def forward(self, pixel_values, interpolate_pos_encoding=False):
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        tokens = patches.permute(0, 3, 2, 1).flatten(1, 2)  # "b c h w -> b (w h) c"
        return tokens + self.position_embedding(self.position_ids)


def columns_first():
    model = small_model()
    model.vision_model.embeddings.__class__ = ColumnsFirst
    return model


def scale_of_the_whole_width():
    model = small_model()
    attention = model.text_model.encoder.layers[1].self_attn
    attention.scale = attention.embed_dim**-0.5
    return model


class NormedResidual(hf.SiglipMultiheadAttentionPoolingHead):
    def forward(self, hidden_state):
        probe = self.probe.repeat(len(hidden_state), 1, 1)
        hidden_state = self.attention(probe, hidden_state, hidden_state)[0]
        hidden_state = self.layernorm(hidden_state)
        return (hidden_state + self.mlp(hidden_state))[:, 0]


def normed_residual_in_the_pool():
    model = small_model()
    model.vision_model.head.__class__ = NormedResidual
    return model


class NormAfterHead(hf.SiglipTextModel):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        hidden = self.embeddings(input_ids=input_ids, position_ids=position_ids)
        hidden = self.encoder(inputs_embeds=hidden).last_hidden_state
        pooled = self.final_layer_norm(self.head(hidden[:, -1]))
        return hf.BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


def norm_after_the_text_head():
    model = small_model()
    model.text_model.__class__ = NormAfterHead
    return model


class PreviousLayer(hf.SiglipEncoder):
    def forward(self, inputs_embeds, attention_mask=None, **kwargs):
        hidden = inputs_embeds
        for i in range(len(self.layers)):
            hidden = self.layers[max(i - 1, 0)](hidden, attention_mask)
        return hf.BaseModelOutput(last_hidden_state=hidden)


def first_block_twice():
    model = small_model()
    model.vision_model.encoder.__class__ = PreviousLayer
    return model


class FrozenPatches(hf.SiglipVisionEmbeddings):
    def forward(self, pixel_values, interpolate_pos_encoding=False):
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        tokens = patches.flatten(2).transpose(1, 2).detach()  # stabler, as in MoCo v3
        return tokens + self.position_embedding(self.position_ids)


def frozen_patches():
    model = small_model()
    model.vision_model.embeddings.__class__ = FrozenPatches
    return model


class NormsMixedUp(SiglipModel):
    def forward(self, input_ids=None, pixel_values=None, return_loss=None, **kwargs):
        vision = self.vision_model(pixel_values=pixel_values)
        text = self.text_model(input_ids=input_ids)
        image_embeds, text_embeds = vision.pooler_output, text.pooler_output
        norm = image_embeds.norm(p=2, dim=-1, keepdim=True)
        image_embeds = image_embeds / norm
        text_embeds = text_embeds / norm
        logits_per_text = text_embeds @ image_embeds.t() * self.logit_scale.exp() + self.logit_bias
        loss = None
        if return_loss:
            z = 2 * torch.eye(len(logits_per_text), dtype=logits_per_text.dtype) - 1
            loss = -nn.functional.logsigmoid(z * logits_per_text).sum(-1).mean()
        return hf.SiglipOutput(
            loss=loss,
            logits_per_image=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )


def texts_by_the_images_norm():
    return small_model(NormsMixedUp)


class HeadsNotMovedBack(hf.SiglipAttention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        b, n, w = hidden_states.shape
        q, k, v = (
            f(hidden_states).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = torch.softmax(q @ k.mT * self.scale, dim=-1)
        mixed = (weights @ v).reshape(b, n, w)
        return self.out_proj(mixed), weights


def heads_not_moved_back():
    model = small_model()
    model.vision_model.encoder.layers[0].self_attn.__class__ = HeadsNotMovedBack
    return model


class BiasesExchanged(hf.SiglipAttention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        b, n, w = hidden_states.shape
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        bias = torch.cat([self.q_proj.bias, self.v_proj.bias, self.k_proj.bias])
        qkv = nn.functional.linear(hidden_states, weight, bias)
        q, k, v = qkv.view(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(b, n, w)), None


def key_and_value_biases_exchanged():
    model = small_model()
    model.text_model.encoder.layers[1].self_attn.__class__ = BiasesExchanged
    return model


# --------------------------------------------------------------------------------------------- a torch model of one's own
class KeptDropPath(nn.Module):
    """The MLP's second layer, with the factor of stochastic depth left in at evaluation."""

    def __init__(self, linear, keep):
        super().__init__()
        self.weight, self.bias, self.keep = linear.weight, linear.bias, keep

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias) * self.keep


def droppath_factor_left():
    torch.manual_seed(0)
    model = et.MyModel()
    block = model.image.blocks[1]
    block.linear2 = KeptDropPath(block.linear2, 0.9)
    return TorchModel("my model", model, et.CONFIG, tuple(et.TABLE), tuple(et.TAPS), et.loss)


# ------------------------------------------------------------------------------------------------------ JAX models
def with_towers(image_tower, text_tower):
    def loss_fn(params, images, tokens):
        seen = {}
        image = seen["image/embed"] = ej.normalize(image_tower(images, params["img"], seen))
        text = seen["text/embed"] = ej.normalize(text_tower(tokens, params["txt"], seen))
        logits = seen["logits"] = image @ text.T * jnp.exp(params["t"]) + params["b"]
        z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
        return -jax.nn.log_sigmoid(z * logits).sum(-1).mean(), seen

    return loss_fn


def text_tower_scanned_backwards(tokens, p, seen):
    x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] + p["pos_embedding"]
    blocks = [p["Encoder_0"][f"encoderblock_{i}"] for i in range(ej.DEPTH)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)

    def body(x, block):
        y = ej.layer_norm(x, block["LayerNorm_0"])
        x = x + ej.attention(y, y, block["MultiHeadDotProductAttention_0"])
        x = x + ej.mlp(ej.layer_norm(x, block["LayerNorm_1"]), block["MlpBlock_0"])
        return x, None

    x, _ = jax.lax.scan(body, x, stacked, reverse=True)
    x = seen["text/norm"] = ej.layer_norm(x, p["Encoder_0"]["encoder_norm"])
    x = seen["text/pool"] = x[:, -1]
    x = seen["text/head"] = x @ p["head"]["kernel"] + p["head"]["bias"]
    return x


def image_tower_probe_among_keys(images, p, seen):
    batch, height, width, _ = images.shape
    grid = images.reshape(batch, height // ej.PATCH, ej.PATCH, width // ej.PATCH, ej.PATCH, 3).swapaxes(2, 3)
    kernel = p["embedding"]["kernel"].reshape(-1, ej.WIDTH)
    x = grid.reshape(batch, -1, ej.PATCH * ej.PATCH * 3) @ kernel + p["embedding"]["bias"] + p["pos_embedding"]
    seen["image/stem"] = x
    x = seen["image/norm"] = ej.encoder(x, p["Transformer"], "image", seen)
    head = p["MAPHead_0"]
    probe = jnp.tile(head["probe"], (batch, 1, 1))
    keys = jnp.concatenate([probe, x], axis=1)  # class attention
    x = ej.attention(probe, keys, head["MultiHeadDotProductAttention_0"])
    pooled = seen["image/pool"] = (x + ej.mlp(ej.layer_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]
    return pooled


def scan_in_reverse():
    loss_fn = with_towers(ej.image_tower, text_tower_scanned_backwards)
    return BigVision(loss_fn, ej.init(), name="text blocks scanned in reverse")


def probe_among_the_keys():
    loss_fn = with_towers(image_tower_probe_among_keys, ej.text_tower)
    return BigVision(loss_fn, ej.init(), name="probe among the keys")


# ---------------------------------------------------------------------------------------------------- training steps
def loss_of(model, images, tokens):
    return model(pixel_values=images, input_ids=tokens, return_loss=True).loss


def warm(k):
    return float(cosine(k, total=1000, warmup=10))


def scheduler_per_micro_batch():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm)

    def step(images, tokens):
        optimizer.zero_grad()
        for i in range(4):
            part = slice(2 * i, 2 * i + 2)
            (loss_of(model, images[part], tokens[part]) / 4).backward()
            if i == 3:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            scheduler.step()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, decay=0.0, max_norm=1.0), "model": model}


def clip_within_accumulation():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def step(images, tokens):
        optimizer.zero_grad()
        for pixels, ids in zip(images.chunk(4), tokens.chunk(4), strict=True):
            (loss_of(model, pixels, ids) / 4).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, decay=0.0, max_norm=1.0), "model": model}


def clip_by_the_largest():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def step(images, tokens):
        optimizer.zero_grad()
        loss_of(model, images, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=float("inf"))
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, decay=0.0, max_norm=1.0), "model": model}


def decay_by_name():
    model = small_model()
    named = list(model.named_parameters())
    skip = ("bias", "norm")
    groups = [
        {"params": [p for n, p in named if not any(s in n for s in skip)], "weight_decay": 0.1},
        {"params": [p for n, p in named if any(s in n for s in skip)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)

    def step(images, tokens):
        optimizer.zero_grad()
        loss_of(model, images, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, decay=0.1, max_norm=1.0), "model": model}


def amsgrad():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, amsgrad=True)

    def step(images, tokens):
        optimizer.zero_grad()
        loss_of(model, images, tokens).backward()
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, beta2=0.95, decay=0.0, max_norm=None), "model": model}


def clip_behind_adam():
    chain = optax.chain(
        optax.scale_by_adam(),
        optax.clip_by_global_norm(1.0),
        optax.scale(-1e-3),
    )
    compiled = jax.jit(chain.update)

    def update(params, grads, state):
        updates, state = compiled(grads, chain.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    return {"step_fn": update, "rule": sr.AdamW(lr=1e-3, decay=0.0, max_norm=1.0, clip_eps=0.0)}


def counter_per_tensor():
    @torch.no_grad()
    def update(params, grads, state):
        if state is None:
            state = {"t": 0, "m": {}, "v": {}}
        new = {}
        for name, p in params.items():
            g = grads[name]
            state["t"] += 1
            m = state["m"][name] = 0.9 * state["m"].get(name, torch.zeros_like(g)) + 0.1 * g
            v = state["v"][name] = 0.999 * state["v"].get(name, torch.zeros_like(g)) + 0.001 * g * g
            m_hat, v_hat = m / (1 - 0.9 ** state["t"]), v / (1 - 0.999 ** state["t"])
            new[name] = p - 1e-3 * m_hat / (v_hat.sqrt() + 1e-8)
        return new, state

    return {"step_fn": update, "rule": sr.AdamW(lr=1e-3, decay=0.0, max_norm=None)}


def gradients_of_the_step_before():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def step(images, tokens):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss_of(model, images, tokens).backward()

    return {"step_fn": step, "rule": sr.AdamW(lr=1e-3, decay=0.0, max_norm=1.0), "model": model}


PROGRAMS = {
    "patches column by column": {
        "check": "model",
        "fn": columns_first,
        "framework": "torch",
        "given": {},
        "truth": "the image's patches are in column-major order: token n is the patch at row n % 5, column n // 5, and gets position n of the table",
        "same": ["position table transposed (rows and columns of the grid exchanged) for the patches", "patches flattened (w, h)"],
    },
    "scores by the whole width in one block": {
        "check": "model",
        "fn": scale_of_the_whole_width,
        "framework": "torch",
        "given": {},
        "truth": "text block 1: attention scores times 12^-1/2 (the width) instead of 4^-1/2 (the head's size); everything else right",
        "same": ["scores too small by sqrt(3) = sqrt(heads) in text block 1"],
    },
    "pool: residual taken behind the norm": {
        "check": "model",
        "fn": normed_residual_in_the_pool,
        "framework": "torch",
        "given": {},
        "truth": "image pool: LN(r) + MLP(LN(r)) instead of r + MLP(LN(r)), r the attention's output",
        "same": ["the residual of the pooling head is normalised"],
    },
    "text: norm behind the head": {
        "check": "model",
        "fn": norm_after_the_text_head,
        "framework": "torch",
        "given": {},
        "truth": "text embedding = LN(head(x[:, -1])) of the last block's output x, instead of head(LN(x)[:, -1])",
        "same": ["final layer norm and head of the text tower exchanged"],
    },
    "image block 0 twice": {
        "check": "model",
        "fn": first_block_twice,
        "framework": "torch",
        "given": {},
        "truth": "image block 1 computes with the weights of block 0; block 1's weights are never used (gradient zero or none)",
        "same": ["block 0 runs twice, block 1 never", "image blocks share weights"],
    },
    "patch embedding detached": {
        "check": "model",
        "fn": frozen_patches,
        "framework": "torch",
        "given": {},
        "truth": "all values right; patch kernel and patch bias get no gradient; all other gradients right",
        "same": ["patch embedding's output is detached"],
    },
    "texts divided by the images' norms": {
        "check": "model",
        "fn": texts_by_the_images_norm,
        "framework": "torch",
        "given": {},
        "truth": "text row i is divided by the norm of image row i, instead of its own; the gradient flows through that norm into the image",
        "same": ["text embeddings are not unit rows: text_i / |image_i|"],
    },
    "heads not moved back": {
        "check": "model",
        "fn": heads_not_moved_back,
        "framework": "torch",
        "given": {},
        "truth": "image block 0: the mixed values (B, H, N, h) are reshaped to (B, N, H h) without exchanging H and N first",
        "same": ["heads and positions are mixed up before the output projection of image block 0", "missing transpose of attention's output"],
    },
    "biases of keys and values exchanged": {
        "check": "model",
        "fn": key_and_value_biases_exchanged,
        "framework": "torch",
        "given": {},
        "truth": "text block 1: keys get the values' bias and values the keys' bias",
        "same": ["values are off by (key bias - value bias) in text block 1; the keys' bias has no effect"],
    },
    "stochastic depth's factor left in": {
        "check": "model",
        "fn": droppath_factor_left,
        "framework": "torch",
        "given": {},
        "truth": "image block 1: x + 0.9 MLP(LN(x)) instead of x + MLP(LN(x))",
        "same": ["the MLP branch of image block 1, kernel and bias of its second layer, is multiplied by 0.9"],
    },
    "text blocks scanned in reverse": {
        "check": "model",
        "fn": scan_in_reverse,
        "framework": "jax",
        "given": {},
        "truth": "the text tower applies block 1 first and block 0 after it",
        "same": ["text blocks in reverse order"],
    },
    "the probe among the keys": {
        "check": "model",
        "fn": probe_among_the_keys,
        "framework": "jax",
        "given": {},
        "truth": "image pool: keys and values are of [probe; tokens] instead of the tokens alone",
        "same": ["the probe attends to itself, too", "class attention (CaiT) in the pooling head"],
    },
    "schedule advanced per micro-batch": {
        "check": "step",
        "fn": scheduler_per_micro_batch,
        "framework": "torch",
        "given": {"schedule": warm, "accumulate": 4},
        "truth": "step k (from 0) has the learning rate of schedule(4 k + 3): 0.3, 0.7, 1.0 (nearly) of lr, instead of schedule(k): 0, 0.1, 0.2; the gradient is right",
        "same": ["the scheduler advances four times a step, three of them before the optimiser's step", "a warm-up four times as fast that begins at its fourth value", "the first step moves although schedule(0) = 0"],
    },
    "clipped within accumulation": {
        "check": "step",
        "fn": clip_within_accumulation,
        "framework": "torch",
        "given": {"accumulate": 4},
        "truth": "after each micro-batch the gradient accumulated so far is clipped to norm 1, and the next micro-batch's added: clip(clip(clip(clip(g1/4) + g2/4) + g3/4) + g4/4)",
        "same": ["clip inside the accumulation loop", "earlier micro-batches are shrunk several times, the last one once"],
    },
    "clipped by the largest gradient": {
        "check": "step",
        "fn": clip_by_the_largest,
        "framework": "torch",
        "given": {},
        "truth": "gradients are multiplied by min(1, 1 / (max |g| + 1e-6)) with the largest absolute value over all parameters, instead of the Euclidean norm",
        "same": ["clip by the infinity norm", "clipped too little"],
    },
    "decay chosen by names that do not match": {
        "check": "step",
        "fn": decay_by_name,
        "framework": "torch",
        "given": {},
        "truth": "beside the kernels these decay too: log_scale, the probe, both position tables, the token table; biases and norms do not",
        "same": ["decay on log_scale, probe, positions and tokens", "decays everything whose name has no 'bias' and no 'norm'"],
    },
    "amsgrad": {
        "check": "step",
        "fn": amsgrad,
        "framework": "torch",
        "given": {},
        "truth": "the denominator is the square root of the largest second moment so far (before bias correction), instead of the present one",
        "same": ["AMSGrad", "second moments never shrink", "where no second moment has shrunk it is right"],
    },
    "clip behind Adam": {
        "check": "step",
        "fn": clip_behind_adam,
        "framework": "jax",
        "given": {"framework": "jax"},
        "truth": "gradients are not clipped; Adam's direction over all parameters together is clipped to norm 1, then times lr",
        "same": ["clip and Adam exchanged", "updates have a global norm of at most lr", "all tensors move too little by one factor per step"],
    },
    "step counter per tensor": {
        "check": "step",
        "fn": counter_per_tensor,
        "framework": "torch",
        "given": {"framework": "torch"},
        "truth": "bias correction of the n-th tensor (from 0) of N in step k (from 0) uses t = k N + n + 1 instead of k + 1",
        "same": ["the counter of Adam is advanced by every tensor", "right for the first tensor in the first step only", "nearly no bias correction of the first moment for later tensors"],
    },
    "gradients of the step before": {
        "check": "step",
        "fn": gradients_of_the_step_before,
        "framework": "torch",
        "given": {},
        "truth": "step k applies the clipped gradient that was computed at the end of step k-1 on batch k-1 (at the weights then); the first step moves nothing",
        "same": ["gradients are one step late", "optimizer.step() before backward()"],
    },
}
