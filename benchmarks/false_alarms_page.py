"""The page of the documentation that is made from the runs."""

from collections.abc import Mapping, Sequence

from false_alarms_count import Pieces, Stratum, rate_below

from siglip_ref.mistakes import executable
from siglip_ref.vectors.power import SEEN, measured

HEAD = """# False alarms

Made by `python benchmarks/false_alarms.py`: right programs, judged by the checks that users call, under the tolerances
that are packaged with this version.

{summary}
A run is one right program, at one golden vector or probe, in one dtype, with one seed.

- The tolerances were frozen first: noise was measured with seed 0 and with inputs in their packaged order, and the
  multiple (`TIMES` in `siglip_ref/noise/measure.py`) is a constant. Every run here has a seed of {held_out} or more.
- A seed reorders pairs, dimensions, heads and hidden units (signs of dimensions too, for losses): the exact answer is
  reordered likewise, the roundings are others. Or it draws the probe itself, of any shape, scale and bias. For the
  rounded reference it draws the program: orders of summation, fused kernels, form of the loss, rounding by chance.
- Programs that are marked "new", and those in NumPy, took no part in setting any tolerance. The others did, with
  other seeds and orders: tests hold them to half of what is allowed at the packaged vectors and probes as they are.
- Golden vectors are judged by `check dump`'s judge, drawn losses by `check_loss`'s, drawn models by `check_model`'s.
  What a dtype cannot hold is "out of range": a tensor is skipped, as in every check; if too many are, the verdict is
  NOT JUDGED and it is no run.
- Right means right in that dtype: the worked example in JAX (examples/check_jax_model.py) computes its layer norm in
  float16 where the model does, which overflows at a variance of 1e-5; it is flagged there, rightly. Here its layer norm
  computes in float32, as Flax's and Torch's do.
- "< 0.9 %" is 3 / n: where none of n runs is flagged, the rate lies below that with 95 % confidence, for runs like
  these (where some are, the bound of Poisson's law). Runs share vectors and so are not fully independent; the last
  number, the largest error in units of what is allowed, says more about how near an alarm came.
- Found elsewhere, after these runs: two losses that a stranger wrote in JAX (own pairs by their rows, all others out of
  the product) were flagged in float32, `d bias` at 1.07 times what was allowed. XLA adds equal terms one after the
  other, each divided by B, which the noise had left out. It holds such sums since, in float32 and float64, where
  tolerances have only grown; the two losses stand in this benchmark and in the tests.
"""


FIRST = "float64 float32 tf32 bfloat16 float16"  # columns; then the others
BY_CHANCE = "by chance"
OF_CHANCE = """Only stand-ins that round by chance, which no real program does. `check_loss` judges gradients by row; a
row's noise is the largest of a few dozen runs. Where sigmoid(l) is computed as exp(l - softplus(l)) in float16, at
l = 8 and more, chance moves l - softplus(l) by a whole unit, 0.8 % of the result, once in some twenty rows: a row that
was spared in all runs of the measurement has too little noise for a run that is hit. Rounding to nearest never does
this: 100 such programs at each of these probes pass."""


def page(pieces: Pieces, versions: Mapping[str, str], held_out: int) -> str:
    """Families, then every implementation, then where it came nearest."""
    strata = [stratum for part, _ in pieces.values() for stratum in part]
    runs, flagged = sum(s.runs for s in strata), sum(s.flagged for s in strata)
    seconds, unjudged = sum(seconds for _, seconds in pieces.values()), sum(s.out_of_range for s in strata)
    least = min(strata, key=lambda s: s.runs)
    summary = (
        f"**{runs:,} runs, {flagged} flagged{_of_real(strata)}** ({len(strata)} programs and dtypes, "
        f"each with {least.runs} runs or more, "
        f"so below {max(s.bound for s in strata):.1%} for each, below {rate_below(runs, flagged):.3%} for all); "
        f"{unjudged:,} more could not be judged, being out of range. "
        f"{seconds / 60:.0f} minutes of one core. "
        f"With {', '.join(f'{name} {number}' for name, number in versions.items())}.\n"
    )
    summary += "\n" + _power()
    parts = [
        HEAD.format(summary=summary, held_out=held_out),
        _families(strata),
        _implementations(strata),
        _nearest(strata),
    ]
    if flagged:
        parts.append(_alarms(strata))
    return "\n".join(parts)


def _power() -> str:
    """That these tolerances are not bought with blindness."""
    found = measured()
    kinds = ("one vector", "several steps", "across ranks")
    best = {mistake.id: found.best(mistake.id, "float32") for mistake in executable(*kinds)}
    seen = sum(factor >= SEEN for factor, _ in best.values())
    weakest = min(best, key=lambda mistake: best[mistake][0])
    factor, vector = best[weakest]
    return (
        f"The same tolerances meet the power table: {seen} of the {len(best)} mistakes that change numbers stand out "
        f"by {SEEN:g} times the noise or more in float32, the weakest ({weakest}, at {vector}) by {factor:.3g}.\n"
    )


def _of_real(strata: Sequence[Stratum]) -> str:
    """How the flagged divide, if there are any."""
    flagged = [s for s in strata if s.flagged]
    real = sum(s.flagged for s in flagged if BY_CHANCE not in s.implementation)
    return f", {real} of them real programs or ones that round to nearest" if flagged else ""


def _families(strata: Sequence[Stratum]) -> str:
    rows = ["| family | programs | runs | flagged | rate below | worst |", "|---|---:|---:|---:|---:|---:|"]
    for family in dict.fromkeys(_family(s) for s in strata):
        own = [s for s in strata if _family(s) == family]
        runs = sum(s.runs for s in own)
        programs, flagged, worst = (
            len({s.implementation for s in own}),
            sum(s.flagged for s in own),
            max(s.worst for s in own),
        )
        rows.append(f"| {family} | {programs} | {runs} | {flagged} | {rate_below(runs, flagged):.2%} | {worst:.2f} |")
    return "\n".join(rows) + "\n"


def _implementations(strata: Sequence[Stratum]) -> str:
    dtypes = sorted({_dtype(s) for s in strata}, key=lambda name: (name not in FIRST, FIRST.find(name), name))
    cells = {(s.implementation, _dtype(s)): f"{s.flagged} of {s.runs}, < {s.bound:.1%}, {s.worst:.2f}" for s in strata}
    rows = [
        "## Every program",
        "",
        "Flagged of runs, the bound, and the largest error in units of what is allowed.",
        "",
        f"| program | {' | '.join(dtypes)} |",
        "|---|" + "---|" * len(dtypes),
    ]
    for name in dict.fromkeys(s.implementation for s in strata):
        rows.append(f"| {name} | " + " | ".join(cells.get((name, dtype), "") for dtype in dtypes) + " |")
    return "\n".join(rows) + "\n"


def _nearest(strata: Sequence[Stratum]) -> str:
    """The ten that came nearest to an alarm."""
    rows = ["## Nearest to an alarm", "", "| program | dtype | error / allowed | where |", "|---|---|---:|---|"]
    for s in sorted(strata, key=lambda s: -s.worst)[:12]:
        rows.append(f"| {s.implementation} | {s.dtype} | {s.worst:.2f} | {s.worst_at} |")
    return "\n".join(rows) + "\n"


def _alarms(strata: Sequence[Stratum]) -> str:
    rows = ["## Flagged", ""]
    if all(BY_CHANCE in s.implementation for s in strata if s.flagged):
        rows += [OF_CHANCE, ""]
    rows += [f"- {s.implementation}, {s.dtype}: {alarm}" for s in strata for alarm in s.alarms]
    return "\n".join(rows) + "\n"


def _dtype(stratum: Stratum) -> str:
    return stratum.dtype.removesuffix(" on cpu")  # where all other programs run


def _family(stratum: Stratum) -> str:
    return stratum.implementation.split(":")[0]
