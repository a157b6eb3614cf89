"""A checkpoint of probe weights, and inputs for it: what somebody else's converter and engine are checked with."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np

from siglip_ref.architecture.conventions import PRESETS
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import SIZES, Config, config, config_of
from siglip_ref.check.model.adapters import Dtype
from siglip_ref.check.model.probe import Probe, model_probe
from siglip_ref.checkpoint.load import Format, load_checkpoint, require_whole
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.errors import UsageError
from siglip_ref.model.two_towers import forward
from siglip_ref.process.outputs import require_free
from siglip_ref.vectors.files import write_safetensors

MOST = 64  # pairs
LAYOUTS = ("huggingface", "big_vision", "open_clip")
ARITHMETICS = ("float32", "bfloat16", "float16")
FORMAT = "siglip-ref probe 1"
WEIGHTS = {"huggingface": "model", "open_clip": "model", "big_vision": "model.npz"}

TEXT = Path(__file__).with_name("probe_readme.txt").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Exported:
    """A probe as it lies in a folder: the model, its weights and inputs, and the precision that it is exact in."""

    cfg: Config
    probe: Probe
    arithmetic: Dtype


def export_probe(
    folder: str | Path,
    model: str | Path,
    layout: Format = "huggingface",
    arithmetic: str = "float32",
    batch: int = 4,
    *,
    force: bool = False,
) -> list[str]:
    """Write probe weights in a library's layout, inputs, and what an answer is called.

    Parameters
    ----------
    folder : where to; made if it is not there
    model : a size, as `siglip_ref.config` knows it, or a checkpoint whose sizes and conventions are taken
    layout : "huggingface", "big_vision" or "open_clip": whose files your converter reads
    arithmetic : what your engine computes in: "float32", "bfloat16" or "float16"; weights and inputs are exact in it
    batch : pairs, at least 2
    force : replace a probe that is there

    Returns
    -------
    names of an answer's tensors, in the order of the network

    Raises
    ------
    UsageError

    Examples
    --------
    >>> export_probe("probe", "tiny")[0]  # doctest: +SKIP
    'image/stem'
    """
    cfg = _config(model, layout)
    _require(layout, arithmetic, batch, cfg)
    place, dtype = Path(folder), cast(Dtype, arithmetic)
    require_free(folders=[place], force=force)
    probe = model_probe(cfg, batch, dtype)
    with TemporaryDirectory() as made:  # a model that the layout cannot hold leaves nothing behind
        names = _write(Path(made), place.name, probe, cfg, layout, dtype)
        shutil.copytree(made, place, dirs_exist_ok=True)
    return names


def read_probe(folder: str | Path) -> Exported:
    """Read a probe back; refuse one whose files are not those that were written."""
    place = Path(folder)
    try:
        about = json.loads((place / "probe.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}")
        cfg = config_of(about["config"], about["config"]["conventions"])
        layout, batch = about["layout"], int(about["batch"])
        _require(layout, about["arithmetic"], batch, cfg)
        changed = [name for name, digest in about["sha256"].items() if _digest(place / name) != digest]
        claimed = 4 * sum(math.prod(shape) for shape in shapes(cfg).values())
        if claimed > sum((place / name).stat().st_size for name in about["sha256"]):
            raise ValueError(f"{claimed:,} bytes of weights, more than the files hold")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(
            expected="a folder that `siglip-ref probe export` wrote",
            got=f"{place}: {error}",
            cause="",
            repair=f"siglip-ref probe export {place} --model B/16-256",
        ) from error
    if changed:
        raise UsageError(
            expected="the weights and inputs of the probe as they were exported",
            got=f"other bytes in {', '.join(changed[:4])}",
            cause="they were converted in place, or exchanged",
            repair="export the probe again, and let the converter write elsewhere",
        )
    return Exported(cfg, model_probe(cfg, batch, about["arithmetic"]), about["arithmetic"])


def _write(place: Path, name: str, probe: Probe, cfg: Config, layout: Format, dtype: Dtype) -> list[str]:
    """All files; name: of the folder as users will type it."""
    save_checkpoint(place / WEIGHTS[layout], probe.params, cfg, layout)
    inputs = {
        "images": probe.images,
        "pixel_values": np.ascontiguousarray(probe.images.transpose(0, 3, 1, 2)),
        "tokens": probe.tokens.astype(np.int64),
    }
    (place / "inputs.safetensors").write_bytes(write_safetensors(inputs))
    np.savez(place / "inputs.npz", allow_pickle=False, **inputs)
    values = forward(probe.params, probe.images, probe.tokens, cfg, activations=True).activations
    files = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    about = {
        "format": FORMAT,
        "layout": layout,
        "arithmetic": dtype,
        "batch": len(probe.images),
        "config": asdict(cfg),
        "sha256": {file: _digest(place / file) for file in files},
        "answer": {name: list(value.shape) for name, value in values.items()},
    }
    (place / "probe.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    words = TEXT.format(name=cfg.name, layout=layout, weights=WEIGHTS[layout], arithmetic=dtype, folder=name)
    (place / "README.txt").write_text(words, encoding="utf-8")
    return list(values)


def _config(model: str | Path, layout: str) -> Config:
    """Sizes; the conventions are those of the layout's library, unless a checkpoint brings its own."""
    if str(model) in SIZES or not Path(model).exists():
        known = config(str(model))
        return replace(known, conventions=PRESETS.get(layout, known.conventions))
    checkpoint = load_checkpoint(model)
    require_whole(checkpoint)
    return checkpoint.config


def _require(layout: str, arithmetic: str, batch: int, cfg: Config) -> None:
    if layout not in LAYOUTS or arithmetic not in ARITHMETICS or not 2 <= batch <= MOST or cfg.naflex:
        raise UsageError(
            expected=f"layout one of {', '.join(LAYOUTS)}; arithmetic one of {', '.join(ARITHMETICS)}; a batch of 2 to "
            f"{MOST}; a model of fixed image size",
            got=f"layout {layout!r}, arithmetic {arithmetic!r}, batch {batch}, {cfg.name}",
            cause="a NaFlex model has inputs of another kind" if cfg.naflex else "",
            repair="siglip-ref probe export PROBE --model B/16-256 --layout huggingface",
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
