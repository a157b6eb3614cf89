"""Zero-shot classification on a plain CPU, with a model made here: no download, no Torch.

The weights are random, so the scores mean nothing; a released model is used in the same way:

    model = sr.load("path/to/siglip-base-patch16-256")
    model.zero_shot("photos/", ["a cat", "a dog"])
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import siglip_ref as sr
import siglip_ref.ops
from siglip_ref.checkpoint.save import save_checkpoint


def main() -> None:
    """Make a model and four images, save them, classify, embed."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        # Texts become bytes in this small model, so that it needs no tokeniser file.
        cfg = replace(sr.config("mu/16"), conventions=sr.preset("huggingface"))
        save_checkpoint(place / "model", sr.init(cfg, seed=0, dtype=np.float32), cfg)
        rng = np.random.default_rng(0)
        (place / "photos").mkdir()
        for number in range(4):
            pixels = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "photos" / f"{number}.png")

        # Plain NumPy: for a few pictures it answers sooner than kernels compile. Leave `ops` out for many.
        model = sr.load(place / "model", ops=siglip_ref.ops)
        # The label alone: a text of this small model has room for 16 bytes only.
        found = model.zero_shot(place / "photos", ["cat", "dog", "bird"], template="{}")
        for number, name in enumerate(found.names):
            print(Path(name).name, ", ".join(f"{label} {score:.4g}" for label, score in found.sorted(number)))
        print("random weights: the scores mean nothing. Each stands for itself: they need not sum to 1.")
        print("computed with", model.computes_with)

        vectors = model.embed_images(place / "photos").embeddings
        print("embeddings", vectors.shape, "of length", np.linalg.norm(vectors, axis=1).round(6))


if __name__ == "__main__":
    main()
