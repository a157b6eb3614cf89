"""Does a heat map point at what is named? A model trained on close-ups, judged on held-out pictures of two shapes.

Draws close-ups, each captioned by what covers most of it, a shape or the wall behind it, trains a small model on them,
then draws pictures of two shapes that differ in colour and form and asks for one of the two: is the largest place of
the smoothed map inside the shape that was named? Chance is the share of a picture that the shape covers.

A model that was trained on whole pictures does not do it (`--near 0`): its pooling looks at the shape alone, so nothing
teaches what a patch of the wall is to be, and the largest place lies there. Close-ups of walls without any shape, or a
few of shapes among many of walls, do it less well: walls beside a shape, or colours, are then not learnt.

    python benchmarks/search_heatmap.py [--pictures 4000] [--steps 1500] [--judged 400] [--seeds 3]
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
WALLS, ALONE, TWO = 0.45, 0.3, 0.5  # close-ups mostly of wall; of those, with nothing else; of others, with two shapes
SCALE, BIAS = 20.0, -10.0  # where the training begins: from -10 to 10, so that colours that are alike are pushed apart
KINDS = list(product(COLOURS, FORMS))
RESULT = Path(__file__).parent / "results" / "search_heatmap.json"


def paint(image, kind, x, y, radius, fill):
    """A shape on the image."""
    pen = ImageDraw.Draw(image)
    if kind[1] == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        pen.polygon([(x + radius * a, y + radius * b) for a, b in corners(kind[1])], fill=fill)


def painted(kind, x, y, radius, wide):
    """Where a shape covers a picture."""
    mask = Image.new("L", (wide, wide), 0)
    paint(mask, kind, x, y, radius, 255)
    return np.asarray(mask) > 0


def drawn(rng, kinds, wide=SIDE * FINER):
    """A picture of these kinds, none over another, and the mask of each."""
    image = Image.new("RGB", (wide, wide), (int(rng.integers(40, 110)),) * 3)
    masks, places = [], []
    for kind in kinds:
        radius = wide * rng.uniform(0.15, 0.21)
        for _ in range(200):
            x, y = rng.uniform(radius, wide - radius, 2)
            if all(np.hypot(x - a, y - b) > radius + c for a, b, c in places):
                break
        places.append((x, y, radius))
        paint(image, kind, x, y, radius, COLOURS[kind[0]])
        masks.append(painted(kind, x, y, radius, wide))
    return image.reduce(FINER), masks


def close_up(rng, kinds, wide=SIDE * FINER):
    """A part of a picture of a shape or two, and what covers most of it: a shape, the wall beside it, or wall alone.

    Walls beside shapes are what the judged pictures are full of; there, a pooling that sees the shape alone is wrong.
    """
    kind = kinds[rng.integers(len(kinds))]
    wall, alone, grey = rng.random() < WALLS, rng.random() < ALONE, int(rng.integers(40, 110))
    image = Image.new("RGB", (wide, wide), (grey,) * 3)
    caption = f"a wall, shade {grey // 10}" if wall else "a {} {}".format(*kind)
    if wall and alone:
        return image.reduce(FINER), caption
    while True:
        zoom = rng.uniform(0.12, 1.0 if wall else 0.4)  # the part's share of the picture's side
        radius = wide * rng.uniform(0.15, 0.21) / zoom
        x, y = wide / 2 + rng.uniform(-1, 1, 2) * (radius + wide * wall)
        share = painted(kind, x, y, radius, wide).mean()
        if 0 < share < 0.4 if wall else share > 0.5:
            break
    paint(image, kind, x, y, radius, COLOURS[kind[0]])
    if rng.random() < TWO:
        others = [other for other in kinds if other[0] != kind[0]]
        other, angle = others[rng.integers(len(others))], rng.uniform(0, 2 * np.pi)
        second = wide * rng.uniform(0.15, 0.21) / zoom
        apart = (radius + second) * rng.uniform(1, 1.3)
        place = x + apart * np.cos(angle), y + apart * np.sin(angle), second
        if painted(other, *place, wide).mean() < 0.3:  # a little of it: the caption is of what covers most
            paint(image, other, *place, COLOURS[other[0]])
    return image.reduce(FINER), caption


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


def trained(place, shown, given, seed):
    """The model of one seed: of its pictures, its beginning and its batches."""
    place.mkdir(parents=True)
    photos(place / "photos", np.random.default_rng(seed), shown, given.pictures, given.near)
    chosen = {
        "data": str(place / "photos"),
        "out": place / "run",
        "model": "fine",
        "steps": given.steps,
        "batch": given.batch,
        "lr": given.lr,
        "log_scale": float(np.log(SCALE)),
        "bias": BIAS,
        "seed": seed,
    }
    train(chosen | {"labels": False, "force": True, "save_every": 0, "judge_every": 0}, Alone())
    return sr.load(place / "run" / "model")


def look(place, model, shown):
    """Three heat maps, to be looked at."""
    for number in range(3):
        image, _ = drawn(np.random.default_rng(number), [shown[number], shown[number + 7]])
        text = "a {} {}".format(*shown[number])
        (place / f"heat-{number}.png").write_bytes(as_png(image, similarity_map(model, image, text)))
        print(text)


def main():
    """Draw, train, judge, write."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pictures", type=int, default=4000)
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--judged", type=int, default=400)
    options.add_argument("--seeds", type=int, default=3, help="trainings, each with pictures of its own")
    options.add_argument("--near", type=float, default=1.0, help="share of close-ups in the training")
    options.add_argument("--patch", type=int, default=6)
    options.add_argument("--lr", type=float, default=2e-3)
    options.add_argument("--keep", type=Path, help="keep the models and some pictures here")
    given = options.parse_args()
    order = np.random.default_rng(0).permutation(len(KINDS))
    groups = {
        "combinations shown in training": [KINDS[k] for k in order[6:]],
        "combinations never shown": [KINDS[k] for k in order[:6]],
    }
    shown = groups["combinations shown in training"]
    SIZES["fine"] = replace(FINE, patch=given.patch)
    result = {name: getattr(given, name) for name in ("pictures", "steps", "batch", "judged", "seeds")}
    result |= {name: {"inside": []} for name in groups}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            place = (given.keep or Path(folder)) / str(seed)
            model = trained(place, shown, given, seed)
            for name, kinds in groups.items():
                right, chance = judged(model, np.random.default_rng(1), kinds, given.judged)
                result[name]["inside"].append(right)
                result[name]["chance"] = chance
                percent = f"{100 * right:.1f} % inside the named shape, by chance {100 * chance:.1f} %"
                print(f"seed {seed}, {name}: {percent}", flush=True)
            if given.keep:
                look(place, model, shown)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
