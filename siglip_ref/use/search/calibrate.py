"""Scores that are worth their numbers: two numbers, scale and bias, fitted on examples of the user's own.

SigLIP's own scale and bias were learnt on other images, with thousands of negatives for each positive. On ten labels
and one's own photos the order of its scores is right long before their size is.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array, sigmoid
from siglip_ref.process.tables import read_typed
from siglip_ref.process.typed import read_text, visible

FORMAT = "siglip-ref-calibration/1"
FOLDS = 5  # each example is predicted by a fit that has not seen it
BINS = 10
LEAST = 10  # examples


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same height: how many, their mean, and the share of them that came true."""

    count: int
    predicted: float
    seen: float


@dataclass(frozen=True)
class Calibration:
    """What makes a score of a similarity: sigmoid(scale * similarity + bias).

    model : digest of the model it is for; examples : images it was fitted on
    before, after : reliability curves, with the model's own two numbers, and with fits that had not seen the example
    """

    model: str
    scale: float
    bias: float
    examples: int
    labels: tuple[str, ...]
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]

    def scores(self, similarities: Array) -> Array:
        """Between 0 and 1, each for itself."""
        return sigmoid(self.scale * similarities.astype(np.float64) + self.bias)


def read_examples(file: Path, labels: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Images and labels of a CSV with the columns image and label; paths from the folder of the CSV.

    labels : which are known; of others a UsageError
    """
    full, _ = read_typed(file, ("image", "label"))
    strange = sorted({label for _, label in full} - set(labels))
    if strange or len(full) < LEAST:
        raise UsageError(
            expected=f"at least {LEAST} examples with labels of: {', '.join(map(visible, labels[:10]))}",
            got=f"the label {visible(strange[0])}" if strange else f"{len(full)} in {file}",
            cause="a label that is not asked for, or a spelling mistake"
            if strange
            else "too few to fit two numbers on",
            repair="correct it, or add it to --labels" if strange else "add more; a hundred are plenty",
        )
    return [file.parent / image for image, _ in full], [label for _, label in full]


def calibrate(
    similarities: Array, truth: Array, scale: float, bias: float, model: str, labels: Sequence[str]
) -> Calibration:
    """Fit scale and bias.

    Parameters
    ----------
    similarities : (n, labels), cosines; truth : (n,), the number of each image's label
    scale, bias : the model's own
    """
    right = np.eye(len(labels), dtype=bool)[truth]
    exact = similarities.astype(np.float64)
    before, after = sigmoid(scale * exact + bias), np.empty_like(exact)
    for fold in range(FOLDS):
        out = np.arange(len(exact)) % FOLDS == fold
        s, b = fit(exact[~out], right[~out])
        after[out] = sigmoid(s * exact[out] + b)
    s, b = fit(exact, right)
    curves = (reliability(found, right) for found in (before, after))
    return Calibration(model, s, b, len(exact), tuple(labels), *curves)


def fit(similarities: Array, right: Array) -> tuple[float, float]:
    """Scale and bias of a logistic regression.

    Targets are a little inside 0 and 1, so that labels that are told apart without a mistake end with finite numbers.

    Source: Platt 1999; Lin, Lin and Weng 2007, A note on Platt's probabilistic outputs.
    """
    x, y = similarities.reshape(-1), right.reshape(-1)
    middle, spread = x.mean(), x.std() or 1.0
    x = (x - middle) / spread
    positive = int(y.sum())
    target = np.where(y, (positive + 1) / (positive + 2), 1 / (len(y) - positive + 2))

    def loss(at: Array) -> tuple[float, Array]:
        z = at[0] * x + at[1]
        off = sigmoid(z) - target
        return float((np.logaddexp(0, z) - target * z).mean()), np.array([(off * x).mean(), off.mean()])

    start = np.array([1.0, np.log((positive + 1) / (len(y) - positive + 1))])
    at = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-12}).x
    return float(at[0] / spread), float(at[1] - at[0] * middle / spread)


def reliability(predicted: Array, right: Array) -> tuple[Bin, ...]:
    """Predictions in bins of equal width: their mean beside what came true."""
    p, y = predicted.reshape(-1), right.reshape(-1)
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = [(int(n), p[place == k], y[place == k]) for k in range(BINS) if (n := (place == k).sum())]
    return tuple(Bin(n, float(ps.mean()), float(ys.mean())) for n, ps, ys in bins)


def error_of(bins: Sequence[Bin]) -> float:
    """The expected calibration error: how far predictions lie from what came true, on average."""
    return sum(bin_.count * abs(bin_.predicted - bin_.seen) for bin_ in bins) / sum(bin_.count for bin_ in bins)


def curve_as_text(found: Calibration) -> str:
    """The reliability curve: for each height of the predictions, what came true."""
    lines = []
    for title, bins in (("with the model's own scale and bias", found.before), ("calibrated", found.after)):
        lines.append(f"{title}: off by {100 * error_of(bins):.2f} points on average")
        lines.append("  predicted  came true                            of")
        for bin_ in bins:
            mark = ["-"] * 26
            mark[round(25 * bin_.predicted)] = "|"
            mark[round(25 * bin_.seen)] = "o"
            lines.append(f"   {bin_.predicted:8.3f}   {bin_.seen:8.3f}  {''.join(mark)} {bin_.count:5,}")
    lines.append(
        f"(| predicted, o came true; {found.examples} examples x {len(found.labels)} labels, each predicted by a fit "
        f"on others)\nscale {found.scale:.4g}, bias {found.bias:.4g}"
    )
    return "\n".join(lines)


def calibration_as_json(found: Calibration) -> bytes:
    """For `read_calibration`, and for plots."""
    return (json.dumps({"format": FORMAT} | asdict(found), indent=1) + "\n").encode()


def read_calibration(file: Path, model: str) -> Calibration:
    """A calibration that was saved, of this model and no other."""
    text = read_text(file)
    try:
        content: dict[str, Any] = json.loads(text)
        if content.pop("format") != FORMAT:
            raise ValueError("of another format")
        before, after = (tuple(Bin(**bin_) for bin_ in content.pop(name)) for name in ("before", "after"))
        found = Calibration(before=before, after=after, **content | {"labels": tuple(content["labels"])})
        if not np.isfinite([found.scale, found.bias]).all():
            raise ValueError("no finite numbers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            expected=f"a calibration in {file}, as siglip-ref classify --calibrate saves it",
            got=visible(f"{type(error).__name__}: {error}")[:200],
            cause="another file, or one that was changed",
            repair="siglip-ref classify ... --calibrate labels.csv --save FILE",
        ) from error
    if found.model != model:
        raise UsageError(
            expected="a calibration of this very model",
            got="one of another, or of other prompts",
            cause="two numbers that were fitted on another model's similarities say nothing of this one's",
            repair="siglip-ref classify ... --calibrate labels.csv --save FILE",
        )
    return found
