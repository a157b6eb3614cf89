"""Norms over other numbers, rows of a batch that are mixed, other tokens pooled, other lengths divided by."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from siglip_ref.check.model.diagnosis.stages.hypotheses import Whole, other_inputs
from siglip_ref.check.model.diagnosis.stages.stage_search import Stage
from siglip_ref.check.model.probe import Probe
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops, Pair


def of_norms(stage: Stage) -> Iterator[Whole]:
    """Layer norms over other numbers than a token's width."""
    if not any(name.endswith(("norm", "+attn", "+mlp", "pool")) for name in stage.covered):
        return
    for words, axes in _AXES:
        for rms in (False, True):

            def forward(
                x: Array, gamma: Array, beta: Array, eps: float, axes: tuple[int, ...] = axes, rms: bool = rms
            ) -> tuple[Array, None]:
                axes = tuple(axis for axis in axes if axis < x.ndim) if x.ndim == 3 else (-1,)
                centred = x if rms else x - x.mean(axes, keepdims=True)
                return centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + eps) * gamma + beta, None

            if axes != (2,):  # those are edits of one formula
                how = "root mean square" if rms else "mean and variance"
                yield Whole(f"norms take their {how} over {words}", "the statistics of each token over its width",
                            ops=partial(_with, "layer_norm", forward))  # fmt: skip

    def annotated(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, None]:
        return (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + eps) * gamma + beta, None

    yield Whole("norms divide by std + eps, std with the divisor C - 1 of a sample",
                "norms that divide by sqrt(var + eps), var with the divisor C (unbiased=False)",
                ops=partial(_with, "layer_norm", annotated))  # fmt: skip


_AXES = (
    ("the whole batch, feature by feature (batch statistics)", (0, 1)), ("the rows of the batch, place by place", (0,)),
    ("the tokens of each row, feature by feature", (1,)), ("the tokens and the width of each row", (1, 2)),
    ("all numbers of the batch", (0, 1, 2)),
)  # fmt: skip


def _with(name: str, forward: Callable[..., Any], ops: Ops) -> Ops:
    other: dict[str, Any] = {name: Pair(forward, getattr(ops, name).backward)}
    return replace(ops, **other)


def of_batches(stage: Stage) -> Iterator[Whole]:
    """Rows of the batch that are mixed: packed into one sequence, exchanged, centred."""
    half, apart = stage.name.rpartition("/")[2], "each row of the batch by itself"
    names = {"+attn": "attention", "+mlp": "mlp", "norm": "layer_norm", "pool": "map_head", "head": "linear",
             "embed": "normalize"}  # fmt: skip
    name = "pool" if stage.name == "text/pool" else names.get(half, "")
    if half == "+attn":
        yield Whole(
            "attention runs over all rows of the batch as one sequence: every token sees the tokens of every row",
            apart, ops=lambda ops: _with("attention", _packed(ops.attention.forward), ops),
        )  # fmt: skip
    for words, mixed in _MIXED:
        if half == "stem":
            side = "images" if stage.tower == "image" else "tokens"
            if "less" not in words and "mean" not in words:
                yield other_inputs(f"{side} of the batch are {words}", apart, **{side: mixed})
        elif name:

            def changed(ops: Ops, name: str = name, mixed: Callable[[Array], Array] = mixed) -> Ops:
                function = getattr(ops, name).forward

                def forward(x: Array, *rest: Any) -> Any:
                    if name == "attention":
                        return function(mixed(x), mixed(rest[0]), *rest[1:])
                    return function(mixed(x), *rest)

                return _with(name, forward, ops)

            yield Whole(f"rows of the batch are {words} before {_PLAIN.get(name, name)}", apart, ops=changed)


_PLAIN = {"mlp": "the MLP", "layer_norm": "the norm", "map_head": "the pooling head", "pool": "the pooling",
          "linear": "the head", "normalize": "the normalisation"}  # fmt: skip

_MIXED = (
    ("rolled by one", lambda x: np.roll(x, 1, 0)), ("rolled by one, backwards", lambda x: np.roll(x, -1, 0)),
    ("reversed", lambda x: x[::-1]), ("all the first one", lambda x: x[:1] + 0 * x),
    ("less their mean", lambda x: x - x.mean(0)), ("their mean", lambda x: x.mean(0) + 0 * x),
)  # fmt: skip


def _packed(function: Callable[..., Any]) -> Callable[..., Any]:
    def forward(x_query: Array, x_key: Array, weights: Any, heads: int, mask: Any = None) -> tuple[Array, None]:
        one = [x.reshape(1, -1, x.shape[-1]) for x in (x_query, x_key)]
        return function(*one, weights, heads, None)[0].reshape(x_query.shape), None

    return forward


def of_pools(stage: Stage) -> Iterator[Whole]:
    """Of the states another token, or a mean."""
    was = "the last token" if stage.tower == "text" else "what the probe reads"
    for words, pooled in (*_POOLED, *_BY_IDS) if stage.tower == "text" else ():

        def taken(ops: Ops, pooled: Callable[[Array, Any], Array] = pooled) -> Ops:
            return _with("pool", lambda x, tokens, kind: (pooled(x, tokens), None), ops)

        yield Whole(f"pooled is {words}", was, ops=taken)
    for words, pooled in _POOLED if stage.tower == "image" else ():

        def read(ops: Ops, pooled: Callable[[Array, Any], Array] = pooled) -> Ops:
            return _with("attention", lambda x_query, x_key, *rest: (pooled(x_key, None)[:, None], None), ops)

        yield Whole(f"the pooling head's norm and MLP read {words} in the place of attention", was, ops=read)


_LAST = (
    ("the last token before padding (1)", lambda t: _count(t) - 1), ("the first padding (1), or the last token",
     lambda t: np.minimum(_count(t), t.shape[1] - 1)), ("the token of the largest id", lambda t: t.argmax(-1)),
    ("the token of the smallest id", lambda t: t.argmin(-1)),
)  # fmt: skip


def _count(tokens: Array) -> Array:
    return np.maximum(((tokens != 1) * (np.arange(tokens.shape[1]) + 1)).max(-1), 1)


def _taken(at: Callable[[Array], Array]) -> Callable[[Array, Any], Array]:
    return lambda x, tokens: x[np.arange(len(x)), at(tokens)]


_POOLED: tuple[tuple[str, Callable[[Array, Any], Array]], ...] = (
    ("the mean of all tokens", lambda x, tokens: x.mean(1)),
    ("the largest of each feature", lambda x, tokens: x.max(1)),
    ("the first token", lambda x, tokens: x[:, 0]),
    ("the last token", lambda x, tokens: x[:, -1]),
    ("the last token but one", lambda x, tokens: x[:, -2]),
    ("the sum of all tokens", lambda x, tokens: x.sum(1)),
)

_BY_IDS: tuple[tuple[str, Callable[[Array, Any], Array]], ...] = (
    (
        "the mean of all tokens but padding (1)",
        lambda x, tokens: (x * (tokens != 1)[..., None]).sum(1) / (tokens != 1).sum(1)[:, None],
    ),
    *((words, _taken(at)) for words, at in _LAST),
)


def of_lengths(stage: Stage) -> Iterator[Whole]:
    """Embeddings divided by another length than their own."""
    ends = {"image": "image/pool", "text": "text/head" if stage.cfg.text_head else "text/pool"}
    shown = stage.ground.shown
    if not {*ends.values()} <= shown.keys():
        return
    own, other = ends[stage.tower], ends["text" if stage.tower == "image" else "image"]
    was = "each row divided by its own length"

    def length(x: Array) -> Array:
        return np.sqrt((x * x).sum(-1, keepdims=True))

    forms: tuple[tuple[str, Callable[[Array, Array], Array]], ...] = (
        (f"by the length of the same row of {other}", lambda x, y: x / length(y)),
        (f"by its own length and by that of the same row of {other}", lambda x, y: x / length(x) / length(y)),
        ("by the length of the first row", lambda x, y: x / length(x)[:1]),
        ("by the length of the longest row", lambda x, y: x / length(x).max()),
        ("by the mean length of the batch", lambda x, y: x / length(x).mean()),
        ("by the length of all rows together", lambda x, y: x / np.sqrt((x * x).sum())),
        ("by the sum of absolute values of each row", lambda x, y: x / np.abs(x).sum(-1, keepdims=True)),
        ("by the largest absolute value of each row", lambda x, y: x / np.abs(x).max(-1, keepdims=True)),
        ("feature by feature by its length over the batch", lambda x, y: x / np.sqrt((x * x).sum(0))),
    )
    for words, form in forms:

        def value(shown: Mapping[str, Array], probe: Probe, form: Callable[[Array, Array], Array] = form) -> Array:
            return form(shown[own], shown[other])

        yield Whole(f"{own} is divided {words}", was, value=value)

    def normed(shown: Mapping[str, Array], probe: Probe) -> Array:
        weights = (probe.params[f"{stage.tower}/norm/{leaf}"] for leaf in ("gamma", "beta"))
        c = stage.conventions
        eps = c.image_norm_eps if stage.tower == "image" else c.text_norm_eps
        rows = SPECIFICATION.layer_norm.forward(shown[own], *weights, eps)[0]
        return rows / length(rows)

    yield Whole(f"{own} is normed by {stage.tower}/norm before it is divided by its length", was, value=normed)
