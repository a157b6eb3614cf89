"""A grammar of single edits: every small change of a function's own formulas, generated from its text.

The catalogue lists what went wrong in public programs. This lists nothing: it walks through the expressions of a
function of the specification and changes one of them, in every way that programs are known to differ in: a term or a
factor dropped, a sign, another tensor of the same function, another axis, a mean for a sum, a function left out or
drawn over a sum, something transposed, reversed, moved by a place or scaled. What does not run is no program; what runs
is an edit, made as an entry of the catalogue is, and can be held against what another program computes.
"""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from inspect import getsource
from itertools import combinations
from types import FunctionType
from typing import Any, get_args
from warnings import catch_warnings, simplefilter

import numpy as np

from siglip_ref.mistakes.change import Reference, reference_of
from siglip_ref.ops.record import Function, alone_of

_WRAPPED = (  # what may happen to any tensor
    "-(X)", "2 * X", "X / 2", "0 * X", "X[..., ::-1]", "X[:, ::-1]", "X.swapaxes(-1, -2)", "np.roll(X, 1, -2)",
    "np.roll(X, -1, -2)", "np.roll(X, 1, -1)", "np.roll(X, -1, -1)", "X / np.sqrt(X.shape[-1])",
    "X * np.sqrt(X.shape[-1])", "X / X.shape[-1]", "X * X", "np.sqrt(X)", "np.abs(X)", "np.maximum(X, 0)",
    "np.sign(X)", "np.tanh(X)",
)  # fmt: skip
_EPS = ("1e-05", "1e-06", "1e-08", "1e-12", "0.001", "0.0")
_METHODS = {"mean": ("sum", "max"), "sum": ("mean", "max"), "max": ("mean", "min"), "argmax": ("argmin",)}
_RELATIVES = {"sqrt": ("square", "cbrt"), "tanh": ("arctan", "sin"), "exp": ("expm1",), "maximum": ("minimum",),
              "minimum": ("maximum",)}  # fmt: skip
_SILENT = ("number", "_wide", "_narrow", "subtree")  # calls that say nothing of a formula
_SETTINGS = ("ops", "cfg", "conventions", "heads", "tower", "rule", "state", "weights", "params", "grads", "layout",
             "keep", "name", "slots", "moved", "patch")  # fmt: skip


@dataclass(frozen=True)
class Single:
    """One edit. function: "module:name"; number: what turns it on, see `made`; text: the statement with HERE for the
    expression that was `old` and is `new`; factor: what FREE stands for in it."""

    function: str
    number: int
    text: str
    old: str
    new: str
    factor: float = 1.0

    @property
    def place(self) -> tuple[str, str]:
        """Where it is made: two edits of one place do not go together."""
        return self.function, self.text

    @property
    def drops(self) -> bool:
        """Whether it only leaves something out."""
        return self.new.strip("()").removesuffix(", None") in self.old

    @property
    def plain(self) -> bool:
        """Whether it leaves something out, or takes it another number of times."""
        return self.drops or self.new in [form.replace("X", f"({self.old})") for form in _WRAPPED[:4]]

    @property
    def was(self) -> str:
        """The specification's formula."""
        return _words(self.text.replace(HERE, f"({self.old})"))

    @property
    def now(self) -> str:
        """The edited one."""
        return _words(self.text.replace(HERE, f"({self.new})").replace(FREE, f"{self.factor:.6g}"))


HERE, FREE = "_here_", "_free_"
_FACTOR = np.ones(())  # what FREE is at present
_ON: set[int] = set()  # the edits that are made at present
_AT: set[int] = set()  # and the expressions in which they are
_WHERE: dict[int, int] = {}  # the expression of each edit


@contextmanager
def made(edits: Collection[Single]) -> Iterator[None]:
    """Make these edits in everything that `edited` gave; two of one expression do not go together."""
    numbers = {one.number for one in edits}
    _ON.update(numbers)
    _AT.update(_WHERE[number] for number in numbers)
    _FACTOR[...] = max((one.factor for one in edits), key=lambda factor: abs(factor - 1), default=1.0)
    try:
        yield
    finally:
        _ON.clear()
        _AT.clear()


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
    names = vars(home) | {"np": np, "_on": _ON, "_at": _AT, FREE: _FACTOR}
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
    scope = _Scope(tree, module)
    found: list[Single] = []
    for statement in [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Return | ast.If)]:
        places = list(_expressions(statement))
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


def _expressions(statement: ast.stmt) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where the expressions of a statement stand: not what it assigns to, not what is only kept for the way back."""
    if isinstance(statement, ast.Return) and isinstance(statement.value, ast.Tuple):
        starts: list[tuple[ast.AST, str, int | None]] = [(statement.value, "elts", 0)]
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


class _Scope:
    """What stands beside an expression in its function: other tensors, weights of other names, functions."""

    def __init__(self, tree: ast.FunctionDef, module: str) -> None:
        nodes = list(ast.walk(tree))
        given = [*tree.args.args, *tree.args.kwonlyargs]
        bound = [n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        names = {argument.arg: 0 for argument in given}
        for one in bound:
            names.setdefault(one.id, one.lineno)
        self.since = {n: line for n, line in names.items() if n not in _SETTINGS and "cache" not in n}
        kinds = {a.arg: getattr(import_module(module), ast.unparse(a.annotation), None) for a in given if a.annotation}
        self.forms = {name: get_args(kind) for name, kind in kinds.items() if get_args(kind)}
        self.optional = {a.arg for a in given if a.annotation and "None" in ast.unparse(a.annotation)}
        self.keys = sorted(
            {n.slice.value for n in nodes if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Constant)}
        , key=str)  # fmt: skip
        settings = {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "rule"}
        self.settings = sorted(settings)
        self.terms = sorted({ast.unparse(n) for n in nodes if isinstance(n, ast.IfExp)})
        calls = [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func).endswith(".forward")]
        self.again = sorted({", ".join([ast.unparse(n.func) + "(X", *map(ast.unparse, n.args[1:])]) for n in calls})

    def variants(self, node: ast.expr, statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
        """What may stand in the place of one expression."""
        text = ast.unparse(node)
        for new in dict.fromkeys(self._texts(node, text, statement)):
            if new != text:
                yield new, ast.parse(new, mode="eval").body

    def _texts(self, node: ast.expr, text: str, statement: ast.stmt) -> Iterator[str]:
        if isinstance(node, ast.Constant):
            yield from _constants(node.value)
            return
        if isinstance(node, ast.Compare | ast.BoolOp):
            yield f"not ({text})"
            return
        if isinstance(node, ast.Tuple):  # two exchanged
            parts = list(map(ast.unparse, node.elts))
            for i, j in combinations(range(len(parts)), 2):
                order = [*parts]
                order[i], order[j] = parts[j], parts[i]
                yield f"({', '.join(order)})"
            return
        if isinstance(node, ast.IfExp):
            body, test, orelse = map(ast.unparse, (node.body, node.test, node.orelse))
            yield from (body, orelse, f"{body} if not {test} else {orelse}")
        if isinstance(node, ast.Attribute):  # a setting
            yield from ("None", "0.0", f"{text} * {FREE}", *(f"{text} * {one}" for one in self.settings))
            return
        if isinstance(node, ast.Name):
            yield from self._of_name(node, statement)
        elif isinstance(node, ast.BinOp):
            yield from _of_operation(node)
        elif isinstance(node, ast.Call):
            yield from _of_call(node)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value in self.keys:
            yield from self._of_weight(node)
        if isinstance(node, ast.Subscript) and isinstance(statement, ast.Assign):  # another term, of what stands beside
            beside = statement.value.elts if isinstance(statement.value, ast.Tuple) else []
            others = [ast.unparse(other) for other in beside if isinstance(other, ast.Subscript) and other is not node]
            yield from (f"{text} + ({term}) * {other}" for term in self.terms for other in others)
        if self._is_tensor(node):
            yield from (form.replace("X", f"({text})") for form in (*_WRAPPED, f"X * {FREE}"))
            if isinstance(node, ast.Name | ast.BinOp):  # a function of this one, once more
                yield from (f"{call.replace('(X', f'({text}')})[0]" for call in self.again)

    def _of_name(self, node: ast.Name, statement: ast.stmt) -> Iterator[str]:
        if self.forms.get(node.id):
            yield from map(repr, self.forms[node.id])
        elif node.id == "eps":
            yield from _EPS
        elif node.id in self.since:
            yield from ("None",) if node.id in self.optional else ()
            yield from (name for name, line in self.since.items() if line < statement.lineno and name not in self.forms)

    def _of_weight(self, node: ast.Subscript) -> Iterator[str]:
        assert isinstance(node.slice, ast.Constant)
        base, key = ast.unparse(node.value), str(node.slice.value)
        last = key.split("/")[-1]
        yield from (f"{base}[{other!r}]" for other in self.keys if str(other).split("/")[-1] == last)
        yield from (f"0 * {base}[{key!r}]", f"{base}[{key!r}].T", f"{base}[{key!r}] * 0 + 1")

    def _is_tensor(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.since and node.id not in self.forms and node.id not in ("eps", "mask")
        if isinstance(node, ast.Call):
            return not ast.unparse(node.func).endswith((".forward", ".backward", *_SILENT, "range", "tuple"))
        return isinstance(node, ast.BinOp | ast.Subscript | ast.UnaryOp)


def _constants(value: object) -> Iterator[str]:
    if isinstance(value, bool):
        yield repr(not value)
    elif isinstance(value, int):
        yield from (repr(other) for other in (value + 1, value - 1, -value, 2 * value) if other != value)
    elif isinstance(value, float):
        yield from map(repr, (0.0, value / 2, 2 * value, -value))


def _of_operation(node: ast.BinOp) -> Iterator[str]:
    left, right = ast.unparse(node.left), ast.unparse(node.right)
    yield left
    if isinstance(node.op, ast.Add | ast.Sub):
        yield from (right, f"({left}) {'-' if isinstance(node.op, ast.Add) else '+'} ({right})", f"-({left}) + {right}")
        yield f"({left}) * ({right})"
        if isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.Mult | ast.Div):  # a / c + b, (a + b) / c
            sign = "*" if isinstance(node.left.op, ast.Mult) else "/"
            over: Any = _bare(node.left.left)
            under: Any = _bare(node.left.right)
            plus = "+" if isinstance(node.op, ast.Add) else "-"
            yield f"(({ast.unparse(over)}) {plus} {right}) {sign} ({ast.unparse(under)})"
            if _is_alike(over, under):  # f(a) / f(c) + b, and f(a / c + b)
                inner = f"({ast.unparse(over.args[0])}) {sign} ({ast.unparse(under.args[0])})"
                yield f"{ast.unparse(over.func)}({inner} {plus} {right})"
        if isinstance(node.left, ast.Call) and len(node.left.args) == 1:  # f(a) + b, and f(a + b)
            yield f"{ast.unparse(node.left.func)}({ast.unparse(node.left.args[0])} + {right})"
    elif isinstance(node.op, ast.MatMult):
        yield from (f"({right}) @ ({left})", f"({left}) @ ({right}).swapaxes(-1, -2)", f"({left}) * ({right})")
    else:
        if left == right:
            yield f"np.abs({left})"
        other = "/" if isinstance(node.op, ast.Mult) else "*"
        yield from (right, f"({left}) {other} ({right})", f"({right}) / ({left})", f"({left}) + ({right})")
        yield from (f"({left}) * np.sqrt({right})", f"({left}) / np.sqrt({right})", f"({left}) / ({right}) ** 2")


def _bare(node: ast.expr) -> ast.expr:
    """Without a call that only chooses an arithmetic."""
    while isinstance(node, ast.Call) and ast.unparse(node.func) in _SILENT[:3]:
        node = node.args[0]
    return node


def _is_alike(one: Any, other: Any) -> bool:
    """Two calls of one function, each of one number."""
    calls = all(isinstance(call, ast.Call) and len(call.args) == 1 for call in (one, other))
    return calls and ast.unparse(one.func) == ast.unparse(other.func)


def _of_call(node: ast.Call) -> Iterator[str]:
    name, given = ast.unparse(node.func), list(map(ast.unparse, node.args))
    rest = [*given, *(f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords)]
    if name.endswith(".forward") and given:
        yield f"({given[0]}, None)"
        turned = ", ".join([f"({given[0]}).swapaxes(-1, -2)", *given[1:]])  # along the other axis
        yield f"({name}({turned})[0].swapaxes(-1, -2), None)"
    elif (given and not isinstance(node.func, ast.Attribute)) or name.startswith("np."):
        yield given[0]
    if isinstance(node.func, ast.Attribute):
        base, method = f"({ast.unparse(node.func.value)})", node.func.attr
        if base not in ("(np)", "(ops)") and not name.endswith((".forward", ".get")):
            yield base
            yield from (f"{base}.{other}({', '.join(rest)})" for other in _METHODS.get(method, ()))
        if method == "mean" and given:  # divided by one less: the variance of a sample
            yield f"{base}.sum({', '.join(rest)}) / ({base}.shape[{given[0]}] - 1)"
        if method == "reshape" and len(given) > 2 and given[-1] == "-1":  # heads and their features exchanged
            yield f"{base}.reshape({', '.join([*given[:-2], given[-1], given[-2]])}).swapaxes(-1, -2)"
    if name.startswith("np."):
        yield from (f"np.{other}({', '.join(rest)})" for other in _RELATIVES.get(name[3:], ()))
    if len(given) == 1 and isinstance(node.args[0], ast.BinOp):  # f(a + b), and f(a) + b
        inner = node.args[0]
        left, right = ast.unparse(inner.left), ast.unparse(inner.right)
        sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}.get(type(inner.op))
        if sign:
            yield from (f"{name}({left}) {sign} ({right})", f"({left}) {sign} {name}({right})")
    if len(given) > 1:
        yield f"{name}({', '.join([given[1], given[0], *rest[2:]])})"


def _words(text: str) -> str:
    """A statement's formula without what says nothing of it: caches, and calls that only choose an arithmetic."""
    new = _Plain().visit(ast.parse(text).body[0])
    if isinstance(new, ast.If):
        return f"if {ast.unparse(new.test)}"
    if isinstance(new, ast.Assign) and isinstance(new.targets[0], ast.Tuple):
        named = [t for t in new.targets[0].elts if "cache" not in ast.unparse(t) and ast.unparse(t) != "_"]
        alone = len(named) == 1 and isinstance(new.value, ast.Call)
        left = ", ".join(map(ast.unparse, named))
        whole = isinstance(new.value, ast.Tuple) and len(named) == 1
        value: ast.expr | None = new.value.elts[0] if whole and isinstance(new.value, ast.Tuple) else new.value
        return f"{left} = {ast.unparse(value or new)}" if alone or whole or len(named) > 1 else ast.unparse(new)
    if isinstance(new, ast.Return):
        value = new.value.elts[0] if isinstance(new.value, ast.Tuple) else new.value
        return f"out = {ast.unparse(value) if value else ''}"
    return ast.unparse(new)


class _Plain(ast.NodeTransformer):
    """As one would write it: without what only chooses an arithmetic, or says where a number is kept."""

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name in _SILENT and node.args:
            return node.args[-1] if name == "subtree" else node.args[0]
        if name == "_power":
            return ast.BinOp(node.args[0], ast.Pow(), node.args[1])
        if name == "slots.get":  # of a running mean
            return ast.Name(ast.unparse(node.args[0]).split("/")[0].lstrip("f'\"") + "_before", ast.Load())
        if name.endswith((".forward", ".backward")):
            node.func = ast.Name(name.removeprefix("ops.").rsplit(".", 1)[0], ast.Load())
        return node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        return ast.Name(node.attr, node.ctx) if ast.unparse(node.value) in ("rule", "np") else node

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        self.generic_visit(node)
        base = ast.unparse(node.value)
        if base == "weights" and isinstance(node.slice, ast.Constant):
            return ast.Name(str(node.slice.value), node.ctx)
        return node.value if isinstance(node.slice, ast.Name) and node.slice.id == "name" else node
