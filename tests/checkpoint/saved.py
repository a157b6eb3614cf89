"""A small model in a Hugging Face directory, and what people do to its file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint

CFG = replace(sr.config("tiny"), image_size=(20, 20), conventions=sr.preset("huggingface"))
PARAMS = sr.init(CFG, seed=1, dtype=np.float32)


def save(place: Path, cfg: Any = CFG) -> Path:
    """The whole directory."""
    return save_checkpoint(place, PARAMS if cfg == CFG else sr.init(cfg, seed=1, dtype=np.float32), cfg)


def tensors(place: Path) -> dict[str, np.ndarray]:
    """Of its file."""
    return load_file(place / "model.safetensors")


def write(place: Path, content: dict[str, np.ndarray]) -> Path:
    """In place of its file."""
    save_file({name: np.ascontiguousarray(value) for name, value in content.items()}, place / "model.safetensors")
    return place


def settings(place: Path, name: str, **content: Any) -> None:
    """A file of settings beside the weights."""
    (place / name).write_text(json.dumps(content), encoding="utf-8")


def same(params: dict[str, np.ndarray], side: str = "") -> bool:
    """Are these the model's parameters: all, or those of one tower?"""
    wanted = {name: value for name, value in PARAMS.items() if name.startswith(side)}
    return params.keys() == wanted.keys() and all(np.array_equal(params[name], wanted[name]) for name in wanted)
