"""What a function under test holds: modules, tensors and arrays, put back after a check.

A loss may be a module, a method of one, a partial, or a function that encloses one; it may keep statistics, a counter,
or embeddings of earlier calls. Of every module that can be reached from it are remembered: which objects are its
attributes, buffers and parameters, and what its own lists and dicts hold; of every tensor its numbers, its gradient,
and its version; of every array its numbers.

Not put back: a closure's variables, globals, and attributes of objects that are no modules, which a test may keep its
notes in; what is in lists within lists; what an extension keeps in memory of its own.
"""

import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

_LIBRARIES = {"torch", "jax", "jaxlib", "numpy", "flax", "siglip_ref", "builtins", "transformers", "open_clip", "timm"}
_CONTAINERS = (list, dict, set, deque)
_MOST = 100_000  # objects; a loss that holds more than that is a program


@contextmanager
def put_back(*roots: object, parameters: bool = True) -> Iterator[None]:
    """What these hold is at the end as it was at the beginning, also where something raises.

    parameters : also the numbers of a module's parameters; else only their gradients and flags
    """
    restore = [undo for value in reachable(roots) for undo in _remembered(value, parameters)]
    try:
        yield
    finally:
        for undo in restore:
            undo()


def reachable(roots: tuple[object, ...]) -> list[object]:
    """All objects that can be reached, each once."""
    found: dict[int, object] = {}
    waiting = list(roots)
    while waiting and len(found) < _MOST:
        value = waiting.pop()
        if (
            value is None
            or id(value) in found
            or isinstance(value, type | types.ModuleType | str | bytes | int | float)
        ):
            continue
        found[id(value)] = value
        waiting += _inside(value)
    return list(found.values())


def _inside(value: object) -> list[object]:
    """What an object leads to."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        wrapped = [value.__wrapped__] if hasattr(value, "__wrapped__") else []
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values()]
        return [*(value.__closure__ or ()), *defaults, *wrapped, *_globals(value)]
    if isinstance(value, types.CellType):
        with suppress(ValueError):  # a variable that has no value yet
            return [value.cell_contents]
        return []
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, tuple | list | set | frozenset | deque):
        return list(value)
    inner = [value.__wrapped__] if hasattr(value, "__wrapped__") else []  # compiled functions
    return [*inner, *vars(value).values()] if _has_state(value) else inner


def _globals(function: types.FunctionType) -> list[object]:
    """Globals that a function of somebody's own names: what it calls, and what it keeps there."""
    if (function.__module__ or "").split(".")[0] in _LIBRARIES:
        return []
    return [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]


def _has_state(value: object) -> bool:
    """Whether an object keeps attributes that are somebody's own: a module's, or those of a class of no library."""
    if not isinstance(getattr(value, "__dict__", None), dict):
        return False
    return _is_module(value) or type(value).__module__.split(".")[0] not in _LIBRARIES


def _is_module(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _remembered(value: object, parameters: bool) -> Iterator[Callable[[], None]]:
    """How to put one object back."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        from siglip_ref.check.call.held_torch import remembered

        yield remembered(value, numbers=parameters or not isinstance(value, torch.nn.Parameter))
    elif isinstance(value, np.ndarray):
        if value.flags.writeable and not value.dtype.hasobject:
            yield functools.partial(_fill, value, value.copy())
    elif _is_module(value):
        for container in (vars(value), *(part for part in vars(value).values() if isinstance(part, _CONTAINERS))):
            yield functools.partial(_refill, container, _entries(container))


def _fill(array: Any, before: Any) -> None:
    if array.shape == before.shape and array.tobytes() != before.tobytes():
        array[...] = before


def _entries(container: Any) -> list[Any]:
    return list(container.items() if isinstance(container, dict) else container)


def _refill(container: Any, before: list[Any]) -> None:
    """The same objects in the same places; a container that holds them already is not touched."""
    now = _entries(container)
    if len(now) == len(before) and all(_same(a, b) for a, b in zip(now, before, strict=True)):
        return
    container.clear()
    if isinstance(container, dict | set):
        container.update(before)
    else:
        container.extend(before)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:  # an entry of a dict
        return one[0] is other[0] and one[1] is other[1]
    return one is other
