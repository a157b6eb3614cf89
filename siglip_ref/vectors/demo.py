"""One mistake of the catalogue, shown and explained."""

from typing import TYPE_CHECKING

import numpy as np

from siglip_ref.check.engine.coverage import REASONS
from siglip_ref.mistakes import Mistake, reference
from siglip_ref.ops.elementary import Array
from siglip_ref.vectors.power import FORMATS, SEEN, measured, run
from siglip_ref.vectors.store import Vector, packaged

if TYPE_CHECKING:
    from siglip_ref.report.data import Report

CLEAR = 1000.0  # times the noise: enough to show; of the vectors that do, the smallest is taken
RANKS = 4  # at which a missing hop, no hop at all and a repeated one are three different things
# for changes that no vector sees: one of these is felt by each, if only in the last digit
QUIET = ("ranks/w3-balanced", "loss/balanced-b6-d13", "block/plain")


def show(mistake: Mistake) -> "Report":
    """The report on a program with this mistake, computed in float32."""
    if mistake.kind == "softmax":
        return _of_softmax(mistake)
    from siglip_ref.check.files.dump import judge

    vector = vector_for(mistake)
    got = {name: np.asarray(value) for name, value in run(vector, reference(mistake.edits), "float32").items()}
    return judge(vector, got, "float32", f"the mistake {mistake.id}, made on {vector.id}")


def _of_softmax(mistake: Mistake) -> "Report":
    """CLIP's loss has no golden vector: it is judged at the probes."""
    from siglip_ref.check.loss.check import check_loss

    wrong = reference(mistake.edits).ops.softmax_loss

    def loss(image_embed: Array, text_embed: Array, log_scale: Array) -> tuple[Array, ...]:
        return tuple(map(np.asarray, wrong(image_embed, text_embed, log_scale)))

    return check_loss(loss, loss="softmax", scale="log", framework="numpy")


def vector_for(mistake: Mistake) -> Vector:
    """The smallest vector that shows the mistake clearly, or else the one that shows it best.

    Of two or three ranks much is the same: on two, to miss one rank's texts is to miss all others'."""
    rows = measured().power.get(mistake.id, {})
    seen = [name for name, row in rows.items() if (row[1] or 0.0) >= CLEAR]
    seen = seen or [measured().best(mistake.id, "float32")[1]] * bool(rows)
    if seen:
        return min(map(packaged().find, seen), key=lambda vector: (_few(vector), _size(vector)))
    files = {edit.file for edit in mistake.edits}
    place = 0 if "model/procedures.py" in files else 1 if "ops/pair_block.py" in files else 2
    return packaged().find(QUIET[place])


def _few(vector: Vector) -> bool:
    """Ranks, but fewer than RANKS of them."""
    ranks = sum(name.startswith("image_embed/rank") for name in vector.inputs)
    return 0 < ranks < RANKS


def _size(vector: Vector) -> int:
    return sum(values.size for values in vector.expected.values())


def describe(mistake: Mistake) -> str:
    """An entry of the catalogue for reading: words, the change itself, and which vectors see it."""
    lines = [mistake.id, "", mistake.text, "", f"shows:    {mistake.shows}", f"repair:   {mistake.repair}"]
    lines += [f"reported: {mistake.seen}"]
    lines += [f"place:    {REASONS[mistake.home]}"] * (mistake.home not in ("", "equivalent"))
    for edit in mistake.edits:
        lines += ["", f"in {edit.file}", *edit.diff()]
    if mistake.kind == "softmax":
        lines += ["", 'seen by check_loss(fn, loss="softmax")', "", f"try:    siglip-ref demo {mistake.id}"]
    elif mistake.edits:
        lines += [
            "",
            "the golden vector that shows it best, and how large the error is there, in units of the noise of",
        ]
        lines += [f"correct programs ({SEEN:g} or more is detected):"]
        for dtype in FORMATS:
            factor, vector = measured().best(mistake.id, dtype)
            lines.append(f"  {dtype:<9} " + (f"{vector}  {factor:.2g}" if factor >= SEEN else "no vector"))
        lines += ["", f"try:    siglip-ref demo {mistake.id}"]
    return "\n".join(lines)
