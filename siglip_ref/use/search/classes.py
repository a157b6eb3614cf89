"""Photos sorted into classes: by the classifier that a training left, or by labels in words, in one prompt or many."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.checkpoint.find_files import resolve
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array, sigmoid
from siglip_ref.ops.softmax import softmax_forward
from siglip_ref.process.data import read_toml
from siglip_ref.process.tables import as_csv
from siglip_ref.process.typed import read_lines, require_some, visible
from siglip_ref.use.labels import fill, require_words
from siglip_ref.use.search.calibrate import Calibration
from siglip_ref.use.search.classifier import Classifier, read_classifier
from siglip_ref.use.zeroshot import Model, Progress

_MEANING: dict[str, str] = read_toml(__file__, "words")["meaning"]


@dataclass(frozen=True)
class Sorted:
    """What the photos are.

    chances : (n, labels); similarities : of labels in words, else None
    names, skipped, notes : as `siglip_ref.use.zeroshot.Images` has them; meaning : of the chances, in a sentence
    """

    labels: tuple[str, ...]
    chances: Array
    names: list[str]
    skipped: list[tuple[str, str]]
    notes: tuple[str, ...]
    meaning: str
    similarities: Array | None = None

    def best(self, image: int) -> list[tuple[str, float]]:
        """(label, chance) of one photo, best first."""
        order = np.argsort(-self.chances[image], kind="stable")
        return [(self.labels[i], float(self.chances[image, i])) for i in order]


def learnt_classes(name: str) -> Classifier:
    """The classifier beside a model's weights."""
    place = resolve(name)
    found = read_classifier(place if place.is_dir() else place.parent)
    if found is None:
        raise UsageError(
            expected="a model that was trained with --labels, or --labels of your own",
            got=f"{name}, beside which lies no classifier",
            cause="it has learnt no classes",
            repair='--labels "cat,dog"; or siglip-ref train --labels --data FOLDER, with a folder for each class',
        )
    return found


def by_learnt(
    model: Model, learnt: Classifier, images: Sequence[Path], progress: Progress | None = None, **how: Any
) -> Sorted:
    """By the trained layer: probabilities of a softmax, calibrated on what the training held out."""
    if learnt.kernel.shape[0] != model.config.embed:
        raise UsageError(
            expected=f"a classifier of vectors of {model.config.embed} numbers, as the model's",
            got=f"one of {learnt.kernel.shape[0]}",
            cause="the classifier of another model",
            repair="copy the one that was trained with these weights",
        )
    found = model.embed_images(images, progress=progress, **how)
    chances, _ = softmax_forward(learnt.scale * learnt.logits(found.embeddings))
    return Sorted(learnt.classes, chances, found.names, found.skipped, found.notes, _MEANING["learnt"])


def read_prompts(file: Path) -> tuple[str, ...]:
    """Templates, one a line, each with {} for the label."""
    lines = require_some(read_lines(file), file, "prompt")
    without = [line for line in lines if "{}" not in line]
    if without:
        raise UsageError(
            expected=f"a place for the label, {{}}, in each line of {visible(str(file))}",
            got=visible(without[0])[:100],
            cause="a line that is the same for every label tells none from another",
            repair='"a photo of a {}."',
        )
    return tuple(dict.fromkeys(lines))


def text_vectors(model: Model, labels: Sequence[str], prompts: Sequence[str]) -> Array:
    """One unit vector (labels, D) a label: the mean of its prompts' unit vectors, made a unit vector again."""
    tokenizer = model.tokenizer()
    require_words(labels, tokenizer)
    texts = [fill(prompt, labels, canonicalise=tokenizer.convention.prompts) for prompt in prompts]
    total = sum(model.embed_texts(part).astype(np.float64) for part in texts)
    unit: Array = total / np.linalg.norm(total, axis=1, keepdims=True)
    return unit.astype(np.float32)


def by_words(
    model: Model,
    labels: Sequence[str],
    prompts: Sequence[str],
    images: Sequence[Path],
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Sorted:
    """By labels in words: each score a sigmoid, with the model's scale and bias or with fitted ones."""
    texts = text_vectors(model, labels, prompts)
    found = model.embed_images(images, progress=progress, **how)
    similarities = found.embeddings @ texts.T
    if calibration:
        chances, meaning = calibration.scores(similarities), "fitted"
    else:
        chances, meaning = sigmoid(model.logits(similarities)), "in words"
    return Sorted(tuple(labels), chances, found.names, found.skipped, found.notes, _MEANING[meaning], similarities)


def holds_for(identity: str, prompts: Sequence[str]) -> str:
    """What a calibration is of: a digest of the model and the prompts; labels may change."""
    return hashlib.sha256("\n".join([identity, *prompts]).encode()).hexdigest()


def sorted_as_csv(found: Sorted) -> bytes:
    """A row a photo: image, its best label, and the chance of each label."""
    rows = (
        [name, found.best(i)[0][0], *(repr(float(chance)) for chance in found.chances[i])]
        for i, name in enumerate(found.names)
    )
    return as_csv(["image", "label", *found.labels], rows)


def sorted_as_json(found: Sorted) -> str:
    """All chances of all photos."""
    images = [
        {"image": name, "chances": [{"label": label, "chance": chance} for label, chance in found.best(i)]}
        for i, name in enumerate(found.names)
    ]
    skipped = [{"image": name, "reason": reason} for name, reason in found.skipped]
    return json.dumps({"meaning": found.meaning, "images": images, "skipped": skipped}, indent=1, allow_nan=False)


def sorted_as_text(found: Sorted, top: int) -> str:
    """The best of each photo, and once what the numbers mean."""
    lines = []
    for i, name in enumerate(found.names):
        lines.append(visible(name))
        lines += [f"  {chance:8.4f}  {visible(label)}" for label, chance in found.best(i)[:top]]
    return "\n".join([*lines, "", found.meaning])


def accuracy(chances: Array, truth: Array) -> float:
    """The share of photos whose best label is theirs."""
    return float((chances.argmax(1) == truth).mean())
