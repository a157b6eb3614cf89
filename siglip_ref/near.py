"""Names that look like one that is not there."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST = 5
_ALIKE = 0.6
_PART = 4  # letters of a part that says something


def near(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are most like it: a letter off, or with a part in common; none where nothing is alike.

    >>> near("label-signs", ["label-sign", "label-rank-offset", "bias-subtracted"])
    ['label-sign', 'label-rank-offset']
    >>> near("tine", ["tiny", "B/16-256"])
    ['tiny']
    """
    by_lower = {one.lower(): one for one in known}
    close = [by_lower[one] for one in get_close_matches(name.lower(), list(by_lower), MOST, _ALIKE)]
    parts = [part for part in name.lower().replace("_", "-").split("-") if len(part) >= _PART]
    sharing = [one for lower, one in by_lower.items() if any(part in lower for part in parts)]
    return list(dict.fromkeys([*close, *sharing]))[:MOST]
