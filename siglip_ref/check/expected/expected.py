"""What a loss must give at a probe: the exact value and gradients, and the noise that a correct program may add."""

from dataclasses import dataclass, replace

import numpy as np

from siglip_ref.check.call.frameworks import Outcome, Setting
from siglip_ref.check.expected.exact import Convention, EmbeddingKind, ScaleKind, exact_loss
from siglip_ref.check.expected.probes import Probe
from siglip_ref.check.expected.repeated import Repeated
from siglip_ref.check.expected.repeated_noise import repeated_noise
from siglip_ref.check.expected.tolerance import SAFETY, Given, loss_noise
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Kind, Row, compare, out_of_range

__all__ = ["CONVENTIONS", "Convention", "EmbeddingKind", "ScaleKind", "Truth", "judge", "truth"]

# In the order in which they are tried: what fits two of them is called by the first.
CONVENTIONS = (
    Convention("log", "unit"),
    Convention("linear", "unit"),
    Convention("log", "raw"),
    Convention("linear", "raw"),
    Convention("log", "raw", "additive"),
    Convention("linear", "raw", "additive"),
)


@dataclass(frozen=True)
class Truth:
    """By tensor name: exact values, the expected noise, and whether even correct rounding leaves the range."""

    exact: dict[str, Array]
    noise: dict[str, Array]
    overflows: dict[str, bool]


def given_of(convention: Convention, setting: Setting) -> Given:
    """How a loss of this convention is given its inputs, and what it computes in."""
    norm = convention.norm if convention.embeddings == "raw" else None
    return Given(norm, convention.scale == "linear", setting.regime, setting.scalar_dtype)


def truth(probe: Probe, convention: Convention, setting: Setting) -> Truth:
    """Loss and gradients by the numbers the function is given, in float64."""
    exact = exact_loss(probe, convention, coarse=setting.dtype != "float64")
    given = given_of(convention, setting)
    if isinstance(probe, Repeated):
        noise = repeated_noise(given, probe, exact)
    else:
        asked = probe.scale if given.linear else probe.log_scale
        noise = loss_noise(given, probe.image_embed, probe.text_embed, asked, probe.bias, exact)
    spread = LossAndGrads(*(np.broadcast_to(noise.absolute[n], np.shape(v)) for n, v in exact._asdict().items()))
    overflows = LossAndGrads(*(name in noise.overflows for name in LossAndGrads._fields))
    return Truth(
        _named(exact, convention),
        _named(spread, convention),
        {name: bool(flag) for name, flag in _named(overflows, convention).items()},
    )


def judge(outcome: Outcome, right: Truth, label: str, times: float = 1.0) -> list[Row]:
    """One row per tensor. times: the gradients must be that many times the plain ones."""
    rows = []
    for name, exact in right.exact.items():
        kind: Kind = "value" if name == "loss" else "gradient"
        argument = "log_scale" if name == "scale" else name
        if kind == "gradient" and argument not in outcome.gradients:
            continue
        got = outcome.loss if kind == "value" else outcome.gradients[argument]
        factor = 1.0 if kind == "value" else times
        note = "no gradient arrives" if got is None else ""
        values = np.zeros_like(exact) if got is None else got
        unit = np.abs(exact).max()
        with np.errstate(all="ignore"):
            noise = np.where(right.noise[name] > 0, right.noise[name] / unit, 0.0)
        tolerance = SAFETY * noise
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
    names = ("loss", "image_embed", "text_embed", "scale" if convention.scale == "linear" else "log_scale", "bias")
    return {name: np.asarray(value, np.float64) for name, value in zip(names, values, strict=True)}
