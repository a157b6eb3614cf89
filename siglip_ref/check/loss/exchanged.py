"""Is a wrong loss right when scale and bias change places? The likeliest slip where a foreign signature is wrapped."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from siglip_ref.check.call.frameworks import Inputs, Outcome, Setting
from siglip_ref.check.expected.expected import Convention, judge, truth
from siglip_ref.check.expected.probes import Probe
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.report.data import Finding

EXCHANGED = "scale-and-bias-exchanged"
Call = Callable[[Inputs], Outcome]


def right_when_exchanged(
    call: Call, probe: Probe, candidates: Sequence[Convention], setting: Setting
) -> Convention | None:
    """The convention under which everything is right at this probe, if the third and fourth argument are exchanged."""
    outcomes: dict[str, Outcome | None] = {}
    for convention in candidates:
        kind = convention.scale
        if kind not in outcomes:
            outcomes[kind] = _called(call, probe, kind)
        outcome = outcomes[kind]
        if outcome and all(row.right for row in judge(outcome, truth(probe, convention, setting), "")):
            return convention
    return None


def finding() -> Finding:
    """What to say then."""
    mistake = CATALOGUE[EXCHANGED]
    evidence = f"{mistake.text}: with the third and fourth argument exchanged, loss and gradients are right"
    return Finding(EXCHANGED, "loss", "", evidence, mistake.repair)


def _called(call: Call, probe: Probe, kind: str) -> Outcome | None:
    scale = probe.scale if kind == "linear" else probe.log_scale
    try:
        outcome = call(Inputs(probe.image_embed, probe.text_embed, probe.bias, scale))
    except Exception:  # whatever a user's function raises, it is not right then
        return None
    other = {"log_scale": "bias", "bias": "log_scale"}
    return replace(outcome, gradients={other.get(name, name): g for name, g in outcome.gradients.items()})
