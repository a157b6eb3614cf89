"""What the reference gives at a probe when mistakes of the catalogue are made in it: in one process, or on ranks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from siglip_ref.check.engine.coverage import sight
from siglip_ref.check.engine.expected.convention import Convention, Objective, as_given
from siglip_ref.check.engine.expected.expected import Truth
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.expected.tolerance import SAFETY
from siglip_ref.mistakes import CATALOGUE, ONE_SIDE, Edit, Mistake, Reference, executable, reference, suspects
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Sight

EMBEDS = ("image_embed", "text_embed")
UNIT_ROWS = 'in normalising (rows are unit here: embeddings="raw", or check_model)'
OF_SIGMOID = {m.id: "in the sigmoid loss (check_loss)" for m in CATALOGUE.values() if m.home == "loss"}
OF_BIAS = {"logit-bias-dropped", "logit-bias-init", "bias-subtracted"}
TILED = "ops/sigmoid_loss.py"  # where own pairs are those on the diagonal, and count once
# An overflow is part of how a mistake looks, so it is made in an arithmetic of the same range.
_RANGE: dict[str, Any] = {"float64": np.float64, "float32": np.float32, "bfloat16": np.float32, "float16": np.float16}


class Half(np.ndarray[Any, Any]):
    """float16 whose products accumulate in float32, as those of kernels do; NumPy's own take thirty times as long."""

    def __matmul__(self, other: Any) -> Any:
        return _product(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return _product(other, self)


def _product(x: Array, y: Array) -> Array:
    found = np.asarray(x, np.float32) @ np.asarray(y, np.float32)
    return found.astype(np.float16).view(Half)


@dataclass(frozen=True)
class Context:
    """The call that a probe's label stands for. sizes: pairs of each rank; one number: one process; final: gradients
    of scale and bias were taken as each rank holds them; before: the probe of the call before, of the same shape."""

    probe: Probe
    convention: Convention
    sizes: tuple[int, ...]
    final: bool = False
    before: Probe | None = None


class Predicted(dict[tuple[str, str], Array]):
    """What the reference gives with mistakes made in it, by label and tensor; computed where it is asked for."""

    def __init__(self, mistakes: Sequence[Mistake], contexts: Mapping[str, Context], dtype: str) -> None:
        super().__init__()
        self._how = mistakes, contexts, dtype

    def __missing__(self, key: tuple[str, str]) -> Array:
        mistakes, contexts, dtype = self._how
        label, name = key
        call = contexts[label]
        # over ranks mistakes are made in SigLIP's chunked loss; another loss is computed of the whole batch
        sizes = call.sizes if len(call.sizes) > 1 and call.convention.objective.plain else None
        values = predict_loss(mistakes, call.probe, call.convention, dtype, sizes, call.final)
        self.update({(label, tensor): value for tensor, value in values.items()})
        return self[label, name]


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
    scale = np.asarray(probe.scale if convention.linear else np.exp(probe.log_scale), kind)

    def loss(x: Array, y: Array, log_scale: Array, bias: Array) -> LossAndGrads:
        if sizes is None:
            computed = partial(convention.objective.computed, captions=probe.text_embed, ops=spec.ops)
            found: LossAndGrads = computed(x, y, log_scale, bias)
            return found
        return _on_ranks(spec, x, y, log_scale, bias, sizes, final)

    sides = not any(mistake.id == ONE_SIDE for mistake in mistakes), True
    given = as_given(loss, convention.normalises, convention.linear, spec.ops.normalize, sides)
    asked = scale if convention.linear else np.log(scale)
    images, texts = probe.image_embed.astype(kind), probe.text_embed.astype(kind)
    if kind is np.float16:
        images, texts = images.view(Half), texts.view(Half)
    found = given(images, texts, asked, np.asarray(probe.bias, kind))
    return by_tensor(found, convention)


def by_tensor(found: LossAndGrads, convention: Convention) -> dict[str, Array]:
    """Loss and gradients by the names that reports give them."""
    return dict(zip(("loss", *EMBEDS, convention.scale_name, "bias"), found, strict=True))


def given_at(
    loss: Callable[[Array, Array, Array, Array], LossAndGrads], probe: Probe, convention: Convention
) -> dict[str, Array]:
    """Of a loss of unit rows and the scale's logarithm, by tensor name, in float64."""
    scale = probe.scale if convention.linear else probe.log_scale
    x, y = (np.asarray(side, np.float64) for side in (probe.image_embed, probe.text_embed))
    given = as_given(loss, convention.normalises, convention.linear)
    with np.errstate(all="ignore"):
        return by_tensor(given(x, y, np.array(scale), np.array(probe.bias)), convention)


@lru_cache(maxsize=1024)
def _with_edits(edits: tuple[Edit, ...]) -> Reference:
    """One copy of the reference for all probes of a check."""
    return reference(edits)


def loss_sight(
    plain: Mapping[str, tuple[Probe, Truth]],
    details: Sequence[Row],
    convention: Convention,
    dtype: str,
    looked_for: Mapping[str, bool],
    reasons: Mapping[str, str],
) -> Sight:
    """Of a loss in one process: its plain calls by label, as judged in `details`.

    Parameters
    ----------
    looked_for, reasons : as `shown` and `reasons` of `sight`: what is found without an edit that makes it
    """
    judged = {(row.probe, row.name) for row in details if row.right or row.verdict == "FAIL"}

    def effect(mistake: Mistake, dtype: str) -> Iterable[tuple[Array, Array, Array]]:
        for label, (probe, right) in plain.items():
            for name, value in predict_loss([mistake], probe, convention, dtype).items():
                if (label, name) in judged:
                    yield value, right.exact[name], SAFETY * right.noise[name]

    own = [m for m in suspects_of(convention.objective) if m is CATALOGUE[m.id]]
    unfit = {m.id: UNIT_ROWS for m in own if convention.embeddings == "unit" and _normalises(m)}
    mine = [m for m in own if m.id not in unfit]
    beside = {} if convention.objective.plain else OF_SIGMOID
    return sight(mine, dtype, effect, shown=looked_for, reasons=beside | unfit | dict(reasons))


def suspects_of(objective: Objective) -> list[Mistake]:
    """All mistakes that a loss of this kind can show in one process."""
    if objective.kind == "sigmoid":
        found = suspects(ranks=False) if objective.bias else [m for m in suspects(ranks=False) if m.id not in OF_BIAS]
        return [m for m in found if not objective.labelled or all(edit.file != TILED for edit in m.edits)]
    return executable("softmax") + [mistake for mistake in suspects(ranks=False) if _normalises(mistake)]


def _normalises(mistake: Mistake) -> bool:
    """Whether it is made in the division of a row by its length, which a loss that is given unit rows has not."""
    return mistake.id == ONE_SIDE or all(edit.file == "ops/normalize.py" for edit in mistake.edits)


def _on_ranks(
    spec: Reference, x: Array, y: Array, log_scale: Array, bias: Array, sizes: Sequence[int], final: bool
) -> LossAndGrads:
    """All ranks' shares, put together as one process would see them."""
    ends = np.cumsum(sizes)[:-1]
    shares, _ = spec.procedures.distributed_loss(np.split(x, ends), np.split(y, ends), log_scale, bias)
    loss = sum(share.loss for share in shares)
    d_x, d_y = (np.concatenate([share[place] for share in shares]) for place in (1, 2))
    of_scalars = (np.array([share[place] for share in shares]) for place in (3, 4))
    d_log_scale, d_bias = (odd_one(parts) if final else parts.mean() for parts in of_scalars)
    return LossAndGrads(loss, d_x, d_y, d_log_scale, d_bias)


def odd_one(parts: Array) -> Array:
    """Of one number per rank, which should be the same, the one that differs most; one that is not finite first."""
    lost = ~np.isfinite(parts)
    return np.array(parts[lost.argmax() if lost.any() else np.abs(parts - np.median(parts)).argmax()])
