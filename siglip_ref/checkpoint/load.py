"""From a directory, a file or a hub name to our parameters; every tensor named, every shape checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from siglip_ref.checkpoint import big_vision, huggingface, open_clip
from siglip_ref.checkpoint.files import Store, open_store, read_json, unreadable
from siglip_ref.checkpoint.names import Table, Tensor, require_match, to_ours
from siglip_ref.conventions import Conventions
from siglip_ref.errors import UsageError
from siglip_ref.params import shapes
from siglip_ref.sizes import SIZES, Config

Format = Literal["huggingface", "open_clip", "big_vision"]
WEIGHTS = (  # what a directory may hold, the first found is taken
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
SETTINGS = {"huggingface": "config.json", "open_clip": "open_clip_config.json"}
AGAIN = "download it again"
BUFFERS = ("position_ids",)  # not parameters; early transformers versions stored them


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they were read.

    params : name -> array; float32 weights of a safetensors file are its pages, read-only, and not a copy
    notes : what was found and did not go without saying
    """

    config: Config
    params: dict[str, Tensor]
    format: Format
    path: Path
    notes: tuple[str, ...] = ()


def load_checkpoint(
    path: str | Path, dtype: DTypeLike = np.float32, conventions: Conventions | None = None
) -> Checkpoint:
    """Read a checkpoint of Hugging Face, open_clip or big_vision.

    Parameters
    ----------
    path : a directory, a file (.safetensors, its index of shards, .npz, .pt), or a hub name "owner/model"
    dtype : of the parameters; float32 weights asked for as float32 are not copied
    conventions : instead of those that the checkpoint's settings say

    Raises
    ------
    UsageError, which names the file, or the tensor that is missing, left over or of another shape

    Nothing in a file is executed, and no more than `siglip_ref.checkpoint.files.CAP` bytes are allocated for it.
    """
    file = find_weights(resolve(path))
    store = open_store(file)
    found = {name: shape for name, shape in store.shapes.items() if not name.endswith(BUFFERS)}
    kind = _recognise(found, file)
    settings = _settings(file, kind)
    try:
        cfg, table, notes = _plan(kind, found, settings, store, file)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
        got = f"{type(error).__name__}: {error}"
        raise unreadable(
            file.parent, f"settings of a SigLIP ({SETTINGS.get(kind)})", got, "a broken file", AGAIN
        ) from error
    cfg = _named(replace(cfg, conventions=conventions or cfg.conventions))
    require_match(
        table, found, cfg, ignored=[name for name in found if name.endswith((*huggingface.HEAD, *big_vision.EXTRA))]
    )
    return Checkpoint(cfg, _read(store, table, cfg, np.dtype(dtype)), kind, file, tuple(notes))


def resolve(path: str | Path) -> Path:
    """A path that exists, or the folder into which huggingface_hub has put a model's files."""
    place = Path(path).expanduser()
    if place.exists():
        return place
    name = str(path)
    hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    command = f"hf download {name} --local-dir {name.split('/')[-1]}"
    missing = UsageError(
        expected="a directory, a file of weights, or a hub name",
        got=name,
        cause="huggingface_hub is not installed" if hub else "there is nothing at this path",
        repair=f"pip install huggingface_hub, then: {command}" if hub else "check the path",
    )
    if not hub:
        raise missing
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing from None
    wanted = ["*.json", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub's client has many kinds of its own
        raise UsageError(
            expected=f"the model {name} from the hub",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            cause="no such model, no network, or no leave to read it",
            repair=command,
        ) from error


def find_weights(place: Path) -> Path:
    """The file of weights in a directory."""
    if place.is_file():
        return place
    for name in WEIGHTS:
        if (place / name).is_file():
            return place / name
    others = sorted([*place.glob("*.safetensors"), *place.glob("*.npz")])
    if len(others) == 1:
        return others[0]
    raise unreadable(
        place,
        "one of " + ", ".join([*WEIGHTS, "one .npz"]),
        f"{len(others)} files of weights" if others else "none",
        "an incomplete download" if not others else "several models in one directory",
        "give the path of the file itself" if others else "hf download OWNER/MODEL --local-dir DIR",
    )


def _recognise(found: Mapping[str, Any], file: Path) -> Format:
    names = {name.removeprefix("params/") for name in found}
    marks: dict[str, Format] = {
        "vision_model.": "huggingface",
        "visual.trunk.": "open_clip",
        "img/": "big_vision",
    }
    for mark, kind in marks.items():
        if any(name.startswith(mark) for name in names):
            return kind
    raise unreadable(
        file,
        "tensors named as by transformers (vision_model...), open_clip (visual.trunk...) or big_vision (img/...)",
        ", ".join(sorted(names)[:4]) or "no tensors",
        "another model, one tower alone, or a wrapped one",
        "save the whole SigLIP model",
    )


def _settings(file: Path, kind: Format) -> dict[str, Any] | None:
    beside = file.with_name(SETTINGS.get(kind, "config.json"))
    return read_json(beside) if kind in SETTINGS and beside.is_file() else None


def _plan(
    kind: Format, found: dict[str, Any], settings: dict[str, Any] | None, store: Store, file: Path
) -> tuple[Config, Table, list[str]]:
    """The configuration, the table of names, and notes."""
    if kind == "huggingface":
        if settings is None:
            raise unreadable(
                file.parent, "config.json", "none", "only the weights were copied", "copy the whole directory"
            )
        cfg = huggingface.read_config(settings)
        if _identity(store, *huggingface.HEAD):
            return (cfg := replace(cfg, text_head=False)), huggingface.table(cfg), ["text head: the identity, left out"]
        return cfg, huggingface.table(cfg), []
    if kind == "open_clip":
        cfg = open_clip.read_config(found, settings)
        forms = f"GELU {cfg.conventions.image_gelu} for images, {cfg.conventions.text_gelu} for texts"
        doubt = (
            [] if settings else [f"no open_clip_config.json beside the weights: taken for a SigLIP 1 model, {forms}"]
        )
        return cfg, open_clip.table(cfg), doubt
    plain = big_vision.plain(found)
    cfg = big_vision.read_config(plain)
    prefix = big_vision.prefix(found)
    table = tuple(replace(entry, theirs=prefix + entry.theirs) for entry in big_vision.table(cfg, plain))
    return cfg, table, []


def _identity(store: Store, weight: str, bias: str) -> bool:
    shape = store.shapes.get(weight, ())
    if len(shape) != 2 or shape[0] != shape[1] or bias not in store.shapes:
        return False
    return not store.read(bias).any() and np.array_equal(store.read(weight), np.eye(shape[0]))


def _named(cfg: Config) -> Config:
    """With the released model's name, and its true image size (384 px with patch 14 leave a rim), if it is one."""
    wanted = shapes(cfg)
    for known in SIZES.values():
        same_towers = (known.image, known.text, known.naflex, known.patch) == (
            cfg.image,
            cfg.text,
            cfg.naflex,
            cfg.patch,
        )
        if same_towers and known.grid == cfg.grid and shapes(known) == wanted:
            rim = cfg.image_size == (cfg.grid[0] * cfg.patch, cfg.grid[1] * cfg.patch)
            size = known.image_size if rim and cfg.conventions.name == "big_vision" else cfg.image_size
            return replace(cfg, name=known.name, image_size=size)
    return cfg


def _read(store: Store, table: Table, cfg: Config, dtype: np.dtype[Any]) -> dict[str, Tensor]:
    """Every parameter in network order; a tensor of theirs that holds several of ours is read once."""
    ours, filled = shapes(cfg), {}
    by_theirs: dict[str, list[Any]] = {}
    for entry in table:
        by_theirs.setdefault(entry.theirs, []).append(entry)
    for theirs, entries in by_theirs.items():
        whole = store.read(theirs)
        for entry in entries:
            filled[entry.ours] = to_ours(whole, entry, ours[entry.ours]).astype(dtype, copy=False)
    second = [name for name in store.shapes if name.endswith(big_vision.EXTRA)]
    if second:  # early text towers have two tables of positions, which are added
        filled["text/position"] = filled["text/position"] + store.read(second[0]).reshape(ours["text/position"])
    return {name: filled[name] for name in ours}
