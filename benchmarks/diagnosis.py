"""Which name each mistake of the catalogue is given when it is written in torch: docs/generated/diagnosis.md.

python benchmarks/diagnosis.py [losses] [ranks] [models]
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diagnosis_mistakes as torch_code

import siglip_ref as sr

ROOT = Path(__file__).parents[1]
DTYPES = ("float64", "float32")
# mistakes that are one and the same at every point of a check, or under another convention
SAME = {
    "normalised-again": {"convention"},
    "quickgelu-vs-gelu": {"convention"},
    "causal-mask-wrong": {"convention"},
    "eos-pooling-argmax": {"convention"},
    "logit-scale-not-exp": {"convention"},  # the function is given the scale itself
    "logit-bias-dropped": {"logit-bias-init"},
    "log-one-plus-exp": {"log-of-sigmoid"},  # infinite at the same points
}
Row = tuple[str, str, str, list[str]]  # kind, mistake, dtype, the names that it was given, best first


def checks(kinds: list[str]) -> Iterator[tuple[str, str, Callable[[str], Any]]]:
    """Kind, id, and the check of that mistake at a dtype."""
    if "losses" in kinds:
        for name, fn in torch_code.LOSSES.items():
            yield "losses", name, partial(sr.check_loss, fn, "torch", scale="log", embeddings="unit")
    if "ranks" in kinds:
        for name, fn in torch_code.RANKS.items():
            yield "ranks", name, partial(_ranks, fn)
    if "models" in kinds:
        sys.path.insert(0, str(ROOT / "tests" / "interop"))
        from model_mistakes import MISTAKES
        from models import hugging_face

        for name, make in MISTAKES.items():
            yield "models", name, partial(_model, hugging_face, make)


def _ranks(fn: Callable[..., Any], dtype: str) -> Any:
    return sr.check_distributed_loss(fn, 4, "torch", "mean", dtype=dtype, scale="log", embeddings="unit")


def _model(build: Callable[[], Any], make: Callable[[Any], None], dtype: str) -> Any:
    model = build()
    make(model)
    return sr.check_model(model, dtype)


def measure(kinds: list[str]) -> list[Row]:
    rows = []
    for kind, name, check in checks(kinds):
        for dtype in DTYPES:
            report = check(dtype=dtype)
            told = [finding.id for finding in report.findings if finding.id != "layernorm-eps"]
            rows.append((kind, name, dtype, ["passed"] if report.passed else list(dict.fromkeys(told))))
            print(*rows[-1], flush=True)
    return rows


def place(row: Row) -> int:
    """At which rank the mistake was named; a large number if it was not."""
    right = {row[1]} | SAME.get(row[1], set())
    return next((rank for rank, name in enumerate(row[3], 1) if name in right), 99)


def page(rows: list[Row]) -> str:
    lines = [
        "# What mistakes are called",
        "",
        "Made by `python benchmarks/diagnosis.py`: each mistake of the catalogue",
    ]
    lines[-1] += " written in torch, and the names that its report gives it, best first."
    lines += ["", "| written as | flagged | named first | among the first three |", "|---|---|---|---|"]
    for kind in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == kind]
        shares = [sum(row[3] != ["passed"] for row in own), *(sum(place(row) <= n for row in own) for n in (1, 3))]
        lines.append(f"| {kind} ({len(own)} checks) | " + " | ".join(f"{n / len(own):.0%}" for n in shares) + " |")
    lines += ["", "| mistake | in | dtype | names given |", "|---|---|---|---|"]
    for kind, name, dtype, told in rows:
        mark = "" if place((kind, name, dtype, told)) == 1 else " **(not first)**"
        lines.append(f"| {name} | {kind} | {dtype} | {', '.join(told)}{mark} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["losses", "ranks", "models"]
    text = page(measure(wanted))
    if not sys.argv[1:]:
        (ROOT / "docs" / "generated" / "diagnosis.md").write_text(text, encoding="utf-8")
    print(text)
