"""The law of the noise of large models, fitted on small ones: writes siglip_ref/check/model/noise_law.json.

    python benchmarks/noise_law.py [--confirm B/16-256 ...]

Every size is measured as `siglip_ref.check.model.noise` measures a small model. The exponents are fitted by least
squares, one coefficient per tensor beside them; an exponent that comes out negative is set to zero, because nothing is
known that would make noise vanish with size. The coefficients are then raised until nine tenths of what was measured at
a tensor lie below the law; all of it for single numbers and at the probe, whose terms may cancel. `--confirm` fits
nothing: it measures the named sizes (none named: two small ones that the fit does not know) and prints what the law
makes of them.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import siglip_ref as sr
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.check.model.noise import measured_noise
from siglip_ref.check.model.noise_law import FAMILIES, FILE, SIZES, family, law, role, sizes_of
from siglip_ref.check.model.probe import model_probe

FORMATS_FITTED = ("float32", "bfloat16", "float16")
# width, depth, rows and columns of patches, batch: one varied at a time, then all together
FITTED_ON = (
    *((width, 2, (3, 5), 4) for width in (16, 32, 64, 128, 256)),
    *((32, depth, (3, 5), 4) for depth in (1, 3, 4, 6, 8)),
    *((32, 2, grid, 4) for grid in ((1, 3), (2, 3), (5, 8), (9, 11), (16, 16))),
    *((32, 2, (3, 5), batch) for batch in (2, 3, 8, 16)),
    (64, 4, (5, 8), 8),
    (128, 4, (2, 3), 2),
    (64, 1, (9, 11), 3),
    (64, 3, (13, 15), 2),
)
HELD_OUT = ((192, 3, (5, 7), 4), (48, 6, (7, 9), 6))
COVERED = 0.9  # of what was measured lies below the law
CANCELLING = FAMILIES[2]
SINGLE = ("loss", "log_scale", "bias")
Samples = list[tuple[str, tuple[float, ...], float]]  # tensor, its sizes, noise in units


def config(width: int, depth: int, grid: tuple[int, int]) -> Config:
    """Two towers of these sizes."""
    tower = Tower(width, depth, 4 * width, max(2, width // 32))
    height, across = grid
    size = f"{width} wide, {depth} deep, {height} x {across}"
    return Config(size, tower, tower, (2 * height, 2 * across), 2, 61, height * across)


def samples(cfg: Config, batch: int, dtype: Any) -> Samples:
    """The measured noise of every value and gradient."""
    probe = model_probe(cfg, batch, dtype)
    noise = measured_noise(probe, cfg, cfg.conventions, dtype)
    unit = FORMATS[dtype].unit
    return [(name, sizes_of(name, cfg, batch), value / unit) for name, value in noise.relative.items()]


def fit(found: Samples) -> dict[str, Any]:
    """Exponents, and the coefficient of each tensor that leaves few samples above the law."""
    roles = sorted({role(name) for name, _, _ in found})
    columns = {name: place for place, name in enumerate(roles)}
    grown = np.log([sizes for _, sizes, _ in found])  # (samples, SIZES)
    level = np.log([value for _, _, value in found])
    of_role = np.array([columns[role(name)] for name, _, _ in found])
    kept = list(range(len(SIZES)))
    while True:  # negative exponents leave, one after the other
        table = np.concatenate([np.eye(len(roles))[of_role], grown[:, kept]], 1)
        slopes = np.linalg.lstsq(table, level, rcond=None)[0][len(roles) :]
        if not kept or slopes.min() >= 0:
            break
        kept.pop(int(slopes.argmin()))
    exponents = np.zeros(len(SIZES))
    exponents[kept] = slopes
    exponents = np.round(exponents, 3)
    rest = level - grown @ exponents
    covered = {name: 1.0 if name in SINGLE or family(name) == CANCELLING else COVERED for name in roles}
    levels = {name: np.quantile(rest[of_role == place], covered[name]) for name, place in columns.items()}
    coefficients = {name: float(f"{np.exp(level):.4g}") for name, level in levels.items()}
    return {"exponents": exponents.tolist(), "coefficients": coefficients}


def compare(cfg: Config, batch: int, dtype: Any) -> None:
    """One line: how the law lies to what is measured."""
    start = time.time()
    found = samples(cfg, batch, dtype)
    expected = law(cfg, batch, dtype, [name for name, _, _ in found])
    ratio = {name: value * FORMATS[dtype].unit / expected[name] for name, _, value in found}
    low, high = min(ratio, key=ratio.__getitem__), max(ratio, key=ratio.__getitem__)
    print(
        f"{cfg.name}, {batch} pairs, {dtype}: measured / law {np.median(list(ratio.values())):.2f} in the middle, "
        f"{ratio[low]:.2f} ({low}) to {ratio[high]:.2f} ({high}); {time.time() - start:.0f} s",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--confirm", nargs="*", help="sizes to measure; without names: two small ones")
    parser.add_argument("--dtype", nargs="*", default=FORMATS_FITTED)
    given = parser.parse_args(arguments)
    if given.confirm is None:
        write({dtype: fitted(dtype) for dtype in FORMATS_FITTED})
    for dtype in given.dtype:
        if given.confirm:
            for name in given.confirm:
                compare(sr.config(name), 4, dtype)
        else:
            for width, depth, grid, batch in HELD_OUT:
                compare(config(width, depth, grid), batch, dtype)


def fitted(dtype: Any) -> dict[str, Any]:
    """The law of one format."""
    start, found = time.time(), Samples()
    for width, depth, grid, batch in FITTED_ON:
        found += samples(config(width, depth, grid), batch, dtype)
    parts = {part: fit([one for one in found if family(one[0]) == part]) for part in FAMILIES}
    for part, one in parts.items():
        powers = ", ".join(f"{name}^{power:g}" for name, power in zip(SIZES, one["exponents"], strict=True))
        print(f"{dtype}, {part}: {powers}; {time.time() - start:.0f} s", flush=True)
    return parts


def write(of_format: Mapping[str, Any]) -> None:
    content = {
        "made by": "benchmarks/noise_law.py",
        "fitted on": [f"{config(w, d, grid).name}, {batch} pairs" for w, d, grid, batch in FITTED_ON],
        "sizes": SIZES,
        "law": of_format,
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
