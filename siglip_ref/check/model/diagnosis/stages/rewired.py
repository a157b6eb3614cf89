"""How else the parts of a block may be put together: norms before, behind or beside, other residuals, halves beside
each other. Formulas are made of a few parts, not listed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from types import CodeType
from typing import Any

import numpy as np

from siglip_ref.check.model.diagnosis.stages.hypotheses import Whole
from siglip_ref.model.encoder import EncoderCache
from siglip_ref.ops.elementary import subtree
from siglip_ref.ops.record import Ops, Pair

_AFTER, _OUT = "x + attn(norm1(x))", "y + mlp(norm2(y))"


@cache
def rewirings(half: str) -> tuple[Whole, ...]:
    """Of "+attn", "+mlp", or a whole block (""): every other way."""
    afters = list(_ways("attn", ("x",), "norm1", "norm2", ("", "x", "norm1(x)", "2 * x")))
    outs = list(_ways("mlp", ("y",), "norm2", "norm1", ("", "y", "norm2(y)", "2 * y")))
    if half == "+attn":
        pairs = [(after, _OUT) for after in afters]
    elif half == "+mlp":  # it is given what came behind attention, and nothing that came before
        pairs = [(_AFTER, out) for out in outs]
    else:
        of_x = _ways("mlp", ("x", "y"), "norm2", "norm1", ("", "x", "y"))
        pairs = [*((_AFTER, out) for out in of_x), *zip(afters, outs, strict=True)]
        pairs += [("x + mlp(norm2(x))", "y + attn(norm1(y))"), ("x + mlp(norm1(x))", "y + attn(norm2(y))")]
    return tuple(_whole(*pair) for pair in pairs if pair != (_AFTER, _OUT))


def _ways(part: str, tokens: tuple[str, ...], own: str, other: str, bases: tuple[str, ...]) -> Iterator[str]:
    """base + norm(part(norm(input))), normed once more: each norm its own, the other half's, or none."""
    norms = ("", own, other)
    for inner, given, behind, last, base in product(norms, tokens, norms, norms, bases):
        branch = _normed(behind, f"{part}({_normed(inner, given)})")
        yield _normed(last, f"{base} + {branch}" if base else branch)


def _normed(norm: str, text: str) -> str:
    return f"{norm}({text})" if norm else text


def _whole(after: str, out: str) -> Whole:
    now, was = [], []
    for name, text, right in (("after_attention", after, _AFTER), ("out", out, _OUT)):
        if text != right:
            now.append(f"{name} = {_said(text)}")
            was.append(f"{name} = {_said(right)}")
    return Whole(" and ".join(now), " and ".join(was), ops=_made(after, out))


def _said(text: str) -> str:
    return text.replace("y", "after_attention")


@cache
def pool_rewirings() -> tuple[Whole, ...]:
    """The pooling head's parts put together in every other way."""
    right, found = ("attn(probe, x)", "read + mlp(norm(read))"), list[Whole]()
    for of_probe, of_x, base, behind in product(("", "norm"), ("", "norm"), ("", "probe", "x.mean(1)"), ("", "norm")):
        read = f"attn({_normed(of_probe, 'probe')}, {_normed(of_x, 'x')})"
        read = _normed(behind, f"{base} + {read}" if base else read)
        for first, inner, last in product(("read", "probe", ""), ("norm", ""), ("", "norm")):
            for branch in (f"mlp({_normed(inner, 'read')})", f"norm(mlp({_normed(inner, 'read')}))", ""):
                out = _normed(last, " + ".join(one for one in (first, branch) if one))
                if (first or branch) and (read, out) != right:
                    found.append(_pool(read, out, right))
    return tuple(found)


def _pool(read: str, out: str, right: tuple[str, str]) -> Whole:
    def forward(x: Any, weights: Any, heads: int, gelu: Any, eps: float, mask: Any = None, *, ops: Ops) -> Any:
        norm, mlp = (weights["norm/gamma"], weights["norm/beta"], eps), subtree(weights, "mlp")
        names = {
            "x": x,
            "probe": np.broadcast_to(weights["probe"], (x.shape[0], 1, x.shape[-1])),
            "norm": lambda z: ops.layer_norm.forward(z, *norm)[0],
            "attn": lambda q, k: ops.attention.forward(q, k, subtree(weights, "attn"), heads, mask)[0],
            "mlp": lambda z: ops.mlp.forward(z, mlp, gelu)[0],
        }
        names["read"] = eval(_code(read.replace("x.mean(1)", "x.mean(1, keepdims=True)")), names)
        return eval(_code(out), names)[:, 0], None

    pairs = [pair for pair in zip(("read", "pooled"), (read, out), right, strict=True) if pair[1] != pair[2]]
    now, was = (" and ".join(f"{pair[0]} = {pair[k]}" for pair in pairs) for k in (1, 2))
    return Whole(now, was, ops=lambda ops: replace(ops, map_head=Pair(forward, ops.map_head.backward)))


@cache
def _code(text: str) -> CodeType:
    return compile(text, "<a block put together otherwise>", "eval")


def _made(after: str, out: str) -> Callable[[Ops], Ops]:
    def forward(x: Any, weights: Any, heads: int, gelu: Any, eps: float, mask: Any, *, ops: Ops) -> Any:
        def normed(norm: str) -> Callable[[Any], Any]:
            given = weights[f"{norm}/gamma"], weights[f"{norm}/beta"], eps
            return lambda z: ops.layer_norm.forward(z, *given)[0]

        names = {
            "x": x,
            "norm1": normed("norm1"),
            "norm2": normed("norm2"),
            "attn": lambda z: ops.attention.forward(z, z, subtree(weights, "attn"), heads, mask)[0],
            "mlp": lambda z: ops.mlp.forward(z, subtree(weights, "mlp"), gelu)[0],
        }
        names["y"] = eval(_code(after), names)
        return eval(_code(out), names), names["y"], None

    return lambda ops: replace(ops, block=Pair(forward, ops.block.backward))


def of_sources(covered: Sequence[str], depth: int) -> Iterator[Whole]:
    """A block, or the final norm, that reads what an earlier stage gave, and not the one before it."""
    names = ["stem", *(f"block{i:02d}/{half}" for i in range(depth) for half in ("+attn", "+mlp"))]
    for stage in covered:
        reader = stage.split("/")[1]
        if reader == "norm" or stage.endswith("/+attn"):
            at = depth if reader == "norm" else int(reader.removeprefix("block"))
            for name in names[: 2 * at]:
                now, was = (f"{_READER.get(reader, reader)} that reads {_output(one)}" for one in (name, names[2 * at]))
                yield Whole(now, was, ops=_reading(at, name))


_READER = {"norm": "a final norm"}


def _output(name: str) -> str:
    block, _, half = name.partition("/")
    return f"what attention gave in {block}" if half == "+attn" else f"the output of {block}"


def _reading(at: int, source: str) -> Callable[[Ops], Ops]:
    def forward(x: Any, weights: Any, tower: Any, gelu: Any, eps: float, mask: Any, *, ops: Ops) -> Any:
        known = {"stem": x}
        for i in range(tower.depth):
            of_block, x = subtree(weights, f"block{i:02d}"), known[source] if i == at else x
            x, known[f"block{i:02d}/+attn"], _ = ops.block.forward(x, of_block, tower.heads, gelu, eps, mask)
            known[f"block{i:02d}/+mlp"] = x
        x = known[source] if at == tower.depth else x
        out, cache = ops.layer_norm.forward(x, weights["norm/gamma"], weights["norm/beta"], eps)
        del known["stem"]
        return out, EncoderCache([], cache), known | {"norm": out}

    return lambda ops: replace(ops, encoder=Pair(forward, ops.encoder.backward))
