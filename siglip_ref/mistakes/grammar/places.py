"""Edits that are written into the specification's text, each at its place, as those of the catalogue are."""

import ast
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from inspect import getsource

from siglip_ref.mistakes.change import Edit, module_of
from siglip_ref.mistakes.grammar.forms import AROUND, alone, instead


@lru_cache(maxsize=64)
def single_edits(file: str, functions: tuple[str, ...] | None = None) -> tuple[Edit, ...]:
    """All single edits of a file's functions (None: all), in the order of their places; none twice.

    >>> [edit.new for edit in single_edits("ops/softmax.py", ("softmax_backward",))][:3]
    ['(np.clip(cache, -1, 1))', '(np.clip(cache, -20, 20))', '(np.maximum(cache, 0))']
    """
    text = getsource(import_module(module_of(file)))
    places = _Places(text)
    found: dict[Edit, None] = {}
    for function in ast.parse(text).body:
        if isinstance(function, ast.FunctionDef) and (functions is None or function.name in functions):
            names = _names_of(function)
            for statement in function.body[_documented(function) :]:
                for node in ast.walk(statement):
                    if isinstance(node, ast.expr) and not _is_annotation(node, statement):
                        for new in instead(node, places.text, names):
                            begin, end = places.of(node)
                            if new != text[begin:end]:
                                found[Edit(file, text[begin:end], f"({new})", begin)] = None
                    elif isinstance(node, ast.stmt):
                        found |= dict.fromkeys(_of_statement(node, file, text, places))
    return tuple(found)


class _Places:
    """Where a node stands in the text, as offsets."""

    def __init__(self, text: str) -> None:
        self._lines = [0]
        for line in text.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._text = text

    def of(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Begin and end. The specification is written in ASCII, where a byte is a character."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._lines[node.lineno - 1] + node.col_offset, self._lines[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr | ast.stmt) -> str:
        """What stands there, in brackets unless it is one word or call."""
        begin, end = self.of(node)
        found = self._text[begin:end]
        return found if alone(node) else f"({found})"


def _of_statement(node: ast.stmt, file: str, text: str, places: _Places) -> Iterator[Edit]:
    """Around what is computed; a statement that is left out."""
    value = getattr(node, "value", None)
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Return) and isinstance(value, ast.expr):
        parts = value.elts if isinstance(value, ast.Tuple) else [value]
        for part in parts:
            begin, end = places.of(part)
            said = places.text(part)
            if said.startswith("range("):  # places, no numbers
                continue
            for form in AROUND:
                yield Edit(file, text[begin:end], f"({form.replace('{}', said)})", begin)
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr):
        begin, end = places.of(node)
        yield Edit(file, text[begin:end], "pass", begin)


def _names_of(function: ast.FunctionDef) -> list[str]:
    """Its parameters and what it assigns, `ops` left out."""
    spec = function.args
    given = [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    made = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return [name for name in dict.fromkeys([*given, *made]) if name != "ops"]


def _documented(function: ast.FunctionDef) -> bool:
    return ast.get_docstring(function) is not None


def _is_annotation(node: ast.expr, statement: ast.stmt) -> bool:
    return isinstance(statement, ast.AnnAssign) and any(node is part for part in ast.walk(statement.annotation))
