"""Other attentions: another number of heads, heads that share keys and values, another axis, keys that are not seen."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from types import CodeType
from typing import Any

import numpy as np

from siglip_ref.check.model.diagnosis.stages.hypotheses import Whole
from siglip_ref.check.model.diagnosis.stages.stage_search import Stage
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops, Pair, alone_of

_HIDDEN = -1e30  # a score that is not seen: a query that sees no key takes the mean of all, as programs do


@dataclass(frozen=True)
class _Form:
    """heads : 0: as declared; own_root : the scale of that many heads; keys, values : (H, H), what each reads of them;
    over : the axis of (B, N, H, h) that is attended to; unturned : heads are not brought back before they are
    joined; seen : which keys, a formula; columns : of the grid"""

    heads: int = 0
    own_root: bool = True
    keys: Array | None = None
    values: Array | None = None
    over: int = 1
    unturned: bool = False
    seen: str = ""
    columns: int = 1

    def made(self, ops: Ops) -> Ops:
        """The operations with it."""
        ids = list[Array]()

        def forward(
            x_query: Array, x_key: Array, weights: Mapping[str, Array], heads: int, mask: Any = None, *, ops: Ops
        ) -> tuple[Array, None]:
            count = self.heads or heads
            given = zip((x_query, x_key, x_key), "qkv", strict=True)
            parts = [ops.linear.forward(x, weights[f"{n}/kernel"], weights[f"{n}/bias"])[0] for x, n in given]
            query, key, value = (x.reshape(*x.shape[:2], count, -1) for x in parts)  # (B, N or M, H, h)
            key = key if self.keys is None else np.einsum("gh,bmhc->bmgc", self.keys, key)
            value = value if self.values is None else np.einsum("gh,bmhc->bmgc", self.values, value)
            query, key, value = (np.moveaxis(x, self.over, 2) for x in (query, key, value))
            root = np.sqrt(query.shape[-1] if self.own_root else x_query.shape[-1] // heads)
            scores = query @ key.swapaxes(-1, -2) / root
            if mask is not None and self.over == 1:
                scores = np.where(mask, scores, -np.inf)
            if self.seen:
                seen = _seen(self.seen, scores.shape[-2:], ids[-1] if ids else None, self.columns)
                scores = np.where(seen, scores, _HIDDEN)
            mixed = ops.softmax.forward(scores)[0] @ value
            joined = (mixed if self.unturned else np.moveaxis(mixed, 2, self.over)).reshape(*x_query.shape[:2], -1)
            return ops.linear.forward(joined, weights["out/kernel"], weights["out/bias"])[0], None

        tower = alone_of(ops.text_tower.forward)

        def text_tower(tokens: Array, *given: Any, ops: Ops) -> Any:
            ids[:] = [tokens]
            try:
                return tower(tokens, *given, ops=ops)
            finally:
                ids.clear()

        changed = replace(ops, attention=Pair(forward, ops.attention.backward))
        return replace(changed, text_tower=Pair(text_tower, ops.text_tower.backward)) if self.seen else changed


def of_attention(stage: Stage) -> Iterator[Whole]:
    """Of half a block, or of the pooling head."""
    tower, pool = (stage.cfg.image if stage.tower == "image" else stage.cfg.text), stage.name.endswith("pool")
    heads, width = tower.heads, tower.width
    for count in (n for n in range(1, width + 1) if width % n == 0 and n != heads):
        for own in (True, False):
            root = f"scores divided by sqrt({width // (count if own else heads)})"
            yield _whole(_Form(count, own), f"attention has {count} heads of {width // count} features, {root}",
                         f"{heads} heads of {width // heads} features")  # fmt: skip
    for words, mix in _shared(heads):
        for what in ("keys and values", "keys", "values"):
            form = _Form(keys=mix if "keys" in what else None, values=mix if "values" in what else None)
            yield _whole(form, f"of {heads} heads, {words.format(what)}", "each head with its own keys and values")
    if not pool:
        for over, words in ((0, "the rows of the batch, place by place: each token sees those of its own place"),
                            (2, "the heads of each token: no token sees another")):  # fmt: skip
            for unturned in (False, True) if over == 2 else (False,):
                also = ", and (head, place) are joined as if they were (place, head)" * unturned
                yield _whole(_Form(over=over, unturned=unturned), f"attention runs over {words}{also}",
                             "attention over the tokens of each row")  # fmt: skip
        yield _whole(_Form(unturned=True), "what heads give, (head, place, feature), is read as (place, head feature)",
                     "heads and places exchanged before they are joined")  # fmt: skip
    columns = stage.cfg.grid[1] if stage.tower == "image" else stage.cfg.text_length
    for rule in _rules(stage, pool):
        told = "; ".join(f"{name} is {words}" for name, (words, _) in _NAMES.items() if name in rule)
        whose = "the probe sees key j" if pool else "token i sees key j"
        yield _whole(_Form(seen=rule, columns=columns), f"{whose} only where {rule}{f' ({told})' * bool(told)}",
                     "every key seen")  # fmt: skip


def _whole(form: _Form, now: str, was: str) -> Whole:
    return Whole(now, was, ops=form.made)


def _shared(heads: int) -> Iterator[tuple[str, Array]]:
    """What each head reads of the heads' keys or values: a matrix (H, H)."""
    own, every = np.arange(heads), np.eye(heads)
    for many in (n for n in range(2, heads + 1) if heads % n == 0):
        group = own // many
        mean = (group[:, None] == group) / many
        yield (f"every {many} in a row read the mean of their {{}}" if many < heads else "all read the mean of all {}",
               mean)  # fmt: skip
        for words, of in (
            (f"head i reads the {{}} of head i // {many} * {many}", group * many),
            (f"head i reads the {{}} of head i // {many}", group),
            (f"head i reads the {{}} of head i modulo {heads // many}", own % (heads // many)),
            (f"head i reads the {{}} of head i // {many} * {many} + {many - 1}", group * many + many - 1),
        ):
            yield words, every[of]
    if heads > 1:
        yield "head i reads the {} of the last head but i", every[::-1]
        for by in (1, -1):
            yield f"head i reads the {{}} of head i {by:+d}, modulo {heads}", every[(own + by) % heads]


def _rules(stage: Stage, pool: bool) -> Iterator[str]:
    """Which keys j a query i sees, as a formula: of j alone, of both, of the id at j, and two of these together."""
    rows, columns = stage.cfg.grid if stage.tower == "image" else (1, stage.cfg.text_length)
    size = rows * columns
    yield from (f"j {sign} {n}" for n in range(size) for sign in ("<", ">=", "!=") if n or sign == "!=")
    yield from (f"j % {n} == {first}" for n in range(2, 6) for first in range(n))
    yield from (f"j % {columns} < {n}" for n in range(1, columns) if rows > 1)
    between = [] if pool else [*_between(rows, columns)]
    by_id = (
        []
        if stage.tower == "image"
        else [one + more for one in _BY_ID for more in ("", f" | (j == {size - 1})", " | (j == 0)")]
    )
    yield from (*between, *by_id, *(f"({one}) & ({other})" for one, other in product(between, by_id)))


_BY_ID = ("(id_j != 1)", "(id_j != 0)", "(id_j > 1)", "(id_j == 1)", "(ones_to_j <= 1)", "(ones_to_j < 1)",
          "(j <= largest)")  # fmt: skip
_NAMES: dict[
    str, tuple[str, Callable[..., Array]]
] = {  # what a formula may hold: in words, and as an array of i, j, the ids (B, 1, M) and the grid's columns
    "id_j": ("the id at place j", lambda i, j, ids, columns: ids),
    "ones_to_j": (
        "how many ids of 1 (padding) are at places 0 to j",
        lambda i, j, ids, columns: np.cumsum(ids == 1, -1),
    ),
    "largest": ("the place of the largest id", lambda i, j, ids, columns: ids.argmax(-1)[..., None]),
    "down": (
        "how many rows of the grid i and j are apart",
        lambda i, j, ids, columns: abs(i // columns - j // columns),
    ),
    "across": (
        "how many columns of the grid i and j are apart",
        lambda i, j, ids, columns: abs(i % columns - j % columns),
    ),
}


def _between(rows: int, columns: int) -> Iterator[str]:
    yield from ("j <= i", "j < i", "j >= i", "j != i", "j == i")
    for w in range(1, rows * columns - 1):
        yield f"abs(i - j) <= {w}"
        yield f"(j <= i) & (i - j <= {w})"
        yield f"(j <= i) | (j <= {w})"
        yield f"(abs(i - j) <= {w}) | (i * j == 0)"
        yield from (f"i // {w} == j // {w}", f"(i - j) % {w} == 0") if w > 1 else ()
    if rows > 1:
        yield from ("down == 0", "across == 0", "(down == 0) | (across == 0)")
        for w in range(1, max(rows, columns) - 1):
            yield f"(down <= {w}) & (across <= {w})"
            yield from (
                (f"down + across <= {w}", f"down**2 + across**2 <= {w * w}") if w > 1 else ("down + across <= 1",)
            )
        for a, b in product(range(1, rows + 1), range(2, columns)):
            yield f"(i // {columns * a} == j // {columns * a}) & (i % {columns} // {b} == j % {columns} // {b})"


@cache
def _code(rule: str) -> CodeType:
    return compile(rule, "<which keys are seen>", "eval")


def _seen(rule: str, size: tuple[int, int], ids: Array | None, columns: int) -> Array:
    """(N, M), or (B, 1, N, M)."""
    i, j = np.arange(size[0])[:, None], np.arange(size[1])
    of_ids = None if ids is None else ids[:, None]
    named = {name: of(i, j, of_ids, columns) for name, (_, of) in _NAMES.items() if name in rule}
    seen = eval(_code(rule), {"i": i, "j": j, **named}) & (i >= 0)
    return np.asarray(seen if seen.ndim < 3 else seen[:, None])
