"""A mistake is a small change of the reference's own text; this file makes the changed reference.

The specification's modules are executed anew from their source with the edits applied, in modules that only the copy
sees: nothing that is already imported changes, and every caller inside the copy gets the changed function. Modules
that no edit reaches, by any import, are shared with the original.
"""

import ast
import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.ops.elementary import Array

# what may be changed; everything else (sizes, conventions, parameters) is shared with the original
SPECIFICATION = ("siglip_ref.ops", "siglip_ref.towers", "siglip_ref.loss", "siglip_ref.optim", "siglip_ref.procedures")


@dataclass(frozen=True)
class Edit:
    """In `file` (below siglip_ref), which must hold `old` exactly once, write `new` instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Reference:
    """The specification's modules, as they are or changed."""

    ops: Any
    encoder: Any
    image: Any
    text: Any
    model: Any
    loss: Any
    optim: Any
    procedures: Any


HOMES = {
    "ops": "siglip_ref.ops",
    "encoder": "siglip_ref.towers.encoder",
    "image": "siglip_ref.towers.image",
    "text": "siglip_ref.towers.text",
    "model": "siglip_ref.towers.model",
    "loss": "siglip_ref.loss",
    "optim": "siglip_ref.optim",
    "procedures": "siglip_ref.procedures",
}


def reference(edits: Sequence[Edit] = ()) -> Reference:
    """The reference with these edits; without any, the very modules that everybody uses.

    Raises
    ------
    ValueError, when an edit's old text is not in its file exactly once

    Examples
    --------
    >>> wrong = reference([Edit("ops/pooling.py", "x.shape[1] - 1", "x.shape[1] - 2")])
    >>> wrong.ops.pool_forward(np.arange(3.0).reshape(1, 3, 1), np.zeros((1, 3), int), "last")[0]
    array([[1.]])
    """
    return _reference(tuple(edits))


@lru_cache(maxsize=256)
def _reference(edits: tuple[Edit, ...]) -> Reference:
    if not edits:
        return Reference(**{part: import_module(home) for part, home in HOMES.items()})
    by_module: dict[str, list[Edit]] = {}
    for edit in edits:
        by_module.setdefault(_module_of(edit.file), []).append(edit)
    loaded: dict[str, ModuleType] = {}
    reached = _reached(frozenset(by_module))

    def load(name: str) -> ModuleType:
        if name not in reached:
            return import_module(name)
        if name not in loaded:
            module = loaded[name] = ModuleType(name)
            vars(module)["__builtins__"] = vars(builtins) | HELPERS | {"__import__": redirected}
            exec(_compiled(name, tuple(by_module.get(name, ()))), vars(module))
        return loaded[name]

    def redirected(
        name: str,
        scope: Mapping[str, object] | None = None,
        local: Mapping[str, object] | None = None,
        names: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if name == "siglip_ref" and tuple(names) == ("ops",):
            return SimpleNamespace(ops=load("siglip_ref.ops"))
        if any(name == part or name.startswith(part + ".") for part in SPECIFICATION):
            return load(name)
        return builtins.__import__(name, scope, local, names, level)

    return Reference(**{part: load(home) for part, home in HOMES.items()})


@lru_cache(maxsize=256)
def _reached(edited: frozenset[str]) -> frozenset[str]:
    """The edited modules of the specification, and those that import one of them, over however many steps."""
    reached, more = set(edited), set(edited)
    while more:
        more = {name for name in _modules() if name not in reached and _imports(name) & reached}
        reached |= more
    return frozenset(reached)


@lru_cache(maxsize=1)
def _modules() -> frozenset[str]:
    """All modules of the specification: those of its parts, and what they import."""
    found, new = set[str](), set(HOMES.values())
    while new:
        found |= new
        new = {name for module in new for name in _imports(module)} - found
    return frozenset(found)


@lru_cache(maxsize=256)
def _imports(module: str) -> frozenset[str]:
    """The specification's modules that a module names in its imports."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return frozenset()
    named = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in named if _is_module(name))


@lru_cache(maxsize=1024)
def _is_module(name: str) -> bool:
    """Whether it is a module, and one of the specification."""
    inside = any(name == part or name.startswith(part + ".") for part in SPECIFICATION)
    try:
        return inside and find_spec(name) is not None
    except ModuleNotFoundError:  # a name in a module, such as a function
        return False


@lru_cache(maxsize=1024)
def _compiled(module: str, edits: tuple[Edit, ...]) -> CodeType:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"the source of {module} is not at hand")
    text = Path(spec.origin).read_text(encoding="utf-8")
    for edit in edits:
        if text.count(edit.old) != 1:
            raise ValueError(f"{edit.file} holds {edit.old!r} {text.count(edit.old)} times, not once")
        text = text.replace(edit.old, edit.new)
    return compile(text, f"{spec.origin} (changed)" if edits else spec.origin, "exec")


def _module_of(file: str) -> str:
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
HELPERS = {"bfloat16": bfloat16, "shortened": shortened, "dropped": dropped}
