"""Declared variants of the loss as their users write them, right and with a mistake, in Torch and in JAX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it

from siglip_ref.check.engine.expected.convention import Objective

Loss = Callable[..., Any]


@dataclass(frozen=True)
class Library:
    """The two frameworks, by the functions that a loss needs. several : every row k times, side by side; product : of
    images and texts, all pairs."""

    logsigmoid: Loss
    exp: Loss
    eye: Loss
    number: Loss
    several: Loss
    product: Loss = lambda x, y: x @ y.T


TORCH = Library(
    F.logsigmoid,
    torch.exp,
    lambda x: torch.eye(len(x), dtype=x.dtype),
    lambda m, x: m.to(x.dtype),
    lambda m, k: m.repeat_interleave(k, 1),
)
JAX = Library(
    jax.nn.log_sigmoid,
    jnp.exp,
    lambda x: jnp.eye(len(x), dtype=x.dtype),
    lambda m, x: m.astype(x.dtype),
    lambda m, k: jnp.repeat(m, k, 1),
)


def logits_of(at: Library, x: Any, y: Any, s: Any, b: Any = 0.0) -> Any:
    return at.exp(s) * at.product(x, y) + b


def soft(at: Library, logits: Any, labels: Any, weights: Any = 1.0) -> Any:
    return -(weights * (labels * at.logsigmoid(logits) + (1 - labels) * at.logsigmoid(-logits)))


def mean(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.eye(x)).mean() * (len(x) / (len(x) + 1) if wrong else 1)


def no_bias(at: Library, x: Any, y: Any, s: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s), at.eye(x)).sum() / (len(x) * (2 if wrong else 1))


def by_ids(at: Library, x: Any, y: Any, s: Any, b: Any, ids: Any, wrong: bool) -> Any:
    same = at.eye(x) if wrong else at.number(ids[:, None] == ids, x)
    return soft(at, logits_of(at, x, y, s, b), same).sum() / len(x)


def by_pairs(at: Library, x: Any, y: Any, s: Any, b: Any, weights: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.eye(x), weights.T if wrong else weights).sum() / len(x)


def by_rows(at: Library, x: Any, y: Any, s: Any, b: Any, weights: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.eye(x), weights if wrong else weights[:, None]).sum() / len(x)


def by_columns(at: Library, x: Any, y: Any, s: Any, b: Any, weights: Any, wrong: bool) -> Any:
    return by_rows(at, x, y, s, b, weights, not wrong)


def weighed(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    own = at.eye(x)
    return soft(at, logits_of(at, x, y, s, b), own, 1 + (2.0 if not wrong else 2.1) * own).sum() / len(x)


def smoothed(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.eye(x) * 0.9 + (0.1 if wrong else 0.05)).sum() / len(x)


def both(at: Library, x: Any, y: Any, s: Any, b: Any, ids: Any, weights: Any, wrong: bool) -> Any:
    same, by_row = at.number(ids[:, None] == ids, x), weights if wrong else weights[:, None]
    return soft(at, logits_of(at, x, y, s, b), same, by_row).mean()


def by_captions(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    first = slice(1) if wrong else slice(None)  # of a row only the first number is compared
    same = at.number((y[:, None, first] == y[None, :, first]).all(-1), x)
    return soft(at, logits_of(at, x, y, s, b), same).sum() / len(x)


def three(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.several(at.eye(x), 3)).sum() / len(y if wrong else x)


def two_by_ids(at: Library, x: Any, y: Any, s: Any, b: Any, ids: Any, text_ids: Any, wrong: bool) -> Any:
    same = at.several(at.eye(x), 2) if wrong else at.number(ids[:, None] == text_ids, x)
    return soft(at, logits_of(at, x, y, s, b), same).sum() / len(x)


def two_by_columns(at: Library, x: Any, y: Any, s: Any, b: Any, weights: Any, wrong: bool) -> Any:
    """Of equal captions, the mean over all pairs, a weight of each text."""
    same = (y[:, None] == y).all(-1)
    same = at.number(same.reshape(len(x), 2, len(y)).any(1) if not wrong else same[::2], x)
    return soft(at, logits_of(at, x, y, s, b), same, weights).mean()


VARIANTS: dict[str, tuple[Loss, dict[str, Any]]] = {
    "mean": (mean, {"reduction": "mean"}),
    "no bias": (no_bias, {"bias": None}),
    "ids": (by_ids, {"positives": "ids"}),
    "pairs": (by_pairs, {"weights": "pairs"}),
    "rows": (by_rows, {"weights": "rows"}),
    "columns": (by_columns, {"weights": "columns"}),
    "two weights": (weighed, {"weights": (3.0, 1.0)}),
    "smoothing": (smoothed, {"label_smoothing": 0.1}),
    "ids, rows, mean": (both, {"positives": "ids", "weights": "rows", "reduction": "mean"}),
    "captions": (by_captions, {"positives": "captions"}),
    "three captions": (three, {"captions_per_image": 3}),
    "two captions by ids": (two_by_ids, {"captions_per_image": 2, "positives": "ids"}),
    "two captions, columns, mean": (
        two_by_columns,
        {"captions_per_image": 2, "positives": "captions", "weights": "columns", "reduction": "mean"},
    ),
}


def objective_of(declared: dict[str, Any]) -> Objective:
    fields = {"label_smoothing": "smoothing", "captions_per_image": "per_image"}
    values = {fields.get(key, key): value for key, value in declared.items()}
    return Objective(**(values | ({"bias": False} if "bias" in values else {})))
