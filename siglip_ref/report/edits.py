"""A program that is an edit of the specification's formulas, in words: what it computes, and what it should."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from siglip_ref.mistakes.grammar.words import defined
from siglip_ref.report.data import Finding

if TYPE_CHECKING:
    from siglip_ref.check.engine.edits import Edits, Fitted

DERIVED = "derived"
_NO_CHANGE = re.compile(r"swapaxes\((-?\d+), \1\)")  # an axis with itself: a longer way to leave a step out
_LISTED = 2


def in_words(fitted: "Fitted", whose: str, proof: str) -> list[str]:
    """The lines of `Report.computes`.

    Parameters
    ----------
    whose : "your step", or a stage by the name that reports give it
    proof : where the numbers were found, and where reproduced
    """
    if not fitted.certain:
        return [line_of(fitted, whose, False), "not certain: none is named"]
    return [line_of(fitted, whose), proof + same_here(fitted)]


def line_of(fitted: "Fitted", whose: str, sure: bool = True) -> str:
    """What is computed; with all that fits as well, where none of it is named."""
    if not fitted.certain:
        others = "; ".join(_now(edits) for edits in fitted.rivals[:_LISTED])
        more = f" and {len(fitted.rivals) - _LISTED} more" if len(fitted.rivals) > _LISTED else ""
        return f"measured: {whose} fits {_now(fitted.edits)}, and as well {others}{more}"
    now = _now(fitted.edits)
    line = f"{whose}: {now}, where the specification has {_was(fitted.edits)}{defined(now)}"
    return line if sure else f"measured: {line}"


def same_here(fitted: "Fitted") -> str:
    """Other edits that are this one, to be told behind a proof."""
    known = (one for one in dict.fromkeys(map(_now, fitted.alike)) if one != _now(fitted.edits))
    alike = [one for one in known if not _NO_CHANGE.search(one)]
    return f"; the same here: {'; '.join(alike[:_LISTED])}" if alike else ""


def finding_of(found: Sequence["Fitted"], tensor: str) -> Finding:
    """The same as a finding, of one stage or of several."""
    both = [f"{_now(fitted.edits)}, where the specification has {_was(fitted.edits)}" for fitted in found]
    repair = " and ".join(dict.fromkeys(f"there should be {_was(fitted.edits)}" for fitted in found))
    told = f"worked out: {'; and '.join(dict.fromkeys(both))}"
    return Finding(DERIVED, tensor, "", told, repair + defined(repair))


def _now(edits: "Edits") -> str:
    return " and ".join(one.now for one in edits)


def _was(edits: "Edits") -> str:
    return " and ".join(dict.fromkeys(one.was for one in edits))
