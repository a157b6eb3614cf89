"""Does a heat map point at what is named? A model trained on close-ups, judged on held-out pictures of two shapes.

Draws captioned close-ups, each of a shape or a part of it, or of the wall behind it alone, trains a small model on
them, then draws pictures of two shapes that differ in colour and form and asks for one of the two: is the largest place
of the smoothed map inside the shape that was named? Chance is the share of a picture that the shape covers.

A model that was trained on whole pictures does not do it (`--near 0`): its pooling looks at the shape alone, so nothing
teaches what a patch of the wall is to be, and the largest place lies there.

    python benchmarks/search_heatmap.py [--pictures 8000] [--steps 3000] [--judged 400]
"""

import argparse
import json
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import siglip_ref as sr
from siglip_ref.architecture.sizes import SIZES, Config, Tower
from siglip_ref.training.command import run as train
from siglip_ref.training.data.shapes import COLOURS, corners
from siglip_ref.training.parallel import Alone
from siglip_ref.use.search.heatmap import as_png, peak, similarity_map

SIDE, FINER, FORMS = 48, 4, ("circle", "triangle", "square", "star", "cross")
FINE = Config(
    "fine", Tower(64, 1, 256, 4), Tower(64, 1, 256, 4), (SIDE, SIDE), 6, 259, 24, conventions=sr.preset("huggingface")
)
KINDS = list(product(COLOURS, FORMS))
RESULT = Path(__file__).parent / "results" / "search_heatmap.json"


def drawn(rng, kinds, wide=SIDE * FINER):
    """A picture of these kinds, none over another, and the mask of each."""
    image = Image.new("RGB", (wide, wide), (int(rng.integers(40, 110)),) * 3)
    masks, places = [], []
    for colour, form in kinds:
        radius = wide * rng.uniform(0.15, 0.21)
        for _ in range(200):
            x, y = rng.uniform(radius, wide - radius, 2)
            if all(np.hypot(x - a, y - b) > radius + c for a, b, c in places):
                break
        places.append((x, y, radius))
        mask = Image.new("L", (wide, wide), 0)
        for pen, fill in ((ImageDraw.Draw(image), COLOURS[colour]), (ImageDraw.Draw(mask), 255)):
            if form == "circle":
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
            else:
                pen.polygon([(x + radius * a, y + radius * b) for a, b in corners(form)], fill=fill)
        masks.append(np.asarray(mask) > 0)
    return image.reduce(FINER), masks


def close_up(rng, kinds):
    """A part of a picture of one shape, of which the shape covers a half or more, or nothing; and its caption."""
    kind = kinds[rng.integers(len(kinds))]
    image, (mask,) = drawn(rng, [kind], 4 * SIDE * FINER)
    mask = mask[::FINER, ::FINER]
    while True:
        side = int(len(mask) * rng.uniform(0.12, 0.4))
        x, y = rng.integers(0, len(mask) - side, 2)
        share = mask[y : y + side, x : x + side].mean()
        if share == 0 or share > 1 / 2:
            break
    part = image.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return part, "a {} {}".format(*kind) if share else f"a wall, shade {part.getpixel((0, 0))[0]}"


def photos(place, rng, kinds, count, near):
    """Pictures with captions beside them; near: the share of close-ups."""
    place.mkdir()
    for number in range(count):
        if rng.random() < near:
            image, caption = close_up(rng, kinds)
        else:
            kind = kinds[rng.integers(len(kinds))]
            image, caption = drawn(rng, [kind])[0], "a {} {}".format(*kind)
        image.save(place / f"{number:05d}.png")
        (place / f"{number:05d}.txt").write_text(caption + "\n")


def judged(model, rng, kinds, count):
    """How often the peak lies inside the named one of two; and by chance."""
    inside, chance = [], []
    while len(inside) < count:
        named, other = (kinds[k] for k in rng.permutation(len(kinds))[:2])
        if named[0] == other[0] or named[1] == other[1]:
            continue
        image, masks = drawn(rng, [named, other])
        found = similarity_map(model, image, f"a {named[0]} {named[1]}")
        x, y = peak(found)
        wide = len(masks[0])
        inside.append(bool(masks[0][int(y * wide), int(x * wide)]))
        chance.append(float(masks[0].mean()))
    return float(np.mean(inside)), float(np.mean(chance))


def main():
    """Draw, train, judge, write."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pictures", type=int, default=8000)
    options.add_argument("--steps", type=int, default=3000)
    options.add_argument("--judged", type=int, default=400)
    options.add_argument("--near", type=float, default=1.0, help="share of close-ups in the training")
    options.add_argument("--patch", type=int, default=6)
    options.add_argument("--lr", type=float, default=3e-3)
    options.add_argument("--keep", type=Path, help="keep the model and some pictures here")
    given = options.parse_args()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(KINDS))
    held_out, shown = [KINDS[k] for k in order[:6]], [KINDS[k] for k in order[6:]]
    SIZES["fine"] = replace(FINE, patch=given.patch)
    with tempfile.TemporaryDirectory() as folder:
        place = given.keep or Path(folder)
        photos(place / "photos", rng, shown, given.pictures, given.near)
        chosen = {
            "data": str(place / "photos"),
            "out": place / "run",
            "model": "fine",
            "steps": given.steps,
            "lr": given.lr,
        }
        train(chosen | {"batch": 128, "labels": False, "force": True, "save_every": 0, "judge_every": 0}, Alone())
        model = sr.load(place / "run" / "model")
        result = {"pictures": given.pictures, "steps": given.steps, "judged": given.judged}
        for name, kinds in (("combinations shown in training", shown), ("combinations never shown", held_out)):
            right, chance = judged(model, np.random.default_rng(1), kinds, given.judged)
            result[name] = {"inside": right, "chance": chance}
            print(f"{name}: {100 * right:.1f} % inside the named shape, by chance {100 * chance:.1f} %", flush=True)
        if given.keep:
            for number in range(3):
                image, _ = drawn(np.random.default_rng(number), [shown[number], shown[number + 7]])
                text = "a {} {}".format(*shown[number])
                found = similarity_map(model, image, text)
                (place / f"heat-{number}.png").write_bytes(as_png(image, found))
                print(text)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
