"""1,000 JPEGs of 12 megapixels and a random B/16-256: images a second of an index, beside the forward pass alone.

    python benchmarks/search_photos.py [--pictures 1000] [--threads 2]

The forward pass is timed on the same batches, in this process, before and after the index. Run it on a quiet machine.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from search_common import model, write

from siglip_ref.process.memory import keep_freed_memory
from siglip_ref.use.load import load
from siglip_ref.use.search.build import build

BATCH = 8


def jpegs(place, count):
    """Pictures of 4,000 x 3,000 with edges and grain, about 3 MB each; eight different ones, many times."""
    place.mkdir()
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(min(8, count)):
        rough = Image.fromarray(rng.integers(0, 256, (45, 60, 3), dtype=np.uint8)).resize(
            (4000, 3000), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 9, (3000, 4000, 1))
        Image.fromarray((np.asarray(rough) + grain).clip(0, 255).astype(np.uint8)).save(place / "one.jpg", quality=88)
        contents.append((place / "one.jpg").read_bytes())
    (place / "one.jpg").unlink()
    for number in range(count):
        (place / f"{number:05d}.jpg").write_bytes(contents[number % len(contents)])
    return statistics.mean(map(len, contents))


def forward(loaded, rounds=12):
    """Images a second of the forward pass alone."""
    images = list(np.random.default_rng(0).uniform(-1, 1, (BATCH, *loaded.config.image_size, 3)).astype(np.float32))
    loaded.embed_prepared(images, BATCH)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        loaded.embed_prepared(images, BATCH)
        seconds.append(time.perf_counter() - start)
    return BATCH / statistics.median(seconds)


def main():
    """Make, time the pass, the index, the pass again."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pictures", type=int, default=1000)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--size", default="B/16-256")
    given = options.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        name = model(place / "model", given.size)
        size = jpegs(place / "photos", given.pictures)
        loaded = load(name)
        before, ends = forward(loaded), []
        build(
            place / "photos",
            place / "index",
            str(name),
            batch=BATCH,
            threads=given.threads,
            progress=lambda done, total: ends.append((time.perf_counter(), done)),
        )
        after = forward(loaded)
    (begin, first), (end, last) = ends[0], ends[-1]
    rate, alone = (last - first) / (end - begin), (before + after) / 2
    write(
        "search_photos",
        {
            "pictures": given.pictures,
            "size": given.size,
            "MB of each": round(size / 1e6, 2),
            "forward alone, images/s": [round(before, 2), round(after, 2)],
            "index, images/s": round(rate, 2),
            "ratio": round(rate / alone, 3),
        },
    )


if __name__ == "__main__":
    main()
