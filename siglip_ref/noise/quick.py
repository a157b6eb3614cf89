"""The noise of losses at shapes that do not ship, in float32 and float64, in milliseconds: the machine has float32.

`siglip_ref.noise.measure.measure` emulates every rounding, which takes half a second at 128 pairs. Here most runs
compute in float32 itself, in every form of the loss, each time with rows and columns in another order, which moves
every rounding. A few are emulated: elementary functions that err to one side, sums one term after the other, and
stochastic rounding, without which numbers that are exact by chance would seem exact in every program. Tests hold the
two ways to each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from siglip_ref.arithmetic.rounded import rounded
from siglip_ref.arithmetic.variants import PLAIN, LossForm, Variant
from siglip_ref.noise.measure import (
    LIBRARY,
    LOSS_FORMS,
    ORDERS,
    REGIMES,
    RUNNING,
    Compute,
    Noise,
    in_float64,
    in_the_form,
    noise_of,
)
from siglip_ref.ops.elementary import Array

PAIRS = 64  # from here on; of fewer pairs everything is emulated
TILES = (1, 3)
# the sigmoid by its logarithm, and positives apart from all pairs: what all but cancels there
STOCHASTIC = ((LOSS_FORMS[1], 1), (LOSS_FORMS[4], 3))
FEWER = 1.25  # times what the runs show: so few of them miss the largest errors of a row
FEWER_STILL = 1.6  # where rows are not moved, and nothing is rounded stochastically


def quick_noise(
    compute: Compute,
    arrays: Mapping[str, Array],
    exact: Mapping[str, Array],
    regime: str,
    batch: bool = True,
    moves: bool = True,
) -> Noise:
    """As `siglip_ref.noise.measure.measure` gives it by row, of a loss.

    Parameters
    ----------
    regime : "float32" or "float64"
    batch : False: rows are the distinct ones of a batch of many, where most is alike
    moves : a batch's rows may come in any order; False: what else it is given has places
    """

    def single(near: Mapping[str, Array], there: Mapping[str, Array]) -> Noise:
        found = noise_of(_runs(compute, near, batch, batch and moves), near, there, "float32", True)
        times = FEWER if batch else FEWER_STILL
        return Noise({name: times * level for name, level in found.absolute.items()}, found.overflows)

    return in_float64(compute, arrays, exact, True, single) if regime == "float64" else single(arrays, exact)


def _runs(compute: Compute, arrays: Mapping[str, Array], batch: bool, moves: bool) -> Iterator[Mapping[str, Array]]:
    random, plain = np.random.default_rng(0), REGIMES["float32"].rounding
    emulated = [replace(plain, library=bias) for bias in (-LIBRARY, LIBRARY)]
    emulated += [replace(plain, order=order, fma=fma) for order, fma in ORDERS[:2]]
    for rounding in emulated:
        yield compute({name: rounded(value, rounding) for name, value in arrays.items()}, PLAIN)
    running = {name: rounded(value, replace(plain, order="sequential")) for name, value in arrays.items()}
    for form in RUNNING * batch:
        yield compute(running, _in_the_form(form, 1))
    stochastic = {name: rounded(value, replace(plain, random=random)) for name, value in arrays.items()}
    for form, tiles in STOCHASTIC * batch:
        yield compute(stochastic, _in_the_form(form, tiles))
    own = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    for number, form in enumerate(LOSS_FORMS):
        yield _in_another_order(compute, own, _in_the_form(form, TILES[number % 2]), random, moves)


@lru_cache(maxsize=16)
def _in_the_form(form: LossForm, tiles: int) -> Variant:
    return replace(in_the_form(form, PLAIN), tiles=tiles, normalises_again=tiles > 1)


def _in_another_order(
    compute: Compute, arrays: Mapping[str, Array], ops: Variant, random: np.random.Generator, moves: bool
) -> Mapping[str, Array]:
    """One run with columns moved, and rows too if they may be, its results moved back."""
    pairs, width = arrays["image_embed"].shape
    rows: Any = random.permutation(pairs) if moves else slice(None)
    columns = random.permutation(width)
    moved = {name: value[rows][:, columns] if value.ndim else value for name, value in arrays.items()}
    home, back = np.argsort(rows) if moves else rows, np.argsort(columns)
    return {name: value[home][:, back] if np.ndim(value) else value for name, value in compute(moved, ops).items()}
