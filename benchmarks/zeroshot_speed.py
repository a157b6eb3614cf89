"""Zero-shot on a folder of 32 images with B/16-256: here, and in transformers on torch in eager mode, in the same run.

Random weights, saved by transformers and loaded by both; each side in processes of its own, in turns, so that peak
memory is its own and neither is helped by the other's warm caches. The files are read and resized inside the measured
time, the weights are not.

    python benchmarks/zeroshot_speed.py [--rounds 3] [--images 32] [--labels 10]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

SIZE, LENGTH, TEMPLATE = "B/16-256", 64, "This is a photo of {}."


def pieces(text: str) -> list[int]:
    """Ids for both sides: bytes; what they mean does not matter to random weights."""
    return [byte + 3 for byte in text.encode()]


def make(place: Path, images: int) -> None:
    """The model's directory and the folder of images."""
    import torch
    from PIL import Image
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(0)
    config = SiglipConfig(vision_config={"image_size": 256}, text_config={"vocab_size": 32_000})
    SiglipModel(config).save_pretrained(place / "model")
    SiglipImageProcessorPil(size={"height": 256, "width": 256}).save_pretrained(place / "model")
    (place / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(images):
        rough = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        rough.resize((640, 480), Image.Resampling.BICUBIC).save(place / "photos" / f"{number:03d}.jpg")


def ours(place: Path, labels: list[str], batch: int) -> dict[str, object]:
    """This package."""
    import siglip_ref as sr
    from siglip_ref.use.text_conventions import TextConvention
    from siglip_ref.use.tokenizer import Tokenizer

    start = time.perf_counter()
    model = sr.load(place / "model")
    tokenizer = Tokenizer("bytes", pieces, 32_000, LENGTH, TextConvention("bytes", "none"))
    model = replace(model, tokenizer=lambda: tokenizer)
    loaded = time.perf_counter()
    files = sorted((place / "photos").iterdir())
    model.zero_shot(files[:batch], labels, TEMPLATE, batch=batch)  # compiles, touches every page
    warm, cpu = time.perf_counter(), time.process_time()
    found = model.zero_shot(files, labels, TEMPLATE, batch=batch)
    done = time.perf_counter()
    return told(found.scores, loaded - start, done - warm, time.process_time() - cpu) | {
        "computed with": model.computes_with
    }


def theirs(place: Path, labels: list[str], batch: int) -> dict[str, object]:
    """transformers on torch, eager mode, no gradients."""
    import torch
    from PIL import Image
    from transformers import SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    start = time.perf_counter()
    model = SiglipModel.from_pretrained(place / "model").eval()
    processor = SiglipImageProcessorPil.from_pretrained(place / "model")
    loaded = time.perf_counter()
    files = sorted((place / "photos").iterdir())

    def unit(x: torch.Tensor) -> torch.Tensor:
        x = getattr(x, "pooler_output", x)
        return x / x.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def classify(files: list[Path]) -> np.ndarray:
        rows = [[*pieces(TEMPLATE.format(label)), 1] for label in labels]
        tokens = torch.tensor([row + [1] * (LENGTH - len(row)) for row in rows])
        text = unit(model.get_text_features(input_ids=tokens))
        image = []
        for first in range(0, len(files), batch):
            pictures = [Image.open(file).convert("RGB") for file in files[first : first + batch]]
            values = processor(images=pictures, return_tensors="pt")["pixel_values"]
            image.append(unit(model.get_image_features(pixel_values=values)))
        return torch.sigmoid(torch.cat(image) @ text.T * model.logit_scale.exp() + model.logit_bias).numpy()

    classify(files[:batch])
    warm, cpu = time.perf_counter(), time.process_time()
    scores = classify(files)
    done = time.perf_counter()
    return told(scores, loaded - start, done - warm, time.process_time() - cpu) | {
        "computed with": f"torch {torch.__version__}"
    }


def told(scores: np.ndarray, load: float, seconds: float, cpu: float) -> dict[str, object]:
    """What a process reports."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"scores": scores.tolist(), "load": load, "seconds": seconds, "cpu": cpu, "peak": peak}


def main() -> None:
    """Make, measure in turns, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    labels = [f"thing {number}" for number in range(given.labels)]
    if given.side:
        print(json.dumps({"ours": ours, "theirs": theirs}[given.side](given.place, labels, given.batch)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), given.images)
        results: dict[str, list[dict[str, object]]] = {"ours": [], "theirs": []}
        for _ in range(given.rounds):
            for side, found in results.items():
                words = [*sys.argv, "--side", side, "--place", folder]
                run = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
                found.append(json.loads(run.stdout.splitlines()[-1]))
    show(results, given.images)


def show(results: dict[str, list[dict[str, object]]], images: int) -> None:
    """A table, the ratio, and whether the probabilities agree."""
    rounds = len(results["ours"])
    print(f"{SIZE}, {images} images, {os.cpu_count()} cores; medians of {rounds} processes, spread in brackets")
    middle = {}
    for side, found in results.items():
        seconds = [float(one["seconds"]) for one in found]
        middle[side] = statistics.median(seconds)
        peak, load, cpu = (statistics.median(float(one[key]) for one in found) for key in ("peak", "load", "cpu"))
        spread = f"[{min(seconds):.2f} to {max(seconds):.2f}]"
        print(
            f"{side:>7}: {middle[side]:6.2f} s {spread}, {images / middle[side]:5.1f} images/s, CPU {cpu:.2f} s, "
            f"peak {peak:,.0f} MiB, loading {load:.2f} s; {found[0]['computed with']}"
        )
    off = np.abs(np.array(results["ours"][0]["scores"]) - np.array(results["theirs"][0]["scores"])).max()
    print(f"speed-up {middle['theirs'] / middle['ours']:.2f}; probabilities differ by at most {off:.1e}")


if __name__ == "__main__":
    main()
