"""A pickle as torch.save writes it, read as a list of instructions of which none is ever carried out.

Names of functions and classes stay names (`Name`), and calls stay notes of what would be called with what (`Call`):
this module imports nothing that a file names. What it gives is cut from the file's own bytes, so it needs no more
memory than a few times those.
"""

import struct
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
    machine = _Machine(data, start)
    while True:
        code = machine.take(1)[0]
        if code == 0x2E:  # STOP
            return Pickle(machine.stack.pop(), machine.at, machine.elsewhere)
        if code not in INSTRUCTIONS:
            raise ValueError(f"instruction {code:#x} of a pickle, which torch.save never writes")
        INSTRUCTIONS[code](machine)


class _Machine:
    """The stack and the numbered notes of a pickle; every value comes from `data`."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data, self.at = data, start
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.elsewhere: list[Elsewhere] = []

    def take(self, size: int) -> bytes:
        """The next bytes."""
        part = self.data[self.at : self.at + size]
        if size < 0 or len(part) < size:
            raise ValueError("a pickle that ends early")
        self.at += size
        return part

    def number(self, code: str) -> int:
        """The next whole number, little-endian."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])

    def line(self) -> str:
        """Up to the next end of line."""
        end = self.data.index(b"\n", self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text

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


def _call(machine: _Machine) -> None:
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


def _enter_all(machine: _Machine) -> None:
    above = machine.since_mark()
    for key, value in zip(above[::2], above[1::2], strict=True):
        _enter(machine.stack[-1], key, value)


def _enter_one(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _enter(machine.stack[-1], key, value)


def _append(machine: _Machine, values: list[Any]) -> None:
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(values)


def _fold(count: int) -> Callable[[_Machine], None]:
    def fold(machine: _Machine) -> None:
        if len(machine.stack) < count:
            raise ValueError("a tuple in a pickle of things that are not there")
        values = machine.stack[len(machine.stack) - count :]
        del machine.stack[len(machine.stack) - count :]
        machine.push(tuple(values))

    return fold


def _name_on_stack(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(str(module), str(name))


def _refer(machine: _Machine) -> None:
    machine.elsewhere.append(Elsewhere(machine.stack.pop()))
    machine.push(machine.elsewhere[-1])


def _text(machine: _Machine, size: int) -> None:
    machine.push(machine.take(size).decode("utf-8", "surrogatepass"))


INSTRUCTIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # the protocol
    0x95: lambda m: m.take(8),  # a frame's length
    ord("("): lambda m: m.push(_Mark()),
    ord("0"): lambda m: m.stack.pop(),
    ord("1"): lambda m: m.since_mark(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("i")),
    ord("K"): lambda m: m.push(m.number("B")),
    ord("M"): lambda m: m.push(m.number("H")),
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.number("B")), "little", signed=True)),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("T"): lambda m: m.push(m.take(m.number("I")).decode("latin-1")),
    ord("U"): lambda m: m.push(m.take(m.number("B")).decode("latin-1")),
    ord("B"): lambda m: m.push(m.take(m.number("I"))),
    ord("C"): lambda m: m.push(m.take(m.number("B"))),
    0x8E: lambda m: m.push(m.take(m.number("Q"))),
    ord("X"): lambda m: _text(m, m.number("I")),
    0x8C: lambda m: _text(m, m.number("B")),
    0x8D: lambda m: _text(m, m.number("Q")),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    ord(")"): lambda m: m.push(()),
    0x8F: lambda m: m.push([]),  # a set
    ord("a"): lambda m: _append(m, [m.stack.pop()]),
    ord("e"): lambda m: _append(m, m.since_mark()),
    0x90: lambda m: _append(m, m.since_mark()),
    ord("l"): lambda m: m.push(m.since_mark()),
    0x91: lambda m: m.push(m.since_mark()),  # a frozen set
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    0x85: _fold(1),
    0x86: _fold(2),
    0x87: _fold(3),
    ord("s"): _enter_one,
    ord("u"): _enter_all,
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _name_on_stack,
    ord("R"): _call,
    0x81: _call,
    ord("b"): lambda m: m.stack.pop(),  # the state of an object: nothing that a tensor needs
    ord("q"): lambda m: _put(m, m.number("B")),
    ord("r"): lambda m: _put(m, m.number("I")),
    0x94: lambda m: _put(m, len(m.memo)),
    ord("h"): lambda m: m.push(m.memo[m.number("B")]),
    ord("j"): lambda m: m.push(m.memo[m.number("I")]),
    ord("Q"): _refer,
}
