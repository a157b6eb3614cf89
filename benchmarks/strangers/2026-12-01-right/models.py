"""Right models and right training steps, as people really write them. Written on 2026-11-30 by a stranger."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import siglip_ref as sr
from siglip_ref.check.model.adapters.big_vision import BigVision
from siglip_ref.check.model.adapters.torch_model import TorchModel
from towers11 import (
    CONFIG,
    J_DEPTH,
    J_GRID,
    J_LENGTH,
    J_PATCH,
    J_WIDTH,
    Attention,
    OwnBlock,
    OwnModel,
    TwoLayers,
    become,
    hf_loss,
    hugging_face,
    j_init,
    layers,
    own_adapter,
    own_loss,
    own_tables,
    small_open_clip,
    split_by_decay,
)

# ---------------------------------------------------------------- transformers


def with_attention(kind):
    model = hugging_face()
    model.set_attn_implementation(kind)
    return model


def hf_eager():
    return with_attention("eager")


def hf_sdpa():
    return with_attention("sdpa")


def hf_checkpointing():
    """In training mode, in which alone it recomputes; there is no dropout."""
    model = hugging_face()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def hf_compiled():
    """Compiled in place: the class stays."""
    model = hugging_face()
    for layer in layers(model):
        layer.mlp.compile(backend="aot_eager")
    model.vision_model.compile(backend="eager")
    return model


def _fused_forward(self, hidden_states, attention_mask=None, **kwargs):
    weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
    bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
    b, n, _ = hidden_states.shape
    q, k, v = F.linear(hidden_states, weight, bias).view(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
    return self.out_proj(mixed.transpose(1, 2).reshape(b, n, -1)), None


def hf_fused_qkv():
    """One product for q, k and v: forward is replaced on each instance."""
    model = hugging_face()
    for layer in layers(model):
        layer.self_attn.forward = types.MethodType(_fused_forward, layer.self_attn)
    return model


def hf_channels_last():
    model = hugging_face().to(memory_format=torch.channels_last)

    def images_too(module, args, kwargs):
        if kwargs.get("pixel_values") is not None:
            kwargs["pixel_values"] = kwargs["pixel_values"].contiguous(memory_format=torch.channels_last)
        return args, kwargs

    model.register_forward_pre_hook(images_too, with_kwargs=True)
    return model


def hf_hooked():
    """Hooks that look: at outputs, at gradients; one that returns what it got."""
    model, seen = hugging_face(), {}

    def look(name):
        def hook(module, args, output):
            seen[name] = (output[0] if isinstance(output, tuple) else output).detach().abs().mean()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(look(name))
    for layer in layers(model):
        layer.mlp.register_forward_hook(lambda module, args, output: output)
        layer.mlp.fc1.register_full_backward_hook(lambda module, d_in, d_out: seen.update(norm=d_out[0].norm()))
    return model


class HandNorm(nn.LayerNorm):
    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return torch.addcmul(self.bias, self.weight, (x - mean) * (variance + self.eps).rsqrt())


class HandGelu(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def hf_hand_written():
    model = hugging_face()
    for module in list(model.modules()):
        if isinstance(module, nn.LayerNorm):
            become(module, HandNorm)
        if hasattr(module, "activation_fn"):
            module.activation_fn = HandGelu()
    return model


# ---------------------------------------------------------------- open_clip and timm


def oc_checkpointing():
    model = small_open_clip()
    model.set_grad_checkpointing(True)
    return model.train()


def timm_tower():
    """The image tower alone, unfused attention."""
    trunk = small_open_clip().visual.trunk
    for block in trunk.blocks:
        block.attn.fused_attn = False
    return trunk


# ---------------------------------------------------------------- a torch model of its own


def own_renamed(module, renamed, ignored=(), loss=own_loss):
    """As own_adapter, where parameters are called otherwise."""
    table, taps = own_tables()
    table = tuple(dataclasses.replace(one, theirs=renamed(one.theirs)) for one in table)
    return TorchModel("own model", module.eval(), CONFIG, table, taps, loss, ignored=tuple(ignored))


class TiledAttention(Attention):
    """Tiles of keys with a running maximum and sum."""

    def forward(self, queries, keys, tile=4):
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, x in ((self.q, queries), (self.k, keys), (self.v, keys))
        )
        q = q * q.shape[-1] ** -0.5
        top = torch.full_like(q[..., :1], -math.inf)
        length, mixed = torch.zeros_like(top), torch.zeros_like(q)
        for k_tile, v_tile in zip(k.split(tile, 2), v.split(tile, 2), strict=True):
            scores = q @ k_tile.mT
            new = torch.maximum(top, scores.amax(-1, keepdim=True)).detach()
            weights, factor = torch.exp(scores - new), torch.exp(top - new)
            length = length * factor + weights.sum(-1, keepdim=True)
            mixed = mixed * factor + weights @ v_tile
            top = new
        return self.out((mixed / length).transpose(1, 2).flatten(2))


def own_tiled():
    model = OwnModel()
    for module in model.modules():
        if type(module) is Attention:
            become(module, TiledAttention)
    return own_adapter(model)


class PackedAttention(Attention):
    """All sequences as one, with a block-diagonal mask: as packed batches do."""

    def forward(self, queries, keys):
        b, n, m = len(queries), queries.shape[1], keys.shape[1]
        mask = torch.block_diag(*[torch.ones(n, m, dtype=torch.bool, device=queries.device)] * b)
        q, k, v = (
            f(x.flatten(0, 1)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
            for f, x in ((self.q, queries), (self.k, keys), (self.v, keys))
        )
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
        return self.out(mixed.transpose(0, 1).flatten(1)).unflatten(0, (b, n))


def own_packed():
    model = OwnModel()
    for module in model.modules():
        if type(module) is Attention:
            become(module, PackedAttention)
    return own_adapter(model)


class LoraLinear(nn.Module):
    def __init__(self, base, rank=2, alpha=4):
        super().__init__()
        self.base_layer, self.scaling = base, alpha / rank
        self.lora_A = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base_layer(x) + self.scaling * F.linear(F.linear(x, self.lora_A), self.lora_B)


def own_lora():
    """Queries and values wrapped as LoRA does, B still zero."""
    model, extra, places = OwnModel(), [], []
    for name, module in list(model.named_modules()):
        if isinstance(module, Attention):
            for part in ("q", "v"):
                setattr(module, part, LoraLinear(getattr(module, part)))
                places.append(f"{name}.{part}.")
                extra += [f"{name}.{part}.lora_A", f"{name}.{part}.lora_B"]

    def renamed(theirs):
        place = theirs.rpartition(".")[0] + "."
        return place + "base_layer." + theirs.rpartition(".")[2] if place in places else theirs

    return own_renamed(model, renamed, extra)


class Identity(nn.Module):
    def forward(self, weight):
        return weight


def own_parametrized():
    """A parametrization that changes nothing on fc1, a pruning mask of ones on fc2."""
    model = OwnModel()
    for module in list(model.modules()):
        if type(module) is TwoLayers:
            parametrize.register_parametrization(module.fc1, "weight", Identity())
            prune.identity(module.fc2, "weight")

    def renamed(theirs):
        if theirs.endswith("mlp.fc1.weight"):
            return theirs.replace(".weight", ".parametrizations.weight.original")
        return theirs.replace(".weight", ".weight_orig") if theirs.endswith("mlp.fc2.weight") else theirs

    return own_renamed(model, renamed)


def _mlp(x, w1, b1, w2, b2):
    return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)


with torch.random.fork_rng():
    TRACED = torch.jit.trace(
        _mlp, (torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5), torch.randn(4, 5), torch.randn(4))
    )


class TracedTwoLayers(TwoLayers):
    def forward(self, x):
        return TRACED(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


class RecomputedBlock(OwnBlock):
    def forward(self, x):
        def inside(x):
            y = self.norm1(x)
            return x + self.attention(y, y)

        x = checkpoint(inside, x, use_reentrant=False, preserve_rng_state=False)
        return x.add(self.mlp(self.norm2(x)))


def own_traced():
    """MLPs traced, attention under checkpoints, patches unfolded, texts looked up by one-hot products."""
    model = OwnModel()
    for module in model.modules():
        if type(module) is TwoLayers:
            become(module, TracedTwoLayers)
        elif type(module) is OwnBlock:
            become(module, RecomputedBlock)

    def patches(self, images):
        b, _, height, width = images.shape
        columns = F.unfold(images, 4, stride=4).mT @ self.weight.flatten(1).T + self.bias
        return columns.mT.reshape(b, -1, height // 4, width // 4)

    def lookup(self, tokens):
        return F.one_hot(tokens.long(), self.num_embeddings).to(self.weight.dtype) @ self.weight

    model.image.patches.forward = types.MethodType(patches, model.image.patches)
    model.text.tokens.forward = types.MethodType(lookup, model.text.tokens)
    return own_adapter(model)


# ---------------------------------------------------------------- JAX


def j_scanned(params, images, tokens):
    """Blocks stacked and scanned under remat, with what is kept chosen by a policy; fused qkv."""

    def norm(x, p):
        x32 = x - x.mean(-1, keepdims=True)
        return x32 / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def mlp(x, p):
        x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
        return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

    def attention(xq, xk, p):
        q = jnp.einsum("bnc,chd->bnhd", xq, p["query"]["kernel"]) + p["query"]["bias"]
        kernel = jnp.stack([p["key"]["kernel"], p["value"]["kernel"]])
        bias = jnp.stack([p["key"]["bias"], p["value"]["bias"]])
        k, v = jnp.einsum("bnc,tchd->tbnhd", xk, kernel) + bias[:, None, None]
        scores = jnp.einsum("bnhd,bmhd->bhnm", q / jnp.sqrt(q.shape[-1]).astype(q.dtype), k)
        mixed = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, axis=-1), v)
        return jnp.einsum("bnhd,hdc->bnc", mixed, p["out"]["kernel"]) + p["out"]["bias"]

    def encoder(x, p):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p[f"encoderblock_{i}"] for i in range(J_DEPTH)))

        def block(x, p):
            y = norm(x, p["LayerNorm_0"])
            x = x + attention(y, y, p["MultiHeadDotProductAttention_0"])
            return x + mlp(norm(x, p["LayerNorm_1"]), p["MlpBlock_0"]), None

        block = jax.checkpoint(block, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, prevent_cse=False)
        x, _ = jax.lax.scan(block, x, stacked)
        return norm(x, p["encoder_norm"])

    def unit(x):
        return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)

    img, txt = params["img"], params["txt"]
    x = images.reshape(-1, J_GRID, J_PATCH, J_GRID, J_PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(len(images), J_GRID**2, -1) @ img["embedding"]["kernel"].reshape(-1, J_WIDTH)
    x = encoder(x + img["embedding"]["bias"] + img["pos_embedding"], img["Transformer"])
    head = img["MAPHead_0"]
    probe = jnp.broadcast_to(head["probe"], (len(x), 1, J_WIDTH))
    x = attention(probe, x, head["MultiHeadDotProductAttention_0"])
    image = unit((x + mlp(norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0])
    y = encoder(jnp.take(txt["Embed_0"]["embedding"], tokens, axis=0) + txt["pos_embedding"], txt["Encoder_0"])
    text = unit(y[:, J_LENGTH - 1] @ txt["head"]["kernel"] + txt["head"]["bias"])
    logits = image @ text.T * jnp.exp(params["t"]) + params["b"]
    loss = optax.sigmoid_binary_cross_entropy(logits, jnp.eye(len(logits))).sum(-1).mean()
    return loss, {"image/embed": image, "text/embed": text, "logits": logits}


def jax_scanned():
    return BigVision(jax.jit(j_scanned), j_init(), name="JAX model, scanned and rematerialised")


# ---------------------------------------------------------------- training steps


RULE = {"lr": 1e-3, "beta2": 0.95, "decay": 0.1}
BETAS = {"lr": 1e-3, "betas": (0.9, 0.95)}


def _adamw(model, **more):
    return torch.optim.AdamW(split_by_decay(model, model.parameters(), 0.1), **BETAS, **more)


def foreach_clipped():
    """foreach; clipped; gradients set to None."""
    model = hugging_face()
    optimizer = _adamw(model, foreach=True)

    def step(images, tokens):
        optimizer.zero_grad(set_to_none=True)
        loss = hf_loss(model, images, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss.item()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def fused_kept_zeros():
    """fused; gradients are zeroed behind the step and stay tensors."""
    model = hugging_face()
    optimizer = _adamw(model, fused=True)

    def step(images, tokens):
        optimizer.zero_grad(set_to_none=False)
        hf_loss(model, images, tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def warm_cosine(step, warm=2, total=10):
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


def scheduled_scaler():
    """LambdaLR, GradScaler switched off, unscale_ before the clip."""
    model = hugging_face()
    optimizer = _adamw(model, foreach=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step(images, tokens):
        with torch.autocast("cpu", enabled=False):
            loss = hf_loss(model, images, tokens)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.5)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=0.5), "model": model, "schedule": warm_cosine}


def own_adamw():
    """AdamW by hand, in place, with clipping by hand."""
    model = hugging_face()
    groups = split_by_decay(model, model.parameters(), 0.1)
    state, count = {}, [0]

    @torch.no_grad()
    def update(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, max_norm=1.0):
        count[0] += 1
        norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for group in groups:
            for p in group["params"]:
                g = p.grad * factor
                m, v = state.setdefault(p, (torch.zeros_like(p), torch.zeros_like(p)))
                m.lerp_(g, 1 - beta1)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                m_hat, v_hat = m / (1 - beta1 ** count[0]), v / (1 - beta2 ** count[0])
                p.sub_(lr * (m_hat / (v_hat.sqrt() + eps) + group["weight_decay"] * p))

    def step(images, tokens):
        model.zero_grad()
        hf_loss(model, images, tokens).backward()
        update()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model}


def cached_embeddings():
    """GradCache: embeddings of chunks without a graph, gradients of the whole loss, then chunks again."""
    model = hugging_face()
    optimizer = _adamw(model)

    def embed(images, tokens):
        image = model.get_image_features(pixel_values=images)
        text = model.get_text_features(input_ids=tokens)
        return [F.normalize(getattr(x, "pooler_output", x), dim=-1) for x in (image, text)]

    def step(images, tokens, size=2):
        optimizer.zero_grad()
        chunks = list(zip(images.split(size), tokens.split(size), strict=True))
        with torch.no_grad():
            kept = [embed(*chunk) for chunk in chunks]
        image, text = (torch.cat(x).requires_grad_() for x in zip(*kept, strict=True))
        logits = image @ text.T * model.logit_scale.exp() + model.logit_bias
        z = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
        (-F.logsigmoid(z * logits).sum() / len(logits)).backward()
        for chunk, *grads in zip(chunks, image.grad.split(size), text.grad.split(size), strict=True):
            torch.autograd.backward(embed(*chunk), grads)
        optimizer.step()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def micro_batches():
    """Four micro-batches of two pairs, each its own negatives; the losses' mean."""
    model = hugging_face()
    optimizer = _adamw(model)

    def step(images, tokens, parts=4):
        for i, (x, y) in enumerate(zip(images.chunk(parts), tokens.chunk(parts), strict=True)):
            (hf_loss(model, x, y) / parts).backward()
            if (i + 1) % parts == 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0), "model": model, "accumulate": 4}


def closure_and_average():
    """The optimiser is given a closure; a moving average of the weights is kept beside it."""
    model = hugging_face()
    optimizer = _adamw(model)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))

    def step(images, tokens):
        def closure():
            optimizer.zero_grad()
            loss = hf_loss(model, images, tokens)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        average.update_parameters(model)
        return loss

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def in_the_backward():
    """One optimiser for each parameter, which steps as soon as the gradient is there."""
    model = hugging_face()
    groups = split_by_decay(model, model.parameters(), 0.1)
    alone = {p: torch.optim.AdamW([p], **BETAS, weight_decay=g["weight_decay"]) for g in groups for p in g["params"]}

    def move(p):
        alone[p].step()
        alone[p].zero_grad()

    for p in alone:
        p.register_post_accumulate_grad_hook(move)

    def step(images, tokens):
        hf_loss(model, images, tokens).backward()

    return {"step_fn": step, "rule": sr.AdamW(**RULE), "model": model}


def optax_chain():
    """optax: clip, adam, masked decay, rate; parameters by name."""
    kernel = lambda params: {name: name.endswith("/kernel") for name in params}  # noqa: E731
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
        optax.masked(optax.add_decayed_weights(0.1), kernel),
        optax.scale_by_learning_rate(1e-3),
    )

    @jax.jit
    def update(params, grads, state):
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(params, grads, state):
        return update(params, grads, chain.init(params) if state is None else state)

    return {"step_fn": step, "rule": sr.AdamW(**RULE, max_norm=1.0, clip_eps=0.0), "framework": "jax"}


# ---------------------------------------------------------------- the programs


def _model(fn, same, framework="torch"):
    given = {"dtype": "float32"}
    return {"check": "model", "fn": fn, "framework": framework, "given": given, "truth": "SigLIP's own", "same": [same]}


def _step(fn, same, framework="torch"):
    return {"check": "step", "fn": fn, "framework": framework, "given": {}, "truth": "SigLIP's own", "same": [same]}


PROGRAMS = {
    "right: transformers, eager": _model(hf_eager, "SiglipModel, attn_implementation eager"),
    "right: transformers, sdpa": _model(hf_sdpa, "SiglipModel, attn_implementation sdpa"),
    "right: gradient checkpointing": _model(hf_checkpointing, "SiglipModel in training mode, checkpointing enabled"),
    "right: compiled in place": _model(hf_compiled, "SiglipModel, module.compile(): MLPs aot_eager, image tower eager"),
    "right: fused qkv": _model(hf_fused_qkv, "SiglipModel, q, k, v weights concatenated at run time, forward replaced"),
    "right: channels_last": _model(hf_channels_last, "SiglipModel, weights and images channels_last, by a pre-hook"),
    "right: hooked": _model(hf_hooked, "SiglipModel with forward and full backward hooks that only look"),
    "right: norms and GELU by hand": _model(hf_hand_written, "SiglipModel, var_mean norms, tanh GELU written out"),
    "right: open_clip": _model(small_open_clip, "open_clip's CustomTextCLIP with a timm image tower, exact GELU"),
    "right: open_clip, checkpointing": _model(oc_checkpointing, "the same in training mode with set_grad_checkpointing"),
    "right: timm tower": _model(timm_tower, "timm's VisionTransformer with map pooling alone, unfused attention"),
    "right: tiled attention": _model(own_tiled, "own model, attention by tiles of keys with a running maximum"),
    "right: packed sequences": _model(own_packed, "own model, batch as one sequence under a block-diagonal mask"),
    "right: LoRA": _model(own_lora, "own model, q and v wrapped as LoRA, B zero; A and B are ignored parameters"),
    "right: parametrized": _model(own_parametrized, "own model, identity parametrization, pruning mask of ones"),
    "right: traced": _model(own_traced, "own model, traced MLPs, attention recomputed, unfolded patches, one-hot tokens"),
    "right: JAX, scan and remat": _model(jax_scanned, "blocks scanned under remat with a policy, fused kv, jitted", "jax"),
    "right: AdamW foreach": _step(foreach_clipped, "AdamW foreach, clip 1.0, gradients None"),
    "right: AdamW fused": _step(fused_kept_zeros, "AdamW fused, gradients zeroed in place, before and behind the step"),
    "right: LambdaLR and scaler": _step(scheduled_scaler, "AdamW single, LambdaLR, GradScaler disabled, clip 0.5"),
    "right: AdamW by hand": _step(own_adamw, "AdamW and clipping written by hand, decay added to the update"),
    "right: cached embeddings": _step(cached_embeddings, "GradCache with chunks of 2: all 8 pairs see each other"),
    "right: micro-batches": _step(micro_batches, "4 micro-batches with own negatives, loss / 4, clip 1.0; zeroed last"),
    "right: closure and EMA": _step(closure_and_average, "optimizer.step(closure), AveragedModel beside it"),
    "right: steps in the backward": _step(in_the_backward, "post-accumulate hooks step one AdamW per parameter"),
    "right: optax chain": _step(optax_chain, "optax chain: clip, scale_by_adam, masked decay, rate; jitted", "jax"),
}
