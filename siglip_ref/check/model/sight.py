"""What a PASS of a model is worth: the catalogue's mistakes, made in the reference at the noise of this model.

A small model is its own ground. For a large one the mistakes are made in `tiny`, on its own probe and under the same
conventions, and judged by the noise that the law gives for the large one.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import OneTower, one_tower
from siglip_ref.architecture.sizes import Config, config
from siglip_ref.check.engine.coverage import sight
from siglip_ref.check.model.adapters import Dtype
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.noise import allowed, measured_noise, multiplications, units_of, values_of
from siglip_ref.check.model.noise_law import law, role
from siglip_ref.check.model.placed import LOSS, Placed, stages_of, with_mistakes
from siglip_ref.check.model.probe import Probe, model_probe
from siglip_ref.check.model.reference import Reference, reference
from siglip_ref.check.model.scales import Judged, Scale, given_at, judge_at, last_stage, scales_of
from siglip_ref.check.model.stages import doubled
from siglip_ref.mistakes import CATALOGUE, ONE_SIDE, Mistake
from siglip_ref.mistakes import reference as with_edits
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Sight

OWN_GROUND = 5e6  # multiplications of a forward pass: all mistakes of the catalogue take a second or two


def model_sight(
    judged: Collection[str],
    found_at: Judged,
    probe: Probe,
    cfg: Config,
    conventions: Conventions,
    coarsest: Dtype,
    own: bool,
) -> Sight:
    """Of a model of which these values and gradients were judged; own: on its own weights."""
    if own and multiplications(cfg, len(probe.images)) <= OWN_GROUND:
        judge = found_at.judge
        limits = {name: limit for name, limit in {**judge.of_value, **judge.of_grad}.items() if name in judged}
        others = list(zip(found_at.scales[1:], found_at.judges[1:], strict=True))
        return _sight(limits, judge.exact, others, probe, cfg, conventions, coarsest)
    return _on_probe(frozenset(map(role, judged)), len(probe.images), cfg, conventions, coarsest)


@lru_cache(maxsize=16)  # the same for every model of a size
def _on_probe(judged: frozenset[str], batch: int, cfg: Config, conventions: Conventions, dtype: Dtype) -> Sight:
    """judged : roles of tensors."""
    ground = replace(cfg, conventions=conventions)
    small = multiplications(cfg, batch) <= OWN_GROUND
    if not small:
        tiny = config("tiny") if not cfg.naflex else replace(config("tiny"), image_size=(16, 16), naflex=True)
        text = tiny.text if cfg.text_head else replace(tiny.text, width=tiny.embed)
        ground = replace(tiny, text=text, text_head=cfg.text_head, conventions=conventions)
        ground = one_tower(ground, cfg.side, cfg.up_to) if isinstance(cfg, OneTower) else ground
    probe = model_probe(ground, batch, dtype)
    exact = reference(probe, ground, conventions, np.float64)
    measured = measured_noise(probe, ground, conventions, dtype).relative
    noise = measured if small else law(cfg, batch, dtype, measured)
    noise = {name: max(level, measured[name]) for name, level in noise.items()}
    limits = {name: allowed(level) for name, level in noise.items() if role(name) in judged}
    usual = Judge(exact, noise, {}, {}, frozenset(), dtype, dtype, small)
    others = [(scale, judge_at(scale, usual, ground, conventions)) for scale in scales_of(exact, probe, dtype)[1:]]
    return _sight(limits, exact, others, probe, ground, conventions, dtype)


def _sight(
    limits: dict[str, float],
    exact: Reference,
    others: Sequence[tuple[Scale, Judge]],
    probe: Probe,
    cfg: Config,
    conventions: Conventions,
    dtype: Dtype,
) -> Sight:
    """limits : allowed error of every tensor that was judged, relative to its unit; others : scales with judges."""
    everywhere = _everywhere(cfg)
    right, units = values_of(exact), units_of(exact)
    absolute = {name: np.asarray(limit * units[name]) for name, limit in limits.items() if limit < 1}

    def effect(mistake: Mistake, made_in: str) -> Iterator[tuple[Array, Array, Array]]:
        kind = np.float64 if made_in == "float64" else np.float32
        params = {name: np.asarray(value, kind) for name, value in probe.params.items()}
        ground = replace(probe, params=params, images=np.asarray(probe.images, kind))
        loss, values, grads = with_mistakes([_placed(mistake, everywhere)], ground, cfg, conventions)
        found = values | {LOSS: loss} | grads
        yield from ((found[name], right[name], limit) for name, limit in absolute.items())
        if mistake.home == "loss":
            yield from _at_other_scales(mistake, others, exact, cfg, conventions, kind)

    own = [m for m in CATALOGUE.values() if m.home in ("loss", "model") and m.edits]
    alone = isinstance(cfg, OneTower)
    if not alone and not cfg.naflex:
        return sight(own, dtype, effect)
    gone = [m for m in own if m.home == "model" and _elsewhere(m, probe, cfg, conventions)]
    beyond = f"in what is not of {cfg.words}" if isinstance(cfg, OneTower) else "in what a NaFlex model does otherwise"
    within = [m for m in own if m not in gone and not (alone and m.home == "loss")]
    return sight(within, dtype, effect, reasons={m.id: beyond for m in gone})


def _everywhere(cfg: Config) -> frozenset[str]:
    return frozenset({LOSS, *stages_of(cfg, "image"), *stages_of(cfg, "text")})


def _elsewhere(mistake: Mistake, probe: Probe, cfg: Config, conventions: Conventions) -> bool:
    """Whether it changes a whole model, and not one bit of this one."""
    if _changes(mistake, doubled(probe), cfg, conventions):
        return False
    whole = replace(config("tiny"), conventions=conventions)
    return _changes(mistake, model_probe(whole, len(probe.images), "float64"), whole, conventions)


def _changes(mistake: Mistake, probe: Probe, cfg: Config, conventions: Conventions) -> bool:
    found, right = (with_mistakes(made, probe, cfg, conventions) for made in ([_placed(mistake, _everywhere(cfg))], []))
    pairs = [(found[part][name], value) for part in (1, 2) for name, value in right[part].items()]
    return not all(np.array_equal(one, other, equal_nan=True) for one, other in pairs)


def _at_other_scales(
    mistake: Mistake,
    others: Sequence[tuple[Scale, Judge]],
    exact: Reference,
    cfg: Config,
    conventions: Conventions,
    kind: Any,
) -> Iterator[tuple[Array, Array, Array]]:
    spec = with_edits(mistake.edits)
    for scale, judge in others:
        given = {name: np.asarray(value, kind) for name, value in given_at(scale, exact.activations).items()}
        found = last_stage(given, cfg, conventions, spec)
        for name, right in {"loss": judge.exact.loss, **judge.exact.grads}.items():
            limit = judge.of_value["loss"] if name == "loss" else judge.of_grad[name]
            if limit < 1 and name not in judge.overflows:
                yield found[name if name == "loss" else f"d {name}"], right, limit * np.max(np.abs(right))


def _placed(mistake: Mistake, everywhere: frozenset[str]) -> Placed:
    """Where it is made; one side that is not normalised is the other mistake, made in one tower."""
    if mistake.id == ONE_SIDE:
        return Placed(CATALOGUE["features-not-normalised"], frozenset({"image/embed"}))
    return Placed(mistake, everywhere)
