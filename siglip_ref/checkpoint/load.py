"""From a directory, a file or a hub name to our parameters; every tensor named, every shape checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import SIZES, Config
from siglip_ref.checkpoint.find_files import adapted, find_weights, resolve, shards_of
from siglip_ref.checkpoint.formats.files import Store, last_resort, unreadable
from siglip_ref.checkpoint.formats.kinds import is_finite, require_floats
from siglip_ref.checkpoint.formats.memory import require_room
from siglip_ref.checkpoint.plan import choose
from siglip_ref.checkpoint.provenance import GIVEN, Setting
from siglip_ref.checkpoint.stores import open_store
from siglip_ref.checkpoint.tables import big_vision
from siglip_ref.checkpoint.tables.names import Table, Tensor, of_sides, to_ours
from siglip_ref.checkpoint.tables.wrapped import BOTH, Format, Sides
from siglip_ref.errors import few

__all__ = ["Checkpoint", "Format", "find_weights", "load_checkpoint", "require_whole", "resolve"]


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they were read.

    params : name -> array; float32 weights of a safetensors or .pt file are its pages, read-only, and not a copy
    notes : what was found and did not go without saying
    settings : where sizes and conventions come from
    sides : ("image", "text"), or the one tower that the file has
    """

    config: Config
    params: dict[str, Tensor]
    format: Format
    path: Path
    notes: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    sides: Sides = BOTH


def load_checkpoint(
    path: str | Path,
    dtype: DTypeLike = np.float32,
    conventions: Conventions | None = None,
    prefix: str | None = None,
) -> Checkpoint:
    """Read a checkpoint of Hugging Face, open_clip or big_vision, or a SigLIP tower alone or in a larger model.

    Parameters
    ----------
    path : a directory, a file (.safetensors, its index of shards, .npz, .pt), or a hub name "owner/model"
    dtype : of the parameters; float32 weights asked for as float32 are not copied
    conventions : instead of those that the checkpoint's settings say
    prefix : how the names begin of the model that is meant, where a file holds several: "ema."; "": the one without

    Raises
    ------
    UsageError, which names the file, or the tensor that is missing, left over or of another shape

    Nothing in a file is executed, and no more than `siglip_ref.checkpoint.formats.files.CAP` bytes are allocated for
    it: the sum over all parameters as `dtype` is held against that, the file's size and the free memory before any is
    read.
    """
    place = resolve(path)
    with last_resort(place, "weights"):
        file, adapter = find_weights(place)
    with last_resort(file, "a SigLIP"):
        store, how, notes = adapted(open_store(file), file, adapter)
        plan = choose(store, file, how, adapter is not None, prefix)
        cfg, table, kind = plan.cfg, plan.table, np.dtype(dtype)
        if conventions:
            cfg = replace(cfg, conventions=conventions)
        cfg = _named(cfg, plan.found.sides)
        ours = of_sides(shapes(cfg), plan.found.sides)
        require_floats(plan.store, {entry.theirs for entry in table}, file)
        require_room(shards_of(file, adapter), plan.store, (entry.theirs for entry in table), ours, kind)
        params = _read(plan.store, table, ours, kind)
        notes += [*plan.notes, *_mixed(plan.store, {entry.theirs for entry in table}), *_not_finite(params)]
    settings = [Setting("conventions", conventions.name, GIVEN)] if conventions else []
    return Checkpoint(cfg, params, plan.found.format, file, tuple(notes), (*plan.settings, *settings), plan.found.sides)


def require_whole(checkpoint: Checkpoint) -> None:
    """Refuse one tower alone where both are needed."""
    if checkpoint.sides != BOTH:
        raise unreadable(
            checkpoint.path,
            "a whole SigLIP: both towers, scale and bias",
            checkpoint.config.name,
            "the file holds one tower only",
            "load the whole SigLIP that it was taken from",
        )


def _named(cfg: Config, sides: Sides) -> Config:
    """With the released model's name, and its true image size (384 px with patch 14 leave a rim), if it is one."""
    if sides != BOTH:
        return cfg
    wanted, sizes = shapes(cfg), attrgetter("image", "text", "naflex", "patch", "grid")
    for known in SIZES.values():
        if sizes(known) == sizes(cfg) and shapes(known) == wanted:
            rim = cfg.image_size == (cfg.grid[0] * cfg.patch, cfg.grid[1] * cfg.patch)
            size = known.image_size if rim and cfg.conventions.name == "big_vision" else cfg.image_size
            return replace(cfg, name=known.name, image_size=size)
    return cfg


def _read(store: Store, table: Table, ours: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]) -> dict[str, Tensor]:
    """Every parameter in network order; a tensor of theirs that holds several of ours is read once."""
    filled = {}
    by_theirs: dict[str, list[Any]] = {}
    for entry in table:
        by_theirs.setdefault(entry.theirs, []).append(entry)
    with np.errstate(over="ignore"):  # what becomes infinite is counted, and said
        for theirs, entries in by_theirs.items():
            whole = store.read(theirs)
            for entry in entries:
                filled[entry.ours] = to_ours(whole, entry, ours[entry.ours]).astype(dtype, copy=False)
        second = [name for name in store.tensors if name.endswith(big_vision.EXTRA)]
        if second and "text/position" in filled:  # early text towers have two tables of positions, which are added
            more = store.read(second[0]).reshape(ours["text/position"])
            filled["text/position"] = (filled["text/position"] + more).astype(dtype, copy=False)
    return {name: filled[name] for name in ours}


def _mixed(store: Store, names: set[str]) -> list[str]:
    """A note on half precision of two kinds, whose bytes are easily confused: no training writes both into one file."""
    halves = {kind: [n for n in sorted(names) if store.tensors[n].kind == kind] for kind in ("float16", "bfloat16")}
    if not all(halves.values()):
        return []
    fewer = min(halves, key=lambda kind: len(halves[kind]))
    return [f"float16 and bfloat16 in one file: {len(halves[fewer])} of {fewer}, like {few(halves[fewer], 2)}"]


def _not_finite(params: Mapping[str, Tensor]) -> list[str]:
    """A note that counts tensors with NaN or infinities in them."""
    odd = {name: array for name, array in params.items() if not is_finite(array)}
    kinds = {"NaN": np.isnan, "infinities": np.isinf}
    found = {what: [name for name, array in odd.items() if is_so(array).any()] for what, is_so in kinds.items()}
    return [
        f"{len(names)} tensor{'s' * (len(names) > 1)} hold{'s' * (len(names) == 1)} {what}: {few(names)}"
        for what, names in found.items()
        if names
    ]
