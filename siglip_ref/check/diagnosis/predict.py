"""What the reference gives at a probe when mistakes of the catalogue are made in it: in one process, or on ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from siglip_ref.check.expected.expected import Convention
from siglip_ref.check.expected.probes import Probe
from siglip_ref.mistakes import Edit, Mistake, Reference, entries, executable, reference
from siglip_ref.ops.elementary import Array

# An overflow is part of how a mistake looks, so it is made in an arithmetic of the same range.
_RANGE: dict[str, Any] = {"float64": np.float64, "float32": np.float32, "bfloat16": np.float32, "float16": np.float16}


ONE_SIDE = "one-side-not-normalised"  # made where towers meet; a loss that normalises does so itself, here


@dataclass(frozen=True)
class Context:
    """The call that a probe's label stands for. sizes: pairs of each rank; one number: one process; final: gradients
    of scale and bias were taken as each rank holds them."""

    probe: Probe
    convention: Convention
    sizes: tuple[int, ...]
    final: bool = False


class Predicted(dict[tuple[str, str], Array]):
    """What the reference gives with mistakes made in it, by label and tensor; computed where it is asked for."""

    def __init__(self, mistakes: Sequence[Mistake], contexts: Mapping[str, Context], dtype: str) -> None:
        super().__init__()
        self._how = mistakes, contexts, dtype

    def __missing__(self, key: tuple[str, str]) -> Array:
        mistakes, contexts, dtype = self._how
        label, name = key
        call = contexts[label]
        sizes = call.sizes if len(call.sizes) > 1 else None
        values = predict_loss(mistakes, call.probe, call.convention, dtype, sizes, call.final)
        self.update({(label, tensor): value for tensor, value in values.items()})
        return self[label, name]


def suspects(ranks: bool) -> list[Mistake]:
    """All mistakes that a loss can show, on one rank or on several; also in the form that autograd gives them."""
    forms = [*executable(), *entries("differentiated")]
    between = [mistake for mistake in forms if mistake.kind == "across ranks"] if ranks else []
    return between + [mistake for mistake in forms if mistake.kind == "one vector" and in_the_loss(mistake)]


def in_the_loss(mistake: Mistake) -> bool:
    """Whether a mistake is made where a loss alone would show it."""
    return mistake.home == "loss"


def predict_loss(
    mistakes: Sequence[Mistake],
    probe: Probe,
    convention: Convention,
    dtype: str,
    sizes: Sequence[int] | None = None,
    final: bool = False,
) -> dict[str, Array]:
    """Loss and gradients by tensor name, with these mistakes made.

    Parameters
    ----------
    mistakes : none: the reference as it is
    probe, convention, dtype : as in the check
    sizes : pairs of each rank; None: one process
    final : scale and bias have the gradient of the rank that differs most from the others, not the ranks' mean

    Raises
    ------
    ValueError : two of the mistakes change the same line
    """
    spec = _with_edits(tuple(edit for mistake in mistakes for edit in mistake.edits))
    kind = _RANGE[dtype]
    scale = kind(probe.scale if convention.scale == "linear" else np.exp(probe.log_scale))
    log_scale, bias = np.asarray(np.log(scale), kind), np.asarray(probe.bias, kind)
    x, y = probe.image_embed.astype(kind), probe.text_embed.astype(kind)
    caches: list[Any] = []
    if convention.embeddings == "raw":
        eps = 1e-8 if convention.norm == "additive" else 0.0
        (x_unit, x_cache), (y, y_cache) = (spec.ops.normalize.forward(rows, convention.norm, eps) for rows in (x, y))
        caches = [x_cache, y_cache]
        one_side = any(mistake.id == ONE_SIDE for mistake in mistakes)
        x = x if one_side else x_unit
    if sizes is None:
        loss, d_x, d_y, d_log_scale, d_bias = spec.loss.sigmoid_loss(x, y, log_scale, bias)
    else:
        loss, d_x, d_y, d_log_scale, d_bias = _on_ranks(spec, x, y, log_scale, bias, sizes, final)
    if caches:
        d_x_raw, d_y = (spec.ops.normalize.backward(d, cache) for d, cache in zip((d_x, d_y), caches, strict=True))
        d_x = d_x if one_side else d_x_raw
    by_scale = {"scale": d_log_scale / scale} if convention.scale == "linear" else {"log_scale": d_log_scale}
    return {"loss": loss, "image_embed": d_x, "text_embed": d_y} | by_scale | {"bias": d_bias}


@lru_cache(maxsize=1024)
def _with_edits(edits: tuple[Edit, ...]) -> Reference:
    """One copy of the reference for all probes of a check."""
    return reference(edits)


def _on_ranks(
    spec: Reference, x: Array, y: Array, log_scale: Array, bias: Array, sizes: Sequence[int], final: bool
) -> tuple[Array, ...]:
    """All ranks' shares, put together as one process would see them."""
    ends = np.cumsum(sizes)[:-1]
    shares, _ = spec.procedures.distributed_loss(np.split(x, ends), np.split(y, ends), log_scale, bias)
    loss = sum(share.loss for share in shares)
    d_x, d_y = (np.concatenate([share[place] for share in shares]) for place in (1, 2))
    of_scalars = (np.array([share[place] for share in shares]) for place in (3, 4))
    d_log_scale, d_bias = (odd_one(parts) if final else parts.mean() for parts in of_scalars)
    return loss, d_x, d_y, d_log_scale, d_bias


def odd_one(parts: Array) -> Array:
    """Of one number per rank, which should be the same, the one that differs most; one that is not finite first."""
    lost = ~np.isfinite(parts)
    return np.array(parts[lost.argmax() if lost.any() else np.abs(parts - np.median(parts)).argmax()])
