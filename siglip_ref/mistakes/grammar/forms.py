"""What may stand in the place of an expression, by its kind alone: the rules of the grammar."""

import ast
from collections.abc import Callable, Iterator, Sequence

_OTHERS: dict[type[ast.AST], tuple[str, ...]] = {
    ast.Add: ("-", "*"), ast.Sub: ("+", "*"), ast.Mult: ("+", "/"), ast.Div: ("*", "-"), ast.Pow: ("*",),
    ast.Lt: ("<=", ">"), ast.LtE: ("<", ">="), ast.Gt: (">=", "<"), ast.GtE: (">", "<="), ast.Eq: ("!=",),
    ast.NotEq: ("==",), ast.And: ("or",), ast.Or: ("and",), ast.In: ("not in",), ast.Is: ("is not",),
    ast.IsNot: ("is",), ast.BitAnd: ("|",), ast.BitOr: ("&",), ast.FloorDiv: ("*",), ast.Mod: ("//",),
}  # fmt: skip
# of a function or a method: its relatives; each is tried without the function, too
_RELATIVES = {
    "exp": ("np.expm1", "np.exp2"), "log1p": ("np.log",), "log": ("np.log1p", "np.log2"),
    "sqrt": ("np.cbrt", "np.square"),
    "maximum": ("np.minimum",), "minimum": ("np.maximum",), "zeros": ("np.ones",), "ones": ("np.zeros",),
    "zeros_like": ("np.ones_like",), "tanh": ("np.sin", "np.arctan"), "cos": ("np.sin",), "sin": ("np.cos",),
    "eye": ("np.ones", "np.zeros"), "softplus": ("ops.sigmoid", "np.abs"), "sigmoid": ("np.tanh", "ops.softplus"),
}  # fmt: skip
_REDUCTIONS = ("sum", "mean", "max", "min", "var", "std")
# around what a statement computes: clamps, a guard, a wrong order of rows or columns, too few bits
AROUND = (
    "np.clip({}, -1, 1)", "np.clip({}, -20, 20)", "np.maximum({}, 0)", "np.minimum({}, 100)", "np.abs({})",
    "{} + 1e-3", "{} + 1e-6", "{}.T", "{}[::-1]", "{}[..., ::-1]", "np.roll({}, 1, 0)", "np.roll({}, 1, -1)",
    "{}.swapaxes(-1, -2)", "shortened({}, 'bfloat16')", "shortened({}, 'float16')", "np.float32({})",
    "{} * ({}.shape[0] or 1)", "{} / ({}.shape[-1] or 1)", "{} - {}.mean()", "dropped({})", "{} + {}**2",
)  # fmt: skip
SCALED = ("-{}", "2 * {}", "{} / 2", "0 * {}", "1.01 * {}")

Said = Callable[[ast.expr], str]


def alone(node: ast.AST) -> bool:
    """Whether it is one word or call, which needs no brackets."""
    return isinstance(node, ast.Name | ast.Constant | ast.Call | ast.Attribute | ast.Subscript)


def instead(node: ast.expr, said: Said, names: Sequence[str]) -> Iterator[str]:
    """What may stand in the place of an expression.

    Parameters
    ----------
    said : what stands somewhere, in brackets unless it is one word or call
    names : what may stand for one another
    """
    if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        return
    numbers = ast.Call | ast.BinOp | ast.Subscript | ast.Attribute | ast.UnaryOp
    if isinstance(node, numbers) or (isinstance(node, ast.Name) and node.id in names):
        yield from (form.format(said(node)) for form in SCALED)
    if isinstance(node, ast.Name) and node.id in names:
        yield from (name for name in names if name != node.id)
    elif isinstance(node, ast.BinOp):
        yield from _of_two(said(node.left), node.op, said(node.right))
    elif isinstance(node, ast.UnaryOp):
        yield said(node.operand)
    elif isinstance(node, ast.BoolOp):
        yield from map(said, node.values)
        for other in _OTHERS[type(node.op)]:
            yield f" {other} ".join(map(said, node.values))
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = said(node.left), said(node.comparators[0])
        yield from (f"{left} {other} {right}" for other in _OTHERS.get(type(node.ops[0]), ()))
        yield from ("True", "False")
    elif isinstance(node, ast.IfExp):
        yield from (said(node.body), said(node.orelse))
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node.value)
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        yield said(node.value)
    elif isinstance(node, ast.Call):
        yield from _of_call(node, said)
    elif isinstance(node, ast.Tuple):
        yield from (f"({', '.join(parts)},)" for parts in _exchanged([said(part) for part in node.elts]))
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        yield said(node.value)


def _of_two(left: str, op: ast.operator, right: str) -> Iterator[str]:
    yield from (left, right)
    if isinstance(op, ast.MatMult):
        yield from (
            f"{left}.T @ {right}",
            f"{left} @ {right}.T",
            f"{right} @ {left}",
            f"{left} @ {right}.swapaxes(-1, -2)",
        )
        yield f"{left} * {right}"
    yield from (f"{left} {other} {right}" for other in _OTHERS.get(type(op), ()))
    if isinstance(op, ast.Sub | ast.Div | ast.Pow):
        yield f"{right} {'-' if isinstance(op, ast.Sub) else '/' if isinstance(op, ast.Div) else '**'} {left}"


def _of_constant(value: object) -> Iterator[str]:
    if isinstance(value, bool):
        yield str(not value)
    elif isinstance(value, int):
        yield from (f"{new}" for new in dict.fromkeys((value + 1, value - 1, 2 * value, -value, 0)) if new != value)
    elif isinstance(value, float):
        yield from (f"{new!r}" for new in (10 * value, value / 10, 2 * value, 1.01 * value, -value, 0.0, 1.0))


def _of_call(node: ast.Call, said: Said) -> Iterator[str]:
    """Relatives of a function, its arguments exchanged or returned as they are, its axis lost."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    args, given = [said(arg) for arg in node.args], [f"{k.arg}={said(k.value)}" for k in node.keywords if k.arg]
    whole = [*args, *given]
    for other in _RELATIVES.get(name, ()):
        yield f"{other}({', '.join(whole)})"
    if isinstance(node.func, ast.Attribute) and name in _REDUCTIONS:
        owner = said(node.func.value)
        yield from (f"{owner}.{other}({', '.join(whole)})" for other in _REDUCTIONS if other != name)
        yield from (owner, f"{owner}.{name}()", f"{owner}.{name}(0)", f"np.abs({owner}).{name}({', '.join(whole)})")
        return
    if isinstance(node.func, ast.Attribute) and name in ("swapaxes", "reshape", "transpose", "astype", "copy"):
        yield said(node.func.value)
    function = said(node.func)
    yield from args
    for parts in _exchanged(args):
        yield f"{function}({', '.join([*parts, *given])})"
    if len(args) > 2:
        yield from (f"{function}({', '.join([*args[:k], *args[k + 1 :], *given])})" for k in range(len(args)))
    yield from (f"{function}({', '.join([*args, *given[:k], *given[k + 1 :]])})" for k in range(len(given)))


def _exchanged(parts: Sequence[str]) -> Iterator[list[str]]:
    for k in range(len(parts) - 1):
        yield [*parts[:k], parts[k + 1], parts[k], *parts[k + 2 :]]
