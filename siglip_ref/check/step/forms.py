"""Places of the optimiser's text, and what is written there instead, of optimisers and restarts: forms.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPTIM, PROCEDURES = "model/optim.py", "model/procedures.py"


@dataclass(frozen=True)
class Place:
    """old : stands once in context, which stands once in the file; forms : what is said, and what is written."""

    file: str
    context: str
    old: str
    repair: str
    forms: tuple[tuple[str, str], ...]


_DATA: dict[str, Any] = tomllib.loads(Path(__file__).with_name("forms.toml").read_text(encoding="utf-8"))


def _places(rule: str) -> tuple[Place, ...]:
    """Those of every rule, then its own."""
    return tuple(
        Place(**{"old": one["context"]} | one | {"forms": tuple(map(tuple, one["forms"]))})
        for one in (*_DATA["every"], *_DATA[rule])
    )


ADAMW, BIG_VISION = _places("adamw"), _places("big_vision")
