"""Which noise of models ships, and how it is measured, renewed and verified: behind `siglip-ref noise`.

The toys `tiny` and `mu/16` on probe weights, as they are and with the square images that transformers wants, under the
conventions of every library, in every dtype.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import get_args

import numpy as np

from siglip_ref.architecture.conventions import PRESETS
from siglip_ref.architecture.sizes import Config, config
from siglip_ref.check.model.adapters import Dtype
from siglip_ref.check.model.noise import ModelNoise, measured_anew
from siglip_ref.check.model.noise_table import FILE, Stored, key_of, read, stamp_of_models, write
from siglip_ref.check.model.probe import model_probe
from siglip_ref.noise.table import FACTOR

BATCH = 4
LOOSE = (
    2.0 * FACTOR
)  # of one tensor: another BLAS adds in another order, 2.4 times as much noise between AVX2 and AVX-512
DIGITS = 0.01  # a stored number is rounded to three digits
SAMPLE = 8  # entries that are measured anew before all others are believed

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """One entry: a model under its own conventions, in a dtype."""

    cfg: Config
    dtype: Dtype

    @property
    def key(self) -> str:
        """By which it is found."""
        return key_of(model_probe(self.cfg, BATCH, self.dtype), self.cfg, self.cfg.conventions, self.dtype)

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.cfg.name}, {self.cfg.image_size} pixels, {self.cfg.conventions.name}, {self.dtype}"

    def measure(self) -> ModelNoise:
        """Measured now."""
        return measured_anew(model_probe(self.cfg, BATCH, self.dtype), self.cfg, self.cfg.conventions, self.dtype)


def wanted() -> Iterator[Wanted]:
    """Everything that ships."""
    tiny, mu = config("tiny"), config("mu/16")
    square = replace(tiny, image_size=(5 * tiny.patch, 5 * tiny.patch))
    for cfg, conventions, dtype in product((tiny, square, mu), PRESETS.values(), get_args(Dtype)):
        yield Wanted(replace(cfg, conventions=conventions), dtype)


def regenerate(file: Path = FILE, everything: bool = False, progress: Progress = lambda line: None) -> int:
    """Measure what is not there, and everything where the arithmetic changed it; the number that was measured."""
    mark, asked = stamp_of_models(), list(wanted())
    old, known = _known(file)
    there = [entry for entry in asked if entry.key in known]
    some = Random(mark).sample(there, min(SAMPLE, len(there)))
    believed = old == mark or all(_ratios(known[entry.key], entry.measure())[1] <= 1 + DIGITS for entry in some)
    if everything or not believed:
        known = {}
    missing = [entry for entry in asked if entry.key not in known]
    for entry in missing:
        progress(f"measuring {entry.words}")
        found = entry.measure()
        known[entry.key] = dict(found.relative), found.overflows
    write(file, mark, {entry.key: known[entry.key] for entry in asked})
    return len(missing)


def verify(count: int, seed: int = 0, file: Path = FILE, progress: Progress = lambda line: None) -> list[str]:
    """What is wrong, in words: the stamp, entries that are missing, and, of a random sample, numbers that are off."""
    (mark, known), asked = _known(file), list(wanted())
    wrong = [] if mark == stamp_of_models() else ["models were measured with another arithmetic"]
    wrong += [f"no entry: {entry.words}" for entry in asked if entry.key not in known]
    there = [entry for entry in asked if entry.key in known]
    for entry in Random(seed).sample(there, min(count, len(there))):
        progress(entry.words)
        usual, largest = _ratios(known[entry.key], entry.measure())
        if usual > FACTOR or largest > LOOSE:
            wrong.append(f"{entry.words}: a factor of {usual:.2f} in the median, {largest:.2f} at most")
    return wrong


def _known(file: Path) -> tuple[str, dict[str, Stored]]:
    return read(file) if file.exists() else ("", {})


def _ratios(stored: Stored, now: ModelNoise) -> tuple[float, float]:
    """The median factor between two measurements and the largest; infinite where names or overflows differ."""
    noise, overflows = stored
    if noise.keys() != now.relative.keys() or overflows != now.overflows:
        return float("inf"), float("inf")
    pairs = [(noise[name], level) for name, level in now.relative.items() if noise[name] or level]
    octaves = [abs(np.log(a / b)) if a and b else np.inf for a, b in pairs] or [0.0]
    return float(np.exp(np.median(octaves))), float(np.exp(max(octaves)))
