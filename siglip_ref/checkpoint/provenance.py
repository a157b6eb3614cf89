"""Where a setting came from: what every load can say of each of them, defaults included."""

from collections.abc import Iterable
from typing import Any, NamedTuple

DEFAULT = "default"  # no file says anything
GIVEN = "given"  # by whoever called
SHAPES = "shapes of the tensors"


class Setting(NamedTuple):
    """One setting of a loaded model: its name, its value, and the file (or `DEFAULT`, `GIVEN`, `SHAPES`) it is from."""

    name: str
    value: Any
    source: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value} ({self.source})"


def in_words(settings: Iterable[Setting]) -> str:
    """One line each.

    >>> print(in_words([Setting("filter", "bicubic", "processor_config.json"), Setting("std", 0.5, DEFAULT)]))
    filter: bicubic (processor_config.json)
    std: 0.5 (default)
    """
    return "\n".join(map(str, settings))
