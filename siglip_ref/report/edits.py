"""A program that is an edit of the specification's formulas, in words: what it computes, and what it should."""

from typing import TYPE_CHECKING

from siglip_ref.report.data import Finding

if TYPE_CHECKING:
    from siglip_ref.check.engine.edits import Edits, Fitted

DERIVED = "derived"
_LISTED = 2


def in_words(fitted: "Fitted", whose: str, proof: str) -> list[str]:
    """The lines of `Report.computes`.

    Parameters
    ----------
    whose : "your step", or a stage by the name that reports give it
    proof : where the numbers were found, and where reproduced
    """
    if not fitted.certain:
        others = "; ".join(_now(edits) for edits in fitted.rivals[:_LISTED])
        more = f" and {len(fitted.rivals) - _LISTED} more" if len(fitted.rivals) > _LISTED else ""
        return [
            f"measured: {whose} fits {_now(fitted.edits)}, and as well {others}{more}",
            "not certain: none is named",
        ]
    lines = [f"{whose}: {_now(fitted.edits)}, where the specification has {_was(fitted.edits)}"]
    alike = [one for one in dict.fromkeys(map(_now, fitted.alike)) if one != _now(fitted.edits)]
    same = f"; the same here: {'; '.join(alike[:_LISTED])}" if alike else ""
    return [*lines, proof + same]


def finding_of(fitted: "Fitted", tensor: str) -> Finding:
    """The same as a finding."""
    told = f"worked out: {_now(fitted.edits)}, where the specification has {_was(fitted.edits)}"
    return Finding(DERIVED, tensor, "", told, f"compute {_was(fitted.edits)}")


def _now(edits: "Edits") -> str:
    return " and ".join(one.now for one in edits)


def _was(edits: "Edits") -> str:
    return " and ".join(dict.fromkeys(one.was for one in edits))
