"""Tables that are data: TOML beside the code that reads it."""

import tomllib
from pathlib import Path
from typing import Any


def read_toml(beside: str, name: str) -> dict[str, Any]:
    """The content of NAME.toml. beside : `__file__` of a module in its folder

    >>> read_toml(__file__, "../report/words")["sets"]["diagonal"]
    'i = j'
    """
    return tomllib.loads((Path(beside).parent / f"{name}.toml").read_text(encoding="utf-8"))
