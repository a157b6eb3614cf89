"""The classifier that `siglip-ref train --labels` leaves beside a model: a linear layer on unit embeddings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from siglip_ref.checkpoint.formats.files import unreadable
from siglip_ref.ops.elementary import Array
from siglip_ref.process.data import read_toml

FILE, ABOUT = "classifier.safetensors", "classifier.json"
Texts = Literal["fits", "untrained", "left behind", "not known"]
NOTES: dict[str, str] = read_toml(__file__, "words")["texts"]


@dataclass(frozen=True)
class Classifier:
    """Names of classes, kernel (D, classes) and bias (classes,).

    scale : logits times it give calibrated probabilities (temperature scaling), as found on held-out images
    texts : whether the model's text tower still says something of its images
    """

    classes: tuple[str, ...]
    kernel: Array
    bias: Array
    scale: float = 1.0
    texts: Texts = "not known"

    def logits(self, embed: Array) -> Array:
        """(B, classes), of unit embeddings (B, D)."""
        return logits_of({"head/kernel": self.kernel, "head/bias": self.bias}, embed)


def logits_of(params: Mapping[str, Array], embed: Array) -> Array:
    """(B, classes). Unit vectors are brought to about one in each place, as a layer norm would leave them."""
    return np.sqrt(embed.shape[1]).astype(embed.dtype) * (embed @ params["head/kernel"]) + params["head/bias"]


def write_classifier(
    directory: Path, params: Mapping[str, Array], classes: Sequence[str], scale: float, texts: Texts
) -> None:
    """Beside the weights."""
    layer = {name: np.ascontiguousarray(params[name]) for name in ("head/kernel", "head/bias")}
    save_file(layer, directory / FILE, {"classes": json.dumps(classes)})  # one entry: several come in random order
    about = {"scale": scale, "texts": texts}
    (directory / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read_classifier(directory: Path) -> Classifier | None:
    """The classifier in a model's directory, if there is one."""
    place = directory / FILE
    if not place.is_file():
        return None
    try:
        with safe_open(place, framework="numpy") as file:
            classes = tuple(map(str, json.loads((file.metadata() or {})["classes"])))
            kernel, bias = file.get_tensor("head/kernel"), file.get_tensor("head/bias")
        beside = directory / ABOUT
        about = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        scale, texts = float(about.get("scale", 1.0)), about.get("texts", "not known")
        fits = kernel.ndim == 2 and bias.shape == kernel.shape[1:] == (len(classes),) and np.isfinite(scale)
        if not fits or (texts != "fits" and texts not in NOTES):
            raise ValueError(f"{len(classes)} classes, a kernel {kernel.shape}, a bias {bias.shape}, {texts!r:.20}")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise unreadable(
            place,
            "a classifier, as siglip-ref train --labels writes it",
            str(error)[:200],
            "a file that was changed, or cut short",
            "copy it again, or take it away to use the model without it",
        ) from error
    return Classifier(classes, kernel, bias, scale, texts)


def classifier_notes(directory: Path) -> list[str]:
    """What whoever gives texts to this model should know."""
    found = read_classifier(directory)
    return [NOTES[found.texts]] if found and found.texts in NOTES else []
