"""A statement of the specification as a formula: as one would write it on paper."""

import ast
import re
from typing import Any

from siglip_ref.mistakes.grammar import helpers
from siglip_ref.mistakes.grammar.scope import SILENT
from siglip_ref.ops.gelu import CUBIC, QUICK

_KNOWN = {  # of the specification's own functions
    "_split": "x (B, N, C) as (B, heads, N, h)",
    "_join": "x (B, heads, N, h) as (B, N, C)",
    "_tanh_argument": "sqrt(2/pi) (x + 0.044715 x^3)",
    "_root_two_over_pi": "sqrt(2/pi)",
    "zero_rows": "a table with zeros in these rows",
}
_NUMBERS = {"QUICK": QUICK, "CUBIC": CUBIC}


def defined(text: str) -> str:
    """What the functions of a formula are that are no common ones, to be told behind it.

    >>> defined("active = relu(hidden)")
    ' (relu(x) is max(x, 0))'
    """
    known = _KNOWN | {
        name: f.__doc__ for name, f in vars(helpers).items() if getattr(f, "__module__", "") == helpers.__name__
    }
    called = [name for name in dict.fromkeys(re.findall(r"(\w+)\(", text)) if name in known]
    lines = [f"{name}(x) is {' '.join(known[name].split()).rstrip('.')}" for name in called]
    return f" ({'; '.join(lines)})" if lines else ""


def formula(text: str) -> str:
    """A statement's formula without what says nothing of it: caches, and calls that only choose an arithmetic.

    >>> formula("return 2 * x, cache"), formula("return 0 * d_x, d_y"), formula("return x, cache")
    ('out = 2 * x', 'out = (0 * d_x, d_y)', 'x as it is')
    >>> formula("if kind == 'mean': return x.mean(1)")
    "out = x.mean(1) only where kind == 'mean'"
    """
    new = _Plain().visit(ast.parse(text).body[0])
    if isinstance(new, ast.If):
        first = ast.parse(text).body[0].body[0]  # type: ignore[attr-defined]  # what is done behind the question
        plain = isinstance(first, ast.Assign | ast.Return)
        return f"{formula(ast.unparse(first)) if plain else 'what follows'} only where {ast.unparse(new.test)}"
    if isinstance(new, ast.Assign) and isinstance(new.targets[0], ast.Tuple):
        named = [t for t in new.targets[0].elts if "cache" not in ast.unparse(t) and ast.unparse(t) != "_"]
        alone = len(named) == 1 and isinstance(new.value, ast.Call)
        left = ", ".join(map(ast.unparse, named))
        whole = isinstance(new.value, ast.Tuple) and len(named) == 1
        value: ast.expr | None = new.value.elts[0] if whole and isinstance(new.value, ast.Tuple) else new.value
        return f"{left} = {ast.unparse(value or new)}" if alone or whole or len(named) > 1 else ast.unparse(new)
    if isinstance(new, ast.Return):
        value = new.value
        if isinstance(value, ast.Tuple) and not re.search(r"\bd_", ast.unparse(value)):  # caches beside it
            value = value.elts[0]
        said = ast.unparse(value) if value else ""
        return f"{said} as it is" if isinstance(value, ast.Name) else f"out = {said}"
    return ast.unparse(new)


def decided(text: str, before: str) -> tuple[str, str] | None:
    """Where a question has one answer for ever: which, and what the specification has; else None.

    >>> decided("if 'erf' == 'tanh': return y", "if form == 'tanh': return y")
    ("form is never 'tanh'", "y as it is only where form == 'tanh'")
    """
    new, old = ast.parse(text).body[0], ast.parse(before).body[0]
    if not isinstance(new, ast.If) or any(isinstance(node, ast.Name | ast.Call) for node in ast.walk(new.test)):
        return None
    answer = bool(eval(compile(ast.Expression(new.test), "", "eval"), {}))  # constants alone
    asked = old.test if isinstance(old, ast.If) else new.test
    if isinstance(asked, ast.Compare) and isinstance(asked.ops[0], ast.Eq | ast.Is | ast.IsNot):
        often = "always" if answer != isinstance(asked.ops[0], ast.IsNot) else "never"
        return f"{ast.unparse(asked.left)} is {often} {ast.unparse(asked.comparators[0])}", formula(before)
    return f"{ast.unparse(asked)} {'always' if answer else 'never'} holds", formula(before)


class _Plain(ast.NodeTransformer):
    """As one would write it: without what only chooses an arithmetic, or says where a number is kept."""

    def visit_Call(self, node: ast.Call) -> Any:
        node.args = [one for one in node.args if ast.unparse(one) != "ops"]
        node.keywords = [one for one in node.keywords if one.arg != "ops"]
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name == "pi":  # in the precision of what it is given
            return ast.Name("pi", ast.Load())
        if name == "without":
            node.func = ast.Name("zero_rows", ast.Load())
        if name in SILENT and node.args:
            return node.args[-1] if name == "subtree" else node.args[0]
        if name == "_power":
            return ast.BinOp(node.args[0], ast.Pow(), node.args[1])
        if name == "slots.get":  # of a running mean
            key = re.sub("^f?['\"]", "", ast.unparse(node.args[0]))
            return ast.Name(f"{key.split('/')[0]}_before", ast.Load())
        if name.endswith((".forward", ".backward")):
            node.func = ast.Name(name.removeprefix("ops.").rsplit(".", 1)[0], ast.Load())
        return node

    def visit_Name(self, node: ast.Name) -> Any:
        return ast.Constant(_NUMBERS[node.id]) if node.id in _NUMBERS else node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        return ast.Name(node.attr, node.ctx) if ast.unparse(node.value) in ("rule", "np", "ops") else node

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        self.generic_visit(node)
        base = ast.unparse(node.value)
        if base == "weights" and isinstance(node.slice, ast.Constant):
            return ast.Name(str(node.slice.value), node.ctx)
        return node.value if isinstance(node.slice, ast.Name) and node.slice.id == "name" else node
