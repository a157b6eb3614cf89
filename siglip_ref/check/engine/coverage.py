"""What a PASS is worth: which mistakes of the catalogue this very run would have seen, and to which it was blind.

Every mistake that is of this kind of check is made in the reference, at the probes and within the tolerances of the
run, and only where something was judged: what was out of range shows nothing. What does not show is held against the
run, whether a finer format would have shown it or not. All other mistakes are named with the reason why they are not
of this check, so that every id of the catalogue is in one of the three places.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from siglip_ref.mistakes import CATALOGUE, Mistake
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Sight
from siglip_ref.report.words import WORDS

Effect = Callable[[Mistake, str], Iterable[tuple[Array, Array, Array]]]
REASONS = WORDS["reasons"]  # by the home of a mistake


def sight(
    own: Iterable[Mistake],
    dtype: str,
    effect: Effect,
    *,
    shown: Mapping[str, bool] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> Sight:
    """Sort the catalogue.

    Parameters
    ----------
    own : the mistakes that this kind of check is there to see, each with edits that make it
    dtype : in which the run was judged
    effect : (mistake, dtype) -> for each tensor: what the mistake makes of it, what is right, how far off is allowed
    shown : ids of mistakes that no edit can make, which this check looks for otherwise: whether it did
    reasons : by id, why a mistake is not of this check, where it is another reason than that of its kind
    """
    seen = {mistake.id: _shows(effect(mistake, dtype)) for mistake in own}
    return sorted_out(seen | {id: did for id, did in (shown or {}).items() if id in CATALOGUE}, dtype, reasons or {})


def sorted_out(seen: Mapping[str, bool], dtype: str, reasons: Mapping[str, str]) -> Sight:
    """A check that would have seen these, or not; all others have a reason of their own, or that of their kind."""
    rest = {m.id: reasons.get(m.id) or REASONS[m.home] for m in CATALOGUE.values() if m.id not in seen}
    return Sight(tuple(id for id in seen if seen[id]), tuple(id for id in seen if not seen[id]), rest, dtype)


def in_the_catalogue(ids: Collection[str]) -> list[str]:
    """With the catalogue's words."""
    return [f"{name}: {CATALOGUE[name].text}" for name in ids]


def _shows(tensors: Iterable[tuple[Array, Array, Array]]) -> bool:
    """Whether some tensor is further off than allowed; a mistake that cannot even run is seen."""
    with np.errstate(all="ignore"):
        try:
            return any(
                np.shape(value) != np.shape(right) or not np.all(np.abs(value - right) <= allowed)
                for value, right, allowed in tensors
            )
        except (ValueError, IndexError, FloatingPointError):
            return True
