"""The one error for wrong use: what was expected, what came, what is near it, why it happened, how to repair it."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

MOST = 5
T = TypeVar("T")
_ALIKE = 0.6
_PART = 4  # letters of a part that says something


class UsageError(Exception):
    """Wrong use or unreadable input; the command line ends with exit code 2.

    Parameters
    ----------
    expected, got : what the function needs and what it was given
    cause : the reason, as far as it follows from what came; "" where it does not, and the line is left out
    repair : what to type or change
    near : names that look like the one that came

    Examples
    --------
    >>> print(UsageError("a file", "nothing", "a typing mistake", "check the path"))
    expected: a file
    got:      nothing
    cause:    a typing mistake
    repair:   check the path
    """

    on_every_rank = False  # whether all ranks of a job raise the same one, so that one of them is enough to say it

    def __init__(self, expected: str, got: str, cause: str, repair: str, near: Sequence[str] = ()) -> None:
        super().__init__(expected, got, cause, repair)
        self.expected, self.got, self.cause, self.repair, self.near = expected, got, cause, repair, tuple(near)

    @property
    def parts(self) -> dict[str, str]:
        """Its lines by name, in their order; those that say nothing are not among them."""
        near = ", ".join(self.near)
        parts = {"expected": self.expected, "got": self.got, "near": near, "cause": self.cause, "repair": self.repair}
        return {name: text for name, text in parts.items() if text or name in ("expected", "got", "repair")}

    def __str__(self) -> str:
        lines = self.parts.items()
        return "\n".join(f"{name + ':':<10}" + text.replace("\n", "\n" + " " * 10) for name, text in lines)


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


def few(names: Sequence[str], most: int = 4) -> str:
    """The first ones, and how many more.

    >>> few(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    shown = ", ".join(name[:200] for name in names[:most])
    return (shown + (f" and {len(names) - most} more" if len(names) > most else "")) or "none"


def lookup(known: Mapping[str, T], name: str, kind: str, repair: str) -> T:
    """What has this name; UsageError that lists all names. kind : of things, in the singular."""
    if name not in known:
        cause = f"there is no {kind} by this name"
        raise UsageError(f"one of {', '.join(known)}", repr(name), cause, repair, near(str(name), known))
    return known[name]


def need(module: str, why: str, package: str = "") -> Any:
    """An optional package's module; UsageError where it is not installed. package : as pip knows it, if otherwise."""
    try:
        return import_module(module)
    except ImportError as error:
        name = package or module
        cause, repair = "it is an optional dependency", f"pip install {name}"
        raise UsageError(f"{name}, {why}", "no such package", cause, repair) from error
