"""What else may stand in an expression's place when another program is looked for: what stands beside it in its
function (tensors, weights, settings), and forms in which programs are known to differ."""

import ast
from collections.abc import Iterator
from importlib import import_module
from itertools import combinations
from typing import Any, get_args

from siglip_ref.mistakes.grammar.forms import alone, instead
from siglip_ref.mistakes.grammar.helpers import KINDS, ORDERS
from siglip_ref.process.data import read_toml

FREE = "_free_"  # a factor that is not known
ROWS = "_rows_"  # rows of a table that are not known
SILENT = ("number", "_wide", "_narrow", "subtree")  # calls that say nothing of a formula
_OFFERS = read_toml(__file__, "scope")  # forms, names and numbers


class Scope:
    """What stands beside an expression in its function: other tensors, weights of other names, functions."""

    def __init__(self, tree: ast.FunctionDef, module: str) -> None:
        nodes = list(ast.walk(tree))
        given = [*tree.args.args, *tree.args.kwonlyargs]
        names = {argument.arg: 0 for argument in given}
        for one in nodes:
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                names.setdefault(one.id, one.lineno)
        self.backward = tree.name.endswith("_backward")
        self.since = {n: line for n, line in names.items() if n not in _OFFERS["settings"] and "cache" not in n}
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
        """What may stand in the place of one expression; none twice."""
        known = {ast.unparse(node)}
        for new in dict.fromkeys(self._texts(node, ast.unparse(node), statement)):
            try:
                parsed = ast.parse(new, mode="eval").body
            except SyntaxError:  # a colon that is exchanged
                continue
            plain = ast.unparse(parsed)
            if plain not in known:
                known.add(plain)
                yield plain, parsed

    def _texts(self, node: ast.expr, text: str, statement: ast.stmt) -> Iterator[str]:
        tensor = self._is_tensor(node)
        yield from instead(node, _said, [text] if tensor else ())
        yield from _of_kind(node, text)
        if isinstance(node, ast.Attribute):  # a setting
            yield from ("None", "0.0", f"{text} * {FREE}", *(f"{text} * {one}" for one in self.settings))
        elif isinstance(node, ast.Name):
            yield from self._of_name(node, statement)
            if text in ("x", "x_key", "images"):  # tokens of a sequence that are left out; another range of colours
                yield from (form.replace("X", text) for form in _OFFERS["images" if text == "images" else "left_out"])
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value in self.keys:
            yield from self._of_weight(node)
        if isinstance(node, ast.Subscript) and isinstance(statement, ast.Assign):  # another term, of what stands beside
            beside = statement.value.elts if isinstance(statement.value, ast.Tuple) else []
            others = [ast.unparse(other) for other in beside if isinstance(other, ast.Subscript) and other is not node]
            yield from (f"{text} + ({term}) * {other}" for term in self.terms for other in others)
        if tensor and isinstance(statement, ast.Assign) and node is statement.value and not self.backward:
            yield from (f"{cap} * np.tanh(({text}) / {cap})" for cap in _OFFERS["caps"])
            yield from (f"np.clip({text}, -{cap}, {cap})" for cap in _OFFERS["caps"])
        if (
            isinstance(statement, ast.Assign)
            and node is statement.value
            and ast.unparse(statement.targets[0]) == "scores"
        ):
            yield from (f"without_keys({text}, {which!r})" for which in _OFFERS["hidden"])
            yield from (f"{text} - {FREE} * distances({text})", f"{text} - slopes({text}) * distances({text})")
        if tensor and self.backward and isinstance(node, ast.Name | ast.Call):
            yield f"without({text}, {ROWS})"
        if tensor:
            yield from (form.replace("X", f"({text})") for form in _OFFERS["wrapped"])
            if isinstance(node, ast.Name | ast.BinOp):  # a function of this one, once more
                yield from (f"{call.replace('(X', f'({text}')})[0]" for call in self.again)

    def _of_name(self, node: ast.Name, statement: ast.stmt) -> Iterator[str]:
        if self.forms.get(node.id):
            yield from map(repr, self.forms[node.id])
        elif node.id == "eps":
            yield from (*_OFFERS["eps"], f"eps * {FREE}")
        elif node.id.isupper():  # a number of the formula
            yield f"{node.id} * {FREE}"
        elif node.id in self.since:
            if node.id == "bias" and "kernel" in self.since:  # by what a kernel in few bits is divided by
                lengths = ("np.abs(kernel).max(0)", "np.abs(kernel).max()", "np.sqrt((kernel * kernel).sum(0))")
                yield from (f"bias {sign} {length}" for length in lengths for sign in "*/")
            if node.id in ("x", "normed"):  # other tokens beside
                yield from (f"np.concatenate([{node.id}, {n}], 1)" for n, at in self.since.items()
                            if n != node.id and at < statement.lineno)  # fmt: skip
            yield from ("None",) if node.id in self.optional else ()
            sizes = set() if node.id in _OFFERS["sizes"] else set(_OFFERS["sizes"])  # no tensor is a size
            before = (name for name, line in self.since.items() if line < statement.lineno)
            yield from (name for name in before if name not in self.forms and name not in sizes)

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
            return not ast.unparse(node.func).endswith((".forward", ".backward", *SILENT, "range", "tuple"))
        return isinstance(node, ast.BinOp | ast.Subscript | ast.UnaryOp)


def _said(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if alone(node) else f"({text})"


def _of_kind(node: ast.expr, text: str) -> Iterator[str]:
    """Forms in which programs are known to differ, beside those of the rules."""
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield from (repr(node.value / 2), f"{text} * {FREE}")
    elif isinstance(node, ast.Compare | ast.BoolOp):
        yield f"not ({text})"
    elif isinstance(node, ast.Subscript) and ast.unparse(node.slice) == "tokens":
        base = ast.unparse(node.value)
        yield from (f"{base}[{form.replace('X', 'tokens')}]" for form in _OFFERS["tokens"])
        yield from (f"{text} * (tokens != {pad})[..., None]" for pad in (0, 1))
        yield f"{text} / np.maximum(1, np.sqrt(({text} ** 2).sum(-1, keepdims=True)))"
    elif isinstance(node, ast.Subscript) and text.startswith("table[:"):  # positions
        yield from (f"turned({text})", f"({text})[1:]")
        yield from (f"resampled({text}, 0.1, {kind!r})" for kind in KINDS)
    elif isinstance(node, ast.Tuple):
        calls = [one for one in node.elts if isinstance(one, ast.Call) and len(one.args) == 2]
        if len(calls) == 3 and len({ast.unparse(one.args[1]) for one in calls}) == 1:  # of a fused projection
            fused = ", ".join(ast.unparse(one.args[0]) for one in calls)
            yield from (f"regrouped(({fused}), {ast.unparse(calls[0].args[1])}, {order!r})" for order in ORDERS)
        parts = list(map(ast.unparse, node.elts))
        if len(calls) == 3:  # queries and keys that are normed, in each head or in all, or turned; heads that share
            query, key, value = parts
            inner = [ast.unparse(one.args[0]) for one in calls]
            split = [text.replace(f"({one}, ", "(X, ", 1) for text, one in zip(parts, inner, strict=True)]
            for norm in (*_OFFERS["norms"], *_OFFERS["turns"]):
                yield f"({norm.replace('X', query)}, {norm.replace('X', key)}, {value})"
            for norm in _OFFERS["norms"]:
                both = [form.replace("X", norm.replace("X", x)) for form, x in zip(split[:2], inner[:2], strict=True)]
                yield f"({', '.join(both)}, {value})"
            yield from (f"({query}, {one}({key}), {one}({value}))" for one in _OFFERS["shared"])
        for i, j in combinations(range(len(parts)), 2):
            order = [*parts]
            order[i], order[j] = parts[j], parts[i]
            yield f"({', '.join(order)})"
    elif isinstance(node, ast.IfExp):
        body, test, orelse = map(_said, (node.body, node.test, node.orelse))
        yield f"{body} if not {test} else {orelse}"
    elif isinstance(node, ast.BinOp):
        yield from _of_operation(node)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)


def _of_operation(node: ast.BinOp) -> Iterator[str]:
    left, right = f"({ast.unparse(node.left)})", f"({ast.unparse(node.right)})"
    if isinstance(node.op, ast.Add | ast.Sub):
        yield f"-{left} + {right}"
        yield from _over_a_sum(node, right)
    elif isinstance(node.op, ast.Mult | ast.Div):
        yield from _into_a_sum(node)
        if left == right:
            yield f"np.abs{left}"
        yield from (f"{right} / {left}", f"{left} + {right}")
        yield from (f"{left} * np.sqrt{right}", f"{left} / np.sqrt{right}", f"{left} / {right} ** 2")


def _into_a_sum(node: ast.BinOp) -> Iterator[str]:
    """A factor or a divisor that meets one term of a sum only: a (b + c), and a b + c."""
    sign = "*" if isinstance(node.op, ast.Mult) else "/"
    for inner, form in ((node.left, "({}) " + sign + f" ({ast.unparse(node.right)})"),
                        (node.right, f"({ast.unparse(node.left)}) {sign} " + "({})")):  # fmt: skip
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Add | ast.Sub):
            plus = "+" if isinstance(inner.op, ast.Add) else "-"
            left, right = ast.unparse(inner.left), ast.unparse(inner.right)
            yield from (f"{form.format(left)} {plus} ({right})", f"({left}) {plus} {form.format(right)}")


def _over_a_sum(node: ast.BinOp, right: str) -> Iterator[str]:
    """A divisor, a factor or a function that is drawn over a sum."""
    plus = "+" if isinstance(node.op, ast.Add) else "-"
    if isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.Mult | ast.Div):  # a / c + b, (a + b) / c
        sign = "*" if isinstance(node.left.op, ast.Mult) else "/"
        over: Any = _bare(node.left.left)
        under: Any = _bare(node.left.right)
        yield f"(({ast.unparse(over)}) {plus} {right}) {sign} ({ast.unparse(under)})"
        if _is_alike(over, under):  # f(a) / f(c) + b, and f(a / c + b)
            inner = f"({ast.unparse(over.args[0])}) {sign} ({ast.unparse(under.args[0])})"
            yield f"{ast.unparse(over.func)}({inner} {plus} {right})"
    if isinstance(node.left, ast.Call) and len(node.left.args) == 1:  # f(a) + b, and f(a + b)
        yield f"{ast.unparse(node.left.func)}({ast.unparse(node.left.args[0])} + {right})"


def _bare(node: ast.expr) -> ast.expr:
    """Without a call that only chooses an arithmetic."""
    while isinstance(node, ast.Call) and ast.unparse(node.func) in SILENT[:3]:
        node = node.args[0]
    return node


def _is_alike(one: Any, other: Any) -> bool:
    """Two calls of one function, each of one number."""
    calls = all(isinstance(call, ast.Call) and len(call.args) == 1 for call in (one, other))
    return calls and ast.unparse(one.func) == ast.unparse(other.func)


def _of_call(node: ast.Call) -> Iterator[str]:
    name, given = ast.unparse(node.func), list(map(ast.unparse, node.args))
    if name == "weight.sum":  # keys of zeros that are not masked: scores of 0
        yield f"{ast.unparse(node)} + {FREE} * np.exp(-x.max(-1, keepdims=True))"
    rest = ", ".join([*given, *(f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords)])
    if name in ("ops.gelu.forward", "ops.softmax.forward"):
        yield from (
            f"({other}({given[0]}), None)" for other in _OFFERS["weights" if "softmax" in name else "activations"]
        )
    if name.endswith(".forward") and given:
        yield f"({given[0]}, None)"
        turned = ", ".join([f"({given[0]}).swapaxes(-1, -2)", *given[1:]])  # along the other axis
        yield f"({name}({turned})[0].swapaxes(-1, -2), None)"
    elif isinstance(node.func, ast.Attribute) and not name.startswith(("np.", "ops.")):
        base, method = f"({ast.unparse(node.func.value)})", node.func.attr
        if method == "argmax":
            yield f"{base}.argmin({rest})"
        if method == "mean" and given:  # divided by one less: the variance of a sample
            yield f"{base}.sum({rest}) / ({base}.shape[{given[0]}] - 1)"
        if method == "reshape" and len(given) > 2 and given[-1] == "-1":  # heads and their features exchanged
            yield f"{base}.reshape({', '.join([*given[:-2], given[-1], given[-2]])}).swapaxes(-1, -2)"
    if len(given) == 1 and isinstance(node.args[0], ast.BinOp):  # f(a + b), and f(a) + b
        inner = node.args[0]
        left, right = ast.unparse(inner.left), ast.unparse(inner.right)
        sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}.get(type(inner.op))
        if sign:
            yield from (f"{name}({left}) {sign} ({right})", f"({left}) {sign} {name}({right})")
