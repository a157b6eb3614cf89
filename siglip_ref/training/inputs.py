"""What a training starts from, read and found to fit together before anything is written."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siglip_ref.architecture.params import Params, init
from siglip_ref.architecture.sizes import TOWERS, Config, config
from siglip_ref.checkpoint.load import Format, load_checkpoint, require_whole
from siglip_ref.errors import UsageError
from siglip_ref.training.data.captioned import Captioned, Data
from siglip_ref.training.data.sources import open_data
from siglip_ref.training.saved.store import digest
from siglip_ref.training.settings import DEFAULTS, Settings
from siglip_ref.use.load import from_checkpoint
from siglip_ref.use.preprocess import PREPROCESS, Preprocess
from siglip_ref.use.tokenizer import Tokenizer, byte_tokenizer, cut_note


@dataclass(frozen=True)
class Inputs:
    """Data and a model for them.

    params : at the beginning; weights : their digest, if they came from a checkpoint
    how : images are prepared; format : whose layout the model has, and is to be written in again
    batch : pairs of all ranks together; notes : what the user should know of them
    """

    data: Data
    cfg: Config
    params: Params
    tokenizer: Tokenizer
    how: Preprocess
    format: Format
    batch: int
    weights: str
    notes: tuple[str, ...]


def read_inputs(settings: Settings, ranks: int) -> Inputs:
    """Read them; UsageError if they do not fit together."""
    data = open_data(settings.data)
    data = replace(data, defaults={**data.defaults, **DEFAULTS[settings.recipe]})
    cfg, params, tokenizer, how, kind = _model(settings, data)
    batch = settings.batch or int(data.defaults["batch"])
    _require(settings, data, cfg, batch, ranks)
    weights = digest(0, params, "") if settings.init else ""
    notes = (*data.notes, *_note_on_batch(batch, data.train.count), *_notes_on_texts(data, tokenizer))
    return Inputs(data, cfg, params, tokenizer, how, kind, batch, weights, notes)


def _model(settings: Settings, data: Data) -> tuple[Config, Params, Tokenizer, Preprocess, Format]:
    """From a checkpoint, or fresh, with bytes for a vocabulary."""
    dtype = np.dtype(settings.dtype)
    if settings.init:
        checkpoint = load_checkpoint(settings.init, dtype)
        require_whole(checkpoint)
        model = from_checkpoint(checkpoint)
        params = {name: np.array(value) for name, value in model.params.items()}
        return model.config, params, model.tokenizer(), model.preprocess, checkpoint.format
    cfg = config(settings.model) if settings.model not in ("", "small") else data.config
    if settings.model == "small":
        cfg = replace(cfg, name=f"{cfg.name}, small", image=TOWERS["mu"], text=TOWERS["mu"])
    tokenizer = byte_tokenizer(cfg.text_length)
    if cfg.vocabulary < tokenizer.vocabulary:
        raise UsageError(
            expected=f"a size with room for the {tokenizer.vocabulary} pieces that bytes need",
            got=f"--model {cfg.name} with {cfg.vocabulary}",
            cause="a model trained from nothing reads texts as bytes, and this size is one for tests",
            repair="leave --model out to take one that suits the data, or --model mu/16",
        )
    # of a released size, whose tokeniser is not here
    cfg = replace(cfg, vocabulary=tokenizer.vocabulary, bottleneck=settings.bottleneck)
    params = init(cfg, settings.seed, dtype)
    changed: dict[str, Any] = {"log_scale": settings.log_scale, "bias": 0.0 if settings.without_bias else settings.bias}
    params |= {name: np.asarray(value, dtype) for name, value in changed.items() if value is not None}
    return cfg, params, tokenizer, PREPROCESS["huggingface"], "huggingface"


def _require(settings: Settings, data: Data, cfg: Config, batch: int, ranks: int) -> None:
    """Settings that fit together."""
    numbers = {"--lr": settings.lr, "--decay": settings.decay or 0.0}
    odd = [f"{name} {value:g}" for name, value in numbers.items() if not 0 <= value < np.inf]
    plain = Settings()
    others = [name for name in ("loss", "optimiser", "init", "freeze", "learn", "micro", "without_bias")
              if getattr(settings, name) != getattr(plain, name)]  # fmt: skip
    problems = [
        (
            bool(odd),
            "--lr and --decay of at least 0, and finite",
            ", ".join(odd),
            "leave them out to take what suits the data",
        ),
        (
            not settings.clip > 0,
            "--clip above 0: the length to which longer gradients are cut",
            f"--clip {settings.clip:g}",
            "leave it out for 1, or --clip inf for none",
        ),
        (
            settings.negatives > 0 and ranks > 1,
            "one process for a loss of fewer negatives",
            f"{ranks} ranks",
            "these studies are made on one process: the hard ones are those of all pairs together",
        ),
        (batch < ranks, f"--batch of at least {ranks}, a pair for each rank", f"--batch {batch}", "enlarge the batch"),
        (
            bool(settings.freeze) and not settings.init,
            "--init DIR with --freeze image",
            "--freeze image alone",
            "a tower that knows nothing is not worth keeping: name a checkpoint",
        ),
        (
            bool(settings.learn) and not (settings.init and settings.freeze),
            f"--init DIR with --learn {settings.learn}",
            f"--learn {settings.learn} alone",
            "a text tower that knows nothing is not worth keeping: name a checkpoint",
        ),
        (
            bool(settings.learn) and settings.loss == "labels",
            "--learn or --labels",
            "both",
            "classes are learnt from images alone: with --labels, --freeze image says that its tower stays",
        ),
        (
            bool(settings.init and settings.bottleneck),
            "--bottleneck of a model trained from nothing",
            f"--bottleneck {settings.bottleneck} with --init",
            "leave it out: a checkpoint says itself whether its token table has a bottleneck",
        ),
        (
            settings.learn == "head" and not cfg.text_head,
            "a model with a text head for --learn head",
            cfg.name,
            "--learn text: this model's text tower ends without one",
        ),
        (
            settings.loss == "labels" and not data.classes,
            "data with classes for --labels: digits, or a folder of class folders",
            f"--data {settings.data}",
            "sort the images into one folder a class",
        ),
        (
            settings.recipe == "siglip2" and data.train.region is None,
            "data that say where things are, for --recipe siglip2: --data shapes",
            f"--data {settings.data}",
            "captions of regions need their boxes: of the data here only shapes have some",
        ),
        (
            settings.recipe == "siglip2" and bool(others),
            "--recipe siglip2 by itself",
            ", ".join(others),
            "leave these out: the recipe has losses and stages of its own, and begins from nothing",
        ),
        (
            settings.resolution > 0 and (settings.recipe != "siglip2" or settings.resolution % cfg.patch > 0),
            f"--resolution with --recipe siglip2, in whole patches of {cfg.patch} pixels",
            f"--resolution {settings.resolution}, --recipe {settings.recipe}",
            "the last stage of siglip2 has a resolution of its own; leave it out to keep the one before",
        ),
        (cfg.naflex, "a model of fixed resolution", cfg.name, "take another checkpoint"),
    ]
    for wrong, expected, got, repair in problems:
        if wrong:
            raise UsageError(expected, got, "these settings do not fit together", repair)


def _note_on_batch(batch: int, pairs: int) -> list[str]:
    """On a batch with more pairs than there are."""
    if batch <= pairs:
        return []
    return [f"batches of {batch} from {pairs} pairs: pairs stand in a batch several times, as negatives of themselves"]


def _notes_on_texts(data: Data, tokenizer: Tokenizer) -> list[str]:
    """On captions, of training and of the judgement, that are cut, and on those of which cleaning leaves nothing."""

    def all_of(part: Captioned) -> list[str]:
        return [caption for number in range(part.count) for caption in part.captions(number)]

    captions = all_of(data.train) + all_of(data.test) + [data.prompt.format(name) for name in data.classes]
    empty = sum(tokenizer.is_nothing(caption) for caption in dict.fromkeys(captions))
    nothing = [f"of {empty} captions nothing is left when they are cleaned as this model was trained"]
    return cut_note(tokenizer, captions, "captions") + nothing[: bool(empty)]
