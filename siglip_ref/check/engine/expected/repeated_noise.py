"""The noise of a correct loss at a batch of a real size, where most rows are equal.

Equal pairs round alike, so the errors of 31 copies add up as the values do: relative to the whole they are those of one
copy. One copy of every row, against all rows of the batch, shows them, at 131 / B of the cost.

Sums over the batch need a look of their own: a running sum rounds equal terms alike, so its error grows with how often
a row comes, and products of other libraries run otherwise than those of the machine at hand.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.arithmetic.variants import PLAIN, Variant, logits_twice, pair_block
from siglip_ref.check.engine.expected.convention import as_given
from siglip_ref.check.engine.expected.repeated import Repeated, chances
from siglip_ref.check.engine.expected.tolerance import Given, is_quick, scalars_of, unit_rows_again
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.noise.measure import FLOAT64, REGIMES, Noise, announce, measure
from siglip_ref.noise.quick import FEWER_STILL, quick_noise
from siglip_ref.ops.elementary import Array, number, sigmoid, softplus

# Pairs from which on a loss in 16 bits must not take the small difference of sums that are each rounded: positives
# apart from all pairs, or one tile apart from the next. The gradient of the bias, which is such a difference, must then
# be right to 60 % in bfloat16, whatever drowned it; in float16 underflow may.
LARGE = 2048
BIAS_AT_MOST = 0.1  # times its size
_FACTORS = (1.0, 1.19, 1.41, 1.68)  # at which sums run into the powers of two at other places
# of a sum in a compiled loop on a CPU (of TorchInductor: CascadeSumHelper, in csrc/inductor/cpp_prefix.h)
LANES, RUN = 16, 4096
SOME = 16  # rows whose sums are looked at where it must be quick
TILE = 4  # texts in the smallest tiles that a smaller batch may come in


def repeated_noise(given: Given, probe: Repeated) -> Noise:
    """As `siglip_ref.check.engine.expected.tolerance.loss_noise` gives it, of the distinct rows of a batch of a real
    size."""
    quick = is_quick(given, len(probe.order))
    if not quick:
        announce(f"a loss in {given.regime} at {len(probe.order)} pairs")
    return distinct_noise(given, probe, quick)


@lru_cache(maxsize=64)
def distinct_noise(given: Given, probe: Repeated, quick: bool = False) -> Noise:
    """Of the distinct rows, in the order of `probe.rows`. quick : as `siglip_ref.noise.quick` measures it."""
    arrays = {
        "image_embed": probe.rows[0],
        "text_embed": probe.rows[1],
        "scale": np.array(probe.scale if given.linear else probe.log_scale),
        "bias": np.array(probe.bias if given.objective.bias else 0.0),
    }
    compute = partial(_one_copy, given, probe.order)
    with np.errstate(all="ignore"):
        exact = compute(dict(arrays), PLAIN)
    large, narrow = len(probe.order) >= LARGE, _in_16_bits(given)
    unit = FLOAT64 if given.regime == "float64" else 1.0
    if quick:
        found = quick_noise(compute, arrays, exact, given.regime, batch=False)
        _let_sums_run(found, given, probe, FEWER_STILL * unit, rows=SOME, factors=_FACTORS[:1])
        return found
    # in 16 bits every form is also rounded to nearest: by chance what underflows is right on average
    found = measure(compute, arrays, exact, given.regime, scalars=scalars_of(given), by_row=True, few=not narrow)
    if not narrow:
        _let_sums_run(found, given, probe, unit)
    if large and narrow and "bfloat16" in given.regime:
        found.absolute["d_bias"] = np.minimum(found.absolute["d_bias"], BIAS_AT_MOST * np.abs(exact["d_bias"]))
    return found


def _let_sums_run(
    found: Noise,
    given: Given,
    probe: Repeated,
    unit: float,
    rows: int | None = None,
    factors: Sequence[float] = _FACTORS,
) -> None:
    """Every row's gradient is allowed what the worst of them shows where a product adds one term after the other.

    Parameters
    ----------
    unit : of the arithmetic, in units of float32; rows : that are looked at, the first ones; None: all
    """
    images, texts = probe.rows
    logits = np.exp(probe.log_scale) * (images @ texts.T) + probe.bias
    sizes, worst, whole = {}, 0.0, len(probe.order) ** (2 if given.objective.reduction == "mean" else 1)
    counts = np.bincount(probe.order, minlength=len(images)).astype(float)

    def slope_of(logits: Array) -> Array:
        return sigmoid(logits) if given.objective.kind == "sigmoid" else chances(logits, counts)[0]

    for name, slopes, others in (("d_image_embed", logits, texts), ("d_text_embed", logits.T, images)):
        weights = np.exp(probe.log_scale) / whole * slope_of(slopes)[:, probe.order].T
        # before what normalising takes away
        sizes[name] = np.abs(weights.T @ others[probe.order]).max(-1, keepdims=True)
        for factor in factors:
            seen = factor * weights[:, :rows, None]
            terms = np.float32(seen * others[probe.order][:, None, :])  # (B, distinct rows, D)
            total, running = terms.sum(0, dtype=np.float64), np.add.accumulate(terms, 0)[-1]
            worst = max(worst, (np.abs(running - total) / np.abs(total).max(-1, keepdims=True)).max())
    for name, size in sizes.items():
        found.absolute[name] = np.maximum(found.absolute[name], worst * unit * size)
    if given.objective.kind == "sigmoid":
        _let_scalars_run(found, given, probe, logits, unit)


def _let_scalars_run(found: Noise, given: Given, probe: Repeated, logits: Array, unit: float) -> None:
    """Numbers are allowed what sums over all pairs show in a compiled loop: lanes that each add so many terms."""
    order, own, scale = probe.order, np.arange(len(probe.order)), np.exp(probe.log_scale)
    whole = len(order) ** (2 if given.objective.reduction == "mean" else 1)
    slopes, losses = (of(logits)[np.ix_(order, order)] for of in (sigmoid, softplus))
    slopes[own, own] -= 1
    losses[own, own] -= np.diag(logits)[order]
    of_scale = slopes * ((logits - probe.bias) / (1 if not given.linear else scale))[np.ix_(order, order)]
    for name, terms in (("loss", losses), ("d_log_scale", of_scale), ("d_bias", slopes)):
        worst = max(_run_in_lanes(np.float32(factor / whole * terms)) / factor for factor in _FACTORS)
        found.absolute[name] = np.maximum(found.absolute[name], worst * unit)


def _run_in_lanes(terms: Array) -> float:
    """By how much a sum is off."""
    parts = np.pad(terms.ravel(), (0, -terms.size % (LANES * RUN))).reshape(-1, RUN, LANES)
    running = np.add.accumulate(np.add.reduce(parts, 1), 0)[-1]
    return abs(float(running.sum(dtype=np.float64) - terms.sum(dtype=np.float64)))


def _one_copy(given: Given, order: Array, a: dict[str, Array], ops: Variant) -> dict[str, Array]:
    """Loss and gradients of one copy of each image against all texts, and of each text against all images."""
    copies, pairs = len(a["image_embed"]), len(order)
    block, tiles = _form(given, pairs, ops)

    def sums(images: Array, texts: Array, log_scale: Array, bias: Array) -> LossAndGrads:
        own, loss, d_images, d_texts, d_log_scale, d_bias = np.eye(copies, pairs, dtype=bool), 0, 0, 0, 0, 0
        for part in np.array_split(np.arange(pairs), tiles):
            others = order[part]
            row = block(images, texts[others], log_scale, bias, own[:, part])
            column = block(images[others], texts, log_scale, bias, own[:, part].T)
            loss, d_log_scale, d_bias = loss + row[0], d_log_scale + row[3], d_bias + row[4]
            d_images, d_texts = d_images + row[1], d_texts + column[2]
        return LossAndGrads(loss, d_images, d_texts, d_log_scale, d_bias)

    def of_softmax(images: Array, texts: Array, log_scale: Array, bias: Array) -> LossAndGrads:
        return _softmax_of_one_copy(images, texts, log_scale, bias if given.objective.bias else None, order, ops)

    sums = sums if given.objective.kind == "sigmoid" else of_softmax
    whole = as_given(sums, given.norm, given.linear, ops.normalize)
    x, y = unit_rows_again(given, a["image_embed"], a["text_embed"], ops)
    found = whole(x, y, a["scale"], a["bias"])
    shares = (copies, pairs, pairs, copies, copies)
    found = LossAndGrads(*(value / share for value, share in zip(found, shares, strict=True)))
    return given.objective.reduced(found, pairs)._asdict()


def _softmax_of_one_copy(
    images: Array, texts: Array, log_scale: Array, bias: Array | None, order: Array, ops: Variant
) -> LossAndGrads:
    """The same of the softmax loss: one copy of each row against the whole batch, both ways."""
    positives, scale_first, by_logarithm = ops.form_of_loss or ("signed", False, False)
    scale = np.exp(log_scale)
    own = (order == np.arange(len(images))[:, None]).argmax(-1)  # of the copies of a row one is its own
    blocks, sums = [], []
    for rows, others in ((images, texts), (texts, images)):
        logits, anew = logits_twice(positives, scale_first, rows, others[order], scale, bias)
        top = logits.max(-1, keepdims=True)
        blocks.append((logits, anew, rows @ others[order].T))
        sums.append(top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))
    share, loss, d_log_scale, d_rows = number(1, scale) / (2 * len(order)), 0, 0, []
    for way, others in enumerate((texts, images)):
        logits, anew, similarity = blocks[way]
        mine = np.arange(len(order)) == own[:, None]
        totals = sums[way], sums[1 - way][order].T
        # each direction's slopes begin with 1 / 2B, which in float16 may underflow
        first, second = (share * (_quotient(anew, total, by_logarithm) - mine) for total in totals)
        loss = loss + (sums[way][:, 0] - logits[mine]).sum() / 2
        slopes = scale * (first + second)
        d_rows.append(slopes @ others[order])
        d_log_scale = d_log_scale + (slopes * similarity).sum() / 2
    whole = len(order)
    return LossAndGrads(loss, whole * d_rows[0], whole * d_rows[1], whole * d_log_scale, 0 * d_log_scale)


def _quotient(logits: Array, sums: Array, by_logarithm: bool) -> Array:
    """Each logit's share of a sum of exponentials, of which the logarithm is given."""
    if by_logarithm:
        return np.exp(logits - sums)
    top = logits.max(-1, keepdims=True)
    return np.exp(logits - top) / np.exp(sums - top)


def _form(given: Given, pairs: int, ops: Variant) -> tuple[Any, int]:
    """How this run computes a block, and in how many tiles. Gradients carry 1 / B from the beginning."""
    tiles = ops.tiles
    if not ops.form_of_loss:
        return ops.pair_block, tiles
    positives, scale_first, by_logarithm = ops.form_of_loss
    if _in_16_bits(given):
        positives = "crossed" if positives == "subtracted" else positives
        if pairs >= LARGE:
            tiles, positives = 1, "signed" if positives == "apart" else positives
        elif tiles > 1 and positives == "signed":
            tiles = -(-pairs // TILE)
    return pair_block(positives, scale_first, by_logarithm, pairs), tiles


def _in_16_bits(given: Given) -> bool:
    if given.regime == "float64":
        return False
    rounding = REGIMES[given.regime].rounding
    return (rounding.product_out or rounding.format).bits < FORMATS["float32"].bits
