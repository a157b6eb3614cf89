"""What a training starts from, read and found to fit together before anything is written."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siglip_ref.architecture.params import Params, init
from siglip_ref.architecture.sizes import TOWERS, Config, config
from siglip_ref.checkpoint.load import Format, load_checkpoint, require_whole
from siglip_ref.errors import UsageError
from siglip_ref.process.data import read_toml
from siglip_ref.training.data.captioned import Captioned, Data
from siglip_ref.training.data.sources import open_data
from siglip_ref.training.saved.store import digest
from siglip_ref.training.settings import DEFAULTS, Settings
from siglip_ref.use.inference import best_ops
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
    if best_ops().compiled:
        from siglip_ref.fast.optim import together

        params = together(params)  # which steps write over: these are never held twice
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
    labels, second = settings.loss == "labels", settings.recipe == "siglip2"
    whole = settings.resolution % cfg.patch == 0
    got = {  # what is wrong, by its name in misfits.toml: what came
        "numbers": ", ".join(odd),
        "clip": f"--clip {settings.clip:g}" * (not settings.clip > 0),
        "negatives": f"{ranks} ranks" * (settings.negatives > 0 and ranks > 1),
        "batch": f"--batch {batch}" * (batch < ranks),
        "freeze": "--freeze image alone" * (bool(settings.freeze) and not settings.init),
        "learn": f"--learn {settings.learn} alone" * (bool(settings.learn) and not (settings.init and settings.freeze)),
        "learn and labels": "both" * (bool(settings.learn) and labels),
        "bottleneck": f"--bottleneck {settings.bottleneck} with --init" * bool(settings.init and settings.bottleneck),
        "head": cfg.name * (settings.learn == "head" and not cfg.text_head),
        "labels": f"--data {settings.data}" * (labels and not data.classes),
        "regions": f"--data {settings.data}" * (second and data.train.region is None),
        "recipe": ", ".join(others) * second,
        "resolution": f"--resolution {settings.resolution}, --recipe {settings.recipe}"
        * (settings.resolution > 0 and not (second and whole)),
        "naflex": cfg.name * cfg.naflex,
    }
    wrong = next((name for name, said in got.items() if said), None)
    if wrong:
        words = read_toml(__file__, "misfits")[wrong]
        expected, repair = (text.format(ranks=ranks, learn=settings.learn, patch=cfg.patch) for text in words)
        raise UsageError(expected, got[wrong], "these settings do not fit together", repair)


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
