"""The encoder block, forward and backward each one kernel: small models spend their time on calls, not on numbers.

A residual is added by the matrix product that makes the step. Kept for the backward: query, key, value, what the heads
mixed, the stream, the hidden layer; computed again: tokens after each norm, scores, activations. The backward gives up
what was kept, so that the gradients of a deep model can take its place in memory.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from siglip_ref import ops as specification
from siglip_ref.errors import UsageError
from siglip_ref.fast.attention import HEAD, root_of, seen_by_head
from siglip_ref.fast.blas import gemm_address
from siglip_ref.fast.block_kernels import (
    Gradients,
    Kept,
    Room,
    backward,
    backward_by_sequence,
    forward,
    forward_by_sequence,
)
from siglip_ref.fast.fit import NOTHING, empty, same_precision
from siglip_ref.fast.gelu import FORMS
from siglip_ref.fast.pool import parts_for
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.towers import encoder as plain

ORDER = (
    "norm1/gamma", "norm1/beta",
    "attn/q/kernel", "attn/q/bias", "attn/k/kernel", "attn/k/bias", "attn/v/kernel", "attn/v/bias",
    "attn/out/kernel", "attn/out/bias",
    "norm2/gamma", "norm2/beta", "mlp/in/kernel", "mlp/in/bias", "mlp/out/kernel", "mlp/out/bias",
)  # fmt: skip


ATTENTION = ("q", "k", "v", "out")


class BlockCache:
    """What the backward needs: x, weights, mask, heads, GELU's form, eps, and what is `Kept`. It can be taken once."""

    __slots__ = ("_all",)

    def __init__(self, *everything: Any) -> None:
        self._all = everything

    def take(self) -> tuple[Any, ...]:
        """All of it, for the last time.

        Raises
        ------
        UsageError : it was taken before
        """
        everything, self._all = self._all, ()
        if not everything:
            raise UsageError(
                expected="one backward for each forward",
                got="a second backward with the same cache",
                cause="compiled blocks give up what they kept as soon as they have used it, which halves the memory",
                repair="call the forward again, or use siglip_ref.ops, whose caches last",
            )
        return everything


# A narrow block goes sequence by sequence: those whose hidden layers are NEAR numbers together, FEWEST rows at least.
NEAR, FEWEST = 1 << 16, 128


def _at_a_time(sequences: int, tokens: int, mlp: int) -> int:
    """How many sequences a thread takes at once; 0: the block is so wide that threads share each product."""
    rows = NEAR // mlp
    return min(sequences, rows // tokens) if rows >= max(FEWEST, tokens) else 0


def block_forward(
    x: Array, weights: Mapping[str, Array], heads: int, gelu: GeluForm, eps: float, mask: Array | None, ops: ModuleType
) -> tuple[Array, Array, Any]:
    """Twin of `siglip_ref.towers.encoder.block_forward`."""
    w = tuple([weights[name] for name in ORDER])
    if not same_precision(x, *w):
        return plain.block_forward(x, weights, heads, gelu, eps, mask, specification)
    w = tuple([np.ascontiguousarray(weight) for weight in w])
    batch, tokens, width = x.shape
    rows, mlp, seen = batch * tokens, w[13].size, seen_by_head(mask, batch, heads, tokens, tokens)
    flat, inside, two = (rows, width), (batch, tokens, width), (rows, 2)
    shapes = (two, inside, inside, inside, (batch * heads, tokens, 2), inside, flat, two, (rows, mlp))
    kept = Kept(*[empty(shape, x) for shape in shapes])
    x_rows, out, few = np.ascontiguousarray(x).reshape(flat), empty(flat, x), _at_a_time(batch, tokens, mlp)
    with parts_for(2 * rows * width * (mlp + 2 * width) + batch * heads * HEAD) as parts:
        parts = min(parts, batch) if few else parts
        teams, team, some = (parts, 1, few * tokens) if few else (1, parts, rows)
        scores, normed, active = (
            empty(shape, x) for shape in ((teams, team, 1, tokens, tokens), (teams, some, width), (teams, some, mlp))
        )
        given = (
            gemm_address(x.dtype), x_rows, w, seen, heads, root_of(x, heads), eps, FORMS[gelu], NOTHING[x.dtype],
            tuple(kept),
        )  # fmt: skip
        if few:
            forward_by_sequence(*given, scores, normed, active, out)
        else:
            forward(*given, scores[0], normed[0], active[0], out, parts)
    return out.reshape(inside), kept.after.reshape(inside), BlockCache(x_rows, w, seen, heads, FORMS[gelu], eps, kept)


def block_backward(d_out: Array, cache: Any, ops: ModuleType) -> tuple[Array, Array, dict[str, Array]]:
    """Twin of `siglip_ref.towers.encoder.block_backward`."""
    if not isinstance(cache, BlockCache):
        return plain.block_backward(d_out, cache, specification)
    x, w, mask, heads, form, eps, kept = cache.take()
    (batch, tokens, width), flat, mlp = kept.query.shape, x.shape, w[13].size
    d_after, d_x, few = empty(flat, x), empty(flat, x), _at_a_time(batch, tokens, mlp)
    with parts_for(4 * x.size * (mlp + 2 * width) + 2 * batch * heads * HEAD) as parts:
        parts = min(parts, batch) if few else parts
        teams, team, at_once = (parts, 1, few) if few else (1, parts, batch)
        hidden, normed = (teams, at_once * tokens, mlp), (teams, at_once * tokens, width)
        room = Room(*[
            empty(shape, x)
            for shape in ((teams, team, 2, tokens, tokens), hidden, hidden, (teams, 4, at_once, tokens, width), normed,
                          normed)
        ])  # fmt: skip
        d = Gradients(*[
            empty((teams, *shape), x)
            for shape in ((4, width, width), (5, width), (width, mlp), (mlp,), (mlp, width), (2, team, 2, width))
        ])  # fmt: skip
        given = (
            gemm_address(x.dtype), np.ascontiguousarray(d_out).reshape(flat), x, w, mask, heads, root_of(x, heads),
            form, eps, tuple(kept),
        )  # fmt: skip
        if few:
            backward_by_sequence(*given, tuple(d), tuple(room), d_after, d_x)
        else:
            first = tuple([a[0] for a in d]), tuple([a[0] for a in room])
            backward(*given, x.dtype.type(0), *first, d_after, d_x, parts)
    inside = kept.query.shape
    return d_x.reshape(inside), d_after.reshape(inside), _by_name(d)


def _by_name(d: Gradients) -> dict[str, Array]:
    squares, vectors, into, into_bias, out_of = (of_teams[0] for of_teams in d[:5])
    (gamma1, beta1), (gamma2, beta2) = d.norms[0, :, 0] if d.norms.shape[2] == 1 else d.norms[0].sum(1)
    kernels = {f"attn/{name}/kernel": square for name, square in zip(ATTENTION, squares, strict=True)}
    biases = {f"attn/{name}/bias": vector for name, vector in zip(ATTENTION, vectors[:4], strict=True)}
    return kernels | biases | {
        "norm1/gamma": gamma1, "norm1/beta": beta1, "norm2/gamma": gamma2, "norm2/beta": beta2,
        "mlp/in/kernel": into, "mlp/in/bias": into_bias, "mlp/out/kernel": out_of, "mlp/out/bias": vectors[4],
    }  # fmt: skip
