"""Places of the optimiser's text, and what is written there instead, of optimisers and restarts: forms.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPTIM, PROCEDURES = "model/optim.py", "model/procedures.py"


@dataclass(frozen=True)
class Place:
    """old : once in context, which is once in the file; forms : what is said, what is written, the repair."""

    file: str
    context: str
    old: str
    forms: tuple[tuple[str, str, str], ...]


_DATA: dict[str, Any] = tomllib.loads(Path(__file__).with_name("forms.toml").read_text(encoding="utf-8"))


def _places(rule: str) -> tuple[Place, ...]:
    """Those of every rule, then its own."""
    return tuple(_place(**one) for one in (*_DATA["every"], *_DATA[rule]))


def _place(file: str, context: str, repair: str, forms: list[list[str]], old: str = "") -> Place:
    made = tuple((said, text, own[0] if own else repair) for said, text, *own in forms)
    return Place(file, context, old or context, made)


ADAMW, BIG_VISION = _places("adamw"), _places("big_vision")
