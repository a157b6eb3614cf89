"""Measured noise as data: what is the same in every process is measured once, for everybody.

table.npz holds the noise of losses at the standard probes, for every convention and regime. An entry is found by
what was measured: a digest of the very inputs, and how the loss is given them. What is not found is measured where it
is asked for. So an entry that is out of date cannot be used: other inputs have another digest, and another arithmetic
another stamp, which closes the whole table.

A number is stored as the logarithm of its ratio to one unit roundoff of its row, in steps of a fourth of an octave: to
within 9 %, where another processor's order of summation may change it by half. See
`siglip_ref.check.loss.measured.noise`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.noise.measure import REGIMES, Noise
from siglip_ref.ops.elementary import Array

FILE = Path(__file__).with_name("table.npz")
STEPS = 4  # to an octave
FACTOR = 1.5  # a measurement on another processor lies within it
ZERO = -(2**12)  # the code of no noise at all; others stay far above it
PACKAGE = Path(__file__).parent.parent
# All that decides what is measured. A comment or a docstring does not.
SOURCES = (
    "arithmetic/rounded.py",
    "arithmetic/variants.py",
    "noise/measure.py",
    "check/engine/expected/convention.py",
    "check/engine/expected/repeated.py",
    "check/engine/expected/repeated_noise.py",
    "check/engine/expected/tolerance.py",
    "model/loss.py",
    "ops/elementary.py",
    "ops/normalize.py",
    "ops/pair_block.py",
    "ops/sigmoid_loss.py",
    "ops/softmax.py",
    "ops/softmax_loss.py",
)
_WORDS = re.compile(r'"""(?s:.*?)"""|#.*|\s+')  # docstrings, comments, white space


Key = tuple[str, str]


@dataclass(frozen=True)
class Table:
    """Blocks of codes, and which block belongs to which inputs and way to be given them.

    entries : number of the block, by a digest of the inputs and the way they are given
    begins : of each block in `codes`, and the end of the last
    codes : see `encode`; overflows : of each block, one bit for each field of LossAndGrads
    """

    entries: Mapping[Key, int]
    begins: Array
    codes: Array
    overflows: Array

    def find(self, key: Key, exact: LossAndGrads, regime: str) -> Noise | None:
        """The noise of a loss, or None if it is not here."""
        block = self.entries.get(key)
        if block is None:
            return None
        codes = self.codes[self.begins[block] : self.begins[block + 1]]
        return decode(codes, int(self.overflows[block]), exact, regime)


NOTHING = Table({}, np.zeros(1, int), np.zeros(0, int), np.zeros(0, int))


@lru_cache(maxsize=1)
def table() -> Table:
    """The table of this package; an empty one if it was measured with another arithmetic than the one at hand."""
    mark, found = read(FILE) if FILE.is_file() else ("", NOTHING)
    return found if mark == stamp() else NOTHING


@lru_cache(maxsize=8)
def stamp(sources: tuple[str, ...] = SOURCES) -> str:
    """Of the arithmetic that measures: its text, without what is not executed."""
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


def encode(noise: Noise, exact: LossAndGrads, regime: str) -> tuple[Array, int]:
    """Integer codes of the noise, all numbers in the order of LossAndGrads; and which tensors overflow, as bits."""
    codes = []
    for name, value in exact._asdict().items():
        base, level = _base(value, regime), np.ravel(noise.absolute[name])
        with np.errstate(all="ignore"):
            steps = np.rint(STEPS * np.log2(level / base))
        codes.append(np.where(level > 0, steps, ZERO).astype(np.int64))
    return np.concatenate(codes), sum(1 << k for k, name in enumerate(LossAndGrads._fields) if name in noise.overflows)


def decode(codes: Array, overflows: int, exact: LossAndGrads, regime: str) -> Noise:
    """The noise that codes stand for, in the shapes of `siglip_ref.noise.measure.measure` by row."""
    absolute, begin = {}, 0
    for name, value in exact._asdict().items():
        base = _base(value, regime)
        of_tensor = codes[begin : begin + base.size].astype(float)
        begin += base.size
        level = np.where(of_tensor > ZERO, base * 2.0 ** (of_tensor / STEPS), 0.0)
        absolute[name] = level.reshape((-1, 1) if np.ndim(value) else ())
    names = frozenset(name for k, name in enumerate(LossAndGrads._fields) if overflows >> k & 1)
    return Noise(absolute, names)


def _base(value: Any, regime: str) -> Array:
    """What codes are relative to: one unit roundoff of each row; of the whole tensor where a row is zero."""
    form = FORMATS["float64"] if regime == "float64" else REGIMES[regime].rounding.format
    size = np.abs(np.asarray(value, np.float64))
    rows = size.max(-1) if size.ndim else size.reshape(1)
    whole = rows.max(initial=0.0) or 1.0
    return np.asarray(form.unit * np.where(rows > 0, rows, whole))


def read(file: Path) -> tuple[str, Table]:
    """The stamp of a table, and the table."""
    with np.load(file) as stored:
        inputs, given = ([str(name) for name in stored[part]] for part in ("inputs", "given"))
        places = zip(*(stored[f"entry_{part}"].tolist() for part in ("inputs", "given", "block")), strict=True)
        entries = {(inputs[i], given[g]): block for i, g, block in places}
        codes = stored["low"] + 256 * stored["high"].astype(np.int16)
        begins = np.concatenate([[0], np.cumsum(stored["sizes"], dtype=np.int64)])
        return str(stored["stamp"]), Table(entries, begins, codes, stored["overflows"])


def write(file: Path, mark: str, found: Table) -> None:
    """The table with its stamp; the same bytes for the same content."""
    inputs, given = (sorted({key[part] for key in found.entries}) for part in (0, 1))
    keys = sorted(found.entries)
    np.savez_compressed(
        file,
        stamp=np.array(mark),
        inputs=np.array(inputs),
        given=np.array(given),
        entry_inputs=np.array([inputs.index(i) for i, _ in keys], np.uint16),
        entry_given=np.array([given.index(g) for _, g in keys], np.uint8),
        entry_block=np.array([found.entries[key] for key in keys], np.uint16),
        sizes=np.diff(found.begins).astype(np.uint16),
        overflows=found.overflows.astype(np.uint8),
        low=(found.codes & 255).astype(np.uint8),
        high=(found.codes >> 8).astype(np.int8),
    )
