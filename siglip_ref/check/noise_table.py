"""Measured noise ships as data; this is how an entry is found, and why one that is out of date never is.

An entry is found by what was measured: a digest of the very inputs, and of how they are given. Another arithmetic has
another stamp, which closes a whole table.
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from siglip_ref.ops.elementary import Array

FACTOR = 1.5  # a measurement on another processor lies within it
PACKAGE = Path(__file__).parent.parent
_WORDS = re.compile(r'"""(?s:.*?)"""|#.*|\s+')  # docstrings, comments, white space


@lru_cache(maxsize=8)
def stamp(sources: tuple[str, ...]) -> str:
    """Of the arithmetic that measures: the text of its files, without what is not executed."""
    texts = [_WORDS.sub("", (PACKAGE / source).read_text(encoding="utf-8")) for source in sources]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def digest(*parts: Array | float | bytes) -> str:
    """Of inputs: every bit of their float64 numbers, and their shapes."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            whole.update(part)
        else:
            array = np.asarray(part, np.float64)
            whole.update(repr(array.shape).encode() + array.tobytes())
    return whole.hexdigest()[:16]
