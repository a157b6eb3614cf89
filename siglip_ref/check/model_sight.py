"""What a PASS of a model is worth: the catalogue's mistakes, made in the reference at the noise of this model.

A small model is its own ground. For a large one the mistakes are made in `tiny`, on its own probe and under the same
conventions, and judged by the noise that the law gives for the large one.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from siglip_ref.check.adapters import Dtype
from siglip_ref.check.mistakes import Mistake, executable
from siglip_ref.check.model_judge import Judge
from siglip_ref.check.model_noise import allowed, measured_noise, multiplications, units_of, values_of
from siglip_ref.check.model_placed import LOSS, Placed, stages_of, with_mistakes
from siglip_ref.check.model_probe import Probe, model_probe
from siglip_ref.check.model_reference import Reference, reference
from siglip_ref.check.noise_law import law, role
from siglip_ref.check.report import Sight
from siglip_ref.check.sight import sight
from siglip_ref.conventions import Conventions
from siglip_ref.ops.elementary import Array
from siglip_ref.sizes import Config, config

OWN_GROUND = 5e6  # multiplications of a forward pass: all mistakes of the catalogue take a second or two
BESIDE_A_MODEL = ("mistakes between processes", "optimiser steps", "preprocessing", "tokenizer")


def model_sight(
    shown: Collection[str],
    judge: Judge,
    probe: Probe,
    cfg: Config,
    conventions: Conventions,
    coarsest: Dtype,
    own: bool,
) -> Sight:
    """Of a model whose activations `shown` were compared, beside loss and gradients; own: on its own weights."""
    compared = frozenset(role(name) for name in (*shown, LOSS, *judge.exact.grads))
    if own and multiplications(cfg, len(probe.images)) <= OWN_GROUND:
        limits = {**judge.of_value, **judge.of_grad}
        return _sight(compared, limits, judge.exact, probe, cfg, conventions, coarsest)
    return _on_probe(compared, len(probe.images), cfg, conventions, coarsest)


@lru_cache(maxsize=16)  # the same for every model of a size
def _on_probe(compared: frozenset[str], batch: int, cfg: Config, conventions: Conventions, dtype: Dtype) -> Sight:
    ground = replace(cfg, conventions=conventions)
    small = multiplications(cfg, batch) <= OWN_GROUND
    if not small:
        tiny = config("tiny")
        text = tiny.text if cfg.text_head else replace(tiny.text, width=tiny.embed)
        ground = replace(tiny, text=text, text_head=cfg.text_head, conventions=conventions)
    probe = model_probe(ground, batch, dtype)
    exact = reference(probe, ground, conventions, np.float64)
    measured = measured_noise(probe, ground, conventions, dtype).relative
    noise = measured if small else law(cfg, batch, dtype, measured)
    limits = {name: allowed(max(level, measured[name])) for name, level in noise.items()}
    return _sight(compared, limits, exact, probe, ground, conventions, dtype)


def _sight(
    compared: Collection[str],
    limits: dict[str, float],
    exact: Reference,
    probe: Probe,
    cfg: Config,
    conventions: Conventions,
    dtype: Dtype,
) -> Sight:
    """compared : roles of tensors; limits : allowed error by tensor, relative to its unit."""
    everywhere = frozenset({LOSS, *stages_of(cfg, "image"), *stages_of(cfg, "text")})
    right, units = values_of(exact), units_of(exact)
    judged = {n: np.asarray(limits[n] * units[n]) for n in right if role(n) in compared and limits[n] < 1}

    def effect(mistake: Mistake, made_in: str) -> Iterable[tuple[Array, Array, Array]]:
        kind = np.float64 if made_in == "float64" else np.float32
        params = {name: np.asarray(value, kind) for name, value in probe.params.items()}
        ground = replace(probe, params=params, images=np.asarray(probe.images, kind))
        loss, values, grads = with_mistakes([Placed(mistake, everywhere)], ground, cfg, conventions)
        found = values | {LOSS: loss} | grads
        return [(found[name], right[name], limit) for name, limit in judged.items()]

    return sight(executable("one vector"), dtype, effect, BESIDE_A_MODEL)
