"""Right sigmoid losses, as people really write them. Written on 2026-11-30 by somebody who has not read the checker."""

import functools
import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numba
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

# ---------------------------------------------------------------- torch: modules


class SigLIPLoss(nn.Module):
    """Holds its own scale and bias; rows come as the towers give them."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, image_features, text_features):
        image_features = F.normalize(image_features, dim=-1)
        text_features = F.normalize(text_features, dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t() + self.logit_bias
        labels = 2 * torch.eye(logits.shape[0], device=logits.device, dtype=logits.dtype) - 1
        return -F.logsigmoid(labels * logits).sum() / logits.shape[0]


class TemperatureLoss(nn.Module):
    """Divides by a temperature; returns a dict, too."""

    def __init__(self, init_temperature=0.1):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones([]) * init_temperature)
        self.b = nn.Parameter(torch.ones(1) * -10)

    def forward(self, x, y):
        sim = torch.einsum("id,jd->ij", x, y) / self.temperature + self.b
        target = torch.eye(len(x)).to(sim)
        return F.binary_cross_entropy_with_logits(sim, target, reduction="none").sum(1).mean()


class OpenClipLoss(nn.Module):
    """After open_clip.loss.SigLipLoss on one rank: gets exp(t'), labels made by a method, dict on demand."""

    def __init__(self, cache_labels=False, rank=0, world_size=1):
        super().__init__()
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size
        self.prev_num_logits, self.labels = 0, {}

    def get_ground_truth(self, device, dtype, num_logits, negative_only=False):
        labels = -torch.ones((num_logits, num_logits), device=device, dtype=dtype)
        if not negative_only:
            labels = 2 * torch.eye(num_logits, device=device, dtype=dtype) + labels
        return labels

    def get_logits(self, image_features, text_features, logit_scale, logit_bias=None):
        logits = logit_scale * image_features @ text_features.T
        if logit_bias is not None:
            logits += logit_bias
        return logits

    def _loss(self, image_features, text_features, logit_scale, logit_bias=None, negative_only=False):
        logits = self.get_logits(image_features, text_features, logit_scale, logit_bias)
        labels = self.get_ground_truth(
            image_features.device, image_features.dtype, image_features.shape[0], negative_only=negative_only
        )
        return -F.logsigmoid(labels * logits).sum() / image_features.shape[0]

    def forward(self, image_features, text_features, logit_scale, logit_bias, output_dict=False):
        loss = self._loss(image_features, text_features, logit_scale, logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss


class GrowingLabels(nn.Module):
    """A buffer of labels, which grows when a larger batch comes; smaller ones take its corner."""

    def __init__(self):
        super().__init__()
        self.register_buffer("labels", torch.empty(0, 0), persistent=False)

    def forward(self, image, text, log_scale, bias):
        n = image.size(0)
        if self.labels.size(0) < n or self.labels.dtype != image.dtype or self.labels.device != image.device:
            self.labels = 2 * torch.eye(max(n, 64), dtype=image.dtype, device=image.device) - 1
        logits = image @ text.T * log_scale.exp() + bias
        return F.logsigmoid(self.labels[:n, :n] * logits).sum().neg().div(n)


# ---------------------------------------------------------------- torch: compiled, scripted, mapped


def plain(image, text, log_scale, bias):
    """Hugging Face's: rows are texts."""
    logits_per_text = torch.matmul(text, image.t()) * log_scale.exp() + bias
    eye = torch.eye(logits_per_text.size(0), device=logits_per_text.device, dtype=logits_per_text.dtype)
    m1_diag1 = -torch.ones_like(logits_per_text) + 2 * eye
    loglik = torch.nn.functional.logsigmoid(m1_diag1 * logits_per_text)
    nll = -torch.sum(loglik, dim=-1)
    return nll.mean()


compiled_eager = torch.compile(plain, backend="eager")


@torch.compile(backend="aot_eager", dynamic=True)
def compiled_aot(image, text, log_scale, bias):
    logits = image @ text.mT * log_scale.exp() + bias
    eye = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    losses = torch.logaddexp(torch.zeros_like(logits), (1 - 2 * eye) * logits)
    return losses.sum() / len(logits)


@torch.compile(dynamic=True)
def compiled_inductor(image, text, log_scale, bias):
    logits = torch.exp(log_scale) * (image @ text.T) + bias
    own = torch.arange(len(image), device=image.device)
    z = torch.where(own[:, None] == own[None, :], 1.0, -1.0)
    return -F.logsigmoid(z * logits).sum(-1).mean()


@torch.jit.script
def scripted(image, text, log_scale, bias):
    n: int = image.size(0)
    logits = torch.mm(image, text.t()) * log_scale.exp() + bias
    total = torch.zeros([], dtype=image.dtype, device=image.device)
    for i in range(n):
        row = logits[i]
        sign = -torch.ones_like(row)
        sign[i] = 1.0
        total = total - F.logsigmoid(sign * row).sum()
    return total / n


def mapped_pairs(image, text, log_scale, bias):
    """vmap over images, over texts; a pair is a dot product."""
    index = torch.arange(len(image))

    def pair(x, y, i, j):
        logit = torch.dot(x, y) * log_scale.exp().squeeze() + bias.squeeze()
        z = torch.where(i == j, 1.0, -1.0).to(logit.dtype)
        return -F.logsigmoid(z * logit)

    over_texts = torch.func.vmap(pair, in_dims=(None, 0, None, 0))
    over_images = torch.func.vmap(over_texts, in_dims=(0, None, 0, None))
    return over_images(image, text, index, index).sum() / len(image)


# ---------------------------------------------------------------- torch: own backward


class FusedSigmoidLoss(torch.autograd.Function):
    """Nothing of size B x B is kept: logits are computed again in the backward pass, chunk by chunk."""

    CHUNK = 32

    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        ctx.save_for_backward(image, text, log_scale, bias)
        n, scale = image.shape[0], log_scale.exp()
        total = image.new_zeros(())
        for start in range(0, n, FusedSigmoidLoss.CHUNK):
            rows = image[start : start + FusedSigmoidLoss.CHUNK]
            logits = rows @ text.t() * scale + bias
            logits.diagonal(start).neg_()
            total -= F.logsigmoid(-logits).sum()
        return total / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        image, text, log_scale, bias = ctx.saved_tensors
        n, scale = image.shape[0], log_scale.exp()
        d_image, d_text = torch.empty_like(image), torch.zeros_like(text)
        d_scale, d_bias = image.new_zeros(()), image.new_zeros(())
        for start in range(0, n, FusedSigmoidLoss.CHUNK):
            rows = image[start : start + FusedSigmoidLoss.CHUNK]
            sim = rows @ text.t()
            logits = sim * scale + bias
            g = torch.sigmoid(logits)
            g.diagonal(start).copy_(-torch.sigmoid(-logits.diagonal(start)))
            g *= grad_output / n
            d_image[start : start + len(rows)] = scale * (g @ text)
            d_text.addmm_(g.t(), rows)
            d_scale += (g * sim).sum()
            d_bias += g.sum()
        return (
            d_image,
            d_text * scale,
            (d_scale * scale).reshape(log_scale.shape).to(log_scale.dtype),
            d_bias.reshape(bias.shape).to(bias.dtype),
        )


def fused_function(image, text, log_scale, bias):
    return FusedSigmoidLoss.apply(image, text, log_scale, bias)


def surrogate(image, text, log_scale, bias):
    """Value and gradients by hand without a graph; the graph sees a linear function with those gradients."""
    with torch.no_grad():
        n, scale = len(image), log_scale.exp()
        logits = scale * image @ text.T + bias
        labels = torch.eye(n, dtype=logits.dtype, device=logits.device)
        value = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / n
        z = 2 * labels - 1
        g = -z * torch.sigmoid(-z * logits) / n
        d_image, d_text = scale * g @ text, scale * g.T @ image
        d_log_scale, d_bias = (g * (logits - bias)).sum(), g.sum()

    def linear(x, d):
        return ((x - x.detach()) * d).sum()

    return value + linear(image, d_image) + linear(text, d_text) + linear(log_scale, d_log_scale) + linear(bias, d_bias)


GRADIENT_NORMS = []


def watched(image, text, log_scale, bias):
    """Hooks that look at gradients, and a retained one."""
    logits = image @ text.T * log_scale.exp() + bias
    if logits.requires_grad:
        logits.retain_grad()
        logits.register_hook(lambda grad: GRADIENT_NORMS.append(float(grad.norm())))
        if image.requires_grad:
            image.register_hook(lambda grad: grad.clone())
    positives = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return -(F.logsigmoid(logits[positives]).sum() + F.logsigmoid(-logits[~positives]).sum()) / len(logits)


# ---------------------------------------------------------------- torch: in chunks


def _rows(rows, text, log_scale, bias, start):
    logits = rows @ text.T * log_scale.exp() + bias
    z = torch.full_like(logits, -1)
    z.diagonal(int(start)).fill_(1)
    return -F.logsigmoid(z * logits).sum()


def checkpointed_rows(image, text, log_scale, bias, size=16):
    parts = [
        checkpoint(_rows, rows, text, log_scale, bias, i * size, use_reentrant=False)
        for i, rows in enumerate(image.split(size))
    ]
    return torch.stack(parts).sum() / image.shape[0]


class CheckpointedModule(nn.Module):
    """Reentrant checkpoints; the module counts its calls and caches its labels."""

    def __init__(self, size=24):
        super().__init__()
        self.size, self.labels = size, None
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def block(self, image, text, log_scale, bias, first):
        logits = log_scale.exp() * image @ text.T + bias
        labels = self.labels[: len(image), : len(text)] if first else torch.zeros_like(logits)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")

    def forward(self, image, text, log_scale, bias):
        self.calls += 1
        self.labels = torch.eye(min(self.size, len(image)), dtype=image.dtype, device=image.device)
        total = 0.0
        for i, x in enumerate(image.split(self.size)):
            for j, y in enumerate(text.split(self.size)):
                total = total + checkpoint(self.block, x, y, log_scale, bias, i == j, use_reentrant=True)
        return total / len(image)


def in_place_chunks(image, text, log_scale, bias, chunk_size=50):
    """In place on the logits and on the sum, texts in chunks."""
    n = image.shape[0]
    scaled = image * log_scale.exp()
    loss = torch.zeros((), dtype=image.dtype, device=image.device)
    for start in range(0, n, chunk_size):
        stop = min(start + chunk_size, n)
        logits = scaled @ text[start:stop].T
        logits += bias
        logits *= -1
        index = torch.arange(start, stop, device=image.device)
        sign = torch.ones_like(logits)
        sign[index, index - start] = -1
        loss += F.logsigmoid(logits.mul_(sign)).sum().neg_()
    return loss.div_(n)


# ---------------------------------------------------------------- torch: small ways


def bce_both_ways(image, text, log_scale, bias):
    """After CLIP: images to texts and texts to images, and half of both, which is the same."""
    logits_per_image = log_scale.exp() * torch.einsum("bd,cd->bc", image, text) + bias
    logits_per_text = logits_per_image.t()
    target = torch.eye(len(image), dtype=image.dtype, device=image.device)
    bce = nn.BCEWithLogitsLoss(reduction="none")
    return (bce(logits_per_image, target).sum(1).mean() + bce(logits_per_text, target).sum(1).mean()) / 2


def bce_mean_times_n(image, text, log_scale, bias):
    n = image.size(0)
    logits = F.linear(image, text) * log_scale.exp() + bias
    return n * F.binary_cross_entropy_with_logits(logits, torch.diag(torch.ones(n, dtype=logits.dtype)))


def logaddexp_log1p(image, text, log_scale, bias):
    """softplus by hand: max(x, 0) + log1p(exp(-|x|))."""
    x = -(2 * torch.eye(len(image), dtype=image.dtype) - 1) * (log_scale.exp() * image @ text.T + bias)
    return (x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))).sum(dim=1).mean(dim=0)


def double_sum(image, text, log_scale, bias):
    """Products in the given format, the losses and their sum in float64."""
    logits = (log_scale.exp() * image @ text.T + bias).double()
    z = 2 * torch.eye(len(logits), dtype=torch.float64, device=logits.device) - 1
    return -F.logsigmoid(z * logits).sum(dtype=torch.float64).div(len(logits)).to(image.dtype)


def autocast_off(image, text, log_scale, bias):
    """Safe under mixed precision: autocast is switched off, half formats become float32."""
    with torch.autocast(device_type=image.device.type, enabled=False):
        if image.dtype in (torch.float16, torch.bfloat16):
            image, text = image.float(), text.float()
        image, text = (x / x.norm(p=2, dim=-1, keepdim=True).clamp_min(1e-12) for x in (image, text))
        logits = image @ text.transpose(-2, -1) * log_scale.exp().to(image.dtype) + bias.to(image.dtype)
        z = torch.ones_like(logits).neg().fill_diagonal_(1)
        return -F.logsigmoid(z * logits).sum() / logits.size(0)


def sigmoid_contrastive(image, text, log_scale, bias, *, reduction="mean", normalize=False, signs=None):
    if normalize:
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = image.matmul(text.T).mul(log_scale.exp()).add(bias)
    losses = -F.logsigmoid(logits * signs(len(logits), logits))
    return losses.sum(-1).mean() if reduction == "mean" else losses.sum()


@functools.lru_cache(maxsize=8)
def _signs(n, dtype, device):
    return torch.eye(n, dtype=dtype, device=device).mul(2).sub(1)


with_partial = functools.partial(
    sigmoid_contrastive, reduction="mean", normalize=True, signs=lambda n, like: _signs(n, like.dtype, like.device)
)


def counted(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        wrapper.calls += 1
        with torch.profiler.record_function(fn.__name__):
            result = fn(*args, **kwargs)
        wrapper.last = result.detach()
        return result

    wrapper.calls, wrapper.last = 0, None
    return wrapper


@counted
@torch.enable_grad()
def decorated(image, text, log_scale, bias):
    """Positives and negatives apart; tril and triu."""
    logits = log_scale.exp() * image @ text.T + bias
    losses = -F.logsigmoid(-logits)
    negative = torch.tril(losses, -1).sum() + torch.triu(losses, 1).sum()
    positive = -F.logsigmoid(torch.diag(logits)).sum()
    return (positive + negative) / image.shape[0]


@dataclass
class SigmoidLoss:
    """A callable with settings, which remembers what it saw."""

    scale_is_log: bool = True
    history: list = field(default_factory=list)
    running: float = 0.0

    def __call__(self, image, text, scale, bias):
        scale = scale.exp() if self.scale_is_log else scale
        logits = scale * (image[:, None, :] * text[None, :, :]).sum(-1) + bias
        z = _signs(len(image), image.dtype, image.device)
        value = F.softplus(-z * logits, threshold=1e3).sum() / len(image)
        self.history.append(float(value.detach()))
        self.running = 0.9 * self.running + 0.1 * self.history[-1]
        return value


# ---------------------------------------------------------------- JAX


@jax.jit
def big_vision(zimg, ztxt, t, b):
    logits = jnp.dot(zimg, ztxt.T) * jnp.exp(t) + b
    eye = jnp.eye(zimg.shape[0], dtype=zimg.dtype)
    m1_diag1 = -jnp.ones_like(logits) + 2 * eye
    loglik = jax.nn.log_sigmoid(m1_diag1 * logits)
    nll = -jnp.sum(loglik, axis=-1)
    return jnp.mean(nll)


def with_optax(image, text, log_scale, bias):
    """Raw rows in, optax's cross-entropy."""
    image, text = (x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24)) for x in (image, text))
    logits = jnp.exp(log_scale) * image @ text.T + bias
    return optax.sigmoid_binary_cross_entropy(logits, jax.nn.one_hot(jnp.arange(len(image)), len(image))).sum(1).mean()


def scanned(image, text, log_scale, bias, size=16):
    """Chunks of texts in a scan, recomputed in the backward pass; the tail is padded and masked."""
    n, d = text.shape
    pad = -n % size
    chunks = jnp.pad(text, ((0, pad), (0, 0))).reshape(-1, size, d)
    places = jnp.arange(n + pad).reshape(-1, size)
    rows, scale = jnp.arange(n)[:, None], jnp.exp(log_scale)

    @jax.checkpoint
    def one(total, chunk):
        y, place = chunk
        logits = scale * image @ y.T + bias
        z = jnp.where(rows == place, 1, -1)
        losses = jnp.where(place < n, -jax.nn.log_sigmoid(z * logits), 0)
        return total + losses.sum(), None

    total, _ = jax.lax.scan(one, jnp.zeros((), image.dtype), (chunks, places))
    return total / n


def row_by_row(image, text, log_scale, bias):
    def row(one):
        i, x = one
        logits = text @ x * jnp.exp(log_scale) + bias
        return jax.nn.softplus(logits.at[i].multiply(-1)).sum()

    return jax.lax.map(row, (jnp.arange(len(image)), image), batch_size=None).mean()


@jax.custom_vjp
def closed_form(image, text, log_scale, bias):
    return _closed_form_forward(image, text, log_scale, bias)[0]


def _closed_form_forward(image, text, log_scale, bias):
    logits = jnp.exp(log_scale) * image @ text.T + bias
    z = 2 * jnp.eye(len(image), dtype=logits.dtype) - 1
    return jnp.logaddexp(0, -z * logits).sum() / len(image), (image, text, log_scale, bias)


def _closed_form_backward(saved, upstream):
    image, text, log_scale, bias = saved
    scale = jnp.exp(log_scale)
    sim = image @ text.T
    z = 2 * jnp.eye(len(image), dtype=sim.dtype) - 1
    g = -upstream / len(image) * z * jax.nn.sigmoid(-z * (scale * sim + bias))
    d_scale = jnp.vdot(g, sim) * scale
    return (
        (scale * g @ text).astype(image.dtype),
        (scale * g.T @ image).astype(text.dtype),
        jnp.reshape(d_scale, jnp.shape(log_scale)).astype(log_scale.dtype),
        jnp.reshape(g.sum(), jnp.shape(bias)).astype(bias.dtype),
    )


closed_form.defvjp(_closed_form_forward, _closed_form_backward)


@functools.partial(jax.jit, static_argnames=("block", "unroll"))
def _static(image, text, log_scale, bias, block=8, unroll=True):
    n = image.shape[0]
    total = jnp.zeros((), image.dtype)
    for start in range(0, n, block):
        logits = jnp.exp(log_scale) * jnp.matmul(image[start : start + block], text.T, precision="highest") + bias
        labels = jnp.eye(*logits.shape, k=start, dtype=logits.dtype)
        total += (jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))).sum()
    return total / n


def static_blocks(image, text, log_scale, bias):
    return _static(image, text, log_scale, bias, block=max(8, -(-len(image) // 4)), unroll=False)


def pairs_in_vmap(image, text, log_scale, bias):
    t, b = jnp.exp(log_scale).squeeze(), bias.squeeze()
    index = jnp.arange(image.shape[0])

    def pair(x, y, i, j):
        z = jax.lax.select(i == j, jnp.ones((), x.dtype), -jnp.ones((), x.dtype))
        return -jax.nn.log_sigmoid(z * (t * jnp.vdot(x, y) + b))

    return jax.vmap(jax.vmap(pair, (None, 0, None, 0)), (0, None, 0, None))(image, text, index, index).sum(1).mean()


@jax.tree_util.register_pytree_node_class
class Head:
    """As equinox has them: a module that is a pytree."""

    def __init__(self, log_scale, bias, eps=1e-12):
        self.log_scale, self.bias, self.eps = log_scale, bias, eps

    def tree_flatten(self):
        return (self.log_scale, self.bias), self.eps

    @classmethod
    def tree_unflatten(cls, eps, leaves):
        return cls(*leaves, eps)

    def __call__(self, params):
        x, y = params["image"], params["text"]
        logits = jnp.einsum("id,jd->ij", x, y) * jnp.exp(self.log_scale) + self.bias
        positive = jax.nn.log_sigmoid(jnp.diagonal(logits))
        negative = jnp.where(jnp.eye(len(x), dtype=bool), 0, jax.nn.log_sigmoid(-logits))
        return -(positive + negative.sum(1)).mean()


def pytree_module(image, text, log_scale, bias):
    return jax.jit(lambda head, params: head(params))(Head(log_scale, bias), {"image": image, "text": text})


# ---------------------------------------------------------------- NumPy


def in_numpy(image, text, log_scale, bias):
    n = image.shape[0]
    t = np.exp(np.asarray(log_scale, image.dtype))
    sim = image @ text.T
    logits = t * sim + np.asarray(bias, image.dtype)
    z = 2 * np.eye(n, dtype=image.dtype) - 1
    loss = np.logaddexp(0, -z * logits).sum() / n
    g = -z * np.exp(-np.logaddexp(0, z * logits)) / n
    return (
        loss,
        t * g @ text,
        t * g.T @ image,
        np.reshape((g * sim).sum() * t, np.shape(log_scale)),
        np.reshape(g.sum(), np.shape(bias)),
    )


@numba.njit
def _numba_rows(image, text, t, b, d_image, d_text):
    n, d = image.shape
    loss, d_t, d_b = 0.0, 0.0, 0.0
    for i in range(n):
        for j in range(n):
            s = 0.0
            for k in range(d):
                s += image[i, k] * text[j, k]
            logit = t * s + b
            x = -logit if i == j else logit
            e = math.exp(-abs(x))
            loss += max(x, 0.0) + math.log1p(e)
            p = 1.0 / (1.0 + e) if x >= 0 else e / (1.0 + e)
            g = (-p if i == j else p) / n
            d_t += g * s
            d_b += g
            for k in range(d):
                d_image[i, k] += t * g * text[j, k]
                d_text[j, k] += t * g * image[i, k]
    return loss / n, d_t * t, d_b


def in_numba(image, text, log_scale, bias):
    """Loops over pairs, all sums in float64."""
    d_image, d_text = np.zeros(image.shape), np.zeros(text.shape)
    t, b = math.exp(float(np.asarray(log_scale).item())), float(np.asarray(bias).item())
    loss, d_t, d_b = _numba_rows(np.ascontiguousarray(image), np.ascontiguousarray(text), t, b, d_image, d_text)
    kind = image.dtype
    return (
        kind.type(loss),
        d_image.astype(kind),
        d_text.astype(kind),
        np.full(np.shape(log_scale), d_t, np.asarray(log_scale).dtype),
        np.full(np.shape(bias), d_b, np.asarray(bias).dtype),
    )


def numpy_chunks(image, text, log_scale, bias, size=64):
    """Chunks of rows into buffers made once."""
    n, kind = len(image), image.dtype
    t, b = kind.type(np.exp(np.float64(np.asarray(log_scale).item()))), kind.type(np.asarray(bias).item())
    d_image, d_text = np.empty_like(image), np.zeros_like(text)
    loss = d_log_scale = d_bias = np.float64(0)
    for start in range(0, n, size):
        rows = image[start : start + size]
        sim = np.einsum("id,jd->ij", rows, text)
        here = np.arange(len(rows))
        x = t * sim + b
        x[here, start + here] *= -1
        e = np.exp(-np.abs(x))
        loss += (np.maximum(x, 0) + np.log1p(e)).sum(dtype=np.float64)
        g = np.where(x >= 0, 1 / (1 + e), e / (1 + e))
        g[here, start + here] *= -1
        d_image[start : start + size] = t / n * (g @ text)
        d_text += t / n * (g.T @ rows)
        d_log_scale += (g * sim).sum(dtype=np.float64) * t / n
        d_bias += g.sum(dtype=np.float64) / n
    shape = np.shape(log_scale), np.shape(bias)
    return kind.type(loss / n), d_image, d_text, np.full(shape[0], d_log_scale), np.full(shape[1], d_bias)


# ---------------------------------------------------------------- the programs

UNIT, RAW = {"scale": "log", "embeddings": "unit"}, {"scale": "log", "embeddings": "raw"}


def _right(fn, same, framework="torch", given=UNIT):
    return {"fn": fn, "framework": framework, "given": dict(given), "truth": "SigLIP's own", "same": [same]}


PROGRAMS = {
    "right: module with own scale and bias": _right(
        SigLIPLoss(),
        "nn.Module with logit_scale (log) and logit_bias, F.normalize inside, logsigmoid, sum / B",
        given={"embeddings": "raw", "parameters": {"logit_scale": "log_scale", "logit_bias": "bias"}},
    ),
    "right: module with a temperature": _right(
        TemperatureLoss(),
        "nn.Module that divides by a temperature (0-d) and adds b (1,); BCE with logits, summed by row, mean of rows",
        given={"embeddings": "unit", "parameters": {"temperature": "temperature", "b": "bias"}},
    ),
    "right: open_clip's class": _right(
        OpenClipLoss(), "open_clip's SigLipLoss on one rank, given exp(t')", given={"scale": "linear", "embeddings": "unit"}
    ),
    "right: growing label buffer": _right(GrowingLabels(), "labels cached in a buffer that grows; a corner of it is used"),
    "right: torch.compile, eager": _right(compiled_eager, "Hugging Face's lines, torch.compile(backend='eager')"),
    "right: torch.compile, aot_eager": _right(compiled_aot, "logaddexp(0, (1 - 2 eye) l), aot_eager, dynamic shapes"),
    "right: torch.compile, inductor": _right(compiled_inductor, "signs by torch.where, compiled by inductor, dynamic"),
    "right: torch.jit.script": _right(scripted, "scripted loop over rows, in which signs are written in place"),
    "right: torch.func.vmap": _right(mapped_pairs, "vmap of vmap of the loss of a pair"),
    "right: autograd.Function": _right(fused_function, "own backward in chunks of 32 rows, logits computed again"),
    "right: surrogate": _right(surrogate, "gradients by hand under no_grad; value + sum (x - x.detach()) * gradient"),
    "right: hooks": _right(watched, "boolean masks for positives and negatives; hooks look at gradients, retain_grad"),
    "right: checkpoint": _right(checkpointed_rows, "rows of 16 under torch.utils.checkpoint, not reentrant"),
    "right: reentrant checkpoint": _right(
        CheckpointedModule(), "blocks of 24 x 24 under reentrant checkpoints of a module's method; it counts calls"
    ),
    "right: in place": _right(in_place_chunks, "texts in chunks of 50, logits and sum changed in place"),
    "right: both ways": _right(bce_both_ways, "half of images-to-texts plus texts-to-images, which are equal; BCE"),
    "right: mean times B": _right(bce_mean_times_n, "B times the mean BCE with logits of all B * B pairs"),
    "right: softplus by hand": _right(logaddexp_log1p, "max(x, 0) + log1p(exp(-|x|)), x = -z l"),
    "right: float64 sum": _right(double_sum, "products in the given format, logsigmoid and sum in float64, cast back"),
    "right: autocast off": _right(autocast_off, "raw rows, autocast off inside, norms by .norm().clamp_min", given=RAW),
    "right: partial": _right(with_partial, "functools.partial with lru_cached signs; normalises raw rows", given=RAW),
    "right: decorated": _right(decorated, "under functools.wraps that counts calls; tril, triu and diag"),
    "right: dataclass": _right(
        SigmoidLoss(scale_is_log=False),
        "a dataclass with __call__ given exp(t'), products by broadcasting; keeps a history",
        given={"scale": "linear", "embeddings": "unit"},
    ),
    "right: big_vision": _right(big_vision, "big_vision's lines under jit", "jax"),
    "right: optax": _right(with_optax, "optax.sigmoid_binary_cross_entropy, rows normalised with rsqrt", "jax", RAW),
    "right: scan of checkpoints": _right(scanned, "lax.scan over padded chunks of 16 texts, jax.checkpoint", "jax"),
    "right: lax.map": _right(row_by_row, "lax.map over rows, the own logit's sign by .at[].multiply", "jax"),
    "right: custom_vjp": _right(closed_form, "closed-form gradients, logits computed again", "jax"),
    "right: static arguments": _right(static_blocks, "jit with static block size, unrolled Python loop", "jax"),
    "right: vmap of pairs": _right(pairs_in_vmap, "vmap of vmap of the loss of a pair", "jax"),
    "right: pytree module": _right(pytree_module, "a registered pytree class under a jit made at every call", "jax"),
    "right: NumPy": _right(in_numpy, "closed form with logaddexp", "numpy"),
    "right: Numba": _right(in_numba, "loops over pairs in Numba, sums in float64", "numpy"),
    "right: NumPy in chunks": _right(numpy_chunks, "chunks of 64 rows into buffers, numbers summed in float64", "numpy"),
}
