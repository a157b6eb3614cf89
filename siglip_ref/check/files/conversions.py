"""What a converter does wrong: changes of the weights that one stage reads, tried on the engine's own input to it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.params import Params
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import readable, stage_of, stage_values
from siglip_ref.errors import few
from siglip_ref.mistakes import reference
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import compare
from siglip_ref.report.data import Finding

WHOLLY = 3  # stages in which every change is tried; in the others only those that explained one of these
ID = "conversion"

Change = tuple[str, Params]  # in words, by the names below the stage; and the weights that it makes


def find_conversions(
    stages: Sequence[str], run: Run, judge: Judge, probe: Probe, cfg: Config, conventions: Conventions
) -> tuple[list[Finding], list[str]]:
    """Findings for wrong stages that a change of their weights explains, and the stages that none explains.

    Parameters
    ----------
    stages : activations that are wrong by themselves, in the order of the network
    run, judge, probe, cfg, conventions : as in a check of the model
    """
    shown = readable(run.activations, judge.exact.activations, np.float32)
    given = replace(probe, params={name: np.asarray(value, np.float32) for name, value in probe.params.items()})
    spec = reference()

    def explains(stage: str, weights: Params) -> bool:
        changed = replace(given, params={**given.params, **weights})
        values = stage_values(spec, stage.split("/")[0], shown, changed, cfg, conventions, {stage})
        return compare(stage, run.activations[stage], values[stage], judge.of_value[stage]).right

    made: dict[str, list[str]] = {}
    left = []
    for number, stage in enumerate(stages):
        changes = dict(changes_of(_of_stage(given.params, stage), cfg))
        if number >= WHOLLY:
            changes = {words: weights for words, weights in changes.items() if words in made}
        found = next((words for words, weights in changes.items() if explains(stage, weights)), None)
        if found is None:
            left.append(stage)
        else:
            made.setdefault(found, []).append(stage)
    return [_finding(words, where, len(left)) for words, where in made.items()], left


def changes_of(weights: Params, cfg: Config) -> Iterator[Change]:
    """What converters do to the weights of one stage, the commonest first."""
    for name, value in weights.items():
        short = "/".join(name.split("/")[-2:])
        if name.endswith("patch/kernel"):
            yield from _patch_orders(name, value, cfg.patch)
        if value.ndim == 2 and short.endswith("kernel"):
            if value.shape[0] == value.shape[1]:
                yield f"{short} transposed", {name: value.T}
            yield f"{short} reshaped where it had to be transposed", {name: value.T.reshape(value.shape)}
    for one, other in combinations(("q", "k", "v", "out"), 2):
        pairs = [(n, n.replace(f"/{one}/", f"/{other}/")) for n in weights if f"/attn/{one}/" in n]
        if pairs and all(weights[a].shape == weights[b].shape for a, b in pairs):
            exchanged = {a: weights[b] for a, b in pairs} | {b: weights[a] for a, b in pairs}
            yield f"{one} and {other} exchanged", exchanged
    for name, value in weights.items():
        short = "/".join(name.split("/")[-2:])
        if short.endswith(("bias", "beta")):
            yield f"{short} lost (zeros)", {name: np.zeros_like(value)}
        if short.endswith("gamma"):
            yield f"{short} lost (ones)", {name: np.ones_like(value)}
            yield f"{short} stored as its difference from 1", {name: value - 1}
            yield f"{short} with 1 added once more", {name: value + 1}
            beta = name.replace("gamma", "beta")
            yield f"{short} and beta exchanged", {name: weights[beta], beta: value}
        if short == "image/position":
            columns, rows = cfg.grid[1], cfg.grid[0]
            turned = value.reshape(columns, rows, -1).swapaxes(0, 1).reshape(value.shape)
            yield f"{short} column by column", {name: turned}


def _patch_orders(name: str, kernel: Array, patch: int) -> Iterator[Change]:
    """Its rows in another order than row, column, channel, as other libraries have them."""
    axes = ("row", "column", "channel")
    whole = kernel.reshape(patch, patch, 3, -1)
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            turned = whole.transpose(*order, 3).reshape(kernel.shape)
            words = f"patch/kernel with its rows in the order {', '.join(axes[i] for i in order)}"
            yield words, {name: turned}


def _of_stage(params: Mapping[str, Array], stage: str) -> Params:
    return {name: value for name, value in params.items() if "/" in name and stage_of(name) == stage}


def _finding(words: str, stages: Iterable[str], left: int) -> Finding:
    names = list(stages)
    evidence = (
        f"{words}, where {few(names)} is computed: with that, the stage is what the engine gave, on its own input"
    )
    evidence += f"; {left} stages are wrong by themselves, too" if left else ""
    return Finding(ID, names[0], "", evidence, "mend this tensor in the converter; no other stage needs it")
