"""All edits of a function in one program, each behind a question: to try one is a run, and no compilation."""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from inspect import getsource
from types import FunctionType
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

from siglip_ref.mistakes.change import Reference, reference_of
from siglip_ref.mistakes.grammar import helpers
from siglip_ref.mistakes.grammar.forms import SCALED
from siglip_ref.mistakes.grammar.scope import FREE, ROWS, Scope
from siglip_ref.mistakes.grammar.words import decided, formula
from siglip_ref.ops.record import Function, alone_of

HERE = "_here_"
_HELPERS = {name: value for name, value in vars(helpers).items() if isinstance(value, FunctionType)}
_FACTOR = np.ones(())  # what FREE is at present
_TAKEN: list[int] = []  # and ROWS
_ON: set[int] = set()  # the edits that are made at present
_AT: set[int] = set()  # and the expressions in which they are
_WHERE: dict[int, int] = {}  # the expression of each edit


@dataclass(frozen=True)
class Single:
    """One edit. function: "module:name"; number: what turns it on, see `made`; text: the statement with HERE for the
    expression that was `old` and is `new`; factor, rows: what FREE and ROWS stand
    for in it."""

    function: str
    number: int
    text: str
    old: str
    new: str
    factor: float = 1.0
    rows: tuple[int, ...] = ()

    @property
    def place(self) -> tuple[str, str]:
        """Where it is made: two edits of one place do not go together."""
        return self.function, self.text

    @property
    def drops(self) -> bool:
        """Whether it only leaves something out."""
        return self.new.strip("()").removesuffix(", None") in self.old

    @property
    def rank(self) -> tuple[int, int]:
        """The plainest first: something left out, then something else in its place, then something done to it, then
        another way taken; short."""
        kind = 3 if self.text.startswith("if ") else 0 if self.drops else 1 if self.old not in self.new else 2
        handed_on = self.text.startswith("return") and self.old.isidentifier()  # it says the least of what is computed
        return kind, len(self.new) + len(self.old) + 100 * handed_on

    @property
    def plain(self) -> bool:
        """Whether it leaves something out, or takes it another number of times."""
        return self.drops or self.new in [_plain(form.format(f"({self.old})")) for form in SCALED]

    @property
    def was(self) -> str:
        """The specification's formula."""
        return self._both[1]

    @property
    def now(self) -> str:
        """The edited one."""
        return self._both[0]

    @property
    def _both(self) -> tuple[str, str]:
        old, new = (self.text.replace(HERE, f"({one})") for one in (self.old, self.new))
        new = new.replace(FREE, f"{self.factor:.6g}").replace(ROWS, f"{list(self.rows)}")
        return decided(new, old) or (formula(new), formula(old))


@cache  # of some thousands of short texts
def _plain(text: str) -> str:
    return ast.unparse(ast.parse(text, mode="eval"))


@contextmanager
def made(edits: Collection[Single], spec: Any = None) -> Iterator[Any]:
    """Make these edits in everything that `edited` gave, such as `spec`; two of one expression do not go together."""
    numbers = {one.number for one in edits}
    before = {*_ON}, {*_AT}, float(_FACTOR), [*_TAKEN]
    factor = max((one.factor for one in edits), key=lambda factor: abs(factor - 1), default=1.0)
    _set(numbers, {_WHERE[number] for number in numbers}, factor, [row for one in edits for row in one.rows])
    try:
        yield spec
    finally:
        _set(*before)


def _set(on: set[int], at: set[int], factor: float, rows: list[int]) -> None:
    for held, new in ((_ON, on), (_AT, at)):
        held.clear()
        held.update(new)
    _FACTOR[...] = factor
    _TAKEN[:] = rows


def singles(functions: Iterable[str]) -> list[Single]:
    """Every single edit of these functions, "module:name" each."""
    return [one for function in functions for one in _grown(function)[0]]


@lru_cache(maxsize=16)
def edited(functions: tuple[str, ...]) -> Reference:
    """The reference with all edits of these functions inside it, none of them made; see `made`.

    Examples
    --------
    >>> linear = "siglip_ref.ops.linear:linear_forward"
    >>> wrong = edited((linear,)).ops
    >>> [minus] = [one for one in singles([linear]) if one.now == "out = rows @ kernel - bias"]
    >>> with made([minus]):
    ...     wrong.linear.forward(np.ones((1, 1)), np.ones((1, 1)), np.ones(1))[0]
    array([[0.]])
    """
    by_module: dict[str, dict[str, Any]] = {}
    for function in functions:
        module, _, name = function.partition(":")
        by_module.setdefault(module, {})[name] = _grown(function)[1]
    return reference_of({module: _names(module, code) for module, code in by_module.items()})


def named(function: Function) -> str:
    """A function's "module:name"."""
    plain = alone_of(function)
    return f"{plain.__module__}:{plain.__name__}"


def _names(module: str, changed: Mapping[str, Any]) -> dict[str, Any]:
    """A module's names, with functions that hold their edits, and all others bound to these."""
    home = import_module(module)
    names = vars(home) | {"np": np, "_on": _ON, "_at": _AT, FREE: _FACTOR, ROWS: _TAKEN} | _HELPERS
    for name, value in vars(home).items():
        if isinstance(value, FunctionType) and value.__module__ == module:
            names[name] = FunctionType(value.__code__, names, name, value.__defaults__, value.__closure__)
            names[name].__kwdefaults__ = value.__kwdefaults__
    for code in changed.values():
        exec(code, names)
    return names


@lru_cache(maxsize=256)
def _grown(function: str) -> tuple[tuple[Single, ...], Any]:
    """The edits of a function, and its code with all of them inside, each behind a question."""
    module, _, name = function.partition(":")
    [tree] = [
        node
        for node in ast.parse(getsource(import_module(module))).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    scope = Scope(tree, module)
    found: list[Single] = []
    for statement in [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Return | ast.If)]:
        places = list(_expressions(statement, whole=scope.backward))
        texts = []
        for holder, field, number in places:
            node = _held(holder, field, number)
            _hold(holder, field, number, ast.Name(HERE, ast.Load()))
            texts.append((ast.unparse(statement), ast.unparse(node)))
            _hold(holder, field, number, node)
        offers = [list(scope.variants(_held(*place), statement)) for place in places]
        for place, (text, old), offer in reversed(list(zip(places, texts, offers, strict=True))):
            at, chain = len(_WHERE), _held(*place)
            made_of = []
            for new, parsed in offer:
                number = len(_WHERE)
                _WHERE[number] = at
                found.append(Single(function, number, text, old, new))
                made_of.append((number, parsed))
            if made_of:
                _hold(*place, _asked("_at", at, _choice(made_of), chain))
    tree.decorator_list = []
    with catch_warnings():  # of numbers that are taken for arrays
        simplefilter("ignore")
        return tuple(found), compile(ast.fix_missing_locations(ast.Module([tree], [])), f"{module} (edited)", "exec")


def _choice(made_of: Sequence[tuple[int, ast.expr]]) -> ast.expr:
    """The one that is on, by halves: a chain of hundreds would be too deep."""
    if len(made_of) == 1:
        return made_of[0][1]
    half = len(made_of) // 2
    first = ast.Set([ast.Constant(number) for number, _ in made_of[:half]])
    test = ast.BinOp(ast.Name("_on", ast.Load()), ast.BitAnd(), first)
    return ast.IfExp(test, _choice(made_of[:half]), _choice(made_of[half:]))


def _asked(name: str, number: int, then: ast.expr, otherwise: ast.expr) -> ast.expr:
    test = ast.Compare(ast.Constant(number), [ast.In()], [ast.Name(name, ast.Load())])
    return ast.IfExp(test, then, otherwise)


def _expressions(statement: ast.stmt, whole: bool) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where the expressions of a statement stand: not what it assigns to, not what is only kept for the way back.

    whole : of what is returned, everything; else the first, beside which caches stand
    """
    if isinstance(statement, ast.Return) and isinstance(statement.value, ast.Tuple):
        count = len(statement.value.elts) if whole else 1
        starts: list[tuple[ast.AST, str, int | None]] = [(statement.value, "elts", k) for k in range(count)]
    else:
        starts = [(statement, "test" if isinstance(statement, ast.If) else "value", None)]
    while starts:
        here = starts.pop(0)
        node = _held(*here)
        if node is None or isinstance(node, ast.JoinedStr) or _is_kept(node):
            continue
        yield here
        for field, value in ast.iter_fields(node):
            if field in ("ctx", "slice") or (field == "func" and isinstance(value, ast.Name)):
                continue
            if field == "func" and isinstance(value, ast.Attribute):  # a method of something: that something
                starts.append((value, "value", None))
            elif isinstance(value, ast.expr):
                starts.append((node, field, None))
            elif isinstance(value, list):
                starts += [(node, field, k) for k, item in enumerate(value) if isinstance(item, ast.expr)]
                starts += [(item, "value", None) for item in value if isinstance(item, ast.keyword)]


def _is_kept(node: ast.AST) -> bool:
    """What is only kept for the way back, and copies, without which an edit would write into what it was given."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Cache", "State", "dict"))


def _held(holder: Any, field: str, number: int | None) -> Any:
    value = getattr(holder, field)
    return value if number is None else value[number]


def _hold(holder: Any, field: str, number: int | None, new: ast.expr) -> None:
    if number is None:
        setattr(holder, field, new)
    else:
        getattr(holder, field)[number] = new
