"""A checkpoint with everything that belongs to it: tokeniser, preprocessing, conventions."""

from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike

from siglip_ref.checkpoint.files import read_json, unreadable
from siglip_ref.checkpoint.load import Checkpoint, load_checkpoint, resolve
from siglip_ref.conventions import Conventions
from siglip_ref.embed import best_ops
from siglip_ref.errors import UsageError
from siglip_ref.preprocess import PREPROCESS, Preprocess, read_settings
from siglip_ref.tokenizer import Tokenizer, find_tokenizer
from siglip_ref.wording import TEXT_CONVENTIONS
from siglip_ref.zeroshot import Model

GEMMA = 256_000  # the vocabulary by which SigLIP 2 is known


def load(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    preprocess: str | Preprocess | None = None,
    conventions: Conventions | None = None,
    dtype: DTypeLike = np.float32,
    ops: ModuleType | None = None,
) -> Model:
    """A model from a checkpoint of Hugging Face, open_clip or big_vision.

    Parameters
    ----------
    path : a directory, a file of weights, or a hub name "owner/model" (needs huggingface_hub)
    tokenizer : a SentencePiece file, a tokenizer.json, or "bytes"; default: what lies beside the weights
    preprocess : a name in `siglip_ref.preprocess.PREPROCESS`, or one of your own; default: the checkpoint's
    conventions : default: the checkpoint's
    dtype : float32 weights asked for as float32 are mapped, not copied
    ops : default `siglip_ref.fast` where it can be imported, else the specification

    Examples
    --------
    >>> model = load("siglip-base-patch16-256")  # doctest: +SKIP
    >>> model.zero_shot("photos/", ["a cat", "a dog"]).sorted(0)  # doctest: +SKIP
    """
    place = resolve(path)
    checkpoint = load_checkpoint(place, dtype, conventions)
    return from_checkpoint(checkpoint, tokenizer=tokenizer, preprocess=preprocess, ops=ops)


def from_checkpoint(
    checkpoint: Checkpoint,
    *,
    tokenizer: str | Path | None = None,
    preprocess: str | Preprocess | None = None,
    ops: ModuleType | None = None,
) -> Model:
    """The model of weights already read; see `load`."""
    cfg, directory = checkpoint.config, checkpoint.path.parent
    second = "-2" if cfg.vocabulary == GEMMA or cfg.naflex else ""
    words = TEXT_CONVENTIONS[checkpoint.format + second]
    made: list[Tokenizer] = []

    def tokenize() -> Tokenizer:
        if not made:
            made.append(find_tokenizer(tokenizer, directory, cfg.vocabulary, cfg.text_length, words))
        return made[0]

    how = _preprocess(preprocess, checkpoint.format, second, directory)
    return Model(cfg, checkpoint.params, how, tokenize, ops or best_ops(), checkpoint.notes)


def _preprocess(given: str | Preprocess | None, format_: str, second: str, directory: Path) -> Preprocess:
    if isinstance(given, Preprocess):
        return given
    if given is not None and given not in PREPROCESS:
        raise UsageError(
            expected=f"one of {', '.join(PREPROCESS)}",
            got=repr(given),
            cause="there is no preprocessing by this name",
            repair="leave it out to take the checkpoint's own",
        )
    fallback = PREPROCESS[given or format_ + second * (format_ == "huggingface")]
    settings = directory / "preprocessor_config.json"
    if given is None and format_ == "huggingface" and settings.is_file():
        try:
            return read_settings(read_json(settings), fallback)
        except (TypeError, ValueError) as error:
            raise unreadable(
                settings, "settings of images", str(error), "a broken file", "download it again"
            ) from error
    return fallback
