"""Locked-image tuning of the text head with 2,000 photos and a B/16-256 (random weights): minutes, memory, what moved.

    python benchmarks/search_learn.py [--photos 2000] [--steps 1000]

Photos are JPEGs of 640 x 480. Run it on a quiet machine.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from search_common import command, model, write

from siglip_ref.use.load import load

HEAD = {"text/head/kernel", "text/head/bias", "log_scale", "bias"}


def main():
    """Make, learn, compare the weights."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--photos", type=int, default=2000)
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--size", default="B/16-256")
    given = options.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        name = model(place / "model", given.size)
        (place / "photos").mkdir()
        for number in range(given.photos):
            rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            rough.resize((640, 480), Image.Resampling.BICUBIC).save(place / "photos" / f"{number:05d}.jpg", quality=88)
            (place / "photos" / f"{number:05d}.txt").write_text(f"photo number {number} of a day in {number % 97}\n")
        words = ["train", "--data", str(place / "photos"), "--init", str(name), "--learn", "head"]
        begin = time.perf_counter()
        command([*words, "--steps", str(given.steps), "--out", str(place / "run")])
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        before, after = load(name).params, load(place / "run" / "model").params
        moved = sorted(name for name in after if not np.array_equal(after[name], before[name]))
    found = {"photos": given.photos, "steps": given.steps, "size": given.size, "minutes": round(seconds / 60, 1)}
    write("search_learn", found | {"peak MB": round(peak), "moved": moved, "the head alone": set(moved) <= HEAD})


if __name__ == "__main__":
    main()
