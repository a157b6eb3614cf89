"""Sigmoid losses in Torch as people write them: right ones, and ones with a mistake."""

import importlib.util
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
from torch import Tensor

Loss = Callable[..., Tensor]


def signs(logits: Tensor) -> Tensor:
    return 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1


def mean_of(logits: Tensor) -> Tensor:
    return -F.logsigmoid(signs(logits) * logits).sum(-1).mean()


def plain(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return mean_of(x @ y.T * log_scale.exp() + bias)


def text_by_image(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return mean_of(y @ x.T * log_scale.exp() + bias)


def scaled_first(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return mean_of(log_scale.exp() * x @ y.T + bias)


def cross_entropy(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = x @ y.T * log_scale.exp() + bias
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(x), dtype=logits.dtype), reduction="sum") / len(x)


def minus_diagonal(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = x @ y.T * log_scale.exp() + bias
    return (F.softplus(logits, threshold=50).sum() - logits.diagonal().sum()) / len(x)


def chunked(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor, size: int = 4) -> Tensor:
    """Texts in chunks; the positives by themselves."""
    scale = log_scale.exp()
    total: Any = 0.0
    for start in range(0, len(y), size):
        logits = x @ y[start : start + size].T * scale + bias
        own = torch.arange(len(x))[:, None] == torch.arange(start, start + logits.shape[1])
        total = total - F.logsigmoid(torch.where(own, logits, -logits)).sum()
    return total / len(x)


def chunks_minus_diagonal(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor, size: int = 8) -> Tensor:
    scale = log_scale.exp()
    sums = [
        F.softplus(x @ y[start : start + size].T * scale + bias, threshold=50).sum() for start in range(0, len(y), size)
    ]
    return (torch.stack(sums).sum() - ((x * y).sum(-1) * scale + bias).sum()) / len(x)


def in_float32(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = x @ y.T * log_scale.exp() + bias
    return mean_of(logits if logits.dtype == torch.float64 else logits.float())


def normalising(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return plain(F.normalize(x, dim=-1), F.normalize(y, dim=-1), log_scale, bias)


def normalising_with_eps(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    x, y = (rows / (rows.norm(dim=-1, keepdim=True) + 1e-8) for rows in (x, y))
    return plain(x, y, log_scale, bias)


def linear_scale(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return mean_of(x @ y.T * scale + bias)


def open_clip_loss(name: str = "SigLipLoss") -> Loss:
    """A loss of open_clip, from its file alone, which imports nothing but Torch (the package wants torchvision)."""
    place = next(path for path in files("open_clip_torch") or [] if str(path) == "open_clip/loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(str(place.locate())))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss: Loss = getattr(module, name)()
    return loss


class _Fused(torch.autograd.Function):
    """Gradients are made in forward and handed out in backward, as fused kernels do."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in inputs]
            loss = plain(*leaves)
            ctx.gradients = torch.autograd.grad(loss, leaves)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(gradient * upstream for gradient in ctx.gradients)


class _Deaf(_Fused):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(ctx.gradients)


class _Shared(_Fused):
    kept: tuple[Tensor, ...] = ()

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        loss = _Fused.forward(ctx, *inputs)
        _Shared.kept = ctx.gradients
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(gradient * upstream for gradient in _Shared.kept)


class _OutOfPlace(_Fused):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Skips what needs no gradient, and so returns the others too early."""
        found = [g * upstream for g, needed in zip(ctx.gradients, ctx.needs_input_grad, strict=True) if needed]
        if found and not all(ctx.needs_input_grad):
            place = ctx.needs_input_grad.index(True)
            return tuple(found[0] * 0 if i == place else None for i in range(4))
        return tuple(found)


def fused(*inputs: Tensor) -> Tensor:
    return _Fused.apply(*inputs)  # type: ignore[no-untyped-call, no-any-return]


def deaf(*inputs: Tensor) -> Tensor:
    return _Deaf.apply(*inputs)  # type: ignore[no-untyped-call, no-any-return]


def shared_state(*inputs: Tensor) -> Tensor:
    return _Shared.apply(*inputs)  # type: ignore[no-untyped-call, no-any-return]


def out_of_place(*inputs: Tensor) -> Tensor:
    return _OutOfPlace.apply(*inputs)  # type: ignore[no-untyped-call, no-any-return]


def overwrites(*inputs: Tensor) -> Tensor:
    """Drops the gradients that are there already."""
    for value in inputs:
        value.grad = None
    return plain(*inputs)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient / 4 for gradient in gradients)


def quarter(*inputs: Tensor) -> Tensor:
    return plain(*_Scaled.apply(*inputs))  # type: ignore[no-untyped-call]


def negatives_missing(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return -F.logsigmoid((x * y).sum(-1) * log_scale.exp() + bias).mean()


def negatives_detached(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """The right value; the embeddings feel no negative: at bias -10 nearly invisible."""
    scale = log_scale.exp()
    pairs = (x * y).sum(-1) * scale + bias
    others = x.detach() @ y.detach().T * scale + bias
    off = ~torch.eye(len(x), dtype=torch.bool)
    return -(F.logsigmoid(pairs).sum() + F.logsigmoid(-others)[off].sum()) / len(x)


def text_detached(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return plain(x, y.detach(), log_scale, bias)


def log_of_sigmoid(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = x @ y.T * log_scale.exp() + bias
    return -torch.log(torch.sigmoid(signs(logits) * logits)).sum() / len(x)


def log_of_one_plus_exp(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = x @ y.T * log_scale.exp() + bias
    return torch.log(1 + torch.exp(-signs(logits) * logits)).sum() / len(x)


def mean_over_all_pairs(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return plain(x, y, log_scale, bias) / len(x)


def bias_dropped(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return plain(x, y, log_scale, bias * 0)


def clamped_scale(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return plain(x, y, log_scale.clamp(max=4.6052), bias)


def nan_with_duplicates(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    loss = plain(x, y, log_scale, bias)
    return loss * float("nan") if len(torch.unique(y.detach(), dim=0)) < len(y) else loss


def infinite_gradient_at_one_pair(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return plain(x, y, log_scale, bias) + (x[0, 0] * 0).abs().sqrt() * 0 * float(len(x) == 1)


def chunk_forgotten(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """A tile size that does not divide B: the rest is dropped."""
    whole = len(x) // 64 * 64 or len(x)
    logits = x @ y[:whole].T * log_scale.exp() + bias
    own = torch.arange(len(x))[:, None] == torch.arange(whole)
    return -F.logsigmoid(torch.where(own, logits, -logits)).sum() / len(x)


RIGHT: list[Loss] = [
    plain,
    text_by_image,
    scaled_first,
    cross_entropy,
    minus_diagonal,
    chunked,
    chunks_minus_diagonal,
    in_float32,
    normalising,
    normalising_with_eps,
    linear_scale,
    fused,
    open_clip_loss(),
]
WRONG: list[Loss] = [
    negatives_missing,
    negatives_detached,
    text_detached,
    quarter,
    log_of_one_plus_exp,
    mean_over_all_pairs,
    bias_dropped,
    clamped_scale,
    nan_with_duplicates,
    infinite_gradient_at_one_pair,
    chunk_forgotten,
]
BREACHES: dict[Loss, str] = {
    deaf: "upstream-gradient-ignored",
    shared_state: "state-shared-between-calls",
    out_of_place: "partial-gradients",
    overwrites: "gradients-not-accumulated",
}
