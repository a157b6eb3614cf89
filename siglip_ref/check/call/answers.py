"""What a function under test raises is its answer: told in a line, never as an error of ours."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from siglip_ref.errors import UsageError

T = TypeVar("T")


def answered(expected: str, call: Callable[[], T]) -> T:
    """What a call gives; a UsageError that holds what it raises otherwise."""
    try:
        return call()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            expected=expected,
            got=in_a_line(error),
            cause="raised by what was given to check, or by what it returned",
            repair="the traceback above says where",
        ) from error


def in_a_line(error: Exception | None) -> str:
    """What was raised; where it says nothing, the line of source that raised it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if lines or error is None:
        return f"{type(error).__name__}: {lines[0].strip()[:200] if lines else ''}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return f"{type(error).__name__} at {where}"
