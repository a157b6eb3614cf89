"""Does a wrong loss give other numbers each time it is called with the same inputs?"""

from collections.abc import Sequence

from siglip_ref.check.call.frameworks import Outcome
from siglip_ref.check.diagnosis.seen import Seen, distance, is_wrong, seen_of
from siglip_ref.check.expected.expected import Convention
from siglip_ref.check.loss.calls import Run
from siglip_ref.report.data import Finding


def unsteady_finding(run: Run, seen: Sequence[Seen], convention: Convention) -> Finding | None:
    """The finding, if a second call where something is wrong differs from the first by more than rounding.

    Parameters
    ----------
    seen : every tensor of the plain calls
    """
    first = next((one.probe for one in seen if is_wrong(one)), None)
    if first is None:
        return None
    probe, _, right = run.outcomes[first]
    remembered = len(run.refused)
    again = run.call(probe, convention, "plain", f"{first}, once more")
    del run.refused[remembered:]
    if not isinstance(again, Outcome):
        return None
    others = {one.name: one.got for one in seen_of(first, again, right)}
    differ = [o.name for o in seen if o.probe == first and o.name in others and distance(o, others[o.name]) > 1]
    if not differ:
        return None
    names = ", ".join(differ)
    evidence = f"two calls with the same inputs differ by more than rounding: {names}, at {first}"
    return Finding("unknown", names, "", evidence, "no random numbers in a loss: dropout, noise, a sample of the pairs")
