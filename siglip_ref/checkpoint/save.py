"""Our parameters as files that transformers, open_clip or big_vision load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config
from siglip_ref.checkpoint.load import Format
from siglip_ref.checkpoint.tables import big_vision, huggingface, open_clip
from siglip_ref.checkpoint.tables.names import Table, Tensor, to_theirs
from siglip_ref.checkpoint.tables.wrapped import about
from siglip_ref.errors import UsageError, few


def save_checkpoint(
    path: str | Path, params: Mapping[str, Tensor], cfg: Config, format: Format = "huggingface", shard: int = 5 * 10**9
) -> Path:
    """Write a model.

    Parameters
    ----------
    path : a directory to make ("huggingface", "open_clip"), or the .npz to write ("big_vision")
    params, cfg : as `siglip_ref.checkpoint.load` gives them
    format : whose layout
    shard : bytes of a safetensors file of a Hugging Face directory; a larger model becomes several, with an index

    Returns
    -------
    the file that `siglip_ref.load` takes
    """
    missing = sorted(shapes(cfg).keys() - params.keys())
    if missing:
        raise UsageError(
            expected=f"every parameter of {cfg.name}",
            got=f"none called {few(missing)}",
            cause="one tower alone cannot be saved as a whole model",
            repair="add what is missing: sr.init(cfg) has it, untrained",
        )
    place = Path(path)
    if format == "big_vision":
        place = place.with_suffix(".npz")
        np.savez(place, allow_pickle=False, **to_their_tensors(params, big_vision.table(cfg, {}), cfg, format))
        return place
    place.mkdir(parents=True, exist_ok=True)
    if format == "open_clip":
        _write(place / "open_clip_model.safetensors", to_their_tensors(params, open_clip.table(cfg), cfg, format))
        return place
    settings = huggingface.write_config(cfg)
    tensors = to_their_tensors(params, huggingface.table(cfg), cfg, format)
    if not cfg.text_head:
        dtype = params["bias"].dtype
        tensors |= zip(huggingface.HEAD, (np.eye(cfg.embed, dtype=dtype), np.zeros(cfg.embed, dtype)), strict=True)
    (place / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    _write_shards(place, tensors, shard)
    return place


def to_their_tensors(params: Mapping[str, Tensor], table: Table, cfg: Config, format: Format) -> dict[str, Tensor]:
    """Every tensor of theirs, fused and turned as they want it."""
    by_theirs: dict[str, list[Any]] = {}
    for entry in table:
        by_theirs.setdefault(entry.theirs, []).append(entry)
    out, axes = {}, about(format)["axes"]
    for name, entries in by_theirs.items():
        parts = [to_theirs(params[e.ours], e, cfg.patch) for e in sorted(entries, key=lambda e: e.part)]
        whole = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
        whole = whole.reshape(entries[0].shape) if entries[0].shape else whole
        out[name] = _with_ones(whole, axes.get(name.removeprefix("params/"), 0))
    return out


def _with_ones(array: Tensor, axes: int) -> Tensor:
    """With axes of length 1 in front, to so many of them."""
    return array.reshape((1,) * (axes - array.ndim) + array.shape)


def _write_shards(place: Path, tensors: dict[str, Tensor], shard: int) -> None:
    groups: list[dict[str, Tensor]] = [{}]
    for name, array in tensors.items():
        if groups[-1] and sum(a.nbytes for a in groups[-1].values()) + array.nbytes > shard:
            groups.append({})
        groups[-1][name] = array
    if len(groups) == 1:
        _write(place / "model.safetensors", tensors)
        return
    files = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    for file, group in zip(files, groups, strict=True):
        _write(place / file, group)
    places = {name: file for file, group in zip(files, groups, strict=True) for name in group}
    index = {"metadata": {"total_size": sum(a.nbytes for a in tensors.values())}, "weight_map": places}
    (place / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, file, metadata={"format": "pt"})
