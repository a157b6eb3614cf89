"""What was found in a model, in words: each mistake and where it was made, or where the deviation begins."""

from collections.abc import Sequence
from dataclasses import replace

from siglip_ref.check.engine.findings import percent
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.rounding import Rounding
from siglip_ref.check.model.diagnosis.search import Found
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Finding


def findings_of(found: Found, rows: list[Row], run: Run) -> list[Finding]:
    """One finding for each mistake that was found; where it begins, in the first of them or by itself."""
    begins = _beginning(rows, run)
    if found.left_out:
        begins = replace(begins, evidence=f"{begins.evidence}; {found.left_out}")
    if not found.made:
        elsewhere = [name for name in found.unexplained if name != begins.tensor]
        if elsewhere:
            more = f"{', '.join(elsewhere[:3])}{and_more(len(elsewhere) - 3)}"
            begins = replace(begins, evidence=f"{begins.evidence}; wrong by itself, too: {more}")
        elif found.unexplained:
            begins = replace(
                begins, evidence=f"{begins.evidence}; given what it makes of it, all later values are right"
            )
        return [begins]
    stages: dict[str, frozenset[str]] = {}
    mistakes = {placed.mistake.id: placed.mistake for placed in found.made}
    for placed in found.made:
        stages[placed.mistake.id] = stages.get(placed.mistake.id, frozenset()) | placed.stages
    together = "it" if len(mistakes) == 1 else f"all {len(mistakes)} of them"
    explained = f"with {together} made in the reference, {_compared(rows)} is the model's"
    if not found.whole:
        much = percent(found.share) if found.share >= _SAID else "not all"
        explained = f"{much} of all that deviates is explained: repair it, and check again"
    findings: list[Finding] = []
    for id, mistake in mistakes.items():
        parts = [f"{mistake.text}; made {_place(stages[id], run)}", *([] if findings else [begins.evidence]), explained]
        # each carries the first tensor that it spoils; what only gradients show begins where they do
        spoils = {name for placed in found.made if placed.mistake.id == id for name in placed.spoils}
        own = next((row for row in rows if row.verdict == "FAIL" and row.name in spoils), None)
        tensor, wrong = (own.name, own.rows) if own else (begins.tensor, begins.rows)
        share = {"share": found.share}
        findings.append(Finding(id, tensor, wrong, "; ".join(parts), mistake.change, numbers=share))
    if found.unexplained:
        more = (
            f"{', '.join(found.unexplained[:4])}{and_more(len(found.unexplained) - 4)}: wrong even on the model's own"
        )
        evidence = f"{more} input to it, and no mistake of the catalogue explains it"
        findings.append(Finding("unknown", found.unexplained[0], "", evidence, "look at what is computed there"))
    return findings


def _compared(rows: Sequence[Row]) -> str:
    """What could be compared, in words: an engine without gradients shows none, and perhaps not every value."""
    left_out = {row.kind for row in rows if row.verdict == "not checked"}
    graded = any(row.kind == "gradient" and row.verdict != "not checked" for row in rows)
    return f"every value{' that it shows' * ('activation' in left_out)}{' and every gradient' * graded}"


def of_roundings(found: Sequence[Sequence[Rounding]], run: Run, rows: Sequence[Row]) -> list[Finding]:
    """One finding for each product that is rounded, in however many stages; found: by stage what fits, best first."""
    stages: dict[str, list[Rounding]] = {}
    for alike in found:
        stages.setdefault("; or, which fits it, too, ".join(map(str, alike)), []).append(alike[0])
    findings = []
    for text, made in stages.items():
        names = [one.stage for one in made]
        row = next(row for row in rows if row.name == names[0] and row.kind != "gradient")
        theirs = f" ({run.names[names[0]]})" if names[0] in run.names else ""
        share = 1 - max(one.left for one in made)
        evidence = (
            f"{text}, where {', '.join(names[:4])}{and_more(len(names) - 4)}{theirs} is computed: "
            f"{share:.1%} of the deviation there, {row.times:.3g} times the noise"
        )
        findings.append(Finding(ROUNDED, names[0], row.rows, evidence, _IN_FULL))
    return findings


_SAID = 0.05  # a smaller share is none: what explains a stage may leave all that follows from it wrong
ROUNDED = "product-low-precision"
_IN_FULL = "compute this product in the model's own precision: look for a cast, autocast, allow_tf32 or a precision="


def _place(stages: frozenset[str], run: Run) -> str:
    """Where a mistake was made, in words."""
    words = []
    for tower in ("image", "text"):
        parts = sorted(name for name in stages if _tower(name) == tower)
        ends = {f"{tower}/stem", f"{tower}/embed"} <= set(parts)
        if ends or (f"{tower}/stem" in parts and len(parts) > 2 and set(parts) >= _stages(run, tower)):
            words.append(f"in the {tower} tower")
        elif parts:
            theirs = f" ({run.names[parts[0]]})" if len(parts) == 1 and parts[0] in run.names else ""
            words.append(f"only where {', '.join(parts[:4])}{and_more(len(parts) - 4)} is computed{theirs}")
    return " and ".join(words) if words else "in the loss"


def _stages(run: Run, tower: str) -> set[str]:
    """The stages of a tower that a run shows."""
    return {name for name in run.activations if _tower(name) == tower}


def _beginning(rows: list[Row], run: Run) -> Finding:
    """Where the deviation begins, and between which two tensors the mistake is to be looked for."""
    wrong = [row for row in rows if row.verdict == "FAIL"]
    first = next((row for row in wrong if row.kind != "gradient"), wrong[-1])
    before = [row.name for row in rows[: rows.index(first)] if row.right and _tower(row.name) == _tower(first.name)]
    theirs = f" ({run.names[first.name]})" if first.name in run.names else ""
    if first.kind == "gradient":
        beside = and_more(len(wrong) - 1)
        evidence = f"every value is right, but the gradient of {first.name}{theirs} is not{beside}"
        repair = "look at the backward pass: a detached tensor, a custom backward, a factor on the gradient"
    else:
        evidence = f"{first.name}{theirs} is the first value that deviates" + (
            f"; {before[-1]} is still right" if before else ""
        )
        repair = f"look at what is computed between {before[-1] if before else 'the input'} and {first.name}"
    return Finding("unknown", first.name, first.rows, evidence, repair)


def _tower(name: str) -> str:
    return name.split("/")[0]


def and_more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""
