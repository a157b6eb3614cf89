"""The engine, with a subject of a few lines; no branch on a sentence; the way of an embedding through a check."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.engine.check import check
from siglip_ref.check.engine.subject import Answer, Compared, Subject, Worst
from siglip_ref.report.compare import compare, out_of_range
from siglip_ref.report.data import Finding, Report

ROOT = Path(sr.__file__).parent
ASKS = ("startswith", "endswith", "removeprefix", "removesuffix", "split", "partition", "find", "index")
WORDS = ("evidence", "repair", "note", "text", "words", "told", "rows")  # attributes that hold sentences
VISITED = 12


@dataclass
class Sum(Subject[Compared]):
    """Whether a number is the sum of others, or their mean, which would be another convention."""

    got: float
    numbers: tuple[float, ...]

    def compare(self) -> Compared:
        return self.under(sum(self.numbers))

    def under(self, exact: float) -> Compared:
        if not np.isfinite(exact):
            return Compared([out_of_range("loss", "value", "overflows")])
        return Compared([compare("loss", np.array(self.got), np.array(exact), 1e-9, kind="value")])

    def others(self, compared: Compared) -> Iterator[Answer[Compared]]:
        mean = self.under(sum(self.numbers) / len(self.numbers))
        if compared.wrong and not mean.wrong:
            found = Finding("convention", "loss", "", "the mean", "say so")
            yield Answer([found], "OTHER CONVENTION", mean)

    def explain(self, compared: Compared) -> Answer[Compared]:
        return Answer([Finding("unknown", "loss", "", "no sum", "add up")])

    def title(self, compared: Compared) -> str:
        return "a sum"

    def count(self, compared: Compared) -> None:
        return None

    def tell(self, compared: Compared, report: Report) -> None:
        report.notes.append(f"{len(self.numbers)} numbers")

    def worst(self, compared: Compared, report: Report) -> Worst | None:
        arrays = {"input/numbers": np.array(self.numbers), "got/loss": np.array(self.got)}
        return Worst(compared.details[0], arrays, "print(case)")


@pytest.mark.parametrize(
    ("got", "numbers", "verdict", "found"),
    [
        (6.0, (1.0, 2.0, 3.0), "PASS", []),
        (2.0, (1.0, 2.0, 3.0), "OTHER CONVENTION", ["the mean"]),
        (5.0, (1.0, 2.0, 3.0), "FAIL", ["no sum"]),
        (np.nan, (1.0, 2.0), "FAIL", ["no sum"]),
        (1.0, (np.inf, 1.0), "NOT JUDGED", []),
    ],
)
def test_a_subject_of_a_few_lines(got: float, numbers: tuple[float, ...], verdict: str, found: list[str]) -> None:
    report = check(Sum(got, numbers))
    assert (report.verdict, [one.evidence for one in report.findings]) == (verdict, found)
    assert (report.unjudged is not None) == (verdict == "NOT JUDGED")
    assert report.notes == [f"{len(numbers)} numbers"] and report.case
    compile(report.case.program, "reproduce.py", "exec")
    assert all(row.right for row in report.rows) == (verdict in ("PASS", "OTHER CONVENTION"))


def test_every_check_goes_through_the_engine() -> None:
    """A report is made in one place; checks of preprocessing, tokenising and of a checkpoint have no subject yet."""
    own = {"preprocess.py", "tokenize.py", "checkpoint.py"}
    makers = {
        path.name
        for path in (ROOT / "check").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Report"
    }
    assert makers == own | {"check.py"}


def asked_of_sentences(tree: ast.AST) -> Iterator[str]:
    """Where what a sentence says, or how it begins, decides something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ASKS:
            value: Any = node.func.value
            if isinstance(value, ast.Attribute) and value.attr in (*WORDS, "probe", "label", "tensor", "id"):
                yield f"{node.lineno}: {ast.unparse(node)}"
            if isinstance(value, ast.Name) and value.id in ("text", "said"):
                yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn | ast.Eq | ast.NotEq):
            for side in (node.left, *node.comparators):
                if isinstance(side, ast.Attribute) and side.attr in ("evidence", "repair", "text", "words"):
                    yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("re.fullmatch", "re.match"):
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_nothing_asks_a_sentence_what_it_says() -> None:
    """Findings have kinds, tensors and numbers, patterns have forms, probes are steep or not: data first."""
    folders = [ROOT / "report", *(ROOT / "check" / room for room in ("engine", "diagnosis", "loss", "ranks", "step"))]
    found = [
        f"{path.name}:{line}"
        for folder in folders
        for path in folder.rglob("*.py")
        for line in asked_of_sentences(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        '"a suspicion: " in finding.evidence',
        'row.probe.startswith("trained")',
        'finding.tensor.split(", ")',
        'text.startswith("all")',
    ],
)
def test_the_test_above_sees_what_was_there(line: str) -> None:
    assert list(asked_of_sentences(ast.parse(line)))


def test_an_embedding_visits_few_files() -> None:
    program = Path(__file__).parents[2] / "tools" / "walk.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    verdict, _, count = done.stdout.splitlines()[-1].partition(": ")
    assert verdict == "PASS" and int(count.split()[0]) <= VISITED, done.stdout
