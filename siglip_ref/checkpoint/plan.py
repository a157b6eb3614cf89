"""Which SigLIP of a file is meant, and how it becomes ours: configuration, table of names, tensors made plain."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.checkpoint.formats.files import AGAIN, FLOATS, Store, read_json, unreadable
from siglip_ref.checkpoint.formats.kinds import require_floats
from siglip_ref.checkpoint.plan_words import notes_on, nothing_found, several_found
from siglip_ref.checkpoint.provenance import DEFAULT, SHAPES, Setting
from siglip_ref.checkpoint.tables import big_vision, huggingface, open_clip
from siglip_ref.checkpoint.tables.axes import in_order
from siglip_ref.checkpoint.tables.lora import is_adapter, merged
from siglip_ref.checkpoint.tables.names import Shape, Table, require_match
from siglip_ref.checkpoint.tables.one_tower import read_tower
from siglip_ref.checkpoint.tables.wrapped import BOTH, Found, about, find, unwrapped, without_wrappers
from siglip_ref.errors import UsageError, few

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
    names = _names(store, file, prefix)
    found = find(names)
    if prefix == "":
        found = [one for one in found if not one.prefix] or found
    if not found:
        raise nothing_found(store, file)
    whole = [one for one in found if one.sides == BOTH] or found
    plans, faults = [], []
    for one in whole:
        try:
            _require_once(one, names, file)
            plans.append(_plan(one, store, file, adapters, apart))
        except UsageError as error:
            faults.append((len(one.names), error))
    if len(plans) > 1:
        raise several_found(file, [plan.found for plan in plans])
    if not plans:
        raise max(faults, key=lambda fault: fault[0])[1]
    (plan,) = plans
    return replace(plan, notes=[*notes_on(plan.found, store, names, prefix or ""), *plan.notes])


def _names(store: Store, file: Path, prefix: str | None) -> dict[str, str]:
    """Names without wrappers' words -> names in the file, of the model that is meant."""
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
    return {new: (prefix or "") + old for new, old in unwrapped(names).items()}


def _require_once(one: Found, names: Mapping[str, str], file: Path) -> None:
    """No tensor of a model stands in the file as it is and in a wrapper too."""
    inside: dict[str, list[str]] = {}
    for old in names.values():
        inside.setdefault(without_wrappers(old), []).append(old)
    used = set(one.names.values())
    twice = [sorted(old, key=len) for old in inside.values() if len(old) > 1 and used & set(old)]
    if twice:
        plain, wrapped = twice[0][:2]
        raise unreadable(
            file,
            "each tensor once",
            f"{len(twice)} twice, like {plain[:200]} and {wrapped[:200]}",
            "two copies, one of them in a wrapper",
            f'choose one by how its names begin: siglip_ref.load(path, prefix="{wrapped.removesuffix(plain)}"), '
            'or prefix="" for the plain one',
        )


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
    return (shapes.get(about(one.format)["wide"]) or (None,))[0]


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
