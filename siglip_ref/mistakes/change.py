"""A mistake is a small change of the reference's own text; this file makes the changed reference.

The functions of an edited file are defined anew from its text with the edits, in a dict that begins as the module's
own names: nothing that is already imported changes. They take their places in the record of operations, and as every
function reaches its parts through the record, every caller gets the changed one.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from importlib import import_module
from inspect import getsource, signature
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Function, Ops, Pair, alone_of

# what surrounds the operations, and may be changed, too; all else (sizes, conventions, parameters) is the original's
AROUND = {
    "loss": "siglip_ref.model.loss",
    "model": "siglip_ref.model.two_towers",
    "optim": "siglip_ref.model.optim",
    "procedures": "siglip_ref.model.procedures",
}
_RECIPE = "siglip_ref.siglip2."


@dataclass(frozen=True)
class Edit:
    """In `file` (below siglip_ref), which must hold `old` exactly once, or at the offset `at`, write `new` instead."""

    file: str
    old: str
    new: str
    at: int | None = None

    def diff(self) -> list[str]:
        """The change for reading, in whole lines: - what is there, + what is written instead."""
        text = (Path(__file__).parents[1] / self.file).read_text(encoding="utf-8")
        begin = text.index(self.old) if self.at is None else self.at
        first, end = text.rfind("\n", 0, begin) + 1, begin + len(self.old.rstrip("\n"))
        head, tail = text[first:begin], text[end:].partition("\n")[0]
        signs = (("-", self.old), ("+", self.new))
        whole = [(sign, line) for sign, part in signs for line in (head + part.rstrip("\n") + tail).splitlines()]
        return [f"{sign} {line}".rstrip() for sign, line in whole]


@dataclass(frozen=True)
class Reference:
    """The specification, as it is or changed: its operations, and the functions around them, which use these."""

    ops: Ops
    loss: Any
    model: Any
    optim: Any
    procedures: Any


def reference(edits: Sequence[Edit] = ()) -> Reference:
    """The reference with these edits; without any, the very functions that everybody uses.

    Raises
    ------
    ValueError, when an edit's old text is not in its file exactly once, or when no operation is in that file

    Examples
    --------
    >>> wrong = reference([Edit("ops/pooling.py", "x.shape[1] - 1", "x.shape[1] - 2")])
    >>> wrong.ops.pool.forward(np.arange(3.0).reshape(1, 3, 1), np.zeros((1, 3), int), "last")[0]
    array([[1.]])
    """
    return _reference(tuple(edits))


@lru_cache(maxsize=256)
def _reference(edits: tuple[Edit, ...]) -> Reference:
    by_module: dict[str, list[Edit]] = {}
    for edit in edits:
        by_module.setdefault(module_of(edit.file), []).append(edit)
    return reference_of({module: _names(module, tuple(of_module)) for module, of_module in by_module.items()})


def reference_of(changed: Mapping[str, Mapping[str, Any]]) -> Reference:
    """The reference with the functions of changed modules: by module, its names."""
    base = _recipe() if any(module.startswith(_RECIPE) for module in changed) else SPECIFICATION
    functions = _functions(base)
    known = {function.__module__ for of_field in functions.values() for function in of_field} | set(AROUND.values())
    if unknown := changed.keys() - known:
        raise ValueError(f"no operation is in {', '.join(sorted(unknown))}")
    ops = _with(changed, functions, base)
    around = {part: _around(import_module(home), changed.get(home), ops) for part, home in AROUND.items()}
    return Reference(ops, **around)


def _recipe() -> Ops:
    """SigLIP 2's operations, which are loaded where a mistake is one of theirs."""
    from siglip_ref.siglip2 import RECIPE

    return RECIPE


@lru_cache(maxsize=2)
def _functions(ops: Ops) -> dict[str, list[Function]]:
    """Of each field of a record its functions, as they were written."""
    found = {field.name: getattr(ops, field.name) for field in fields(ops)}
    return {
        name: [alone_of(function) for function in (value if isinstance(value, Pair) else [value])]
        for name, value in found.items()
        if isinstance(value, Pair) or callable(value)
    }


def _with(changed: Mapping[str, Mapping[str, Any]], functions: Mapping[str, list[Function]], base: Ops) -> Ops:
    """The operations of a record, with the functions of changed modules in their places."""
    changes: dict[str, Any] = {}
    for name, plain in functions.items():
        new = [changed.get(function.__module__, {}).get(function.__name__, function) for function in plain]
        if new != plain:
            changes[name] = Pair(*new) if len(new) > 1 else new[0]
    return replace(base, **changes) if changes else base


def _around(module: ModuleType, changed: Mapping[str, Any] | None, ops: Ops) -> Any:
    """The functions of a module, changed or not, with these operations where none are given."""
    names = {name: value for name, value in (changed or vars(module)).items() if not name.startswith("__")}
    asking = {name: partial(value, ops=ops) for name, value in names.items() if _asks_for_ops(value)}
    unchanged = changed is None and (ops is SPECIFICATION or not asking)
    return module if unchanged else SimpleNamespace(**names | asking)


def _asks_for_ops(value: Any) -> bool:
    return callable(value) and hasattr(value, "__code__") and "ops" in signature(value).parameters


@lru_cache(maxsize=1024)
def _names(module: str, edits: tuple[Edit, ...]) -> dict[str, Any]:
    """What the edited text of a module defines, among the module's own names."""
    names = HELPERS | vars(import_module(module))
    exec(_compiled(module, edits), names)
    return names


def _compiled(module: str, edits: tuple[Edit, ...]) -> CodeType:
    """The functions and constants of the edited text; classes and imports are the original's."""
    text = getsource(import_module(module))
    for edit in edits:
        if edit.at is not None and text.startswith(edit.old, edit.at):
            text = text[: edit.at] + edit.new + text[edit.at + len(edit.old) :]
            continue
        if text.count(edit.old) != 1:
            raise ValueError(f"{edit.file} holds {edit.old!r} {text.count(edit.old)} times, not once")
        text = text.replace(edit.old, edit.new)
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.Assign | ast.AnnAssign)]
    return compile(tree, f"{module} (changed)", "exec")


def module_of(file: str) -> str:
    """What a file below siglip_ref is imported as."""
    return "siglip_ref." + file.removesuffix(".py").replace("/", ".")


def bfloat16(x: Array) -> Array:
    """x rounded to bfloat16's 8 bits, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.asarray(x).dtype)


def shortened(x: Array, form: str) -> Array:
    """x rounded to a format of fewer bits, and back."""
    return round_to(x, FORMATS[form]).astype(np.asarray(x).dtype)


def dropped(x: Array) -> Array:
    """A tenth of the elements set to zero and the rest scaled up, the same ones in every run."""
    keep = np.random.default_rng(0).random(np.shape(x)) >= 0.1
    return np.where(keep, x / 0.9, 0 * x)


# names that an edit's new text may use besides those of its file
HELPERS = {"bfloat16": bfloat16, "shortened": shortened, "dropped": dropped, "np": np}
