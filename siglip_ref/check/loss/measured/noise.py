"""Which noise of losses ships, and how its table is measured, renewed and verified: behind `siglip-ref noise`.

Shipped is what a check asks for again and again: every standard probe, and every larger batch, under every convention,
in every regime; in 16 bits not the largest. So are the probes of losses over ranks, in float32 and float64, and those
at the multiples that kernels want; the noise of these is what would be measured if it did not ship.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

import numpy as np

from siglip_ref.check.call.frameworks import Setting
from siglip_ref.check.diagnosis.product_findings import DECLARED
from siglip_ref.check.engine.expected.convention import SOFTMAX, Convention
from siglip_ref.check.engine.expected.exact import exact_loss
from siglip_ref.check.engine.expected.expected import CONVENTIONS, conventions_of, given_of, key_of, of_distinct
from siglip_ref.check.engine.expected.probes import Dims, Point, Probe, loss_probes, points_of
from siglip_ref.check.engine.expected.repeated import MIDDLE, REAL, Repeated, repeated_probe
from siglip_ref.check.engine.expected.repeated_noise import distinct_noise
from siglip_ref.check.engine.expected.shards import sharded_probes
from siglip_ref.check.engine.expected.tolerance import Given, is_quick, loss_noise, measured_noise
from siglip_ref.noise.table import FACTOR, FILE, STEPS, Key, Table, encode, read, stamp, write
from siglip_ref.ops.elementary import Array

NARROW = ("bfloat16", "float16")
PLAIN = tuple(
    Setting(dtype, "float64" if dtype == "float64" else "float32", "cpu", False)
    for dtype in ("float64", "float32", *NARROW)
)
WIDE = PLAIN[:2]
SETTINGS = (
    *PLAIN,
    *(Setting(dtype, dtype, "cpu", False) for dtype in NARROW),  # scale and bias in 16 bits, too
    *(Setting(dtype, "float32", device, True) for dtype in NARROW for device in ("cpu", "cuda")),
    *(Setting("float32", "float32", "cpu", False, products=products) for products in DECLARED),
)
SOFTMAX_SETTINGS = PLAIN  # of which the softmax loss ships, too
WORLDS = (2, 3, 4)  # numbers of ranks
MULTIPLES = (8, 16, 32, 64, 128)  # of the batch, and of the width; in 16 bits from 16 on
LOOSE = 2.0 * FACTOR  # where the machine's own float32 measured, in fewer runs: other BLAS kernels add in another order
SAMPLE = 40  # entries that are measured anew before all others are believed

Codes = tuple[Array, int]  # see `encode`
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """One entry: a probe in a setting, under a convention; standard: one that every check of a loss begins with."""

    probe: Probe
    setting: Setting
    convention: Convention
    standard: bool = True

    @property
    def asked(self) -> tuple[Given, Array, Array, float, float]:
        """The arguments of `loss_noise`, but for the exact result."""
        given, probe = given_of(self.convention, self.setting), self.probe
        scale = probe.scale if given.linear else probe.log_scale
        return given, probe.image_embed, probe.text_embed, scale, probe.bias

    @property
    def key(self) -> Key:
        """By which it is found."""
        return key_of(self.probe, self.asked[0])

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.probe.label}, {self.key[1]}"

    def measure(self) -> Codes:
        """Measured now."""
        exact = exact_loss(self.probe, self.convention)
        if isinstance(self.probe, Repeated):
            quick = not self.standard and is_quick(self.asked[0], self.probe.shape[0])
            found = distinct_noise(self.asked[0], self.probe, quick)
            return encode(found, of_distinct(exact, self.probe), self.setting.regime)
        noise = measured_noise if self.standard else loss_noise
        return encode(noise(*self.asked, exact), exact, self.setting.regime)


def wanted() -> dict[Key, Wanted]:
    """Everything that ships, each entry once."""
    found: dict[Key, Wanted] = {}
    for entry in (*_standard(), *_over_ranks(), *_at_multiples()):
        found.setdefault(entry.key, entry)
    return found


def _standard() -> Iterator[Wanted]:
    of_softmax = product(SOFTMAX_SETTINGS, conventions_of(SOFTMAX))
    for setting, convention in (*product(SETTINGS, CONVENTIONS), *of_softmax):
        # a real batch in 16 bits is asked for seldom, and takes twelve seconds for each of 48 entries
        for probe in _probes(convention, setting, None, (MIDDLE, REAL)[: 1 if setting.dtype in NARROW else 2]):
            yield Wanted(probe, setting, convention)


def _over_ranks() -> Iterator[Wanted]:
    conventions = (*CONVENTIONS, *conventions_of(SOFTMAX))
    for setting, convention, world in product(WIDE, conventions, WORLDS):
        for one in sharded_probes(world, True, setting.dtype, setting.scalar_dtype):
            yield Wanted(one.probe, setting, convention, standard=False)


def _at_multiples() -> Iterator[Wanted]:
    for setting, convention in product(PLAIN, CONVENTIONS):
        multiples = MULTIPLES[1:] if setting.dtype in NARROW else MULTIPLES  # an entry of 16 bits takes a second
        for batch, dim in product(multiples, multiples):
            for probe in _probes(convention, setting, {"batch": batch, "dim": dim}, (MIDDLE,)):
                yield Wanted(probe, setting, convention, standard=False)


def _probes(convention: Convention, setting: Setting, dims: Dims, large: Sequence[Point]) -> list[Probe]:
    asked = dims, setting.dtype, setting.scalar_dtype
    points = convention.objective.points(points_of(convention.embeddings, setting.dtype))
    return loss_probes(points, *asked)[0] + [one for point in large if (one := repeated_probe(point, *asked))]


def regenerate(
    file: Path = FILE, processes: int = 1, everything: bool = False, progress: Progress = lambda line: None
) -> int:
    """Measure what is not there, and everything where the arithmetic changed what is; the number that was measured.

    A table of another arithmetic is believed where a random sample of it, measured anew, has the very same codes: then
    its text changed, not what it computes. `everything` believes nothing.
    """
    mark, asked = stamp(), wanted()
    old, known = _known(file)
    if everything or (known and old != mark and not _believed(asked, known, mark, progress)):
        known = {}
    missing = [key for key in asked if key not in known]
    with ProcessPoolExecutor(processes) as pool:
        measured = pool.map(Wanted.measure, [asked[key] for key in missing])
        for number, (key, codes) in enumerate(zip(missing, measured, strict=True), 1):
            known[key] = codes
            if number % 100 == 0 or number == len(missing):
                progress(f"{number} of {len(missing)} measured")
                _write(file, mark, asked, known)
    _write(file, mark, asked, known)
    return len(missing)


def _believed(asked: Mapping[Key, Wanted], known: Mapping[Key, Codes], mark: str, say: Progress) -> bool:
    """Whether a table whose arithmetic reads otherwise has the numbers that this one measures."""
    there = [key for key in asked if key in known]
    some = Random(mark).sample(there, min(SAMPLE, len(there)))
    say(f"the arithmetic reads otherwise: {len(some)} of {len(there)} entries measured anew")
    return all(_same(known[key], asked[key].measure()) for key in some)


def _same(one: Codes, other: Codes) -> bool:
    return np.array_equal(one[0], other[0]) and one[1] == other[1]


def verify(
    count: int,
    seed: int = 0,
    file: Path = FILE,
    progress: Progress = lambda line: None,
    asked: Mapping[Key, Wanted] | None = None,
) -> list[str]:
    """What is wrong with the table, in words: its stamp, entries that are missing, and, of a random sample measured
    anew, numbers that are not within FACTOR, or LOOSE. asked : what `wanted` gives, if it is at hand."""
    mark, known = _known(file)
    asked = wanted() if asked is None else asked
    wrong = [] if mark == stamp() else ["it was measured with another arithmetic"]
    wrong += [f"no entry: {entry.words}" for key, entry in asked.items() if key not in known]
    there = [key for key in asked if key in known]
    for key in Random(seed).sample(there, min(count, len(there))):
        progress(asked[key].words)
        (codes, overflows), (now, overflow_now) = known[key], asked[key].measure()
        octaves = (np.abs(codes - now).max() - 1) / STEPS  # both are rounded to a step
        if octaves > np.log2(FACTOR if asked[key].standard else LOOSE) or overflows != overflow_now:
            wrong.append(f"{asked[key].words}: a factor of {2.0**octaves:.2f}")
    return wrong


def _known(file: Path) -> tuple[str, dict[Key, Codes]]:
    """The stamp of a table, and codes by key; nothing where there is no file."""
    if not file.exists():
        return "", {}
    mark, found = read(file)
    blocks = np.split(found.codes, found.begins[1:-1])
    return mark, {key: (blocks[k].astype(np.int64), int(found.overflows[k])) for key, k in found.entries.items()}


def _write(file: Path, mark: str, asked: Mapping[Key, Wanted], known: Mapping[Key, Codes]) -> None:
    """Only what is wanted, in its order; what has no codes yet is left out."""
    there = [key for key in asked if key in known]
    codes = [known[key][0] for key in there]
    begins = np.concatenate([[0], np.cumsum([part.size for part in codes])])
    entries = {key: block for block, key in enumerate(there)}
    write(file, mark, Table(entries, begins, np.concatenate(codes), np.array([known[key][1] for key in there])))
