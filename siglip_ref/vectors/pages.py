"""The pages of the documentation that are made from measurements."""

import numpy as np

from siglip_ref.check.model.noise_law import fitted
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.noise.measure import FLOAT64, TIMES
from siglip_ref.vectors.power import FORMATS, INFINITE, SEEN, measured
from siglip_ref.vectors.store import packaged

POWER_HEAD = f"""# What the golden vectors would catch

Made by `siglip-ref vectors power --page`. Each mistake of the catalogue was made in the reference and run on every
vector. A number is its largest error in units of the noise that correct programs show at that tensor and format;
{SEEN:g} and more counts as seen. Equivalent changes must show nothing, and CLIP's softmax loss
has no vectors: its mistakes show nothing, either. "by" is the vector that sees it best in float32.

| mistake | class | float64 | float32 | bfloat16 | float16 | by | seen by |
|---|---|---:|---:|---:|---:|---|---:|
"""
WEAKEST_HEAD = """
## The weakest of each group

Of the mistakes that a group of vectors sees in float64, the one it sees least in each format.

| group | vectors | mistakes | float32 | bfloat16 | float16 |
|---|---:|---:|---|---|---|
"""
NOISE_HEAD = f"""# The noise of correct programs

Made by `siglip-ref vectors power --noise --page`. The largest error of the specification in rounded arithmetic, over
all variants that correct programs choose, relative to the tensor's maximum: the median and the largest tensor of each
group of vectors. Checks allow {TIMES:g} times the noise of the tensor at hand.

| group | float64 | float32 | bfloat16 | float16 |
|---|---|---|---|---|
"""
LAW_HEAD = f"""
## The law of large models

noise / unit roundoff = coefficient(tensor) * width^a * depth^b * tokens^c * batch^d, for models too large to be
measured. Made by `benchmarks/noise_law.py`, which fits it on small ones; 0.00 stands also for exponents that came out
negative. float64 is float32 scaled by 2^{np.log2(FLOAT64):.0f}.

| format | of | width | depth | tokens | batch | coefficients |
|---|---|---:|---:|---:|---:|---|
"""


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
    return POWER_HEAD + "\n".join(lines) + "\n" + WEAKEST_HEAD + "\n".join(weakest) + "\n"


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
    return NOISE_HEAD + "\n".join(lines) + "\n" + LAW_HEAD + "\n".join(_law_lines()) + "\n"


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
