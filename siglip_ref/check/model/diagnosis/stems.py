"""What a tower begins with, where that is patches (or tokens) and positions that do not belong together: which patch
stands where, or which table of positions was added, read off and proven on every image."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import sides_of
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import doubled, readable, stage_values
from siglip_ref.mistakes import reference
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import DERIVED

_LISTED = 8
_ROUNDED = 1e-3  # relative: a factor so near to one of two digits is that


def of_stems(
    found: Sequence[Finding], run: Run, judge: Judge, probe: Probe, cfg: Config, conventions: Conventions
) -> list[Finding]:
    """What was found, with what is read off where a tower begins, in place of what has no name."""
    if cfg.naflex:
        return list(found)
    shown = readable(run.activations, judge.exact.activations, np.float64)
    ground = doubled(probe)
    told = []
    for one in found:
        tower, _, part = one.tensor.partition("/")
        said = None
        if one.id == "unknown" and part == "stem" and tower in sides_of(cfg) and one.tensor in shown:
            right = stage_values(reference(), tower, shown, ground, cfg, conventions)[one.tensor]
            limit = judge.of_value[one.tensor] * float(np.max(np.abs(right)))
            said = _read(shown[one.tensor], right, ground.params[f"{tower}/position"], limit, tower, cfg)
        told.append(replace(one, id=DERIVED, evidence=f"{one.evidence}; {said[0]}", repair=said[1]) if said else one)
    return told


def _read(
    got: Array, right: Array, position: Array, limit: float, tower: str, cfg: Config
) -> tuple[str, str] | None:  # fmt: skip
    """Evidence and repair."""
    position = position.reshape(-1, position.shape[-1])
    if got.shape != right.shape or len(position) < got.shape[1]:
        return None
    table = position[: got.shape[1]]
    what, grid = ("patches", cfg.grid) if tower == "image" else ("tokens", (1, got.shape[1]))
    plain, rest = right - table, got - table
    order = _order(rest, plain, limit)
    if order is not None:
        repair = f"hand on the {what} in the order of the table of positions: row by row"
        told = f"every value of {tower}/stem is right with the {what} in another order than their positions"
        return f"{told}: {_said(order, grid)}", repair
    added = got - plain
    if np.max(np.abs(added - added[:1])) > 2 * limit:  # not of the place alone
        return None
    added = added.mean(0)
    for words in _of_table(added, table, position, limit, grid):
        told = f"every value of {tower}/stem is right where position is {words}"
        return told, "add the table of positions as it is, row by row"
    size = float(np.linalg.norm(added) / np.linalg.norm(table))
    evidence = (
        f"what is added to the {what} is the same in every one of them, and not their table of positions: {size:.3g}"
    )
    return f"{evidence} times as long", "add the table of positions, and nothing else"


def _of_table(added: Array, table: Array, whole: Array, limit: float, grid: tuple[int, int]) -> Iterator[str]:
    if np.max(np.abs(added)) <= limit:
        yield "left out (0)"
    factor = float(np.sum(added * table) / np.sum(table * table))
    if np.max(np.abs(added - factor * table)) <= limit * max(1.0, abs(factor)):
        near = float(f"{factor:.2g}")
        yield f"multiplied by {near if abs(near - factor) <= _ROUNDED * abs(factor) else factor:.4g}"
    order = _order(added[None], whole[None], limit)
    if order is not None:
        yield f"read in another order: {_said(order, grid)}"
    centred = added - table
    if np.max(np.abs(centred - centred.mean(0))) <= 2 * limit:
        yield "the table and one more vector, the same at every place"


def _order(got: Array, rows: Array, limit: float) -> Array | None:
    """Which of the rows each place has, the same in all images; None where some have none."""
    far = np.abs(got[0][:, None] - rows[0][None]).max(-1)  # (place, row)
    order = far.argmin(-1)
    fits = np.max(np.abs(got - rows[:, order])) <= 2 * limit
    return order if fits and not np.array_equal(order, np.arange(len(order))) else None


def _said(order: Array, grid: tuple[int, int]) -> str:
    """By a law where there is one; else the first of them."""
    height, width = grid
    count = np.arange(len(order))
    if len(order) == height * width and height > 1:
        square = count.reshape(height, width)
        turns = (np.arange(height) % 2 == 1)[:, None]
        laws = {
            "columns first (rows and columns exchanged)": square.T,
            "rows from the bottom": square[::-1],
            "columns from the right": square[:, ::-1],
            "turned by 180 degrees": square[::-1, ::-1],
            "every second row from the right": np.where(turns, square[:, ::-1], square),
        }
        sides = [(a, b) for a in range(1, height + 1) for b in range(1, width + 1) if height % a == width % b == 0]
        for a, b in sides:
            windows = square.reshape(height // a, a, width // b, b).transpose(0, 2, 1, 3)
            laws[f"windows of {a} x {b}, row by row, and row by row inside of each"] = windows
            laws[f"interleaved by {a} x {b}"] = windows.transpose(2, 3, 0, 1)
        for words, law in laws.items():
            if np.array_equal(order, law.ravel()):
                return words
            if np.array_equal(np.argsort(order), law.ravel()):
                return f"the inverse of {words}"
    for shift in (1, -1, 2, -2):
        if np.array_equal(order, (count + shift) % len(order)):
            return f"shifted by {shift}, around the end"
        if np.array_equal(order, np.clip(count + shift, 0, len(order) - 1)):
            return f"shifted by {shift}, the end repeated"
    if np.array_equal(order, count[::-1]):
        return "reversed"
    return f"place 0, 1, ... has {', '.join(map(str, order[:_LISTED]))}, ..."
