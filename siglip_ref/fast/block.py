"""The encoder block, forward and backward each one kernel, with all threads at each product: for wide ones.

A residual is added by the matrix product that makes the step. Kept for the backward: query, key, value, what the heads
mixed, the stream, the hidden layer; computed again: tokens after each norm, scores, activations. The backward gives up
what was kept, so that the gradients of a deep model can take its place in memory.
"""

from collections.abc import Mapping
from typing import Any

from siglip_ref.errors import UsageError
from siglip_ref.fast.attention import root_of, seen_by_head
from siglip_ref.fast.gelu import FORMS
from siglip_ref.fast.kernels.block import Kept, Room, backward, forward
from siglip_ref.fast.machine.blas import gemm_address
from siglip_ref.fast.machine.fit import (
    NONE,
    NOTHING,
    Packed,
    as_rows,
    as_stored,
    empty,
    gradient_of,
    layer_shapes,
    same_precision,
    shapes_of,
)
from siglip_ref.fast.machine.pool import parts_for
from siglip_ref.fast.machine.product import MANY
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm

ORDER = (
    "norm1/gamma", "norm1/beta",
    "attn/q/kernel", "attn/q/bias", "attn/k/kernel", "attn/k/bias", "attn/v/kernel", "attn/v/bias",
    "attn/out/kernel", "attn/out/bias",
    "norm2/gamma", "norm2/beta", "mlp/in/kernel", "mlp/in/bias", "mlp/out/kernel", "mlp/out/bias",
)  # fmt: skip


class BlockCache:
    """What the backward needs: x, weights if some were packed, as read, mask, heads, form, eps, `Kept`. Taken once."""

    __slots__ = ("_all",)

    def __init__(self, *everything: Any) -> None:
        self._all = everything

    def take(self, d_out: Array) -> tuple[Any, ...]:
        """All of it, for the last time, if d_out is a gradient of the forward's result.

        Raises
        ------
        UsageError : it was taken before, or d_out is none; then nothing is lost
        """
        everything = self._all
        if not everything:
            raise UsageError(
                expected="one backward for each forward",
                got="a second backward with the same cache",
                cause="compiled blocks give up what they kept as soon as they have used it, which halves the memory",
                repair="call the forward again, or use siglip_ref.ops, whose caches last",
            )
        gradient_of(d_out, everything[-1].query.shape, everything[0])
        self._all = ()
        return everything


def block_forward(
    x: Array, weights: Mapping[str, Array], heads: int, gelu: GeluForm, eps: float, mask: Array | None
) -> tuple[Array, Array, Any]:
    """Twin of `siglip_ref.model.encoder.block_forward`."""
    return block_with(NONE, x, weights, heads, gelu, eps, mask)


def block_with(
    packed: Packed,
    x: Array,
    weights: Mapping[str, Array],
    heads: int,
    gelu: GeluForm,
    eps: float,
    mask: Array | None,
) -> tuple[Array, Array, Any]:
    """The same with kernels that are packed."""
    w = tuple([weights[name] for name in ORDER])
    width, mlp = x.shape[-1], len(w[13])
    split, wanted = x.ndim == 3 and width % heads == 0, [(width,), (width,), *layer_shapes(width, mlp)]
    if not split or [weight.shape for weight in w] != wanted or not same_precision(x, *w):
        plain: tuple[Array, Array, Any] = SPECIFICATION.block.forward(x, weights, heads, gelu, eps, mask)
        return plain
    batch, tokens, _ = x.shape
    times = [batch * tokens] * len(w)
    read = as_stored(w, times, packed)
    rows, seen = batch * tokens, seen_by_head(mask, batch, heads, tokens, tokens)
    flat, inside, two = (rows, width), (batch, tokens, width), (rows, 2)
    shapes = (two, inside, inside, inside, (batch * heads, tokens, 2), inside, flat, two, (rows, mlp))
    kept = Kept(*[empty(shape, x) for shape in shapes])
    x_rows, out, few = as_rows(x), empty(flat, x), max(1, MANY // tokens)
    with parts_for(rows * width * mlp) as parts:
        at_once = min(batch, few * parts) * tokens
        forward(
            gemm_address(x.dtype), read[0], x_rows, read[1], seen, heads, root_of(x, heads), eps, FORMS[gelu],
            NOTHING[x.dtype], tuple(kept), empty((parts, 1, tokens, tokens), x), empty((at_once, width), x),
            empty((at_once, mlp), x), out, few, parts,
        )  # fmt: skip
    cache = BlockCache(x_rows, w if packed else None, read, seen, heads, FORMS[gelu], eps, kept)
    return out.reshape(inside), kept.after.reshape(inside), cache


def block_backward(d_out: Array, cache: Any) -> tuple[Array, Array, dict[str, Array]]:
    """Twin of `siglip_ref.model.encoder.block_backward`."""
    if not isinstance(cache, BlockCache):
        plain: tuple[Array, Array, dict[str, Array]] = SPECIFICATION.block.backward(d_out, cache)
        return plain
    x, kernels, read, mask, heads, form, eps, kept = cache.take(d_out)
    turned, w = as_stored(kernels, [len(x)] * len(kernels)) if kernels else read  # gradients read no strips
    inside, flat, hidden = kept.query.shape, x.shape, kept.hidden.shape
    of_w = shapes_of(turned, w)
    d_after, d_x = empty(flat, x), empty(flat, x)
    with parts_for(x.size * hidden[1]) as parts:
        scores, norm1, norm2 = (empty((parts, 2, *last), x) for last in ((inside[1], inside[1]), flat[1:], flat[1:]))
        room = Room(scores, *[empty(shape, x) for shape in (hidden, hidden, (4, *inside), flat, flat)])
        attn, mlp = ([empty(shape, x) for shape in shapes] for shapes in (of_w[2:10], of_w[12:]))
        backward(
            gemm_address(x.dtype), turned, as_rows(d_out), x, w, mask, heads,
            root_of(x, heads), form, eps, tuple(kept), x.dtype.type(0), (norm1, *attn, norm2, *mlp), tuple(room),
            d_after, d_x, parts,
        )  # fmt: skip
    grads = dict(zip(ORDER, (*norm1.sum(0), *attn, *norm2.sum(0), *mlp), strict=True))
    return d_x.reshape(inside), d_after.reshape(inside), grads
