"""A pickle as torch.save writes it, read as a list of instructions of which none is ever carried out.

`pickletools` of Python's own tells the instructions apart, and what each is given.

Names of functions and classes stay names (`Name`), and calls stay notes of what would be called with what (`Call`):
this module imports nothing that a file names. What it gives is cut from the file's own bytes, so it needs no more
memory than a few times those.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

MODULES = {  # whose names may stand in a file of weights; what they stand for is not looked up, let alone called
    *("torch", "torchao", "numpy", "collections", "argparse", "pathlib", "datetime", "typing"),
    *("omegaconf", "pytorch_lightning", "lightning", "lightning_fabric", "_codecs"),
}


class Name(NamedTuple):
    """A function or class, by its name only."""

    module: str
    name: str


class Call(NamedTuple):
    """What unpickling would have called, and with which arguments."""

    function: Any
    arguments: Any


class Elsewhere(NamedTuple):
    """A reference to something that is not in the pickle: torch's storages."""

    key: Any


class Pickle(NamedTuple):
    """What a pickle holds, where it ends, and every reference out of it."""

    content: Any
    end: int
    elsewhere: list[Elsewhere]


class NotTensors(ValueError):  # noqa: N818  # said of the file, which may be no mistake
    """The pickle names something that no file of tensors needs."""


class _Mark:
    """Where a list of arguments begins on the stack."""


def read_pickle(data: bytes, start: int = 0) -> Pickle:
    """One pickle; ValueError, or another error of broken input, if it cannot be read."""
    machine, file = _Machine(), io.BytesIO(data)
    file.seek(start)
    for code, given, _ in pickletools.genops(file):
        if code.name == "STOP":
            break
        if code.name not in INSTRUCTIONS:
            raise ValueError(f"instruction {ord(code.code):#x} of a pickle, which torch.save never writes")
        INSTRUCTIONS[code.name](machine, given)
    return Pickle(machine.stack.pop(), file.tell(), machine.elsewhere)


class _Machine:
    """The stack and the numbered notes of a pickle; every value comes from its bytes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.elsewhere: list[Elsewhere] = []

    def since_mark(self) -> list[Any]:
        """What stands above the last mark; the mark goes too."""
        for place in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[place], _Mark):
                above = self.stack[place + 1 :]
                del self.stack[place:]
                return above
        raise ValueError("a list in a pickle that never began")

    def push(self, value: Any) -> None:
        """On top."""
        self.stack.append(value)

    def name(self, module: str, name: str) -> None:
        """A function or class, if a file of tensors may name it."""
        if module.split(".")[0] not in MODULES and (module, name) not in SAFE:
            raise NotTensors(f"{module}.{name}"[:200])
        self.push(Name(module, name))


SAFE = {("builtins", "set"), ("__builtin__", "set"), ("builtins", "complex"), ("__builtin__", "complex")}


def _put(machine: _Machine, number: int) -> None:
    machine.memo[number] = machine.stack[-1]


def _call(machine: _Machine, _: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if function == Name("collections", "OrderedDict"):
        machine.push(_pairs(arguments[0]) if arguments else {})
    elif function == Name("collections", "defaultdict"):
        machine.push({})
    else:
        machine.push(Call(function, arguments))


def _pairs(listed: Any) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    for key, value in listed:
        _enter(out, key, value)
    return out


def _enter(place: Any, key: Any, value: Any) -> None:
    """Into a dict, under a text or a number; other keys, and other places, hold no tensors anybody asks for."""
    if isinstance(place, dict) and isinstance(key, str | int):
        if key in place:
            raise ValueError(f"{str(key)[:200]!r} stands twice in one dict")
        place[key] = value


def _enter_all(machine: _Machine, _: Any) -> None:
    above = machine.since_mark()
    for key, value in zip(above[::2], above[1::2], strict=True):
        _enter(machine.stack[-1], key, value)


def _enter_one(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _enter(machine.stack[-1], key, value)


def _append(machine: _Machine, values: list[Any]) -> None:
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(values)


def _fold(count: int) -> Callable[[_Machine, Any], None]:
    def fold(machine: _Machine, _: Any) -> None:
        if len(machine.stack) < count:
            raise ValueError("a tuple in a pickle of things that are not there")
        values = machine.stack[len(machine.stack) - count :]
        del machine.stack[len(machine.stack) - count :]
        machine.push(tuple(values))

    return fold


def _name_on_stack(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(str(module), str(name))


def _refer(machine: _Machine, _: Any) -> None:
    machine.elsewhere.append(Elsewhere(machine.stack.pop()))
    machine.push(machine.elsewhere[-1])


# what an instruction does, by its name: with the machine, and what it is given
INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, given: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, _: m.push([])),
    "MARK": lambda m, _: m.push(_Mark()),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "POP_MARK": lambda m, _: m.since_mark(),
    # BUILD: the state of an object, nothing that a tensor needs
    **dict.fromkeys(("POP", "BUILD"), lambda m, _: m.stack.pop()),
    "APPEND": lambda m, _: _append(m, [m.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: _append(m, m.since_mark())),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, _: m.push(m.since_mark())),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    **{f"TUPLE{count}": _fold(count) for count in (1, 2, 3)},
    "SETITEM": _enter_one,
    "SETITEMS": _enter_all,
    "GLOBAL": lambda m, given: m.name(*given.split(" ", 1)),
    "STACK_GLOBAL": _name_on_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _call),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": lambda m, _: _put(m, len(m.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, given: m.push(m.memo[given])),
    "BINPERSID": _refer,
}
