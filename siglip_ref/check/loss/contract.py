"""Trying the contract of a differentiable loss: every clause is another way to make a call that has just worked.

What is refused. A clause that changes only what a caller of autograd is free to choose (how often it calls, what
requires a gradient, the gradient that comes in, a call in between) must be answered: raising breaks the contract as a
wrong number does. A clause that changes the memory's layout may be refused: a kernel may state that as its limit, and
raising is better than reading wrongly. So a refusal of that kind is "not checked", and so is one for want of memory.
"""

from collections.abc import Sequence

import numpy as np

from siglip_ref.check.call.contract_clauses import CLAUSES
from siglip_ref.check.call.frameworks import Outcome
from siglip_ref.check.expected.expected import Convention, judge
from siglip_ref.check.loss.calls import Refusal, Run
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Finding


def kept(run: Run, convention: Convention, details: list[Row]) -> tuple[list[Finding], list[str]]:
    """The clauses at the first probe that worked; only tensors that a plain backward gets right can break one.

    Parameters
    ----------
    details : the rows of the plain calls; those of the clauses are added

    Returns
    -------
    findings : of broken clauses
    notes : what is worth saying, and breaks nothing
    """
    findings, notes = list[Finding](), list[str]()
    if not run.outcomes:
        return findings, notes
    probe, plain, right = next(iter(run.outcomes.values()))
    good = {row.name for row in details if row.right and row.probe == probe.label}
    refused: dict[str, list[Refusal]] = {}
    for way in run.ways:
        clause = CLAUSES[way]
        label = f"{probe.name}, {clause.label}"
        outcome = run.call(probe, convention, way, label)
        if isinstance(outcome, Refusal):
            if not outcome.memory and not clause.layout:
                details.append(outcome.as_row())
                refused.setdefault(clause.id, []).append(outcome)
            continue
        run.outcomes[label] = probe, outcome, right
        found = judge(outcome, right, label, clause.times)
        rows = [row for row in found if row.name in good or (row.trouble == "modified" and not plain.modified)]
        details += rows
        wrong = [row for row in rows if row.verdict == "FAIL"]
        if way == "again" and not _same_bits(outcome, plain):
            notes.append("two calls with the same inputs differ in bits: random numbers, or sums in changing order")
        if wrong:
            evidence = f"{clause.suspicion} ({', '.join(row.name for row in wrong)}; ratio {wrong[0].ratio:.4f})"
            findings.append(Finding(clause.id, wrong[0].name, wrong[0].rows, evidence, clause.repair))
    return findings + [_refusing(id, ones) for id, ones in refused.items()], notes


def _refusing(id: str, refused: Sequence[Refusal]) -> Finding:
    """One finding for all calls that break a clause by raising."""
    clause = next(clause for clause in CLAUSES.values() if clause.id == id)
    where = ", ".join(one.label.removeprefix(f"{one.probe.name}, ") for one in refused)
    evidence = f"{where}: raises, though the same shapes had just worked: {refused[0].words}"
    return Finding(id, "", "", evidence, clause.repair)


def _same_bits(one: Outcome, other: Outcome) -> bool:
    pairs = [(one.loss, other.loss), *((one.gradients[name], other.gradients[name]) for name in one.gradients)]
    return all((a is None and b is None) or np.array_equal(a, b, equal_nan=True) for a, b in pairs)
