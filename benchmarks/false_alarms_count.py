"""What a run is, and how runs are counted: by implementation and dtype."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import chi2

from siglip_ref.noise.measure import TIMES
from siglip_ref.report.compare import Row
from siglip_ref.report.verdict import verdict_of
from siglip_ref.vectors.power import measured

PACKAGE = Path(__file__).parents[1] / "siglip_ref"
# what decides how much is allowed; runs that were judged by other numbers are never counted together
# (of measured.json the noise; its power follows the catalogue of mistakes)
FROZEN = (
    "noise/measure.py",
    "noise/quick.py",
    "check/engine/expected/repeated_noise.py",
    "check/engine/expected/tolerance.py",
    "arithmetic/rounded.py",
    "arithmetic/variants.py",
)
FROZEN_FOR_MODELS = ("check/model/noise.py", "check/model/scales.py")
Pieces = dict[str, tuple[list["Stratum"], float]]


@dataclass(frozen=True)
class Trial:
    """One run and what the check said. known: whether this program helped to set the tolerances."""

    implementation: str
    dtype: str
    vector: str
    seed: int
    known: bool
    rows: Sequence[Row]
    verdict: str

    @property
    def judged(self) -> bool:
        """Whether the check could judge: else it is no run."""
        return self.verdict != "NOT JUDGED" and any(
            row.verdict not in ("out of range", "not checked") for row in self.rows
        )


def verdict_on(rows: Sequence[Row]) -> str:
    """Of one draw: of what could be judged there. A check has many probes, and must judge every tensor at one."""
    return verdict_of(row for row in rows if row.verdict not in ("out of range", "not checked"))


@dataclass
class Stratum:
    """All runs of one implementation in one dtype. worst: the largest error, in units of what is allowed."""

    implementation: str
    dtype: str
    known: bool
    runs: int = 0
    flagged: int = 0
    out_of_range: int = 0
    worst: float = 0.0
    worst_at: str = ""
    alarms: list[str] = field(default_factory=list)

    @property
    def bound(self) -> float:
        """What the rate of false alarms is below, with 95 % confidence."""
        return rate_below(self.runs, self.flagged)

    def add(self, trial: Trial) -> None:
        if not trial.judged:
            self.out_of_range += 1
            return
        judged = [row for row in trial.rows if row.verdict not in ("out of range", "not checked")]
        self.runs += 1
        row = max(judged, key=lambda row: row.excess)
        where = f"{trial.vector}, seed {trial.seed}: {row.name}, error {row.error:.2g}, allowed {row.tolerance:.2g}"
        if row.excess > self.worst:
            self.worst, self.worst_at = row.excess, where
        if trial.verdict != "PASS":
            self.flagged += 1
            self.alarms = [*self.alarms, where][:20]


def rate_below(runs: int, flagged: int) -> float:
    """With 95 % confidence: 3 / n if none of n runs is flagged, else as Poisson's law has it.

    >>> round(rate_below(300, 0), 3), round(rate_below(300, 2), 3)
    (0.01, 0.021)
    """
    return float(min(1.0, chi2.ppf(0.95, 2 * flagged + 2) / 2 / runs)) if runs else 1.0


def count(trials: Iterable[Trial]) -> list[Stratum]:
    """By implementation and dtype."""
    found: dict[tuple[str, str], Stratum] = {}
    for trial in trials:
        key = trial.implementation, trial.dtype
        found.setdefault(key, Stratum(*key, trial.known)).add(trial)
    return list(found.values())


def frozen(piece: str) -> str:
    """The hash of everything that sets the tolerances of a piece."""
    digest = hashlib.sha256(json.dumps(measured().noise).encode())
    for name in FROZEN + (FROZEN_FOR_MODELS if piece.startswith("model/") else ()):
        digest.update((PACKAGE / name).read_bytes())
    return digest.hexdigest()


def as_json(pieces: Pieces, facts: Mapping[str, Any]) -> str:
    """What `from_json` reads."""
    content = {
        "TIMES": TIMES,
        **facts,
        "pieces": {
            name: {"tolerances": frozen(name), "seconds": round(seconds, 1), "strata": [asdict(s) for s in strata]}
            for name, (strata, seconds) in sorted(pieces.items())
        },
    }
    return json.dumps(content, indent=1) + "\n"


def from_json(path: Path) -> Pieces:
    """Pieces that were run before under today's tolerances."""
    if not path.exists():
        return {}
    return {
        name: ([Stratum(**stratum) for stratum in piece["strata"]], piece["seconds"])
        for name, piece in json.loads(path.read_text(encoding="utf-8"))["pieces"].items()
        if piece.get("tolerances") == frozen(name)
    }
