"""Wrong models and training steps, and four right ones, written on 2026-12-01 by somebody who has not read the checker."""

import math
import types

import jax
import jax.numpy as jnp
import optax
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import siglip_ref as sr
from siglip_ref.check.model.adapters.big_vision import BigVision
from towers12 import (
    J_DEPTH,
    J_GRID,
    J_PATCH,
    J_WIDTH,
    Attention,
    OwnImages,
    OwnModel,
    OwnTexts,
    TwoLayers,
    become,
    hf_loss,
    hugging_face,
    j_init,
    layers,
    own_adapter,
    split_by_decay,
)

# ---------------------------------------------------------------- transformers


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def hf_quick_gelu():
    model = hugging_face()
    for module in list(model.modules()):
        if hasattr(module, "activation_fn"):
            module.activation_fn = QuickGELU()
    return model


class Norm(nn.Module):
    """A rewrite of nn.LayerNorm in plain operations, as for an export."""

    def __init__(self, old, eps=1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = old.weight, old.bias, eps

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        var = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias


def hf_default_eps():
    model = hugging_face()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, Norm(child))
    return model


def _fused_weights(self):
    weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
    return weight, torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])


def _qkv_forward(self, hidden_states, attention_mask=None, **kwargs):
    b, n, c = hidden_states.shape
    qkv = F.linear(hidden_states, *_fused_weights(self))
    q, k, v = qkv.view(b, n, self.num_heads, 3, self.head_dim).permute(3, 0, 2, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
    return self.out_proj(y.transpose(1, 2).reshape(b, n, c)), None


def hf_fused_qkv():
    model = hugging_face()
    for layer in layers(model):
        layer.self_attn.forward = types.MethodType(_qkv_forward, layer.self_attn)
    return model


class FastGelu(torch.autograd.Function):
    """Keeps x only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        t = torch.tanh(inner)
        d = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi)
        return grad * d


class FastGeluModule(nn.Module):
    def forward(self, x):
        return FastGelu.apply(x)


def hf_fast_gelu():
    model = hugging_face()
    for module in list(model.modules()):
        if hasattr(module, "activation_fn"):
            module.activation_fn = FastGeluModule()
    return model


def _einsum_forward(self, hidden_states, attention_mask=None, **kwargs):
    weight, bias = _fused_weights(self)
    weight, bias = weight.view(3, self.num_heads, self.head_dim, -1), bias.view(3, self.num_heads, 1, self.head_dim)
    q, k, v = torch.einsum("bnc,thdc->tbhnd", hidden_states, weight) + bias[:, None]
    scores = torch.einsum("bhnd,bhmd->bhnm", q * self.head_dim**-0.5, k)
    scores = scores - scores.amax(-1, keepdim=True).detach()
    p = scores.exp()
    y = torch.einsum("bhnm,bhmd->bnhd", p / p.sum(-1, keepdim=True), v).flatten(2)
    return self.out_proj(y), None


def hf_einsum():
    """q, k, v in one einsum, a softmax by hand, patches by a product."""
    model = hugging_face()
    for layer in layers(model):
        layer.self_attn.forward = types.MethodType(_einsum_forward, layer.self_attn)

    def patchify(self, images):
        b, c, h, w = images.shape
        p = self.kernel_size[0]
        x = images.reshape(b, c, h // p, p, w // p, p)
        return torch.einsum("bchiwj,ocij->bohw", x, self.weight) + self.bias[:, None, None]

    conv = model.vision_model.embeddings.patch_embedding
    conv.forward = types.MethodType(patchify, conv)
    return model


# ---------------------------------------------------------------- a torch model of its own


class FirstTokenTexts(OwnTexts):
    def forward(self, tokens):
        x = self.norm(self.blocks(self.tokens(tokens) + self.positions))
        return self.head(x[:, 0])


def own_first_token():
    model = OwnModel()
    become(model.text, FirstTokenTexts)
    return own_adapter(model)


class CausalAttention(Attention):
    def forward(self, queries, keys):
        b, n, c = queries.shape
        split = lambda x: x.view(b, n, self.heads, c // self.heads).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.q(queries)), split(self.k(keys)), split(self.v(keys))
        mask = torch.full((n, n), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(b, n, c))


def own_causal():
    model = OwnModel()
    for block in model.text.blocks:
        become(block.attention, CausalAttention)
    return own_adapter(model)


class MeanImages(OwnImages):
    """What the head does with the probe is done with the tokens' mean."""

    def forward(self, images):
        x = self.norm(self.blocks(self.patches(images).flatten(2).mT + self.positions))
        x = x.mean(1)
        return x + self.mlp(self.head_norm(x))


def own_mean_pool():
    model = OwnModel()
    become(model.image, MeanImages)
    return own_adapter(model)


class NoFinalNormImages(OwnImages):
    """Pools the last hidden state."""

    def forward(self, images):
        x = self.blocks(self.patches(images).flatten(2).mT + self.positions)
        x = self.attention(self.probe.expand(len(x), -1, -1), x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


def own_no_final_norm():
    model = OwnModel()
    become(model.image, NoFinalNormImages)
    return own_adapter(model)


class ColumnsFirstImages(OwnImages):
    def forward(self, images):
        x = self.patches(images).permute(0, 3, 2, 1).flatten(1, 2)
        x = self.norm(self.blocks(x + self.positions))
        probe = self.probe.expand(len(x), -1, -1)
        x = probe + self.attention(probe, x)
        return (x + self.mlp(self.head_norm(x)))[:, 0]


def own_columns_first():
    model = OwnModel()
    become(model.image, ColumnsFirstImages)
    return own_adapter(model)


# ---------------------------------------------------------------- JAX


def jax_model(
    gelu=jax.nn.gelu,
    scale_of=lambda q: q.shape[-1] ** -0.5,
    patch_bias=True,
    unit_text=True,
):
    def norm(x, p):
        mean = x.mean(-1, keepdims=True)
        var = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + 1e-6) * p["scale"] + p["bias"]

    def mlp(x, p):
        x = gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
        return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

    def attention(xq, xk, p):
        """One example: queries (n, c), keys (m, c)."""
        q, k, v = (
            jnp.tensordot(x, p[name]["kernel"], 1) + p[name]["bias"]
            for x, name in ((xq, "query"), (xk, "key"), (xk, "value"))
        )
        weights = jax.nn.softmax(jnp.einsum("nhd,mhd->hnm", q * scale_of(q), k), axis=-1)
        return jnp.einsum("hnm,mhd,hdc->nc", weights, v, p["out"]["kernel"]) + p["out"]["bias"]

    def encoder(x, p):
        for i in range(J_DEPTH):
            block = p[f"encoderblock_{i}"]
            y = norm(x, block["LayerNorm_0"])
            x = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
            x = x + mlp(norm(x, block["LayerNorm_1"]), block["MlpBlock_0"])
        return norm(x, p["encoder_norm"])

    def unit(x):
        return x / (jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True)) + 1e-8)

    def one_image(image, p):
        x = image.reshape(J_GRID, J_PATCH, J_GRID, J_PATCH, 3).swapaxes(1, 2).reshape(J_GRID**2, -1)
        x = x @ p["embedding"]["kernel"].reshape(-1, J_WIDTH)
        if patch_bias:
            x = x + p["embedding"]["bias"]
        x = encoder(x + p["pos_embedding"][0], p["Transformer"])
        head = p["MAPHead_0"]
        x = attention(head["probe"][0], x, head["MultiHeadDotProductAttention_0"])
        return (x + mlp(norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[0]

    def one_text(tokens, p):
        x = encoder(p["Embed_0"]["embedding"][tokens] + p["pos_embedding"][0], p["Encoder_0"])
        return x[-1] @ p["head"]["kernel"] + p["head"]["bias"]

    def loss_fn(params, images, tokens):
        image = unit(jax.vmap(one_image, (0, None))(images, params["img"]))
        text = jax.vmap(one_text, (0, None))(tokens, params["txt"])
        text = unit(text) if unit_text else text
        logits = jnp.exp(params["t"]) * image @ text.T + params["b"]
        z = 2.0 * jnp.eye(len(logits), dtype=logits.dtype) - 1.0
        loss = jnp.sum(jax.nn.softplus(-z * logits)) / len(logits)
        return loss, {"image/embed": image, "text/embed": text, "logits": logits}

    return loss_fn


def jax_vmapped():
    return BigVision(jax.jit(jax_model()), j_init(), name="JAX model, vmapped over examples")


def jax_width_scale():
    def by_width(q):
        return (q.shape[-2] * q.shape[-1]) ** -0.5

    return BigVision(jax_model(scale_of=by_width), j_init(), name="JAX model")


def jax_raw_text():
    return BigVision(jax_model(unit_text=False), j_init(), name="JAX model")


def jax_no_patch_bias():
    def gelu(x):
        return jax.nn.gelu(x, approximate=False)

    return BigVision(jax_model(gelu=gelu, patch_bias=False), j_init(), name="JAX model")


# ---------------------------------------------------------------- training steps

RULE = {"lr": 1e-3, "beta2": 0.95, "decay": 0.1}
BETAS = {"lr": 1e-3, "betas": (0.9, 0.95)}


def _groups(model):
    return split_by_decay(model, model.parameters(), 0.1)


def never_zeroed():
    model = hugging_face()
    optimizer = torch.optim.AdamW(_groups(model), **BETAS)

    def step(images, tokens):
        loss = hf_loss(model, images, tokens)
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def scaled_clip():
    """Gradients are clipped while they still carry the scale."""
    model = hugging_face()
    optimizer = torch.optim.AdamW(_groups(model), **BETAS)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def step(images, tokens):
        optimizer.zero_grad()
        scaler.scale(hf_loss(model, images, tokens)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def decay_everything():
    model = hugging_face()
    optimizer = torch.optim.AdamW(model.parameters(), **BETAS, weight_decay=0.1)

    def step(images, tokens):
        optimizer.zero_grad(set_to_none=True)
        hf_loss(model, images, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def plain_adam():
    model = hugging_face()
    optimizer = torch.optim.Adam(_groups(model), **BETAS)

    def step(images, tokens):
        optimizer.zero_grad()
        hf_loss(model, images, tokens).backward()
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def zeroed_in_the_loop():
    model = hugging_face()
    optimizer = torch.optim.AdamW(_groups(model), **BETAS)

    def step(images, tokens, parts=4):
        for x, y in zip(images.chunk(parts), tokens.chunk(parts), strict=True):
            optimizer.zero_grad()
            loss = hf_loss(model, x, y) / parts
            loss.backward()
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, "accumulate": 4}


def warm_up(step):
    return min(1.0, (step + 1) / 5)


def early_scheduler():
    model = hugging_face()
    optimizer = torch.optim.AdamW(_groups(model), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)

    def step(images, tokens):
        optimizer.zero_grad()
        loss = hf_loss(model, images, tokens)
        loss.backward()
        scheduler.step()
        optimizer.step()
        return loss

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model, "schedule": warm_up}


def kernels(params):
    return {name: name.endswith("/kernel") for name in params}


def optax_late_clip():
    chain = optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(0.1, mask=kernels),
        optax.scale(-1e-3),
    )

    def step(params, grads, state):
        state = chain.init(params) if state is None else state
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0, clip_eps=0.0), "framework": "jax"}


def hand_adam():
    model = hugging_face()
    groups = _groups(model)
    first = {p: torch.zeros_like(p) for g in groups for p in g["params"]}
    second = {p: torch.zeros_like(p) for g in groups for p in g["params"]}

    @torch.no_grad()
    def update(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8):
        for group in groups:
            for p in group["params"]:
                m, v, g = first[p].to(p), second[p].to(p), p.grad
                first[p] = m = beta1 * m + (1 - beta1) * g
                second[p] = v = beta2 * v + (1 - beta2) * g * g
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(lr * m / torch.sqrt(v + eps))

    def step(images, tokens):
        model.zero_grad()
        hf_loss(model, images, tokens).backward()
        update()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def foreach_by_hand():
    """AdamW with torch._foreach operations, state made at the first step, clipped by one coefficient."""
    model = hugging_face()
    groups, state = _groups(model), {}

    @torch.no_grad()
    def update(lr=1e-3, b1=0.9, b2=0.95, eps=1e-8, max_norm=1.0):
        state["t"] = t = state.get("t", 0) + 1
        everything = [p.grad for g in groups for p in g["params"]]
        total = torch.stack(torch._foreach_norm(everything)).norm()
        torch._foreach_mul_(everything, (max_norm / (total + 1e-6)).clamp(max=1.0))
        for i, group in enumerate(groups):
            params, grads = group["params"], [p.grad for p in group["params"]]
            if i not in state:
                state[i] = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
            m, v = state[i]
            torch._foreach_lerp_(m, grads, 1 - b1)
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, grads, grads, 1 - b2)
            below = torch._foreach_sqrt(v)
            torch._foreach_div_(below, math.sqrt(1 - b2**t))
            torch._foreach_add_(below, eps)
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_addcdiv_(params, m, below, -lr / (1 - b1**t))

    def step(images, tokens):
        for p in model.parameters():
            p.grad = None
        hf_loss(model, images, tokens).backward()
        update()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def jax_by_hand():
    """Moments and parameters as tuples in tree.map, count in the state; jitted."""

    @jax.jit
    def update(params, grads, state):
        t, m, v = state
        t = t + 1
        m = jax.tree.map(lambda m, g: m + 0.1 * (g - m), m, grads)
        v = jax.tree.map(lambda v, g: v + 0.05 * (g * g - v), v, grads)

        def new(name):
            p = params[name]
            up = (m[name] / (1 - 0.9**t)) / (jnp.sqrt(v[name] / (1 - 0.95**t)) + 1e-8)
            return p - 1e-3 * (up + 0.1 * p if name.endswith("/kernel") else up)

        return {name: new(name) for name in params}, (t, m, v)

    def step(params, grads, state):
        if state is None:
            zeros = {name: jnp.zeros_like(p) for name, p in params.items()}
            state = jnp.zeros((), next(iter(params.values())).dtype), zeros, zeros
        return update(params, grads, state)

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "framework": "jax"}


# ---------------------------------------------------------------- the programs


def _model(fn, truth, *same, framework="torch"):
    given = {"dtype": "float32"}
    return {"check": "model", "fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


def _step(fn, truth, *same, framework="torch"):
    return {"check": "step", "fn": fn, "framework": framework, "given": {}, "truth": truth, "same": list(same)}


RIGHT = "SigLIP's own"
PROGRAMS = {
    "model: quick GELU": _model(
        hf_quick_gelu,
        "x sigmoid(1.702 x) in place of tanh GELU in every MLP: both towers' blocks and the pooling head",
        "CLIP's QuickGELU / hidden_act quick_gelu",
    ),
    "model: default eps": _model(
        hf_default_eps,
        "every LayerNorm (blocks, final, pooling head, both towers) has eps 1e-5 in place of 1e-6",
        "Torch's default epsilon of nn.LayerNorm",
        "10 times the epsilon",
    ),
    "model: fused qkv": _model(
        hf_fused_qkv,
        "in every encoder block of both towers the stacked rows [q; k; v] (3W) are read as (heads, 3, head size), though they "
        "lie as (3, heads, head size); with 2 heads q of the heads is [q0, k1], k is [q1, v0], v is [k0, v1]; the pooling head is right",
        "q, k, v and heads are mixed up (view(b, n, heads, 3, d) of weights stacked q, k, v)",
        "q uses q0 and k1, k uses q1 and v0, v uses k0 and v1",
    ),
    "model: fast GELU": _model(
        hf_fast_gelu,
        "values are right; the derivative of every tanh GELU lacks the factor (1 + 3 * 0.044715 x^2) in its second term: "
        "0.5 (1 + t) + 0.5 x (1 - t^2) sqrt(2/pi)",
        "the inner derivative's cubic term is missing; all gradients before an MLP's second layer are wrong, forward right",
        "wrong backward of GELU",
    ),
    "model: first token": _model(
        own_first_token,
        "the text is pooled at the first position in place of the last",
        "text pooled like a CLS token, x[:, 0]",
    ),
    "model: causal text": _model(
        own_causal,
        "every text block attends causally: position i sees positions 0..i only",
        "CLIP's causal mask in the text tower",
    ),
    "model: mean pool": _model(
        own_mean_pool,
        "the image's attention pooling is replaced by the mean of the normed tokens; head MLP with its norm and residual follow as "
        "they should; probe, q, k, v, out of the pooling have no gradient",
        "global average pooling in place of the probe's attention",
    ),
    "model: no final norm": _model(
        own_no_final_norm,
        "the image tower's final norm is missing before the pooling; its parameters have no gradient",
        "pools the last block's output, unnormed",
    ),
    "model: columns first": _model(
        own_columns_first,
        "two mistakes: patches are numbered column by column (w, then h) in place of row by row, so positions fit other patches; "
        "and the probe is added to its attention's output in the pooling head (residual)",
        "grid transposed, as permute(0, 3, 2, 1); and x = probe + attention(probe, tokens)",
    ),
    "model: JAX, width": _model(
        jax_width_scale,
        "attention scores are divided by sqrt(width) = sqrt(heads * head size) in place of sqrt(head size), everywhere: both "
        "towers and the pooling head (here 2 heads: scores are 1/sqrt(2) of the right ones)",
        "scores too small by sqrt(heads) = 1.414",
        framework="jax",
    ),
    "model: JAX, raw text": _model(
        jax_raw_text,
        "the text embedding is not normalised; the image's is",
        "logits are multiplied by the length of the text's embedding",
        framework="jax",
    ),
    "model: JAX, patches": _model(
        jax_no_patch_bias,
        "two mistakes: the patch embedding's bias is not added (no gradient); and every GELU (blocks and head, both towers) is exact (erf) "
        "in place of tanh",
        "use_bias=False in the patch embedding; approximate=False",
        framework="jax",
    ),
    "model: fine einsum": _model(hf_einsum, RIGHT, "q, k, v in one einsum, softmax by hand, patches by a product"),
    "model: fine vmap": _model(jax_vmapped, RIGHT, "written for one example, vmapped, jitted", framework="jax"),
    "step: never zeroed": _step(
        never_zeroed,
        "gradients are never zeroed: step k uses the sum of the gradients of steps 0..k; the first step is right",
        "zero_grad is missing; gradients accumulate over steps",
    ),
    "step: scaled clip": _step(
        scaled_clip,
        "gradients scaled by 65536 are clipped to 1.0 before unscaling: where 65536 |g| > 1 the step uses g / (65536 |g|), "
        "a gradient of length 1/65536 = 1.526e-5, in place of min(1, 1/|g|) g",
        "unscale_ is missing before clip_grad_norm_; max_norm is in effect 1.526e-5",
        "gradients are too small by 65536 max(|g|, 1), beside which eps 1e-8 counts (as if eps were 65536 max(|g|, 1) times larger)",
    ),
    "step: decay everything": _step(
        decay_everything,
        "all parameters are decayed by 0.1, also biases, norms, embeddings, positions, probe, log scale and bias",
        "no groups: weight decay on what should have none",
    ),
    "step: plain Adam": _step(
        plain_adam,
        "Adam's L2: 0.1 * parameter is added to the kernels' gradients before the moments, and nothing is decayed apart",
        "coupled decay, torch.optim.Adam in place of AdamW",
    ),
    "step: zeroed in the loop": _step(
        zeroed_in_the_loop,
        "gradients are zeroed before each micro-batch: only the last of 4 counts (its gradient / 4)",
        "the first three micro-batches are lost",
    ),
    "step: early scheduler": _step(
        early_scheduler,
        "two mistakes: the scheduler steps before the optimizer, so step k has the rate of step k + 1 (0.4, 0.6, 0.8 of 1e-3 in "
        "place of 0.2, 0.4, 0.6); and beta2 is Torch's default 0.999 in place of 0.95. The groups' own decay 0.1 is right",
        "schedule one step ahead; beta2 0.999",
    ),
    "step: optax, late clip": _step(
        optax_late_clip,
        "clip_by_global_norm(1.0) stands behind scale_by_adam: Adam's update (before decay and rate) is clipped to length 1, the gradients "
        "are not clipped",
        "the order of clip and Adam is exchanged",
        framework="jax",
    ),
    "step: Adam by hand": _step(
        hand_adam,
        "two mistakes: no bias correction of either moment; and eps is inside the root, sqrt(v + 1e-8) in place of sqrt(v) + 1e-8",
        "without bias correction, with eps under the root (in effect eps 1e-4 where v is 0)",
    ),
    "step: fine foreach": _step(foreach_by_hand, RIGHT, "AdamW by torch._foreach operations, clipped to 1.0 by one coefficient"),
    "step: fine JAX": _step(jax_by_hand, RIGHT, "AdamW by hand in jitted tree.map, decay by name, no clip", framework="jax"),
}
