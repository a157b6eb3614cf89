"""Wrong models and wrong training steps, a few right ones. Written on 2026-12-01 by a stranger, who has not read the
checker."""

import copy
import io

import jax
import jax.numpy as jnp
import optax
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import siglip_ref as sr
from siglip_ref.check.model.adapters.big_vision import BigVision
from towers13 import (
    J_DEPTH,
    J_GRID,
    J_PATCH,
    J_WIDTH,
    Attention,
    OwnImages,
    OwnModel,
    SiglipAttention,
    become,
    hf_loss,
    hugging_face,
    j_init,
    j_loss,
    matrices_of,
    own_adapter,
    signs,
    small_open_clip,
    split_by_decay,
)

# ---------------------------------------------------------------- transformers


class ClipTextAttention(SiglipAttention):
    """Taken over from a CLIP text encoder, mask and all."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        b, n, c = hidden_states.shape
        q, k, v = (
            f(hidden_states).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(-1, -2) * self.scale
        causal = torch.full((n, n), torch.finfo(scores.dtype).min, device=scores.device, dtype=scores.dtype).triu(1)
        weights = (scores + causal).softmax(dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(b, n, c)), weights


def causal_text():
    model = hugging_face()
    for layer in model.text_model.encoder.layers:
        become(layer.self_attn, ClipTextAttention)
    return model


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def quick_gelu_text():
    """The text encoder's activation is CLIP's; the configuration still says tanh GELU."""
    model = hugging_face()
    for layer in model.text_model.encoder.layers:
        layer.mlp.activation_fn = QuickGELU()
    return model


class FlashAttention(SiglipAttention):
    """Flash kernels take half formats only: cast, attend, cast back."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        b, n, _ = hidden_states.shape
        q, k, v = (
            f(hidden_states).view(b, n, self.num_heads, self.head_dim).transpose(1, 2).to(torch.bfloat16)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out_proj(mixed.transpose(1, 2).reshape(b, n, -1).to(hidden_states.dtype)), None


def flash_image():
    model = hugging_face()
    for layer in model.vision_model.encoder.layers:
        become(layer.self_attn, FlashAttention)
    return model


# ---------------------------------------------------------------- open_clip and timm


def width_scaled_attention():
    """Scores are divided by the root of the width, not of a head's width."""
    model = small_open_clip()
    for block in model.visual.trunk.blocks:
        block.attn.fused_attn = False
        block.attn.scale = block.attn.qkv.in_features**-0.5
    return model


# ---------------------------------------------------------------- a torch model of its own


class ColumnImages(OwnImages):
    """Patches flattened as (width, height), a port from another layout."""

    def forward(self, images):
        x = self.patches(images).permute(0, 3, 2, 1).flatten(1, 2) + self.positions
        x = self.norm(self.blocks(x))
        x = self.attention(self.probe.expand(len(x), -1, -1), x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


def column_patches():
    model = OwnModel()
    become(model.image, ColumnImages)
    return own_adapter(model)


def default_eps():
    """nn.LayerNorm(width), with what Torch presets."""
    model = OwnModel()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    return own_adapter(model)


class NormedHead(OwnImages):
    """The head's residual branch starts behind its norm."""

    def forward(self, images):
        x = self.norm(self.blocks(self.patches(images).flatten(2).mT + self.positions))
        x = self.head_norm(self.attention(self.probe.expand(len(x), -1, -1), x))
        return (x + self.mlp(x))[:, 0]


def normed_head():
    model = OwnModel()
    become(model.image, NormedHead)
    return own_adapter(model)


def scaled_bias_mean_loss(model, images, tokens):
    image, text = model(images, tokens)
    logits = (image @ text.T + model.bias) * model.log_scale.exp()
    value = -F.logsigmoid(signs(logits) * logits).mean()
    return value, {"image/embed": image, "text/embed": text, "logits": logits}


def scaled_bias_mean():
    return own_adapter(OwnModel(), scaled_bias_mean_loss)


class DataPositions(OwnImages):
    """Positions are read through .data, as interpolation helpers do."""

    def forward(self, images):
        x = self.patches(images)
        table = self.positions.data.reshape(1, 3, 5, -1).permute(0, 3, 1, 2)
        if table.shape[-2:] != x.shape[-2:]:
            table = F.interpolate(table, size=x.shape[-2:], mode="bicubic")
        x = self.norm(self.blocks((x + table).flatten(2).mT))
        x = self.attention(self.probe.expand(len(x), -1, -1), x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


def item_loss(model, images, tokens):
    image, text = model(images, tokens)
    logits = model.log_scale.exp().item() * (image @ text.T) + model.bias
    value = -F.logsigmoid(signs(logits) * logits).sum() / len(logits)
    return value, {"image/embed": image, "text/embed": text, "logits": logits}


def cut_gradients():
    model = OwnModel()
    become(model.image, DataPositions)
    return own_adapter(model, item_loss)


class LibraryAttention(Attention):
    """Torch's own function with separate projections, sequence first."""

    def forward(self, queries, keys):
        keys = keys.transpose(0, 1)
        mixed, _ = F.multi_head_attention_forward(
            queries.transpose(0, 1), keys, keys, queries.shape[-1], self.heads, None,
            torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None, False, 0.0,
            self.out.weight, self.out.bias, training=False, need_weights=True, use_separate_proj_weight=True,
            q_proj_weight=self.q.weight, k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
        )  # fmt: skip
        return mixed.transpose(0, 1)


def logaddexp_loss(model, images, tokens):
    """Texts along the rows, positives and negatives summed apart."""
    image, text = model(images, tokens)
    logits = text @ image.T * model.log_scale.exp() + model.bias
    zero = logits.new_zeros(())
    positives = torch.logaddexp(zero, -logits.diagonal()).sum()
    others = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    negatives = torch.logaddexp(zero, logits[others]).sum()
    return (positives + negatives) / len(logits), {"image/embed": image, "text/embed": text, "logits": logits.T}


def library_attention():
    model = OwnModel()
    for module in model.modules():
        if type(module) is Attention:
            become(module, LibraryAttention)
    return own_adapter(model, logaddexp_loss)


# ---------------------------------------------------------------- JAX


def at_largest_token(x, tokens):
    return x[jnp.arange(len(x)), tokens.argmax(-1)]


def whole_normalize(x):
    return x / jnp.linalg.norm(x)


def argmax_and_whole_norm():
    """CLIP's pooling at the end token's position; a norm without an axis."""
    loss = j_loss(text_pool=at_largest_token, text_normalize=whole_normalize)
    return BigVision(loss, j_init(), name="JAX model, ported from CLIP")


def misread_heads(x_query, x_key, p):
    """Flat projections, reshaped to heads at once."""

    def project(x, name):
        flat = x @ p[name]["kernel"].reshape(x.shape[-1], -1) + p[name]["bias"].reshape(-1)
        return flat.reshape(len(x), p[name]["bias"].shape[0], x.shape[1], -1)

    q, k, v = project(x_query, "query"), project(x_key, "key"), project(x_key, "value")
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / jnp.sqrt(q.shape[-1]).astype(q.dtype), axis=-1)
    mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(len(x_query), x_query.shape[1], -1)
    return mixed @ p["out"]["kernel"].reshape(mixed.shape[-1], -1) + p["out"]["bias"]


def jax_misread_heads():
    return BigVision(j_loss(image_attention=misread_heads), j_init(), name="JAX model, flat heads")


def jax_text_unnormed():
    """The text encoder's closing norm is forgotten."""
    return BigVision(j_loss(text_last_norm=lambda x, p: x), j_init(), name="JAX model, short text tower")


def j_by_example(params, images, tokens):
    """Towers for one example, under vmap; softmax through logsumexp."""

    def norm(x, p):
        return jax.nn.standardize(x, axis=-1, variance=jnp.var(x, -1, keepdims=True), epsilon=1e-6) * p["scale"] + p["bias"]

    def mlp(x, p):
        x = jnp.tensordot(x, p["Dense_0"]["kernel"], 1) + p["Dense_0"]["bias"]
        x = x * 0.5 * (1 + jnp.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))
        return jnp.tensordot(x, p["Dense_1"]["kernel"], 1) + p["Dense_1"]["bias"]

    def attention(x, y, p):
        q, k, v = (
            jnp.tensordot(a, p[name]["kernel"], 1) + p[name]["bias"]
            for a, name in ((x, "query"), (y, "key"), (y, "value"))
        )
        scores = jnp.einsum("nhd,mhd->hnm", q, k) * q.shape[-1] ** -0.5
        weights = jnp.exp(scores - jax.scipy.special.logsumexp(scores, axis=-1, keepdims=True))
        return jnp.einsum("hnm,mhd,hdc->nc", weights, v, p["out"]["kernel"]) + p["out"]["bias"]

    def encoder(x, p):
        for i in range(J_DEPTH):
            block = p[f"encoderblock_{i}"]
            y = norm(x, block["LayerNorm_0"])
            x = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
            x = x + mlp(norm(x, block["LayerNorm_1"]), block["MlpBlock_0"])
        return norm(x, p["encoder_norm"])

    def unit(x):
        return x / (jnp.sqrt(jnp.vdot(x, x)) + 1e-8)

    def one_image(image, p=params["img"]):
        rows = image.reshape(J_GRID, J_PATCH, J_GRID, J_PATCH, 3)
        x = jnp.einsum("ypxqc,pqcw->yxw", rows, p["embedding"]["kernel"]).reshape(-1, J_WIDTH)
        x = encoder(x + p["embedding"]["bias"] + p["pos_embedding"][0], p["Transformer"])
        head = p["MAPHead_0"]
        x = attention(head["probe"][0], x, head["MultiHeadDotProductAttention_0"])
        return unit((x + mlp(norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[0])

    def one_text(row, p=params["txt"]):
        x = encoder(p["Embed_0"]["embedding"][row] + p["pos_embedding"][0], p["Encoder_0"])
        return unit(p["head"]["kernel"].T @ x[-1] + p["head"]["bias"])

    image, text = jax.vmap(one_image)(images), jax.vmap(one_text)(tokens)
    logits = jnp.exp(params["t"]) * jnp.einsum("id,jd->ij", image, text) + params["b"]
    signed = jnp.where(jnp.eye(len(logits), dtype=bool), -logits, logits)
    return jnp.logaddexp(0, signed).sum() / len(logits), {"image/embed": image, "text/embed": text, "logits": logits}


def jax_by_example():
    return BigVision(j_by_example, j_init(), name="JAX model, by example")


# ---------------------------------------------------------------- training steps

RULE = {"lr": 1e-3, "beta2": 0.95, "decay": 0.1}


def _adamw(model, betas=(0.9, 0.95), **more):
    return torch.optim.AdamW(split_by_decay(model, model.parameters(), 0.1), lr=1e-3, betas=betas, **more)


def _reload(state):
    """As through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights_only_resume():
    """A checkpoint holds the model, and no optimiser."""
    model = hugging_face()
    run = {"optimizer": _adamw(model)}

    def step(images, tokens):
        run["optimizer"].zero_grad()
        hf_loss(model, images, tokens).backward()
        run["optimizer"].step()

    def restart():
        model.load_state_dict(_reload(model.state_dict()))
        run["optimizer"] = _adamw(model)

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, "restart": restart}


def adam_with_decay():
    """Adam, not AdamW: the decay goes into the gradient."""
    model = hugging_face()
    groups = split_by_decay(model, model.parameters(), 0.1)
    optimizer = torch.optim.Adam(groups, lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def optax_clips_elements():
    """optax.clip where optax.clip_by_global_norm is meant."""
    chain = optax.chain(
        optax.clip(1.0),
        optax.adamw(
            1e-3, b1=0.9, b2=0.95, weight_decay=0.1, mask=lambda params: {k: k.endswith("/kernel") for k in params}
        ),
    )

    def step(params, grads, state):
        updates, state = chain.update(grads, chain.init(params) if state is None else state, params)
        return optax.apply_updates(params, updates), state

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0, clip_eps=0.0), "framework": "jax"}


def plain_adamw():
    """One group, Torch's betas."""
    model = hugging_face()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def step(images, tokens):
        optimizer.zero_grad()
        loss = hf_loss(model, images, tokens)
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def zeroed_each_micro_batch():
    """Gradients are zeroed before each backward."""
    model = hugging_face()
    optimizer = _adamw(model)

    def step(images, tokens, parts=4):
        for i, (x, y) in enumerate(zip(images.chunk(parts), tokens.chunk(parts), strict=True)):
            optimizer.zero_grad()
            (hf_loss(model, x, y) / parts).backward()
            if (i + 1) % parts == 0:
                optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, "accumulate": 4}


def linear_warmup(step, warm=4):
    return min(1.0, (step + 1) / warm)


def scheduler_first():
    """scheduler.step() stands before optimizer.step()."""
    model = hugging_face()
    optimizer = _adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_warmup)

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        scheduler.step()
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, "schedule": linear_warmup}


def towers_only():
    """Only the towers' parameters are given to the optimiser; betas from CLIP."""
    model = hugging_face()
    params = [*model.vision_model.parameters(), *model.text_model.parameters()]
    optimizer = torch.optim.AdamW(split_by_decay(model, params, 0.1), lr=1e-3, betas=(0.9, 0.98))

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def decay_by_ndim():
    """Whatever has two axes or more decays."""
    model = hugging_face()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        optimizer.zero_grad(set_to_none=True)
        hf_loss(model, images, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def decay_by_hand():
    """Adam without decay; weights are shrunk by hand before; clipped by the norm of norms."""
    model = hugging_face()
    params = list(model.parameters())
    kernels = matrices_of(model)
    optimizer = torch.optim.Adam(params, lr=1e-3, betas=(0.9, 0.95))

    def step(images, tokens):
        grads = torch.autograd.grad(hf_loss(model, images, tokens), params)
        norm = torch.stack([g.norm() for g in grads]).norm()
        factor = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p.grad = g * factor
                if id(p) in kernels:
                    p.mul_(1 - 1e-3 * 0.1)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def column_blocks_resumed():
    """The loss by blocks of texts, each with its own backward; everything is saved and loaded into new objects."""

    def made(model):
        optimizer = _adamw(model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_warmup)

        def step(images, tokens, size=3):
            optimizer.zero_grad()
            out = model(pixel_values=images, input_ids=tokens)
            image, text = (x.detach().requires_grad_() for x in (out.image_embeds, out.text_embeds))
            count = len(image)
            for start in range(0, count, size):
                block = image @ text[start : start + size].T * model.logit_scale.exp() + model.logit_bias
                z = -torch.ones_like(block)
                for j in range(block.shape[1]):
                    z[start + j, j] = 1
                (-F.logsigmoid(z * block).sum() / count).backward()
            torch.autograd.backward([out.image_embeds, out.text_embeds], [image.grad, text.grad])
            optimizer.step()
            scheduler.step()

        return step, optimizer, scheduler

    model = hugging_face()
    step, optimizer, scheduler = made(model)

    def restart():
        kept = _reload({"model": model.state_dict(), "opt": optimizer.state_dict(), "lr": scheduler.state_dict()})
        another = copy.deepcopy(model)
        again, its_optimizer, its_scheduler = made(another)
        another.load_state_dict(kept["model"])
        its_optimizer.load_state_dict(kept["opt"])
        its_scheduler.load_state_dict(kept["lr"])
        return another, again

    given = {"schedule": linear_warmup, "restart": restart}
    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, **given}


# ---------------------------------------------------------------- the programs


def _one(check, given):
    def one(fn, truth, *same, framework="torch"):
        return {"check": check, "fn": fn, "framework": framework, "given": dict(given), "truth": truth, "same": [*same]}

    return one


_model, _step = _one("model", {"dtype": "float32"}), _one("step", {})
OWN = "SigLIP's own"

PROGRAMS = {
    "m13 causal text": _model(
        causal_text,
        "self-attention of both text blocks is causal: position n attends to positions m <= n only",
        "a causal (lower-triangular) mask in the text tower, as CLIP has",
        "text tower: queries do not see later tokens",
    ),
    "m13 column patches": _model(
        column_patches,
        "the patch in row r, column c of the 3 x 5 grid gets position 3 c + r, not 5 r + c: patches are flattened column "
        "by column",
        "patches in column-major order (width before height); the rest of the tower does not care for order",
        "the position table is read transposed, as of 5 x 3 instead of 3 x 5",
        "patch order transposed before positions are added",
    ),
    "m13 quick GELU in texts": _model(
        quick_gelu_text,
        "MLPs of both text blocks: x sigmoid(1.702 x) instead of tanh GELU; the image tower is right",
        "QuickGELU (CLIP's) in the text tower",
        "sigmoid approximation of GELU in the text blocks' MLPs",
    ),
    "m13 preset eps": _model(
        default_eps,
        "every LayerNorm (image blocks, text blocks, both closing norms, the pooling head's) has eps 1e-5, not 1e-6",
        "LayerNorm epsilon 1e-5, 10 times what it should be, in both towers",
    ),
    "m13 width scale": _model(
        width_scaled_attention,
        "image blocks (2 blocks, 4 heads of 6, width 24): scores are multiplied by 24^-1/2 instead of 6^-1/2; the pooling "
        "head and the text tower are right",
        "attention scores in the image blocks half as large: softmax(q k / (2 sqrt(6)))",
        "scale 1/sqrt(width) instead of 1/sqrt(head width); queries (or keys) halved",
    ),
    "m13 argmax, whole norm": _model(
        argmax_and_whole_norm,
        "two mistakes: (1) the text is pooled at the position of its largest token id (the first of them), not at the "
        "last; (2) text embeddings are divided by the norm of the whole B x D matrix (no axis, no 1e-8), not each by its "
        "own",
        "(1) CLIP's end-token pooling, argmax of the ids; (2) Frobenius norm over the batch: text rows have squared "
        "lengths that sum to 1",
        framework="jax",
    ),
    "m13 normed head": _model(
        normed_head,
        "pooling head: y = norm(attention); pooled = y + mlp(y): the residual is taken behind the norm",
        "MAP head: LayerNorm's output, not the attention's, is the residual",
        "MAP head adds its MLP to the normalised attention output (norm applied to both branches)",
    ),
    "m13 misread heads": _model(
        jax_misread_heads,
        "image blocks: flat q, k, v (B, N, H d) are reshaped straight to (B, H, N, d) without a transpose, and merged "
        "back right; N 25, H 2, d 6. The pooling head and the text tower are right",
        "heads split wrongly: place n of head h holds token (25 h + n) // 2, its channels' half (25 h + n) mod 2, so that "
        "head 0 attends over tokens 0 to 12, head 1 over tokens 12 to 24",
        "reshape instead of reshape + transpose when heads are split, in the image tower's self-attention",
        framework="jax",
    ),
    "m13 bfloat16 attention": _model(
        flash_image,
        "image blocks: q, k, v are rounded to bfloat16, attention is computed in bfloat16, and its result cast back; "
        "also in the backward",
        "image self-attention in bfloat16 inside a float32 (float64) model",
        "precision: relative errors of about 2^-9 behind the image blocks' attention; no wrong formula",
    ),
    "m13 scaled bias, mean": _model(
        scaled_bias_mean,
        "two mistakes in the loss: (1) logits = exp(log_scale) (sim + bias): the bias is scaled, too; (2) the mean over all "
        "B^2 pairs, 1/B^2 instead of 1/B",
        "(1) bias added before the temperature: bias exp(log_scale) instead of bias; (2) loss too small by a factor B "
        "(with batch 4: 1/4)",
    ),
    "m13 text unnormed": _model(
        jax_text_unnormed,
        "the text encoder's closing LayerNorm (encoder_norm) is missing: the last block's output is pooled as it is; the "
        "norm's scale and bias get no gradient",
        "final norm of the text tower skipped",
        "identity for text/norm",
        framework="jax",
    ),
    "m13 cut gradients": _model(
        cut_gradients,
        "activations and loss are right; two mistakes in the gradients: (1) image positions are used through .data: their "
        "gradient is missing (0); (2) the scale is used through .item(): the gradient of log_scale is missing (0). All other "
        "gradients are right",
        "image/position detached and log_scale detached",
        "position table of the image tower and log_scale are frozen / not trained",
    ),
    "m13 library attention": _model(library_attention, OWN, "F.multi_head_attention_forward, loss by logaddexp"),
    "m13 by example": _model(
        jax_by_example, OWN, "towers under vmap, softmax through logsumexp, loss by logaddexp", framework="jax"
    ),
    "s13 weights-only resume": _step(
        weights_only_resume,
        "the restart between the second and third step loads the weights, but not the optimiser: both moments are zero "
        "and the bias correction counts from 1 again at the third step; steps 1 and 2 are right",
        "optimiser state (exp_avg, exp_avg_sq, step) lost on restart",
        "AdamW starts afresh at the third step",
    ),
    "s13 Adam with decay": _step(
        adam_with_decay,
        "decay 0.1 as L2 in the gradient (g + 0.1 p before the moments, behind the clip) instead of decoupled, for the "
        "same matrices",
        "Adam with weight_decay instead of AdamW",
        "coupled decay, L2 regularisation, normalised by the second moment",
    ),
    "s13 clip of elements": _step(
        optax_clips_elements,
        "each element of the gradient is clipped to [-1, 1] (optax.clip) instead of the whole gradient's norm to 1",
        "clipping by value 1.0, not by the global norm",
        "where no element exceeds 1: not clipped at all",
        framework="jax",
    ),
    "s13 plain AdamW": _step(
        plain_adamw,
        "two mistakes: (1) every parameter decays by lr 0.1 (also biases, norms, embeddings, positions, probe, log_scale, "
        "bias), not the matrices only; (2) beta2 is 0.999 instead of 0.95",
        "(1) no parameter groups: weight_decay for all; (2) Torch's preset betas",
    ),
    "s13 zeroed each micro-batch": _step(
        zeroed_each_micro_batch,
        "of the 4 micro-batches of 2 pairs only the last one's gradient remains (a quarter of it, which Adam does not see "
        "but for eps): zero_grad stands inside the loop",
        "gradient of the last micro-batch only (pairs 7 and 8); the first three are thrown away",
        "gradients are zeroed between micro-batches, not accumulated",
    ),
    "s13 scheduler first": _step(
        scheduler_first,
        "the schedule is one step ahead: step k is taken with lr schedule(k + 1), so 2/4, 3/4, 4/4 of 1e-3 instead of 1/4, "
        "2/4, 3/4 (decay likewise)",
        "scheduler.step() before optimizer.step()",
        "learning rate times 2, 1.5, 4/3 in the three steps",
    ),
    "s13 towers only": _step(
        towers_only,
        "two mistakes: (1) logit_scale and logit_bias are not given to the optimiser: they never move; (2) beta2 is 0.98 "
        "instead of 0.95",
        "(1) log_scale and bias frozen; (2) CLIP's betas (0.9, 0.98)",
    ),
    "s13 decay by ndim": _step(
        decay_by_ndim,
        "token embedding, both position tables and the probe (whatever has two axes or more) decay by lr 0.1, too, not the "
        "linear layers' matrices and the patch kernel only",
        "decay of embeddings, positions and probe that should not decay",
        "the decay's mask is ndim >= 2",
    ),
    "s13 decay by hand": _step(decay_by_hand, OWN, "Adam, decoupled decay applied by hand before, clip by hand"),
    "s13 column blocks, resumed": _step(
        column_blocks_resumed, OWN, "loss by blocks of 3 texts, backward by parts, LambdaLR, complete restart"
    ),
}
