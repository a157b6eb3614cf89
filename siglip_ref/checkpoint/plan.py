"""Which SigLIP of a file is meant, and how it becomes ours: configuration, table of names, tensors made plain."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.checkpoint import big_vision, huggingface, open_clip
from siglip_ref.checkpoint.axes import in_order
from siglip_ref.checkpoint.files import AGAIN, FLOATS, Store, read_json, unreadable
from siglip_ref.checkpoint.kinds import require_floats
from siglip_ref.checkpoint.lora import is_adapter, merged
from siglip_ref.checkpoint.mismatch import MERGE, few
from siglip_ref.checkpoint.names import Shape, Table, require_match
from siglip_ref.checkpoint.one_tower import read_tower
from siglip_ref.checkpoint.wrapped import BEGIN, BOTH, BUFFERS, WRAPPERS, Found, find, unwrapped, without_wrappers
from siglip_ref.errors import UsageError
from siglip_ref.provenance import DEFAULT, SHAPES, Setting
from siglip_ref.sizes import Config

SETTINGS = {"huggingface": "config.json", "open_clip": "open_clip_config.json"}


@dataclass(frozen=True)
class Plan:
    """How a SigLIP in a file becomes ours: store, with plain tensors under the names of the table."""

    found: Found
    store: Store
    cfg: Config
    table: Table
    notes: list[str]
    settings: list[Setting]


def choose(store: Store, file: Path, adapters: Mapping[str, Any] | None, apart: bool, prefix: str | None) -> Plan:
    """The plan for the one SigLIP in a file; UsageError that says why none fits, or which fit.

    Parameters
    ----------
    adapters, apart : settings of LoRA adapters, and whether these lie in a file of their own
    prefix : as in `siglip_ref.checkpoint.load.load_checkpoint`
    """
    names, twice = _names(store, file, prefix)
    found = find(names)
    if prefix == "":
        found = [one for one in found if not one.prefix] or found
    if not found:
        raise _nothing(store, file)
    whole = [one for one in found if one.sides == BOTH] or found
    plans, faults = [], []
    for one in whole:
        try:
            both = [name for name in twice if name.startswith(one.prefix) and name[len(one.prefix) :] in one.names]
            if both:
                raise _twice(file, twice[both[0]], len(both))
            plans.append(_plan(one, store, file, adapters, apart))
        except UsageError as error:
            faults.append((len(one.names), error))
    if len(plans) > 1:
        raise _several(file, [plan.found for plan in plans])
    if not plans:
        raise max(faults, key=lambda fault: fault[0])[1]
    (plan,) = plans
    return replace(plan, notes=[*_notes(plan.found, store, names, prefix or ""), *plan.notes])


def _names(store: Store, file: Path, prefix: str | None) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Names without wrappers' words -> names in the file, of the model that is meant; and those that stand twice."""
    names = list(store.tensors)
    if prefix == "":
        names = [name for name in names if without_wrappers(name) == name]
    elif prefix is not None:
        names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if not names:
            got = few(sorted(store.tensors))
            raise unreadable(
                file, f"names that begin with {prefix!r}", got, "another prefix", "leave it out to see all"
            )
    plain, twice = unwrapped(names)
    return {new: (prefix or "") + old for new, old in plain.items()}, twice


def _plan(one: Found, store: Store, file: Path, adapters: Mapping[str, Any] | None, apart: bool) -> Plan:
    """UsageError if the tensors are not those of the SigLIP that names and settings promise."""
    plain = store.renamed(one.names)
    notes: list[str] = []
    if any(is_adapter(name) for name in plain.tensors):
        plain, notes = merged(plain, adapters, file, apart)
    elif adapters is not None and apart:
        notes = ["the adapters change nothing in the towers"]
    # shapes of what is no matrix of numbers tell nothing of the model
    require_floats(plain, [n for n, t in plain.tensors.items() if t.why_not or len(t.shape) > 1], file)
    plain, turned = in_order(plain, one.format, _width(one, plain.shapes))
    settings = _settings(file, one)
    try:
        cfg, table, found, more = _layout(one, plain, settings, file)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
        got, name = f"{type(error).__name__}: {error}"[:300], SETTINGS.get(one.format)
        raise unreadable(file.parent, f"settings of a SigLIP ({name})", got, "a broken file", AGAIN) from error
    extra = (*huggingface.HEAD, *big_vision.EXTRA)
    require_match(table, plain.shapes, cfg, [name for name in plain.tensors if name.endswith(extra)], one.sides)
    return Plan(one, plain, cfg, table, [*notes, *turned, *more], found)


def _width(one: Found, shapes: Mapping[str, Shape]) -> int | None:
    """Of the image tower, by the bias of its patches."""
    bias = {
        "huggingface": "vision_model.embeddings.patch_embedding.bias",
        "open_clip": "visual.trunk.patch_embed.proj.bias",
        "big_vision": "img/embedding/bias",
    }[one.format]
    return (shapes.get(bias) or (None,))[0]


def _settings(file: Path, one: Found) -> dict[str, Any] | None:
    beside = file.with_name(SETTINGS.get(one.format, "none"))
    return read_json(beside) if one.format in SETTINGS and beside.is_file() else None


Layout = tuple[Config, Table, list[Setting], list[str]]


def _layout(one: Found, store: Store, settings: dict[str, Any] | None, file: Path) -> Layout:
    """Configuration, table of names, where settings come from, and notes."""
    notes: list[str] = []
    found = store.shapes
    if one.format == "huggingface":
        cfg, source, notes = _huggingface(one, store, settings, file)
        table = huggingface.table(cfg)
    elif one.format == "open_clip":
        cfg, source = open_clip.read_config(found, settings, one.sides), SETTINGS["open_clip"] if settings else DEFAULT
        forms = f"GELU {cfg.conventions.image_gelu} for images, {cfg.conventions.text_gelu} for texts"
        notes += (
            [] if settings else [f"no open_clip_config.json beside the weights: taken for a SigLIP 1 model, {forms}"]
        )
        table = open_clip.table(cfg)
    else:
        cfg, source = big_vision.read_config(found, sides=one.sides), DEFAULT
        table = big_vision.table(cfg, found)
    begin = tuple(f"{side}/" for side in one.sides)
    kept = tuple(entry for entry in table if one.sides == BOTH or entry.ours.startswith(begin))
    sizes = source if one.format == "huggingface" else SHAPES
    return cfg, kept, _sources(cfg, one, sizes, source), notes


def _huggingface(
    one: Found, store: Store, settings: dict[str, Any] | None, file: Path
) -> tuple[Config, str, list[str]]:
    if one.sides != BOTH:
        (side,) = one.sides
        cfg, told = read_tower(store.shapes, settings, side)
        tower = cfg.image if side == "image" else cfg.text
        guess = f"config.json does not tell the {side} tower's sizes: taken from its shapes, with {tower.heads} heads"
        return cfg, SETTINGS["huggingface"] if told else SHAPES, [] if told else [guess]
    if settings is None:
        got, cause = "none", "only the weights were copied"
        raise unreadable(file.parent, "config.json", got, cause, "copy the whole directory")
    cfg = huggingface.read_config(settings)
    if _identity(store, cfg):
        return replace(cfg, text_head=False), SETTINGS["huggingface"], ["text head: the identity, left out"]
    return cfg, SETTINGS["huggingface"], []


def _identity(store: Store, cfg: Config) -> bool:
    """Is the text head one that changes nothing?"""
    parts = [store.tensors.get(name) for name in huggingface.HEAD]
    if cfg.text.width != cfg.embed or not all(part and part.kind in FLOATS and not part.why_not for part in parts):
        return False
    width = cfg.embed
    if [part.shape for part in parts if part] != [(width, width), (width,)]:
        return False
    weight, bias = map(store.read, huggingface.HEAD)
    return not bias.any() and np.count_nonzero(weight) == width and bool((weight.diagonal() == 1).all())


def _sources(cfg: Config, one: Found, sizes: str, conventions: str) -> list[Setting]:
    said = []
    for side in one.sides:
        tower = cfg.image if side == "image" else cfg.text
        said.append(Setting(f"{side} tower", f"{tower.width} wide, {tower.depth} blocks, {tower.heads} heads", sizes))
        gelu, eps = (getattr(cfg.conventions, f"{side}_{what}") for what in ("gelu", "norm_eps"))
        said += [Setting(f"{side} GELU", gelu, conventions), Setting(f"{side} norm eps", eps, conventions)]
    if "image" in one.sides:
        said.append(Setting("image size", f"{cfg.image_size[0]} x {cfg.image_size[1]}, patch {cfg.patch}", sizes))
    if "text" in one.sides:
        said.append(Setting("text length", cfg.text_length, sizes))
    return said


def _notes(found: Found, store: Store, names: Mapping[str, str], prefix: str) -> list[str]:
    """What was taken off the names, and what was not read."""
    notes = []
    words = [word for word in WRAPPERS if any(f".{word}." in f".{old}" for old in found.names.values())]
    if prefix or found.prefix:
        what = f"{prefix + found.prefix!r} stands before every name, and was taken off"
        notes.append(what if found.sides == BOTH else f"the {found.sides[0]} tower under {prefix + found.prefix!r}")
    if words:
        notes.append(f"{', '.join(word + '.' for word in words)} taken out of the names: a wrapper's")
    if found.sides != BOTH:
        notes.append(f"the {found.sides[0]} tower alone: nothing else of a SigLIP is in the file")
    used = set(found.names.values())
    others = [name for name in store.tensors if name not in used and not name.endswith(BUFFERS)]
    if others:
        notes.append(f"{len(others)} other tensors were not read: {few(others, 2)}")
    return notes


def _several(file: Path, found: list[Found]) -> UsageError:
    first = next((one.prefix for one in found if one.prefix), "")
    return unreadable(
        file,
        "one SigLIP",
        f"{len(found)}: " + ", ".join(map(str, found[:6])),
        "copies of a model, as an average of its weights (EMA), a teacher, or another step",
        f'choose one by how its names begin: siglip_ref.load(path, prefix="{first}")',
    )


def _twice(file: Path, names: list[str], count: int) -> UsageError:
    words = sorted({name.removesuffix(without_wrappers(name)) for name in names}, key=len)
    return unreadable(
        file,
        "each tensor once",
        f"{count} twice, like {few(names, 2)}",
        "two copies, one of them in a wrapper",
        f'choose one by how its names begin: siglip_ref.load(path, prefix="{words[-1]}"), or prefix="" for the plain',
    )


def _nothing(store: Store, file: Path) -> UsageError:
    names = sorted(store.tensors)
    begins = " or ".join(begin["image"] for begin in BEGIN.values())
    if any(is_adapter(name) for name in names):
        cause, repair = MERGE
    elif any(name.endswith(("visual.conv1.weight", "visual.proj", "visual_projection.weight")) for name in names):
        cause, repair = "a CLIP model, which has no attention pooling and no bias", "take a SigLIP model"
    elif not names:
        cause, repair = "a file without a single tensor", "save the model's state dict"
    else:
        cause, repair = "another model: no tower of a SigLIP is among its names", "save a SigLIP model"
    return unreadable(
        file,
        f"tensors of a SigLIP, or of one of its towers ({begins})",
        few(names) if names else "no tensors",
        cause,
        repair,
    )
