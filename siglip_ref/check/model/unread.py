"""Parameters that a model does not read through its modules: left out altogether, or read by another name."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.findings import and_more
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import TOWERS, doubled, readable, stage_of, stage_values
from siglip_ref.mistakes import reference
from siglip_ref.report.compare import compare
from siglip_ref.report.data import Finding


def not_read(run: Run) -> list[Finding]:
    """Parameters that were replaced for the check, and made no difference."""
    if not run.unread:
        return []
    ours = {theirs: name for name, theirs in run.names.items()}
    first, many = run.unread[0], "this parameter" if len(run.unread) == 1 else "these parameters"
    evidence = f"{', '.join(run.unread[:4])}{and_more(len(run.unread) - 4)}: your forward does not read {many} through"
    evidence += " the module, but the tensor itself by another name, or a copy made before; or not at all"
    repair = f"read {first} as an attribute of its module in forward; fuse or flatten weights there"
    return [Finding("unknown", ours.get(first, first), "", evidence, repair)]


def explain_unread(
    found: Sequence[Finding], run: Run, judge: Judge, probe: Probe, cfg: Config, conventions: Conventions
) -> tuple[list[Finding], list[Finding]]:
    """What was found, with what is left out where its stage deviates; and what is said of the other parameters.

    Of those nothing is said where a mistake has a name: it says why nothing reads them.
    """
    if any(one.id != "unknown" for one in found):
        return list(found), []
    left = left_out(run, judge, probe, cfg, conventions)
    still = set(run.unread).difference(*left.values())
    said = []
    for one in found:
        words, repair = _words(left.pop(one.tensor, []))
        more = replace(one, evidence=f"{one.evidence}; {words}", repair=f"{one.repair}: {repair}")
        said.append(more if words else one)
    said += [Finding("unknown", stage, "", *_words(names)) for stage, names in left.items()]
    return said, not_read(replace(run, unread=[name for name in run.unread if name in still]))


def left_out(run: Run, judge: Judge, probe: Probe, cfg: Config, conventions: Conventions) -> dict[str, list[str]]:
    """By stage: parameters that nothing reads, and with zeros in their places the stage is the model's.

    Each stage starts from the model's own input to it, so whatever else is wrong elsewhere does not matter.
    """
    silent = set(run.unread) - set(run.elsewhere)
    of_towers = [name for name in probe.params if name.startswith(tuple(f"{tower}/" for tower in TOWERS))]
    names = [name for name in of_towers if run.names.get(name) in silent]
    shown = readable(run.activations, judge.exact.activations, np.float64)
    left: dict[str, list[str]] = {}
    for tower in TOWERS:
        stages = {stage_of(name) for name in names if name.startswith(f"{tower}/")} & shown.keys()
        if not stages:
            continue
        ground = doubled(probe)
        zeros = {name: np.zeros_like(ground.params[name]) for name in names}
        without = replace(ground, params=dict(ground.params) | zeros)
        values = stage_values(reference(), tower, shown, without, cfg, conventions, stages)
        for stage in sorted(stages):
            if compare(stage, shown[stage], values[stage], judge.of_value[stage]).right:
                left[stage] = list(dict.fromkeys(run.names[name] for name in names if stage_of(name) == stage))
    return left


def _words(names: Sequence[str]) -> tuple[str, str]:
    """Evidence and repair; nothing for no name."""
    listed, nothing = ", ".join(names), "nothing reads it, and with zeros in its place this stage is the model's"
    return (f"{listed}: {nothing}", f"{listed} is left out") if names else ("", "")
