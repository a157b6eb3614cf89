"""Right sigmoid losses in Torch that took no part in setting any tolerance; the known ones are RIGHT in tests."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
from torch import Tensor


def _own(logits: Tensor) -> Tensor:
    return torch.eye(*logits.shape, dtype=torch.bool)


def _mean(logits: Tensor) -> Tensor:
    return F.softplus(torch.where(_own(logits), -logits, logits), threshold=50).sum() / len(logits)


def softplus(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return _mean(x @ y.T * log_scale.exp() + bias)


def logaddexp(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = log_scale.exp() * (x @ y.T) + bias
    signed = torch.where(_own(logits), -logits, logits)
    return torch.logaddexp(torch.zeros_like(signed), signed).sum(1).mean()


def step_by_step(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Softplus from elementary functions, each of which rounds."""
    logits = log_scale.exp() * (x @ y.T) + bias
    signed = torch.where(_own(logits), -logits, logits)
    above = torch.maximum(signed, torch.zeros_like(signed))
    return (above + torch.log1p(torch.exp(-signed.abs()))).sum() / len(x)


def mean_times_pairs(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = x @ y.T * log_scale.exp() + bias
    return -F.logsigmoid(logits * (2 * torch.eye(len(x), dtype=logits.dtype) - 1)).mean() * len(x)


def by_einsum(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return _mean(torch.einsum("id,jd->ij", x * log_scale.exp(), y) + bias)


def by_linear(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """The bias inside the product's own addition."""
    return _mean(F.linear(x * log_scale.exp(), y, bias.to(x.dtype).expand(len(y))))


def scaled_texts(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return _mean((x @ (log_scale.exp() * y).T).add(bias))


def both_halves(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """From images to texts and from texts to images, halved: the same sum twice."""
    logits = x @ y.T * log_scale.exp() + bias
    return (_mean(logits) + _mean(logits.T)) / 2


def upcast_first(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Everything in at least float32, whatever comes in."""
    kind = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        return softplus(*(value.to(kind) for value in (x, y, log_scale, bias)))


def all_in_float64(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return softplus(*(value.double() for value in (x, y, log_scale, bias))).to(x.dtype)


def positives_apart(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Positives as rows' own products, negatives with the diagonal masked out."""
    scale = log_scale.exp()
    logits = x @ y.T * scale + bias
    positives = (x * y).sum(-1) * scale + bias
    negatives = F.logsigmoid(-logits).masked_fill(_own(logits), 0.0)
    return -(F.logsigmoid(positives).sum() + negatives.sum()) / len(x)


def tiles(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Rectangular tiles, added up in float32 at least."""
    sums, side = [], max(7, len(x) // 40)
    for top in range(0, len(x), side):
        for left in range(0, len(y), side):
            logits = x[top : top + side] @ y[left : left + side].T * log_scale.exp() + bias
            own = (torch.arange(len(logits)) + top)[:, None] == (torch.arange(logits.shape[1]) + left)
            sums.append(F.softplus(torch.where(own, -logits, logits), threshold=50).sum())
    kind = torch.promote_types(x.dtype, torch.float32)
    return torch.stack(sums).to(kind).sum().div(len(x)).to(sums[0].dtype)


def recomputed(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Chunks of images whose logits are computed again on the way back."""

    def part(rows: Tensor, start: int) -> Tensor:
        logits = rows @ y.T * log_scale.exp() + bias
        own = (torch.arange(len(rows)) + start)[:, None] == torch.arange(len(y))
        return F.binary_cross_entropy_with_logits(logits, own.to(logits.dtype), reduction="sum") / len(x)

    parts = [
        torch.utils.checkpoint.checkpoint(part, x[start : start + 6], start, use_reentrant=False)
        for start in range(0, len(x), 6)
    ]
    return torch.stack(parts).sum()


def mapped(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """One image after the other, by vmap."""

    def row(image: Tensor, own: Tensor) -> Tensor:
        logits = y @ image * log_scale.exp() + bias
        return F.softplus(torch.where(own, -logits, logits), threshold=50).sum()

    return torch.vmap(row)(x, torch.eye(len(x), dtype=torch.bool)).sum() / len(x)


class _ByHand(torch.autograd.Function):
    """The backward of the paper's algorithm, written down; sums over pairs in float32 at least."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        kind = torch.promote_types(x.dtype, torch.float32)
        similarity = (x @ y.T).to(kind)
        logits = log_scale.to(kind).exp() * similarity + bias.to(kind)
        ctx.save_for_backward(x, y, log_scale, bias, similarity, logits)
        return _mean(logits).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        x, y, log_scale, bias, similarity, logits = ctx.saved_tensors
        scale = log_scale.to(logits.dtype).exp()
        d_logits = upstream.to(logits.dtype) / len(x) * (torch.sigmoid(logits) - _own(logits).to(logits.dtype))
        d_similarity = (scale * d_logits).to(x.dtype)
        d_scale = (d_logits * similarity).sum() * scale
        return d_similarity @ y, d_similarity.T @ x, d_scale.to(log_scale.dtype), d_logits.sum().to(bias.dtype)


def by_hand(*inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return _ByHand.apply(*inputs)


def linear_tiles(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Given the scale itself."""
    parts = [_rows(x[i : i + 4], y, scale, bias, i) for i in range(0, len(x), 4)]
    return torch.cat(parts).sum() / len(x)


def _rows(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, start: int) -> Tensor:
    logits = torch.matmul(x, y.T) * scale + bias
    own = (torch.arange(len(x)) + start)[:, None] == torch.arange(len(y))
    return F.softplus(torch.where(own, -logits, logits), threshold=50).flatten()


def unit_by_root(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Normalises by the inverse root of the sum of squares."""
    x, y = (rows * rows.square().sum(-1, keepdim=True).rsqrt() for rows in (x, y))
    return softplus(x, y, log_scale, bias)


def unit_by_norm(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    x, y = (rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True) for rows in (x, y))
    return softplus(x, y, log_scale, bias)


PLAIN = (
    softplus, logaddexp, step_by_step, mean_times_pairs, by_einsum, by_linear, scaled_texts, both_halves, upcast_first,
    all_in_float64, positives_apart, tiles, recomputed, mapped, by_hand,
)  # fmt: skip
LINEAR = (linear_tiles,)
RAW = (unit_by_root, unit_by_norm)
