"""The files that lie beside weights: what they say of images and texts, which of them decides, where they disagree.

transformers 5 writes processor_config.json, with the settings of images nested in it, and follows it before the
older preprocessor_config.json; open_clip has preprocess_cfg in its own file, timm pretrained_cfg in config.json. The
first file that says anything about images decides alone, as in these libraries; the others are compared with it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from siglip_ref.architecture.sizes import Config
from siglip_ref.checkpoint.formats.files import last_resort, read_json, unreadable
from siglip_ref.checkpoint.provenance import DEFAULT, GIVEN, Setting
from siglip_ref.checkpoint.tables.wrapped import Format
from siglip_ref.errors import UsageError
from siglip_ref.use.image_settings import RESAMPLE, image_settings, open_clip_settings
from siglip_ref.use.preprocess import PREPROCESS, Preprocess
from siglip_ref.use.text_conventions import TEXT_CONVENTIONS, TextConvention

SETTINGS_FILES = (
    *("processor_config.json", "preprocessor_config.json", "open_clip_config.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
FIELDS = ("filter", "mean", "std", "max_patches")


class Source(NamedTuple):
    """A file that may speak of images: where in it, how its words are read, and whose pipeline it is for."""

    file: str
    key: str
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    pipeline: str


SOURCES: dict[str, tuple[Source, ...]] = {
    "huggingface": (
        Source("processor_config.json", "image_processor", image_settings, "huggingface"),
        Source("preprocessor_config.json", "", image_settings, "huggingface"),
    ),
    "open_clip": (
        Source("open_clip_config.json", "preprocess_cfg", open_clip_settings, "open_clip"),
        Source("config.json", "pretrained_cfg", open_clip_settings, "open_clip"),
    ),
}


class Said(NamedTuple):
    """What one file says of images, in fields of ours; raw: in its own words."""

    file: str
    pipeline: str
    fields: dict[str, Any]
    raw: Mapping[str, Any]


def image_companions(
    directory: Path, format_: Format, cfg: Config, fallback: Preprocess
) -> tuple[Preprocess, list[Setting], list[str]]:
    """How a model's images are prepared, where each setting comes from, and notes.

    Parameters
    ----------
    directory : where the weights lie
    format_ : whose weights they are; its own files are asked first
    fallback : where no file says anything
    """
    said = list(_said(directory, format_))
    if not said:
        names = ", ".join(source.file + f" ({source.key})" * bool(source.key) for source in _sources(format_))
        words = f"{fallback.filter}, mean {fallback.mean}, deviation {fallback.std}"
        notes = [f"images: no {names} beside the weights says how; as {fallback.name}: {words}"]
        return fallback, _settings(fallback, {}, DEFAULT, cfg), notes if format_ != "big_vision" else []
    first = said[0]
    second = fallback.name.endswith("-2")  # SigLIP 2: bilinear where a file does not say
    base = PREPROCESS[first.pipeline + "-2" * (second and first.pipeline == "huggingface")]
    base = fallback if format_ == first.pipeline else base
    how = replace(base, **first.fields)
    notes = [note for other in said[1:] for note in _disagreements(how, first, other)]
    return how, _settings(how, first.fields, first.file, cfg), [*notes, *_unfollowed(first, cfg)]


def _sources(format_: Format) -> Iterator[Source]:
    """The files of a format first, then those of the others."""
    yield from SOURCES.get(format_, ())
    for name, sources in SOURCES.items():
        if name != format_:
            yield from sources


def _said(directory: Path, format_: Format) -> Iterator[Said]:
    for source in _sources(format_):
        place = directory / source.file
        with last_resort(place, "settings of images"):
            content: Any = read_json(place) if place.is_file() else {}
            content = content.get(source.key) if source.key else content
            fields = _read(source, content, place) if isinstance(content, dict) else {}
        if fields:
            yield Said(source.file, source.pipeline, fields, content)


def _read(source: Source, content: Mapping[str, Any], place: Path) -> dict[str, Any]:
    try:
        return source.read(content)
    except UsageError as error:  # which does not know the file
        raise unreadable(place, error.expected, error.got, error.cause, error.repair) from error


def _disagreements(how: Preprocess, first: Said, other: Said) -> Iterator[str]:
    for field, value in other.fields.items():
        if value != getattr(how, field):
            taken = f"{getattr(how, field)} of {first.file if field in first.fields else DEFAULT}"
            yield f"images: {field} {taken} is taken; {other.file} says {value}"


def _unfollowed(said: Said, cfg: Config) -> Iterator[str]:
    """Sizes that are not the model's own, which is what images are resized to."""
    size, patch = said.raw.get("size"), said.raw.get("patch_size")
    square = [size.get("height"), size.get("width")] if isinstance(size, dict) else [size, size]
    sides = size if isinstance(size, list) else square
    if size is not None and not cfg.naflex and sides != list(cfg.image_size):
        own = " x ".join(map(str, cfg.image_size))
        yield f"images: {said.file} says size {str(size)[:50]}; the model takes {own}, to which they are resized"
    if patch is not None and cfg.naflex and patch != cfg.patch:
        yield f"images: {said.file} says patches of {str(patch)[:50]}; the model's are of {cfg.patch}"


def _settings(how: Preprocess, said: Mapping[str, Any], file: str, cfg: Config) -> list[Setting]:
    fields = [field for field in FIELDS if field != "max_patches" or cfg.naflex]
    pipeline = Setting("images as", how.name, file)
    return [pipeline, *(Setting(f"images: {f}", getattr(how, f), file if f in said else DEFAULT) for f in fields)]


def given_images(how: Preprocess) -> list[Setting]:
    """Where whoever loads says how images are prepared."""
    return [Setting("images as", how.name, GIVEN)]


def write_image_settings(directory: Path, how: Preprocess, cfg: Config) -> None:
    """A preprocessor_config.json, as transformers and this module read it."""
    content = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": cfg.image_size[0], "width": cfg.image_size[1]},
        "resample": next(number for number, name in RESAMPLE.items() if name == how.filter),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": how.mean,
        "image_std": how.std,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# transformers' classes of tokenisers: whose cleaning they do.
CLASSES = {"SiglipTokenizer": "huggingface", "Siglip2Tokenizer": "huggingface-2", "GemmaTokenizer": "huggingface-2"}
CLEANED = {"canonicalize": "open_clip", "lower": "open_clip lower", "whitespace": "open_clip whitespace"}


def text_companions(
    directory: Path, words: TextConvention, cfg: Config
) -> tuple[TextConvention, list[Setting], list[str]]:
    """How a model's texts are cleaned, ended and padded, where each setting comes from, and notes.

    words : where no file says anything
    """
    found: dict[str, tuple[Any, str]] = {}
    notes: list[str] = []
    place = directory / "tokenizer_config.json"
    with last_resort(place, "settings of texts"):
        content = read_json(place) if place.is_file() else {}
        kind = str(content.get("tokenizer_class", "")).removesuffix("Fast")
        if kind in CLASSES and words.name.startswith("huggingface"):
            words = TEXT_CONVENTIONS[CLASSES[kind]]
            found["clean"] = words.clean, place.name
        if words.clean == "canonical" and content.get("do_lower_case") is False:
            found["clean"] = "canonical case", place.name
        if content.get("padding_side") in ("left", "right") and words.name.startswith("huggingface"):
            found["side"] = content["padding_side"], place.name
        notes += _of_length(content.get("model_max_length"), place.name, cfg)
    place = directory / "open_clip_config.json"
    with last_resort(place, "settings of texts"):
        content = read_json(place) if place.is_file() and words.name.startswith("open_clip") else {}
        text = (content.get("model_cfg") or {}).get("text_cfg") or {}
        clean = (text.get("tokenizer_kwargs") or {}).get("clean")
        if clean in CLEANED:
            found["clean"] = CLEANED[clean], place.name
        notes += _of_length(text.get("context_length"), place.name, cfg)
    how = replace(words, **{name: value for name, (value, _) in found.items()})
    if how.side == "left":
        notes.append(f"texts: padded on the left, as {found['side'][1]} says; SigLIP was trained with the right")
    settings = [Setting("texts as", how.name, found["clean"][1] if "clean" in found else DEFAULT)]
    for field in ("clean", "side", "eos", "pad"):
        settings.append(Setting(f"texts: {field}", getattr(how, field), found[field][1] if field in found else DEFAULT))
    return how, settings, notes


def _of_length(told: Any, file: str, cfg: Config) -> list[str]:
    """transformers writes 10^30 for "not known"."""
    if isinstance(told, bool) or not isinstance(told, int | float) or told > 10**6 or told == cfg.text_length:
        return []
    return [f"texts: {file} says {told} positions; the model has {cfg.text_length}, to which they are padded"]
