"""A checkpoint with everything that belongs to it: tokeniser, preprocessing, conventions."""

from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.checkpoint.load import Checkpoint, load_checkpoint
from siglip_ref.checkpoint.provenance import Setting
from siglip_ref.errors import lookup
from siglip_ref.model.specification import chosen
from siglip_ref.ops.record import Ops
from siglip_ref.use.companions import given_images, image_companions, text_companions
from siglip_ref.use.inference import best_ops
from siglip_ref.use.preprocess import PREPROCESS, Preprocess
from siglip_ref.use.refusals import require_side
from siglip_ref.use.search.classifier import classifier_notes
from siglip_ref.use.text_conventions import TEXT_CONVENTIONS
from siglip_ref.use.tokenizer import Tokenizer, find_tokenizer
from siglip_ref.use.zeroshot import Model

GEMMA = 256_000  # the vocabulary by which SigLIP 2 is known


def load(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    preprocess: str | Preprocess | None = None,
    conventions: Conventions | None = None,
    dtype: DTypeLike = np.float32,
    ops: Ops | ModuleType | None = None,
    prefix: str | None = None,
) -> Model:
    """A model from a checkpoint of Hugging Face, open_clip or big_vision; or one tower, alone or in a larger model.

    Parameters
    ----------
    path : a directory, a file of weights, or a hub name "owner/model" (needs huggingface_hub)
    tokenizer : a SentencePiece file, a tokenizer.json, or "bytes"; default: what lies beside the weights
    preprocess : a name in `siglip_ref.use.preprocess.PREPROCESS`, or one of your own; default: the checkpoint's
    conventions : default: the checkpoint's
    dtype : float32 weights asked for as float32 are mapped, not copied
    ops : default `siglip_ref.fast` where it can be imported, else the specification
    prefix : how the names begin of the model that is meant, where a file holds several: "ema."; "": the one without

    What was found and does not go without saying is in the model's `notes`; where each setting comes from, defaults
    included, in its `settings`.

    Examples
    --------
    >>> model = load("siglip-base-patch16-256")  # doctest: +SKIP
    >>> model.zero_shot("photos/", ["a cat", "a dog"]).sorted(0)  # doctest: +SKIP
    """
    checkpoint = load_checkpoint(path, dtype, conventions, prefix)
    return from_checkpoint(checkpoint, tokenizer=tokenizer, preprocess=preprocess, ops=ops)


def from_checkpoint(
    checkpoint: Checkpoint,
    *,
    tokenizer: str | Path | None = None,
    preprocess: str | Preprocess | None = None,
    ops: Ops | ModuleType | None = None,
) -> Model:
    """The model of weights already read; see `load`."""
    cfg, directory = checkpoint.config, checkpoint.path.parent
    second = "-2" if cfg.vocabulary == GEMMA or cfg.naflex else ""
    words, text_settings, text_notes = text_companions(directory, TEXT_CONVENTIONS[checkpoint.format + second], cfg)
    how, image_settings, image_notes = _preprocess(preprocess, checkpoint, second)
    text_notes += classifier_notes(directory)
    sides = {"image": (image_settings, image_notes), "text": (text_settings, text_notes)}
    found: list[Setting] = [*checkpoint.settings]
    notes: list[str] = [*checkpoint.notes]
    for side in checkpoint.sides:
        found += sides[side][0]
        notes += sides[side][1]
    made: list[Tokenizer] = []

    def tokenize() -> Tokenizer:
        require_side(checkpoint.sides, cfg, "text")
        if not made:
            made.append(find_tokenizer(tokenizer, directory, cfg.vocabulary, cfg.text_length, words))
        return made[0]

    return Model(
        cfg,
        checkpoint.params,
        how,
        tokenize,
        chosen(ops) if ops else best_ops(),
        tuple(notes),
        tuple(found),
        checkpoint.sides,
    )


def _preprocess(
    given: str | Preprocess | None, checkpoint: Checkpoint, second: str
) -> tuple[Preprocess, list[Setting], list[str]]:
    """How images are prepared; where each setting comes from; notes."""
    if given is not None:
        repair = "leave it out to take the checkpoint's own"
        how = given if isinstance(given, Preprocess) else lookup(PREPROCESS, given, "preprocessing", repair)
        return how, given_images(how), []
    fallback = PREPROCESS[checkpoint.format + second * (checkpoint.format == "huggingface")]
    return image_companions(checkpoint.path.parent, checkpoint.format, checkpoint.config, fallback)
