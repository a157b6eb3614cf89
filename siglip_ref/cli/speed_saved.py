"""The model that contestants of a benchmark load: random weights, saved once as users hold them, and as ONNX.

A process of its own makes it (`python -m siglip_ref.cli.speed_saved`), so that neither Torch nor the memory of an
export stays with whoever measures.
"""

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.params import init
from siglip_ref.architecture.sizes import Config, Tower, config

# big_vision's S (models/vit.py, decode_variant): no released SigLIP has it, studies do.
SMALL = Tower(384, 12, 1536, 6)


def sized(name: str) -> Config:
    """A model by its name; S/16-256 too, which is released nowhere."""
    if name == "S/16-256":
        return replace(config("B/16-256"), name=name, image=SMALL, text=SMALL)
    return config(name)


def inputs(cfg: Config, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images and tokens."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (batch, *cfg.image_size, 3)).astype(np.float32)
    return images, rng.integers(0, cfg.vocabulary, (batch, cfg.text_length))


def export(case: str, model: Path, to: Path, cfg: Config, batch: int) -> None:
    """One tower as ONNX, for a batch of this size, from the weights that all load."""
    import torch
    from transformers import SiglipModel

    found: Any = SiglipModel.from_pretrained(model)
    found.requires_grad_(False)
    images, tokens = inputs(cfg, batch)
    given = torch.tensor(images).permute(0, 3, 1, 2).contiguous() if case == "image" else torch.tensor(tokens)

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = found.vision_model if case == "image" else found.text_model

        def forward(self, given: Any) -> Any:
            return self.tower(given).pooler_output

    with contextlib.redirect_stdout(sys.stderr):
        torch.onnx.export(Pooled(), (given,), to, input_names=["given"], output_names=["pooled"], dynamo=False)


def main() -> None:
    """CASE SIZE BATCH FOLDER EXPORTED: what is there already is kept."""
    from siglip_ref.checkpoint.save import save_checkpoint

    case, size, batch, folder, exported = sys.argv[1:]
    cfg, model = sized(size), Path(folder, size.replace("/", "-"))
    if not model.is_dir():
        save_checkpoint(model, init(cfg, dtype=np.float32), cfg)
    onnx = Path(f"{model}-{case}-{batch}.onnx")
    if exported == "onnx" and not onnx.exists():
        export(case, model, onnx, cfg, int(batch))
    os._exit(0)  # exporters leave threads that need not be waited for


if __name__ == "__main__":
    main()
