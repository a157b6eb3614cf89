"""Half a block that is computed with what belongs to another block: its weights, or its keys and values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.placed import stages_of
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import readable
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.model.text import seen_tokens
from siglip_ref.ops.elementary import Array, subtree
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import DERIVED

_PARTS = {"+attn": ("norm1", "attn/q", "attn/k", "attn/v", "attn/out"), "+mlp": ("norm2", "mlp/in", "mlp/out")}
_WEIGHTS = "each block reads its own weights, from its own input"
_MOST = 4e8  # numbers of a stage, times how often it is computed


def of_other_blocks(
    found: Sequence[Finding], run: Run, judge: Judge, probe: Probe, cfg: Config, conventions: Conventions
) -> list[Finding]:
    """What was found, with what makes a stage right that has no name."""
    if cfg.naflex:
        return list(found)
    shown = readable(run.activations, judge.exact.activations, np.float64)
    told = []
    for one in found:
        half = one.tensor.rpartition("/")[2]
        if one.id == "unknown" and half in _PARTS and one.tensor in shown:
            limit = judge.of_value[one.tensor] * float(np.max(np.abs(shown[one.tensor])))
            fits = [
                words
                for words, value in _made(one.tensor, shown, probe, cfg, conventions)
                if np.max(np.abs(value - shown[one.tensor])) <= limit
            ]
            if fits:  # the fewest exchanged come first
                evidence = f"{one.evidence}; this is {fits[0]}"
                one = replace(one, id=DERIVED, evidence=evidence, repair=_WEIGHTS)
        told.append(one)
    return told


def _made(
    name: str, shown: Mapping[str, Array], probe: Probe, cfg: Config, conventions: Conventions
) -> Iterator[tuple[str, Array]]:
    """Words, and the values."""
    tower, block, half = name.split("/")
    stages = stages_of(cfg, tower)
    before = {stage: last for last, stage in pairwise(stages)}
    params = {n: np.asarray(value, np.float64) for n, value in subtree(probe.params, tower).items()}
    of = {one: subtree(params, one) for one in dict.fromkeys(s.split("/")[1] for s in stages if "/block" in s)}
    if before[name] not in shown or shown[name].size * 32 * len(of) * 8 > _MOST:
        return
    sizes = cfg.image if tower == "image" else cfg.text
    eps = conventions.image_norm_eps if tower == "image" else conventions.text_norm_eps
    gelu = conventions.image_gelu if tower == "image" else conventions.text_gelu
    mask = None if tower == "image" else seen_tokens(probe.tokens, None, conventions)
    ops, x = SPECIFICATION, shown[before[name]]

    def normed(x: Array, weights: Mapping[str, Array], norm: str) -> Array:
        return ops.layer_norm.forward(x, weights[f"{norm}/gamma"], weights[f"{norm}/beta"], eps)[0]

    def value(weights: Mapping[str, Array], keys: Array | None = None) -> Array:
        if half == "+mlp":
            return x + ops.mlp.forward(normed(x, weights, "norm2"), subtree(weights, "mlp"), gelu)[0]
        own = normed(x, weights, "norm1")
        given = own if keys is None else keys
        return x + ops.attention.forward(own, given, subtree(weights, "attn"), sizes.heads, mask)[0]

    parts = _PARTS[half]
    sets = [chosen for count in range(len(parts) + 1) for chosen in combinations(parts, count)]
    for chosen, other in product(sets, (one for one in of if one != block)):
        taken = {n: w for n, w in of[other].items() if any(n.startswith(f"{part}/") for part in chosen)}
        weights = of[block] | taken
        whose = f"the weights {', '.join(chosen)} of {tower}/{other}" if chosen else ""
        if chosen:
            yield f"computed with {whose} in place of its own", value(weights)
        if half == "+mlp" or "norm1" in chosen or "attn/q" in chosen or "attn/out" in chosen:
            continue
        source = before[f"{tower}/{other}/+attn"]
        if source in shown:
            for theirs in (True, False):
                keys = normed(shown[source], of[other if theirs else block], "norm1")
                norm = "normed there" if theirs else "normed by its own norm"
                words = f"attention to the tokens that come into {tower}/{other}, {norm}, in place of its own"
                yield f"{words}{', by ' + whose if whose else ''}", value(weights, keys)
