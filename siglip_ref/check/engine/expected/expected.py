"""What a loss must give at a probe: the exact value and gradients, and the noise that a correct program may add."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from siglip_ref.check.call.frameworks import Outcome, Setting
from siglip_ref.check.engine.expected.convention import Convention, EmbeddingKind, Objective, ScaleKind
from siglip_ref.check.engine.expected.exact import exact_loss
from siglip_ref.check.engine.expected.labelled import more_to_add_up, plain_of, unlabelled
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.expected.repeated import Repeated
from siglip_ref.check.engine.expected.repeated_noise import repeated_noise
from siglip_ref.check.engine.expected.tolerance import SAFETY, Given, is_quick, loss_noise, way_of
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.noise.measure import Noise, announce
from siglip_ref.noise.table import Key, digest, table
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Kind, Row, compare, out_of_range

__all__ = ["CONVENTIONS", "Convention", "EmbeddingKind", "ScaleKind", "Truth", "conventions_of", "judge", "truth"]

# In the order in which they are tried: what fits two of them is called by the first.
CONVENTIONS = (
    Convention("log", "unit"),
    Convention("linear", "unit"),
    Convention("log", "raw"),
    Convention("linear", "raw"),
    Convention("log", "raw", "additive"),
    Convention("linear", "raw", "additive"),
)


@lru_cache
def conventions_of(objective: Objective) -> tuple[Convention, ...]:
    """All under which a loss may compute this."""
    return tuple(replace(convention, objective=objective) for convention in CONVENTIONS)


@dataclass(frozen=True)
class Truth:
    """By tensor name: exact values, the expected noise, and whether even correct rounding leaves the range."""

    exact: dict[str, Array]
    noise: dict[str, Array]
    overflows: dict[str, bool]


def given_of(convention: Convention, setting: Setting) -> Given:
    """How a loss of this convention is given its inputs, and what it computes in."""
    norm, linear = convention.normalises, convention.linear
    return Given(norm, linear, setting.regime, setting.scalar_dtype, convention.objective.measured)


def truth(probe: Probe, convention: Convention, setting: Setting) -> Truth:
    """Loss and gradients by the numbers the function is given, in float64."""
    exact = exact_loss(probe, convention, coarse=setting.dtype != "float64")
    noise = noise_of(probe, convention, setting, exact)
    spread = LossAndGrads(*(np.broadcast_to(noise.absolute[n], np.shape(v)) for n, v in exact._asdict().items()))
    overflows = LossAndGrads(*(name in noise.overflows for name in LossAndGrads._fields))
    return Truth(
        _named(exact, convention),
        _named(spread, convention),
        {name: bool(flag) for name, flag in _named(overflows, convention).items()},
    )


def noise_of(probe: Probe, convention: Convention, setting: Setting, exact: LossAndGrads) -> Noise:
    """Of a correct loss; of a large batch of a variant by way of the loss without its labels."""
    objective = convention.objective
    if not (isinstance(probe, Repeated) and objective.labelled):
        return noise_at(probe, given_of(convention, setting), exact)
    plain = replace(convention, objective=unlabelled(objective))
    right = exact_loss(plain_of(probe), plain)
    return more_to_add_up(noise_at(plain_of(probe), given_of(plain, setting), right), probe, objective)


def tensors_of(outcome: Outcome, right: Truth) -> dict[str, tuple[Array | None, Array]]:
    """By name, what came (None: no gradient) and what is right, of all that was asked for."""
    given = outcome.gradients | {"loss": outcome.loss}
    if "scale" in right.exact and "log_scale" in given:
        given["scale"] = given["log_scale"]
    return {name: (given[name], exact) for name, exact in right.exact.items() if name in given}


def noise_at(probe: Probe, given: Given, exact: LossAndGrads) -> Noise:
    """From the table that ships, where it holds these inputs; else measured, once a process."""
    stored = of_distinct(exact, probe) if isinstance(probe, Repeated) else exact
    found = table().find(key_of(probe, given), stored, given.regime)
    if isinstance(probe, Repeated):
        rows = found or repeated_noise(given, probe)
        whole = {name: level[probe.order] if np.ndim(level) else level for name, level in rows.absolute.items()}
        return Noise(whole, rows.overflows)
    if found is None and not is_quick(given, probe.shape[0]):
        announce(f"a loss in {given.regime} at these shapes")
    scale = probe.scale if given.linear else probe.log_scale
    return found or loss_noise(given, probe.image_embed, probe.text_embed, scale, probe.bias, exact)


def key_of(probe: Probe, given: Given) -> Key:
    """Of the table: a digest of all numbers that the loss is given; how it is given them, and what it computes in."""
    scalars = (probe.scale if given.linear else probe.log_scale), probe.bias
    if isinstance(probe, Repeated):
        return digest(*probe.rows, *scalars, probe.order), way_of(given)
    return digest(probe.image_embed, probe.text_embed, *scalars), way_of(given)


def of_distinct(exact: LossAndGrads, probe: Repeated) -> LossAndGrads:
    """The exact numbers of the batch, with one row for each distinct pair: all copies of a pair have the same."""
    first = np.unique(probe.order, return_index=True)[1]
    return exact._replace(d_image_embed=exact.d_image_embed[first], d_text_embed=exact.d_text_embed[first])


def judge(outcome: Outcome, right: Truth, label: str, times: float = 1.0) -> list[Row]:
    """One row per tensor. times: the gradients must be that many times the plain ones."""
    rows = []
    for name, (got, exact) in tensors_of(outcome, right).items():
        kind: Kind = "value" if name == "loss" else "gradient"
        note = "no gradient arrives" if got is None else ""
        values = np.zeros_like(exact) if got is None else got
        with np.errstate(all="ignore"):
            noise = np.where(right.noise[name] > 0, right.noise[name] / np.abs(exact).max(), 0.0)
        factor, tolerance = 1.0 if kind == "value" else times, SAFETY * noise
        row = compare(name, values, exact * factor, tolerance, kind=kind, note=note, probe=label, noise=noise)
        row = row if got is not None else replace(row, trouble="no gradient")
        if right.overflows[name] and row.verdict == "FAIL":
            row = out_of_range(name, kind, "overflows even with correct rounding", label)
        elif row.right and not (tolerance.min() < 1):
            row = out_of_range(name, kind, "rounding noise exceeds the value", label, "drowned")
        rows.append(row)
    return rows + [_changed(name, label) for name in outcome.modified]


def _changed(name: str, label: str) -> Row:
    nan = float("nan")
    note = "changed in place by the call"
    return Row(f"{name}, as an input", "value", nan, nan, nan, nan, "", "FAIL", note, label, trouble="modified")


def _named(values: LossAndGrads, convention: Convention) -> dict[str, Array]:
    names = ("loss", "image_embed", "text_embed", convention.scale_name, "bias")
    return {name: np.asarray(value, np.float64) for name, value in zip(names, values, strict=True)}
