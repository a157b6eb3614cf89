"""The pages of the documentation that are made from measurements."""

import numpy as np

from siglip_ref.check.model.noise_law import fitted
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.noise.measure import FLOAT64, TIMES
from siglip_ref.process.data import read_toml
from siglip_ref.vectors.power import FORMATS, INFINITE, SEEN, measured
from siglip_ref.vectors.store import packaged

_TEXTS: dict[str, str] = read_toml(__file__, "pages")
HEADS = {name: text.format(seen=SEEN, times=TIMES, scaled=np.log2(FLOAT64)) for name, text in _TEXTS.items()}


def power_page() -> str:
    """The power table, and the weakest mistake of each group."""
    found, lines = measured(), []
    for mistake in (m for m in CATALOGUE.values() if m.edits):
        best = [found.best(mistake.id, dtype) for dtype in FORMATS]
        seen = sum((row[1] or 0.0) >= SEEN for row in found.power[mistake.id].values())
        cells = [mistake.id, mistake.kind, *(_factor(factor) for factor, _ in best), best[1][1] or "-", str(seen)]
        lines.append(f"| {' | '.join(cells)} |")
    weakest = []
    groups = dict.fromkeys(vector.group for vector in packaged().vectors.values())
    for group in groups:
        names = {vector.id for vector in packaged().vectors.values() if vector.group == group}
        concerned = [m for m in found.power if found.best(m, "float64", names)[0] >= SEEN]
        least = [min((found.best(m, dtype, names)[0], m) for m in concerned) for dtype in FORMATS[1:]]
        cells = [group, str(len(names)), str(len(concerned)), *(f"{m} {_factor(factor)}" for factor, m in least)]
        weakest.append(f"| {' | '.join(cells)} |")
    return HEADS["power"] + "\n".join(lines) + "\n" + HEADS["weakest"] + "\n".join(weakest) + "\n"


def noise_page() -> str:
    """The noise of each group and format."""
    rows: dict[str, list[list[float]]] = {}
    for vector in packaged().vectors.values():
        columns = rows.setdefault(vector.group, [[] for _ in FORMATS])
        for level in measured().noise[vector.id].values():
            for column, value in zip(columns, level, strict=True):
                column += [] if value is None else [value]
    lines = [
        f"| {group} | " + " | ".join(f"{np.median(c):.1e}, {max(c):.1e}" for c in columns) + " |"
        for group, columns in rows.items()
    ]
    return HEADS["noise"] + "\n".join(lines) + "\n" + HEADS["law"] + "\n".join(_law_lines()) + "\n"


def _law_lines() -> list[str]:
    """The exponents of each format, and the span of the coefficients of its tensors."""
    lines = []
    for dtype, parts in fitted().items():
        for family, part in parts.items():
            powers = " | ".join(f"{power:.2f}" for power in part["exponents"])
            low, *_, high = sorted(part["coefficients"].items(), key=lambda entry: entry[1])
            span = f"{low[1]:.2g} ({low[0]}) to {high[1]:.2g} ({high[0]})"
            lines.append(f"| {dtype} | {family} | {powers} | {span} |")
    return lines


def _factor(factor: float) -> str:
    return "infinite" if factor >= INFINITE else f"{factor:.1e}" if factor >= 1e4 else f"{factor:.3g}"
