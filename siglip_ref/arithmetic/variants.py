"""What correct programs do differently from the specification: the same mathematics, other rounding.

Two kinds. A fused kernel computes inside in float32 and rounds only what it returns. And the loss has several equal
forms: a matching pair's gradient as sigmoid(l) - 1 (binary cross-entropy) or -sigmoid(-l), the scale multiplied
into the embeddings or into the similarity.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import numpy as np

from siglip_ref.arithmetic.rounded import ACCUMULATOR, FORMATS, Format, Rounded, cast
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array, number, sigmoid, softplus
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.ops.record import Ops, Pair

Positives = Literal["signed", "subtracted", "crossed", "apart"]
LossForm = tuple[Positives, bool, bool]  # the arguments of `pair_block`

# Torch's and XLA's kernels of these take a narrow format, compute in float32 and round once.
KERNELS = (
    *(
        f"{name}_{way}"
        for name in ("linear", "layer_norm", "gelu", "softmax", "normalize")
        for way in ("forward", "backward")
    ),
    "softplus",
    "sigmoid",
)


@dataclass(frozen=True, repr=False)
class Variant(Ops):
    """Operations, and how a loss made of them goes about it: the form of its block (None: the specification's), in how
    many tiles a side, and whether it normalises unit rows once more."""

    form_of_loss: LossForm | None = None
    tiles: int = 1
    normalises_again: bool = False


def fused(kernels: Iterable[str] = KERNELS) -> Variant:
    """The specification with these operations computed in float32, results rounded to the format of the inputs."""
    changes: dict[str, Any] = {}
    for kernel in kernels:
        name, _, way = kernel.rpartition("_")
        if way in Pair._fields:
            pair: Pair = changes.get(name, getattr(SPECIFICATION, name))
            changes[name] = pair._replace(**{way: _widened(getattr(pair, way), way == "forward")})
        else:
            changes[kernel] = _widened(getattr(SPECIFICATION, kernel), False)
    return Variant(**vars(SPECIFICATION) | changes)


PLAIN = fused(())  # the specification itself, as a variant


def _widened(function: Callable[..., Any], has_cache: bool) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any) -> Any:
        narrow = min((x.rounding.format for x in args if isinstance(x, Rounded)), key=lambda form: form.bits)
        out = function(*_cast_all(args, ACCUMULATOR))
        # what a kernel keeps for its backward it keeps unrounded
        return (cast(out[0], narrow), out[1]) if has_cache else _cast_all(out, narrow)

    return run


def _cast_all(x: Any, form: Format) -> Any:
    if not isinstance(x, tuple):
        return cast(x, form)
    items = [_cast_all(item, form) for item in x]
    return x._make(items) if hasattr(x, "_make") else tuple(items)  # a cache keeps its names


def pair_block(
    positives: Positives, scale_first: bool, by_logarithm: bool = False, pairs: int | None = None
) -> Callable[..., LossAndGrads]:
    """`siglip_ref.ops.pair_block` in another of its equal forms, gradients as autograd makes them: 1 / B comes first.

    Parameters
    ----------
    positives : "signed", softplus(-l), as the specification; "subtracted", softplus(l) - l per pair (binary
        cross-entropy); "crossed", (1 - match) l + softplus(-l), Torch's form of that; "apart", sum of softplus(l) over
        all pairs, minus the sum of l over the matching ones, whose similarities are computed by themselves
    scale_first : the scale multiplied into the image embeddings, not into the similarity
    by_logarithm : the sigmoid as exp(l - softplus(l)), which is how JAX differentiates softplus
    pairs : B, if the block is a part of a batch
    """
    gate = _sigmoid_by_logarithm if by_logarithm else sigmoid

    def block(
        x: Array, y: Array, log_scale: Array, bias: Array, match: Array, weights: Array | None = None
    ) -> LossAndGrads:
        def counted(of_pairs: Array) -> Array:
            return of_pairs if weights is None else weights * of_pairs

        scale = np.exp(log_scale)
        similarity = x @ y.T
        whole = pairs or len(x)
        share = number(1, similarity) / whole
        logits = ((scale * x) @ y.T if scale_first else scale * similarity) + bias
        if positives == "signed":
            loss = counted(softplus(np.where(match, -logits, logits))).sum()
            d_logits = np.where(match, -gate(-logits), gate(logits))
        elif positives == "subtracted":
            loss = counted(softplus(logits) - np.where(match, logits, 0)).sum()
            d_logits = gate(logits) - match
        elif positives == "crossed":
            loss = counted(np.where(match, 0, logits) + softplus(-logits)).sum()
            d_logits = gate(logits) - match
        else:
            loss, d_logits = counted(softplus(logits)).sum(), gate(logits)
        d_logits = counted(share * d_logits)
        d_similarity = scale * d_logits
        if scale_first:
            d_x, d_y = scale * (d_logits @ y), d_logits.T @ (scale * x)
        else:
            d_x, d_y = d_similarity @ y, d_similarity.T @ x
        d_log_scale, d_bias = (d_similarity * similarity).sum(), d_logits.sum()
        if positives == "apart":
            i, j = np.nonzero(match)
            own = (x[i] * y[j]).sum(-1)  # (matching pairs,)
            shares = np.full_like(own, share) if weights is None else weights[i, j] * np.full_like(own, share)
            loss = loss - (scale * own + bias if weights is None else weights[i, j] * (scale * own + bias)).sum()
            d_own = scale * shares
            d_x, d_y = d_x - _placed(d_own[:, None] * y[j], i, x), d_y - _placed(d_own[:, None] * x[i], j, y)
            d_log_scale, d_bias = d_log_scale - (d_own * own).sum(), d_bias - shares.sum()
        return LossAndGrads(loss, *(whole * d for d in (d_x, d_y, d_log_scale, d_bias)))

    return block


def softmax_loss(
    positives: Positives, scale_first: bool, by_logarithm: bool = False
) -> Callable[..., tuple[Array, ...]]:
    """`siglip_ref.ops.softmax_loss` in another of its equal forms, gradients as autograd makes them.

    Parameters
    ----------
    positives : "signed", the logarithm of each softmax first, as cross-entropy does; "subtracted", each logit from its
        logarithm of a sum; "apart", the mean of logits from the mean of those, and the logits of the gradient
        computed anew, see `logits_twice`
    scale_first : the scale multiplied into one side's embeddings, and the second direction a product of its own
    by_logarithm : the softmax as exp of its logarithm
    """

    def loss(x: Array, y: Array, log_scale: Array, *, bias: Array | None = None) -> tuple[Array, ...]:
        scale = np.exp(log_scale)
        pairs, similarity = len(x), x @ y.T
        own, share = np.eye(pairs, dtype=bool), number(1, similarity) / (2 * pairs)
        total, slopes = 0, []
        of_rows = logits_twice(positives, scale_first, x, y, scale, bias)
        of_columns = logits_twice(positives, True, y, x, scale, bias) if scale_first else [one.T for one in of_rows]
        for logits, anew in (of_rows, of_columns):
            top = logits.max(-1, keepdims=True)
            sums = np.exp(logits - top).sum(-1, keepdims=True)
            of_sums = top + np.log(sums)
            logarithms = logits - of_sums if positives == "apart" else logits - top - np.log(sums)
            if positives == "signed":
                total = total - logarithms[own].sum() / pairs
            elif positives == "apart":
                total = total + of_sums.sum() / pairs - logits[own].sum() / pairs
            else:
                total = total + (of_sums[:, 0] - logits[own]).sum() / pairs
            if not by_logarithm:
                chance = np.exp(anew - top) / sums
            else:
                chance = np.exp(anew - of_sums if positives == "apart" else logarithms)
            slopes.append(share * (chance - own))
        d_logits = slopes[0] + slopes[1].T
        if scale_first:
            d_x, d_y = scale * (d_logits @ y), d_logits.T @ (scale * x)
            return total / 2, d_x, d_y, (d_x * x).sum()
        d_similarity = scale * d_logits
        return total / 2, d_similarity @ y, d_similarity.T @ x, (d_similarity * similarity).sum()

    return loss


def logits_twice(
    positives: Positives, scale_first: bool, x: Array, y: Array, scale: Array, bias: Array | None
) -> list[Array]:
    """The logits of a softmax's sums, and those of its gradient.

    A loss that keeps no (B, B) matrix computes them anew, by another product: what it subtracts then errs otherwise.
    In 16 bits such a loss computes in float32 inside, and "apart" is there as the others.
    """
    own = _logits(scale_first, x, y, scale)
    anew = _logits(not scale_first, x, y, scale) if positives == "apart" and not _in_16_bits(x) else own
    return [own, anew] if bias is None else [own + bias, anew + bias]


def _logits(scale_first: bool, x: Array, y: Array, scale: Array) -> Array:
    return (scale * x) @ y.T if scale_first else scale * (x @ y.T)


def _in_16_bits(x: Array) -> bool:
    return isinstance(x, Rounded) and (x.rounding.product_in or x.rounding.format).bits < FORMATS["float32"].bits


def _sigmoid_by_logarithm(logits: Array) -> Array:
    return np.exp(logits - softplus(logits))


def _placed(rows: Array, places: Array, like: Array) -> Array:
    out = np.zeros_like(like)
    np.add.at(out, places, rows)
    return out
