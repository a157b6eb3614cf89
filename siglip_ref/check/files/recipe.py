"""check_recipe: is a loss of SigLIP 2's recipe, written in Torch or NumPy, right with all its gradients?"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from siglip_ref.check.call.frameworks import describe, dtype_name, framework_of
from siglip_ref.check.call.target import called_by
from siglip_ref.check.files.dump import judge
from siglip_ref.errors import UsageError, near
from siglip_ref.ops.elementary import Array
from siglip_ref.process.isolated import as_it_was
from siglip_ref.report.data import Report
from siglip_ref.vectors.store import Vector, packaged

# what is checked: its vector
PARTS = {
    "captions": "decoder/mixed",
    "local": "distill/local",
    "mask": "mask/patches",
    "objective": "objective/all",
    "steps": "objective/two-ranks",
    "curation": "curation/uniform",
}
# the same inputs under another convention, and the words that declare it
OTHER = {
    "decoder/mixed": {"decoder/pad-hidden": 'pad_keys="hidden"', "decoder/mean-token": 'mean="token"'},
    "distill/local": {"distill/sinkhorn": 'normaliser="sinkhorn", rounds=3'},
    "curation/uniform": {"curation/diagonal": 'first="diagonal", divided=True'},
}

Answer = Callable[[dict[str, Any], Mapping[str, Any]], Any]


def check_recipe(fn: Answer | str, part: str, *, framework: str | None = None, dtype: object = "float32") -> Report:
    """Judge one loss of SigLIP 2's recipe at inputs whose answers are proven.

    Parameters
    ----------
    fn : fn(inputs, settings) -> loss. inputs are the vector's arrays by name (`siglip-ref vectors export` writes them),
        settings its numbers, with "conventions". In Torch a scalar is enough: gradients are taken from it. Else, or
        where there is no single loss: a dict of arrays by the names of the vector's answers. A string names it:
        "module:name", "file.py:name"
    part : "captions", "local", "mask", "objective", "steps" (teacher and centres after two steps on two ranks),
        "curation", or the id of a vector
    framework : "torch" or "numpy"; None: seen from the function
    dtype : "float64", "float32", "bfloat16" or "float16", what inputs are given in

    Returns
    -------
    Report; its conventions are what the program was judged by: none of them is published by the authors

    Examples
    --------
    >>> import siglip_ref as sr
    >>> from siglip_ref.vectors.store import packaged
    >>> from siglip_ref.vectors.tasks import TASKS
    >>> from siglip_ref.mistakes import reference
    >>> def captions(inputs, settings):
    ...     return TASKS["captions"](reference(), inputs, settings)
    >>> sr.check_recipe(captions, "captions", framework="numpy", dtype="float64").verdict
    'PASS'
    """
    vector = packaged().find(PARTS[part] if part in PARTS else _known(part))
    fn, form = called_by(fn), dtype_name(dtype, "dtype")
    kind = framework or framework_of(fn, "check_recipe")
    with as_it_was():
        answer = (_in_torch if kind == "torch" else _in_numpy)(fn, vector, form)
    report = replace(judge(vector, answer, form, describe(fn), partial=True), conventions=_flat(vector.conventions))
    if report.verdict != "FAIL":
        return report
    for other, words in OTHER.get(vector.id, {}).items():
        twin = packaged().find(other)
        known = {name: value for name, value in answer.items() if name in twin.expected}
        if known.keys() == answer.keys() and judge(twin, known, form, "", partial=True).verdict == "PASS":
            note = f"right under another convention: {words}"
            return replace(report, verdict="OTHER CONVENTION", findings=[], notes=[*report.notes, note])
    return report


def _known(part: str) -> str:
    if part not in packaged().vectors:
        raise UsageError(
            expected=f"one of {', '.join(PARTS)}, or the id of a vector",
            got=repr(part),
            cause="",
            repair='check_recipe(fn, "captions"); siglip-ref vectors list',
            near=near(part, [*PARTS, *packaged().vectors]),
        )
    return part


def _in_numpy(fn: Answer, vector: Vector, dtype: str) -> dict[str, Array]:
    given = {name: value.astype(dtype) if value.dtype.kind == "f" else value for name, value in vector.inputs.items()}
    return _named(fn(given, vector.all_settings), vector)


def _in_torch(fn: Answer, vector: Vector, dtype: str) -> dict[str, Array]:
    """With leaves for what has a gradient in the vector's answer."""
    import torch

    places = {name: place for name in vector.inputs if (place := _gradient_of(name)) in vector.expected}
    given: dict[str, Any] = {}
    for name, value in vector.inputs.items():
        tensor = torch.tensor(value)
        given[name] = tensor.to(getattr(torch, dtype)) if value.dtype.kind == "f" else tensor
        if name in places:
            given[name].requires_grad_()
    result = fn(dict(given), vector.all_settings)
    if not isinstance(result, torch.Tensor):
        return _named({name: _plain(value) for name, value in result.items()}, vector)
    if result.ndim or not result.requires_grad:
        raise UsageError(
            expected="a scalar with a gradient, or a dict of tensors by the names of the answers",
            got=f"a tensor of shape {tuple(result.shape)}" + " without a gradient" * (not result.requires_grad),
            cause="gradients are taken from the loss",
            repair="return the loss itself, not loss.item(), and outside of torch.no_grad()",
        )
    result.backward()
    # what a loss does not reach has a gradient of zero
    grads = {place: _plain(given[name].grad, given[name]) for name, place in places.items()}
    return _named({"loss": _plain(result)} | grads, vector)


def _gradient_of(name: str) -> str:
    """The answer that holds the gradient of an input.

    >>> _gradient_of("w/token"), _gradient_of("params/text/token"), _gradient_of("context")
    ('d/token', 'd/text/token', 'd_context')
    """
    head, _, rest = name.partition("/")
    return f"d/{rest}" if head in ("w", "params") else f"d_{name}"


def _plain(value: Any, like: Any = None) -> Array:
    """A tensor as float64; zeros of a shape where there is none."""
    return np.zeros(tuple(like.shape)) if value is None else value.detach().double().numpy()


def _named(answer: Any, vector: Vector) -> dict[str, Array]:
    if not isinstance(answer, Mapping) or not answer.keys() & vector.expected.keys():
        raise UsageError(
            expected="a dict of arrays: " + ", ".join(list(vector.expected)[:6]),
            got=type(answer).__name__ if not isinstance(answer, Mapping) else ", ".join(list(answer)[:6]) or "{}",
            cause="an answer is known by its name",
            repair=f"siglip-ref vectors export FOLDER --only {vector.id} writes all names",
        )
    return {name: np.asarray(value) for name, value in answer.items()}


def _flat(record: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in record.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: str(value)}
    return found
