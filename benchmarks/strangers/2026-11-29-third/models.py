"""Wrong models and wrong training steps, written on 2026-11-29 by somebody who has not read the checker.

`fn` is a factory without arguments. "check": "model": sr.check_model(fn(), **given). "check": "step": fn() returns a dict
with step_fn, rule and, for a whole step, model; sr.check_step(**fn(), **given).
What is wrong stands here; the towers that are not transformers' are the project's examples.
"""

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import torch
import torch.nn.functional as F  # noqa: N812
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


def small_model(cls=SiglipModel, vocabulary=40):
    torch.manual_seed(1)
    tower = {"hidden_size": 12, "intermediate_size": 18, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = tower | {"vocab_size": vocabulary, "max_position_embeddings": 8, "bos_token_id": None, "eos_token_id": None}
    image = tower | {"image_size": 16, "patch_size": 4}
    return cls(SiglipConfig(vision_config=image, text_config=text | {"projection_size": 12})).eval()


def become(model, old, new, under=""):
    """Every module of class `old` below a name becomes one of class `new`; parameters stay."""
    for name, module in model.named_modules():
        if type(module) is old and name.startswith(under):
            module.__class__ = new
    return model


def split(module, x):
    return x.view(*x.shape[:-1], module.num_heads, module.head_dim).transpose(1, 2)


# ------------------------------------------------------------------------------------------ models of Hugging Face
class RawPooledText(hf.SiglipTextModel):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        x = self.encoder(inputs_embeds=self.embeddings(input_ids=input_ids)).last_hidden_state
        pooled = self.head(x[:, -1])  # hidden_states[-1] is not normed yet
        return hf.BaseModelOutputWithPooling(last_hidden_state=self.final_layer_norm(x), pooler_output=pooled)


def text_pooled_before_the_norm():
    return become(small_model(), hf.SiglipTextModel, RawPooledText)


class SoftmaxOverQueries(hf.SiglipAttention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        q, k, v = (split(self, p(hidden_states)) for p in (self.q_proj, self.k_proj, self.v_proj))
        weights = (q @ k.mT * self.scale).softmax(dim=2)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights


def softmax_over_queries():
    return become(small_model(), hf.SiglipAttention, SoftmaxOverQueries, "vision_model")


class HeadsInnermost(hf.SiglipAttention):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        batch, length, _ = hidden_states.shape
        # "b n (d h) -> b h n d", and back
        q, k, v = (
            p(hidden_states).view(batch, length, self.head_dim, self.num_heads).permute(0, 3, 1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.permute(0, 2, 3, 1).reshape(batch, length, -1)), None


def heads_innermost():
    return become(small_model(), hf.SiglipAttention, HeadsInnermost, "text_model")


class LatentIsTheQuery(hf.SiglipMultiheadAttentionPoolingHead):
    def forward(self, hidden_state):
        batch, length, width = hidden_state.shape
        heads = self.attention.num_heads
        _, kernel_k, kernel_v = self.attention.in_proj_weight.chunk(3)
        _, bias_k, bias_v = self.attention.in_proj_bias.chunk(3)
        q = self.probe.expand(batch, -1, -1).view(batch, 1, heads, -1).transpose(1, 2)
        k = F.linear(hidden_state, kernel_k, bias_k).view(batch, length, heads, -1).transpose(1, 2)
        v = F.linear(hidden_state, kernel_v, bias_v).view(batch, length, heads, -1).transpose(1, 2)
        x = self.attention.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.layernorm(x)))[:, 0]


def latent_is_the_query():
    return become(small_model(), hf.SiglipMultiheadAttentionPoolingHead, LatentIsTheQuery)


class MisplacedBracket(hf.SiglipMLP):
    def forward(self, hidden_states):
        x = self.fc1(hidden_states)
        return self.fc2(0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x + 0.044715 * x**3)))


def misplaced_bracket_in_gelu():
    return become(small_model(), hf.SiglipMLP, MisplacedBracket)


class AnnotatedNorm(nn.LayerNorm):
    def forward(self, x):
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.bias


def annotated_norm():
    return become(small_model(), nn.LayerNorm, AnnotatedNorm, "text_model")


class PositionsFromOne(hf.SiglipTextEmbeddings):
    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None):
        table = self.position_embedding.weight
        positions = (torch.arange(input_ids.shape[1], device=table.device) + 1).clamp(max=len(table) - 1)
        return self.token_embedding(input_ids) + table[positions]


def positions_from_one():
    return become(small_model(), hf.SiglipTextEmbeddings, PositionsFromOne)


class ParallelLayer(hf.SiglipEncoderLayer):
    def forward(self, hidden_states, attention_mask=None, **kwargs):
        attended, _ = self.self_attn(self.layer_norm1(hidden_states))
        return hidden_states + attended + self.mlp(self.layer_norm2(hidden_states))


def parallel_blocks():
    return become(small_model(), hf.SiglipEncoderLayer, ParallelLayer, "vision_model")


class FrozenPatches(hf.SiglipVisionEmbeddings):
    def forward(self, pixel_values, interpolate_pos_encoding=False):
        patches = self.patch_embedding(pixel_values).flatten(2).mT.detach()  # MoCo v3: for stability
        return patches + self.position_embedding.weight


def patches_detached():
    return become(small_model(), hf.SiglipVisionEmbeddings, FrozenPatches)


def padding_index():
    """nn.Embedding(..., padding_idx=pad_token_id); so few words that each occurs."""
    model = small_model(vocabulary=6)
    model.text_model.embeddings.token_embedding.padding_idx = 1
    return model


# -------------------------------------------------------------------------------------------------- towers of its own
class ScaledTwice(nn.Module):
    """A pre-norm block by hand, with the names of torch's own."""

    def __init__(self, tower):
        super().__init__()
        c = tower.width
        self.heads = tower.heads
        self.norm1, self.norm2 = nn.LayerNorm(c, et.EPS), nn.LayerNorm(c, et.EPS)
        self.self_attn = nn.MultiheadAttention(c, tower.heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(c, tower.mlp), nn.Linear(tower.mlp, c)

    def forward(self, x):
        batch, length, width = x.shape
        joint = F.linear(self.norm1(x), self.self_attn.in_proj_weight, self.self_attn.in_proj_bias)
        q, k, v = joint.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q * q.shape[-1] ** -0.5, k, v)
        x = x + self.self_attn.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x)), approximate="tanh"))


def queries_scaled_twice():
    torch.manual_seed(2)
    model = et.MyModel()
    model.image.blocks = nn.Sequential(*(ScaledTwice(et.IMAGE) for _ in range(et.IMAGE.depth)))
    return TorchModel("own tower", model, et.CONFIG, tuple(et.TABLE), tuple(et.TAPS), et.loss)


def half_precision_attention(x_query, x_key, p):
    q, k, v = (
        jnp.einsum("bnc,chd->bnhd", x, p[name]["kernel"]) + p[name]["bias"]
        for name, x in (("query", x_query), ("key", x_key), ("value", x_key))
    )
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(scores.astype(jnp.bfloat16)).astype(x_query.dtype)
    return jnp.einsum("bnhd,hdc->bnc", jnp.einsum("bhnm,bmhd->bnhd", weights, v), p["out"]["kernel"]) + p["out"]["bias"]


def jax_encoder(x, p, tower, seen):
    attend = half_precision_attention if tower == "text" else ej.attention
    for i in range(ej.DEPTH):
        block = p[f"encoderblock_{i}"]
        y = ej.layer_norm(x, block["LayerNorm_0"])
        x = seen[f"{tower}/block{i:02d}/+attn"] = x + attend(y, y, block["MultiHeadDotProductAttention_0"])
        x = seen[f"{tower}/block{i:02d}/+mlp"] = x + ej.mlp(ej.layer_norm(x, block["LayerNorm_1"]), block["MlpBlock_0"])
    return ej.layer_norm(x, p["encoder_norm"])


def jax_text_tower(tokens, p, seen):
    x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] + p["pos_embedding"]
    x = seen["text/norm"] = jax_encoder(x, p["Encoder_0"], "text", seen)
    x = seen["text/pool"] = x[:, -1]
    x = seen["text/head"] = x @ p["head"]["kernel"] + p["head"]["bias"]
    return x


def softmax_in_bfloat16():
    def loss_fn(params, images, tokens):
        seen = {}
        image = seen["image/embed"] = ej.normalize(ej.image_tower(images, params["img"], seen))
        text = seen["text/embed"] = ej.normalize(jax_text_tower(tokens, params["txt"], seen))
        logits = seen["logits"] = image @ text.T * jnp.exp(params["t"]) + params["b"]
        z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
        return -jax.nn.log_sigmoid(z * logits).sum(-1).mean(), seen

    return BigVision(loss_fn, ej.init(), name="scores in bfloat16")


# ------------------------------------------------------------------------------------------------------- a right model
class OnlineSoftmax(hf.SiglipAttention):
    """Keys in tiles of three with a running maximum; one joint product for queries, keys and values."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        parts = (self.q_proj, self.k_proj, self.v_proj)
        kernel, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        q, k, v = (split(self, x) for x in F.linear(hidden_states, kernel, bias).chunk(3, dim=-1))
        q = q * self.scale
        best = torch.full_like(q[..., :1], -math.inf)
        total, mixed = torch.zeros_like(best), torch.zeros_like(q)
        for start in range(0, k.shape[2], 3):
            scores = q @ k[:, :, start : start + 3].mT
            higher = torch.maximum(best, scores.amax(-1, keepdim=True).detach())
            shrink, weights = (best - higher).exp(), (scores - higher).exp()
            total = shrink * total + weights.sum(-1, keepdim=True)
            mixed = shrink * mixed + weights @ v[:, :, start : start + 3]
            best = higher
        return self.out_proj((mixed / total).transpose(1, 2).flatten(2)), None


class OneLayerNorm(nn.LayerNorm):
    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return torch.addcmul(self.bias, centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps), self.weight)


def right_online_softmax():
    return become(become(small_model(), hf.SiglipAttention, OnlineSoftmax), nn.LayerNorm, OneLayerNorm)


# ------------------------------------------------------------------------------------------------------------- steps
LR, DECAY, BETAS = 1e-3, 0.1, (0.9, 0.95)
RULE = sr.AdamW(lr=LR, beta2=0.95, decay=DECAY, max_norm=1.0)


def warm(k):
    return float(cosine(k, total=200, warmup=5))


def kernels_of(model):
    found = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return found | {id(m.in_proj_weight) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}


def groups_of(model):
    chosen = kernels_of(model)
    decayed = [p for p in model.parameters() if id(p) in chosen]
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]


def make_optimizer(model):
    return torch.optim.AdamW(groups_of(model), lr=LR, betas=BETAS)


def loss_of(model, images, tokens):
    return model(pixel_values=images, input_ids=tokens, return_loss=True).loss


def pair_loss(image, text, log_scale, bias):
    logits = log_scale.exp() * image @ text.T + bias
    z = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(z * logits).sum() / len(logits)


def embed(model, images, tokens):
    image = model.get_image_features(pixel_values=images).pooler_output
    text = model.get_text_features(input_ids=tokens).pooler_output
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def clipped_by_value():
    model = small_model()
    optimizer = make_optimizer(model)

    def step(images, tokens):
        optimizer.zero_grad()
        loss_of(model, images, tokens).backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": RULE, "model": model}


def zeroed_in_every_micro_batch():
    model = small_model()
    optimizer = make_optimizer(model)

    def step(images, tokens):
        for pixels, words in zip(images.chunk(4), tokens.chunk(4), strict=True):
            optimizer.zero_grad()
            (loss_of(model, pixels, words) / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": RULE, "model": model}


def decay_by_name():
    """The usual no_decay list: what has bias or norm in its name."""
    model = small_model()
    plain = [p for n, p in model.named_parameters() if any(word in n for word in ("bias", "norm"))]
    rest = [p for n, p in model.named_parameters() if not any(word in n for word in ("bias", "norm"))]
    groups = [{"params": rest, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)

    def step(images, tokens):
        optimizer.zero_grad()
        loss_of(model, images, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": RULE, "model": model}


def decay_without_schedule():
    """Decay by hand, with the base rate; Adam with the scheduled one."""
    model = small_model()
    chosen = kernels_of(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, betas=BETAS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm)

    def step(images, tokens):
        optimizer.zero_grad()
        loss_of(model, images, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with torch.no_grad():
            for p in model.parameters():
                if id(p) in chosen:
                    p.mul_(1 - LR * DECAY)
        optimizer.step()
        scheduler.step()

    return {"step_fn": step, "rule": RULE, "model": model}


def scale_clamped_after_the_step():
    """CLIP's clamp, in fine-tuning a released model, whose scale is above 100."""
    model = small_model()
    with torch.no_grad():
        model.logit_scale.fill_(4.72)
        model.logit_bias.fill_(-16.0)
    optimizer = make_optimizer(model)

    def step(images, tokens):
        optimizer.zero_grad()
        loss_of(model, images, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    return {"step_fn": step, "rule": RULE, "model": model}


def second_moment_in_bfloat16():
    """An optimiser of its own that saves memory."""

    def update(params, grads, state):
        count, first, second = state or (0, {}, {})
        count, moved = count + 1, {}
        norm = torch.sqrt(sum(g.square().sum() for g in grads.values()))
        factor = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        for name, p in params.items():
            g = grads[name] * factor
            m = first.get(name, torch.zeros_like(p)).lerp(g, 0.1)
            v = 0.999 * second.get(name, torch.zeros_like(p, dtype=torch.bfloat16)).to(p.dtype) + 0.001 * g * g
            first[name], second[name] = m, v.bfloat16()
            length = (second[name].to(p.dtype) / (1 - 0.999**count)).sqrt() + 1e-8
            decay = DECAY if name.endswith("/kernel") else 0.0
            moved[name] = p * (1 - LR * decay) - LR / (1 - 0.9**count) * m / length
        return moved, (count, first, second)

    return {"step_fn": update, "rule": sr.AdamW(lr=LR, decay=DECAY, max_norm=1.0), "framework": "torch"}


def clip_behind_the_optimiser():
    def decayed(params):
        return {name: name.endswith("/kernel") for name in params}

    chain = optax.chain(optax.adamw(LR, b2=0.95, weight_decay=DECAY, mask=decayed), optax.clip_by_global_norm(1.0))
    compiled = jax.jit(chain.update)

    def update(params, grads, state):
        updates, state = compiled(grads, chain.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    return {
        "step_fn": update,
        "rule": sr.AdamW(lr=LR, beta2=0.95, decay=DECAY, max_norm=1.0, clip_eps=0.0),
        "framework": "jax",
    }


def cached(model, optimizer, images, tokens, chunks, divisor):
    """GradCache: embeddings of all pairs without a graph, their gradients, then the towers chunk by chunk."""
    optimizer.zero_grad()
    parts = list(zip(images.chunk(chunks), tokens.chunk(chunks), strict=True))
    with torch.no_grad():
        found = [embed(model, *part) for part in parts]
    image, text = (torch.cat(side).requires_grad_() for side in zip(*found, strict=True))
    pair_loss(image, text, model.logit_scale, model.logit_bias).backward()
    for part, d_image, d_text in zip(parts, image.grad.chunk(chunks), text.grad.chunk(chunks), strict=True):
        again, words = embed(model, *part)
        (((again * d_image).sum() + (words * d_text).sum()) / divisor).backward()


def cached_and_averaged():
    """The surrogate loss is divided by the number of chunks, as accumulation is used to do."""
    model = small_model()
    optimizer = make_optimizer(model)

    def step(images, tokens):
        cached(model, optimizer, images, tokens, 4, 4)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": RULE, "model": model}


def right_cached_step():
    """GradCache in two chunks, the clip by hand, AdamW by hand and in place, decay last but of the old weights."""
    model = small_model()
    optimizer = make_optimizer(model)  # zeroes gradients, no more
    chosen, kept = kernels_of(model), {}

    def step(images, tokens):
        cached(model, optimizer, images, tokens, 2, 1)
        kept["steps"] = kept.get("steps", 0) + 1
        parameters = list(model.parameters())
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        torch._foreach_mul_([p.grad for p in parameters], (1.0 / (norm + 1e-6)).clamp(max=1.0).item())
        with torch.no_grad():
            rate = LR * warm(kept["steps"] - 1)
            for p in parameters:
                m, v = kept.setdefault(id(p), (torch.zeros_like(p), torch.zeros_like(p)))
                m.mul_(BETAS[0]).add_(p.grad, alpha=1 - BETAS[0])
                v.mul_(BETAS[1]).addcmul_(p.grad, p.grad, value=1 - BETAS[1])
                away = m / (1 - BETAS[0] ** kept["steps"]) / ((v / (1 - BETAS[1] ** kept["steps"])).sqrt() + 1e-8)
                if id(p) in chosen:
                    away += DECAY * p
                p.sub_(rate * away)

    return {"step_fn": step, "rule": RULE, "model": model}


def model_program(fn, truth, *same):
    return {"check": "model", "fn": fn, "framework": "torch", "given": {}, "truth": truth, "same": list(same)}


def step_program(fn, given, truth, *same):
    return {"check": "step", "fn": fn, "framework": "torch", "given": given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "text pooled before the norm": model_program(
        text_pooled_before_the_norm,
        "the text head reads the last position of the last block's output, without the final norm; the norm's parameters get no gradient (last_hidden_state is normed, and nothing uses it)",
        "text/norm is left out (skipped) on the way to the pooled vector",
        "text's final layer norm has no effect: zero gradients of its scale and bias",
    ),
    "softmax over queries": model_program(
        softmax_over_queries,
        "all image blocks: the softmax of the scores is over queries (axis 2 of (batch, head, query, key)) instead of over keys; pooling is right",
        "attention weights of each key sum to 1, not those of each query",
        "softmax along the wrong axis in the image encoder",
    ),
    "heads innermost": model_program(
        heads_innermost,
        "all text blocks: channels are split as (d h) instead of (h d): head h has channels h, h + 3, h + 6, h + 9 of queries, keys and values, and results go back to these channels",
        "heads are interleaved (strided), not contiguous blocks of channels",
        "view(head_dim, heads) instead of view(heads, head_dim), consistently at the end",
    ),
    "latent is the query": model_program(
        latent_is_the_query,
        "pooling: the probe itself is the query; the query projection (kernel and bias) is left out, and gets no gradient; else right",
        "image/pool/attn/q is the identity with zero bias",
        "the q part of in_proj of the pooling head is never used",
    ),
    "bracket in gelu": model_program(
        misplaced_bracket_in_gelu,
        "all MLPs (both towers and pooling): 0.5 x (1 + tanh(sqrt(2/pi) x + 0.044715 x^3)) instead of 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))",
        "the tanh GELU with the cubic's coefficient 0.044715 / sqrt(2/pi) = 0.0560 instead of 0.044715",
        "sqrt(2/pi) does not multiply the cubic term",
    ),
    "annotated norm": model_program(
        annotated_norm,
        "all layer norms of the text tower: (x - mean) / (s + eps), s the unbiased standard deviation (divisor 11 instead of 12), eps outside of the root",
        "unbiased variance (n - 1), and eps added to the standard deviation",
        "normed values are sqrt(11/12) = 0.957 times the right ones (but for eps); two differences: Bessel's correction and where eps stands",
    ),
    "positions from one": model_program(
        positions_from_one,
        "text position k gets row min(k + 1, 7) of the table: row 0 is never used (zero gradient), the last row twice",
        "text positions are shifted by one, the last clamped",
        "text stem: token + position[k + 1]",
    ),
    "parallel blocks": model_program(
        parallel_blocks,
        "all image blocks: x + attn(norm1 x) + mlp(norm2 x): the MLP (and norm2) reads the block's input instead of the sum with attention",
        "attention and MLP in parallel (GPT-J, ViT-22B) instead of one after the other",
        "norm2's input lacks the attention's output",
    ),
    "patches detached": model_program(
        patches_detached,
        "all values right; the patch embedding's kernel and bias get no gradient (zero)",
        "patch embedding frozen / detached / gradient stopped behind the convolution; the positions' gradient is right",
    ),
    "padding index": model_program(
        padding_index,
        "all values right; in the gradient of the token embedding row 1 (padding_idx) is zero; right if token 1 does not occur",
        "one word (id 1) gets no gradient",
        "nn.Embedding's padding_idx=1",
    ),
    "queries scaled twice": model_program(
        queries_scaled_twice,
        "all image blocks: scores are q . k / d instead of q . k / sqrt(d), d = 5 the head's size; pooling and text tower right",
        "attention's scale is applied twice: on the queries and in scaled_dot_product_attention",
        "scores are 5^-1/2 = 0.447 times the right ones",
    ),
    "softmax in bfloat16": model_program(
        softmax_in_bfloat16,
        "all text blocks: scores are rounded to bfloat16, the softmax is computed in bfloat16, and weights are bfloat16; the scores' gradient, too. All else in full precision",
        "attention weights (softmax) of the text tower in bfloat16, 8 bits",
        "the product of queries and keys is rounded to bfloat16 in what comes out, and what goes into the product with the values, too",
    ),
    "right: online softmax": model_program(right_online_softmax, "SigLIP's own"),
    "clipped by value": step_program(
        clipped_by_value,
        {},
        "each number of the gradient is clamped to [-1, 1]; the gradient's length is not clipped",
        "clip_grad_value_ instead of clip_grad_norm_",
        "the clip by global norm is missing; numbers beyond 1 are cut to 1",
    ),
    "zeroed in every micro-batch": step_program(
        zeroed_in_every_micro_batch,
        {"accumulate": 4},
        "the gradient before the clip is 1/4 of that of the last micro-batch (pairs 6 and 7); the first three micro-batches have no effect",
        "gradients are zeroed within the accumulation",
        "only the last micro-batch counts, and is divided by 4",
    ),
    "decay by name": step_program(
        decay_by_name,
        {},
        "decay 0.1 acts on all but biases and norms: besides kernels also on log_scale (logit_scale), text/token, both position tables and the pooling probe",
        "token embedding, positions, probe and scale are decayed too",
        "decays = everything without 'bias' or 'norm' in its name; the bias of the logits is not decayed",
    ),
    "decay without the schedule": step_program(
        decay_without_schedule,
        {"schedule": warm},
        "decay shrinks kernels by lr * decay = 1e-4 in each step, not times the schedule (0, 0.2, 0.4): in step 0, where nothing should move, kernels shrink by 1e-4 of themselves",
        "decay does not follow the schedule (constant rate)",
        "decay * lr unscheduled, as base rate; Adam's part is right",
    ),
    "scale clamped after the step": step_program(
        scale_clamped_after_the_step,
        {"weights": "own"},
        "after each step log_scale is clamped to at most log 100 = 4.605; it starts at 4.72, so the first step moves it by about -0.115 instead of +-0.001; later gradients are those at scale 100",
        "log_scale is clamped to [0, log 100] behind the optimiser",
        "the scale is capped at 100",
    ),
    "second moment in bfloat16": step_program(
        second_moment_in_bfloat16,
        {},
        "the second moment is rounded to bfloat16 after each step, and the rounded one is used: steps are off by up to about 0.2 %, each number on its own; first moment, clip, decay, bias corrections right",
        "Adam's exp_avg_sq is kept in bfloat16 (8 bits)",
        "the optimiser's state (v) is in 16 bits",
    ),
    "clip behind the optimiser": step_program(
        clip_behind_the_optimiser,
        {},
        "gradients are not clipped; what is clipped to length 1 is AdamW's update (which is shorter, so nothing happens)",
        "the clip is missing, in effect",
        "optax.chain in the wrong order: adamw, then clip_by_global_norm",
    ),
    "cached and averaged": step_program(
        cached_and_averaged,
        {},
        "before the clip the gradients of both towers are 1/4 of the right ones, those of log_scale and bias are right; so after the clip scale and bias have too large a share, and the towers move as Adam makes of it",
        "GradCache's surrogate loss divided by the number of chunks (4)",
        "all gradients but of scale and bias times 0.25, before the clip (the clip acts on another norm)",
    ),
    "right: cached step by hand": step_program(right_cached_step, {"schedule": warm}, "SigLIP's own"),
}
