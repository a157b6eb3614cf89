"""Durations and ends, as people say them."""

import time


def duration(seconds: float) -> str:
    """In the unit that suits.

    >>> duration(40), duration(600), duration(15_000)
    ('40 s', '10 min', '4.2 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def at(seconds: float) -> str:
    """The time of day in so many seconds."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
