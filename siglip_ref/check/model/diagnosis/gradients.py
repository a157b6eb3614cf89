"""Gradients that are wrong where every value is right: which they are, what each of them is beside the right one, and
through which part of a block they went when they went wrong. Measured, and said of exactly what was seen."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.stages.proof import by, wrong_value
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.probe import Probe
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Finding

_LISTED = 5
_SMALL = 0.02  # of a gradient: less is told as a part of it
_PART = "are nearly right, but for a part of their size"
_ROUNDED = (3e-4, 6e-3)  # what rounding to bfloat16, once or a few times, leaves
_BACK = (  # the parts of a block as its gradients come to them, and what they came through
    ("mlp/out", "what comes to the block"),
    ("mlp/in", "the activation of the MLP"),
    ("norm2", "the first layer of the MLP"),
    ("norm", "the first layer of the MLP"),  # the pooling head's own
    ("attn/out", "the norm before the MLP, or beside it"),
    ("attn/v", "the attention's mean over values"),
    ("attn/k", "the attention's softmax, or its scores"),
    ("attn/q", "the attention's softmax, or its scores"),
    ("norm1", "the layers of queries, keys and values"),
    ("probe", "the layer of the queries"),
)


def of_gradients(found: Sequence[Finding], run: Run, judge: Judge, probe: Probe) -> list[Finding]:
    """What was found, with what the gradients show where they alone are wrong and no mistake has a name."""
    exact = judge.exact
    shown = {name: grad for name, grad in run.grads.items() if name in judge.of_grad and np.isfinite(grad).all()}
    wrong = [name for name, grad in shown.items() if not by(name, grad, exact.grads[name], judge) <= 1]
    values = exact.activations | {"loss": np.reshape(exact.loss, ())}
    if not wrong or len(shown) < len(run.grads) or wrong_value(run, values, judge):
        return list(found)
    counts = np.bincount(np.ravel(probe.tokens)) if np.size(probe.tokens) else np.zeros(0)
    kinds: dict[str, list[str]] = {}
    for name in wrong:
        kinds.setdefault(_relation(name, shown[name], exact.grads[name], judge, counts), []).append(name)
    if _PART in kinds:
        parts = sorted(_part(shown[name], exact.grads[name]) for name in kinds[_PART])
        like = ", about what roundings to bfloat16 leave" if _ROUNDED[0] < parts[-1] < _ROUNDED[1] else ""
        kinds[f"{_PART}: by {parts[0]:.1g} to {parts[-1]:.1g} of it{like}"] = kinds.pop(_PART)
    told = [f"those of {places(names, shown)} {words}" for words, names in kinds.items()]
    said = f"{len(wrong)} of {len(shown)} gradients are wrong: {'; '.join(told[:_LISTED])}"
    said += f"; and {len(told) - _LISTED} more kinds" if len(told) > _LISTED else ""
    said += "".join(f"; {line}" for tower in ("text", "image") if (line := _begins(tower, wrong, shown)))
    return [replace(one, evidence=f"{one.evidence}; {said}") if one.id == "unknown" else one for one in found]


def places(names: Sequence[str], every: Mapping[str, object]) -> str:
    """Names, those of all blocks of a tower as one.

    >>> both = {"text/block00/norm1/beta": 0, "text/block01/norm1/beta": 0}
    >>> places([*both], both)
    'text/block*/norm1/beta'
    """
    left, told = list(names), list[str]()
    for name in names:
        if name not in left:
            continue
        pattern = re.sub(r"block\d+", "block*", name)
        alike = [one for one in every if re.sub(r"block\d+", "block*", one) == pattern]
        whole = len(alike) > 1 and set(alike) <= set(left)
        told.append(pattern if whole else name)
        left = [one for one in left if one not in (alike if whole else [name])]
    more = f" and {len(told) - _LISTED} more" if len(told) > _LISTED else ""
    return f"{', '.join(told[:_LISTED])}{more}"


def _relation(name: str, got: Array, exact: Array, judge: Judge, counts: Array) -> str:
    """What a gradient is beside the right one."""
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    if not got.any():
        return "are zero: no gradient arrives"
    size = float(np.sum(exact * exact))
    factor = float(np.sum(got * exact)) / size if size else np.nan

    def fits(other: Array, most: float) -> bool:
        return bool(by(name, got, other, judge) <= max(1.0, most))

    if np.isfinite(factor) and fits(factor * exact, abs(factor)):
        return f"are {factor:.4g} times what they should be"
    for axis, what in ((1, "row"), (0, "column")) if got.ndim == 2 and min(got.shape) > 1 else ():
        squares, both = (exact * exact).sum(axis), (got * exact).sum(axis)
        each = np.divide(both, squares, out=np.zeros_like(both), where=squares > 0)
        if fits(np.expand_dims(each, axis) * exact, float(np.max(np.abs(each)))):
            used = each[squares > 0]
            if np.max(np.abs(used - np.median(used))) < _SMALL * np.max(np.abs(used)):
                continue
            here = counts[: len(each)][squares[: len(counts)] > 0] if what == "row" and name == "text/token" else ()
            if len(here) == len(used) and np.allclose(used * here, (used * here)[0], rtol=1e-2):
                return "are divided, row by row, by how often the token is in the batch"
            lost = int(np.sum(np.abs(used) < 1e-6))
            if lost and np.allclose(used[np.abs(used) >= 1e-6], 1.0, rtol=1e-2):
                return f"lack {lost} of {len(used)} {what}s, the others are right"
            return f"are right but for a factor of each {what}, {used.min():.3g} to {used.max():.3g}"
    return _PART if _part(got, exact) < _SMALL else "are other numbers"


def _part(got: Array, exact: Array) -> float:
    """How far off, as a part of its size."""
    size = float(np.sum(np.square(exact)))
    return float(np.sqrt(np.sum(np.square(np.asarray(got, np.float64) - exact)) / size)) if size else np.inf


def _begins(tower: str, wrong: Sequence[str], shown: Mapping[str, Array]) -> str:
    """Where, on the way back through a tower, the first gradient is wrong."""
    mine = [name for name in shown if name.startswith(f"{tower}/")]
    stages = list(dict.fromkeys(_stage(name) for name in mine))
    order: list[str] = [one for one in ("head", "pool", "norm") if one in stages]
    order += sorted((one for one in stages if one.startswith("block")), reverse=True)
    begins = next((k for k, one in enumerate(order) if any(_stage(n) == one for n in mine if n in wrong)), len(order))
    before = [n for n in mine if _stage(n) not in order[: begins + 1] and not n.endswith("k/bias")]
    if begins < len(order) and any(n not in wrong for n in before):
        return f"what goes on to earlier layers of the {tower} tower is right: it is these parameters' own gradients"
    for stage in order:
        of = [name for name in mine if _stage(name) == stage]
        if not set(of) & {*wrong}:
            continue
        right = list[str]()
        for part, through in _BACK if stage not in ("head", "norm") else ():
            whole = f"{tower}/{stage}/{part}"
            here = [name for name in of if name == whole or name.startswith(f"{whole}/")]
            bad = [name for name in here if name in wrong]
            if bad:
                first = whole
                after = f", those of {right[-1]} are right" if right else ""
                later = [n for n in of if n not in here and n in wrong]
                alone = "" if later or set(bad) == {*here} else f" (only {', '.join(bad)})"
                return f"on the way back through the {tower} tower it begins at {first}{alone}, behind {through}{after}"
            right += [whole] if here else []
        return f"on the way back through the {tower} tower it begins at {tower}/{stage}"
    mine = [name for name in wrong if name.startswith(f"{tower}/")]
    return f"in the {tower} tower only {', '.join(mine[:_LISTED])} is wrong, where it begins" if mine else ""


def _stage(name: str) -> str:
    return name.split("/")[1]
