"""Runs of the reference itself, in rounded arithmetic: each seed is a program that rounds at places of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from false_alarms_count import Trial, verdict_on
from false_alarms_losses import PLAIN, _truth
from false_alarms_seeds import HELD_OUT, loss_order

from siglip_ref.arithmetic.rounded import FORMATS, Rounding, rounded
from siglip_ref.arithmetic.variants import KERNELS, fused, pair_block
from siglip_ref.check.call.frameworks import Inputs, Outcome, Setting
from siglip_ref.check.engine.expected.expected import judge as judge_probe
from siglip_ref.check.files.dump import judge as judge_dump
from siglip_ref.mistakes import reference
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.noise.measure import LIBRARY, REGIMES
from siglip_ref.ops.elementary import Array
from siglip_ref.vectors.store import Vector, packaged
from siglip_ref.vectors.tasks import TASKS

FORMS = tuple(product(("signed", "subtracted", "apart"), (True, False), (True, False)))
DRAWN = 24


@dataclass(frozen=True)
class Rounds(Setting):
    """A setting whose arithmetic is named outright, also those that no program on this machine computes in."""

    arithmetic: str = ""

    @property
    def regime(self) -> str:
        return self.arithmetic


def program(regime: str, rng: np.random.Generator, chance: bool) -> tuple[Rounding, Any]:
    """A right program of this regime, drawn: how it adds up, what it fuses, how its loss is written. It rounds to
    nearest, as all real ones do, or up and down by chance.

    Half have elementary functions that err, all to one side and everywhere: these write the positives as the
    specification does. A sigmoid(40) that is not exactly 1 leaves 1e-7 in sigmoid(l) - 1 where 1e-18 is right: noise
    does not allow for that, and no library does it.
    """
    narrow = REGIMES[regime].rounding.format.bits < 24
    kernels = set(REGIMES[regime].kernels) | {name for name in KERNELS if narrow and rng.random() < 0.5}
    errs = rng.random() < 0.5
    rounding = replace(
        REGIMES[regime].rounding,
        order=rng.choice(["sequential", "reversed", "pairwise"]),
        fma=bool(rng.random() < 0.5) and not chance,
        library=rng.uniform(-LIBRARY, LIBRARY) if errs else 0.0,
        random=rng if chance else None,
    )
    forms = [form for form in FORMS if form[0] == "signed"] if errs else FORMS
    form = forms[rng.integers(len(forms))]
    return rounding, replace(fused(sorted(kernels)), pair_block=pair_block(*form), tiles=int(rng.integers(1, 5)))


def runs(dtype: str, least: int) -> Iterator[Trial]:
    """float32, bfloat16, float16: every golden vector; other regimes: losses at drawn probes."""
    for name, chance in (("reference: rounded to nearest", False), ("reference: rounded by chance", True)):
        yield from _runs(name, chance, dtype, least)


def _runs(name: str, chance: bool, dtype: str, least: int) -> Iterator[Trial]:
    if dtype in ("float32", "bfloat16", "float16"):
        chosen = [vector for vector in packaged().vectors.values() if dtype in vector.exact_in]
        chosen = chosen[:: -(-len(chosen) // least)]
        for seed in range(HELD_OUT, HELD_OUT + -(-least // (2 * len(chosen)))):
            for vector in chosen:
                yield Trial(name, dtype, vector.id, seed, True, *_golden(vector, dtype, seed, chance))
    setting = Rounds("float32", "float32", "cpu", False, arithmetic=dtype)
    probes = min(DRAWN, least)
    judged, seed = 0, HELD_OUT
    while judged < least:
        for drawn in range(HELD_OUT, HELD_OUT + probes):
            trial = Trial(name, dtype, f"drawn {drawn}", seed, True, *_drawn(drawn, setting, seed, chance))
            judged += trial.judged
            yield trial
        seed += 1


def _golden(vector: Vector, dtype: str, seed: int, chance: bool) -> Any:
    rounding, ops = program(dtype, np.random.default_rng([seed, len(vector.id)]), chance)
    inputs = {n: rounded(v, rounding) if v.dtype.kind == "f" else v for n, v in vector.inputs.items()}
    with np.errstate(all="ignore"):
        got = TASKS[vector.task](replace(reference(), ops=ops), inputs, vector.all_settings)
    plain = {name: np.asarray(value).view(np.ndarray) for name, value in got.items()}
    report = judge_dump(vector, plain, dtype, "")
    return report.details, report.verdict


def _drawn(drawn: int, setting: Rounds, seed: int, chance: bool) -> Any:
    probe, right = _truth(drawn, False, PLAIN, setting)
    rounding, ops = program(setting.regime, np.random.default_rng([seed, drawn]), chance)
    order = loss_order(seed, probe.shape)
    given = order.inputs(Inputs(probe.image_embed, probe.text_embed, probe.log_scale, probe.bias))
    scalars = replace(rounding, format=FORMATS["float32"])
    x, y = (rounded(rows, rounding) for rows in (given.image_embed, given.text_embed))
    log_scale, bias = (rounded(number, scalars) for number in (given.scale, given.bias))
    with np.errstate(all="ignore"):
        out = sigmoid_loss(x, y, log_scale, bias, tile=-(-len(x) // ops.tiles), ops=ops)
    loss, *gradients = (np.asarray(value).view(np.ndarray) for value in out)
    named: dict[str, Array | None] = dict(
        zip(("image_embed", "text_embed", "log_scale", "bias"), gradients, strict=True)
    )
    rows = judge_probe(order.outcome(Outcome(loss, named)), right, probe.label)
    return rows, verdict_on(rows)
