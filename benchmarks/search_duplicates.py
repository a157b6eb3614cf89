"""Planted duplicates among drawn pictures: saved again as JPEG, made smaller, a little lighter; precision and recall.

    python benchmarks/search_duplicates.py [--pictures 1000] [--planted 100] [--steps 600]

Every picture is a drawing of its own; a pair is right if one was made of the other. Through the command line alone.
"""

import argparse
import csv
import io
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from search_common import command, trained, write

LEVELS = (0.95, 0.98, 0.99, 0.995, 0.999)


def drawings(place, count, planted, rng):
    """Pictures of several random shapes each, and changed ones of some; the pairs of names."""
    from siglip_ref.training.data.shapes import ALL, draw

    place.mkdir()
    pairs = set()
    for number in range(count):
        tiles = [draw(*ALL[int(rng.integers(len(ALL)))], 2 * rng.random(8) - 1) for _ in range(4)]
        image = Image.fromarray(np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])).resize((160, 160))
        image.save(place / f"{number:05d}.png")
        if number < planted:
            again = place / f"{number:05d} again.png"
            if number % 3 == 0:
                image.save(again.with_suffix(".jpg"), quality=85)
            elif number % 3 == 1:
                image.resize((100, 100)).save(again)
            else:
                ImageEnhance.Brightness(image).enhance(1.04).save(again)
            pairs.add(f"{number:05d}")
    return pairs


def main():
    """Draw, train, index, ask at several levels."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pictures", type=int, default=1000)
    options.add_argument("--planted", type=int, default=100)
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--model", type=Path, help="a model that is there, instead of one that is trained now")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pairs = drawings(place / "photos", given.pictures, given.planted, np.random.default_rng(0))
        model = given.model or trained(place / "run", given.steps)
        command(["index", str(place / "photos"), "--model", str(model)], stdout=subprocess.DEVNULL)
        found = {}
        for level in LEVELS:
            words = ["duplicates", str(place / "photos"), "--similarity", str(level), "--csv"]
            _, done = command(words, stdout=subprocess.PIPE)
            groups: dict[str, list[str]] = {}
            for row in csv.DictReader(io.StringIO(done.stdout)):
                groups.setdefault(row["group"], []).append(Path(row["path"]).stem[:5])
            joined = sum(len(names) * (len(names) - 1) // 2 for names in groups.values())
            right = sum(names.count(name) == 2 for names in groups.values() for name in set(names))
            found[str(level)] = {
                "precision": round(right / joined, 4) if joined else None,
                "recall": round(right / len(pairs), 4),
                "pairs": joined,
            }
    write("search_duplicates", {"pictures": given.pictures, "planted": len(pairs), "at a similarity of": found})


if __name__ == "__main__":
    main()
