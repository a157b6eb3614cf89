"""Six of the paper's studies: what is varied; studies.toml has the paper's own numbers, and what a toy cannot show."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siglip_ref.process.data import read_toml
from siglip_ref.training.loop import Run

SEEN = 32_000  # pictures that every training sees, whatever its batch
TOY: dict[str, Any] = {"data": "digits", "model": "small", "batch": 64, "steps": SEEN // 64, "lr": 3e-3}
CLIP = {"loss": "softmax", "log_scale": math.log(1 / 0.07)}  # as CLIP starts
LOSSES: dict[str, dict[str, Any]] = {"sigmoid": {}, "softmax": CLIP}


@dataclass(frozen=True)
class Study:
    """One figure.

    variants : (line, place on the x axis, settings of the training); lines : what tells them apart
    paper : the paper's own table, as Markdown
    outcome : what comes first in it, in words
    honest : what the toy cannot show
    seen : by each training
    also : a second number of each training, by its name
    """

    name: str
    title: str
    x: str
    variants: Sequence[tuple[str, str, dict[str, Any]]]
    paper: str
    outcome: str
    honest: str
    lines: str = "loss"
    seen: str = f"{SEEN:,} pictures seen by each training"
    also: tuple[str, Callable[[Run], float]] | None = None


def _starts() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for bias, scale in ((None, 10), (-10.0, 10), (-10.0, 1), (0.0, 10), (0.0, 1)):
        start = {"log_scale": math.log(scale), "bias": bias, "without_bias": bias is None}
        yield "sigmoid", f"{'none' if bias is None else f'{bias:g}'}, log {scale}", start


def _negatives() -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield "all", "1:63", {}
    for kind in ("random", "hard", "easy"):
        for ratio in (16, 6.3, 1.6):
            yield kind, f"1:{ratio:g}", {"negatives": ratio, "kept": kind}
    for ratio in (16, 6.3, 1.6):
        yield "hard, as many pairs", f"1:{ratio:g}", {
            "negatives": ratio, "kept": "hard", "steps": round(TOY["steps"] * 63 / ratio)
        }  # fmt: skip


def highest_rise(run: Run) -> float:
    """Of a step's loss over the mean of the ten before, in per cent."""
    loss = np.array(run.history)[:, 0]
    rises = [loss[step] / loss[step - 10 : step].mean() - 1 for step in range(10, len(loss))]
    return 100 * float(max(rises, default=0.0))


_VARIANTS: dict[str, Iterable[tuple[str, str, dict[str, Any]]]] = {
    "initialisation": _starts(),
    "batch": (
        (loss, str(batch), {**start, "batch": batch, "steps": SEEN // batch})
        for loss, start in LOSSES.items()
        for batch in (16, 32, 64, 128)
    ),
    "noise": (
        (loss, f"{share:.0%}", {**start, "shuffled": share})
        for loss, start in LOSSES.items()
        for share in (0.0, 0.3, 0.6)
    ),
    "beta2": (
        (f"beta2 {beta2:g}", str(batch), {"beta2": beta2, "batch": batch})
        for beta2 in (0.95, 0.99, 0.999)
        for batch in (64, 256, 512)
    ),
    "negatives": _negatives(),
    "bottleneck": (
        ("sigmoid", str(rank or "full"), {"bottleneck": rank} if rank else {}) for rank in (0, 16, 8, 4, 2, 1)
    ),
}
_ALSO: dict[str, tuple[str, Callable[[Run], float]]] = {
    "beta2": ("highest rise of the loss over the ten steps before, %", highest_rise),
    "negatives": ("bias at the end", lambda run: float(run.params["bias"])),
}
_WORDS = read_toml(__file__, "studies")
STUDIES = {
    name: Study(name=name, variants=tuple(_VARIANTS[name]), also=_ALSO.get(name), **words)
    for name, words in _WORDS.items()
}
