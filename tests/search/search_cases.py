"""A small model and photos of many kinds, and commands run in this process."""

import sys
from dataclasses import replace

import numpy as np
from PIL import Image

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.cli.main import main
from siglip_ref.use.companions import write_image_settings
from siglip_ref.use.preprocess import PREPROCESS

CFG = replace(sr.config("mu/16"), text_length=64, conventions=sr.preset("huggingface"))


def make_model(place, seed=0):
    """A directory as transformers has it; its tokeniser is bytes."""
    save_checkpoint(place, sr.init(CFG, seed=seed, dtype=np.float32), CFG)
    write_image_settings(place, PREPROCESS["huggingface"], CFG)
    return place


def make_photos(place, count=23, seed=0):
    """Photos in nested folders, two files that are none, and one text."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        file = (
            place
            / f"day {number % 3}"
            / ("deep" if number % 2 else ".")
            / f"{number:03d}.{'jpg' if number % 2 else 'png'}"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(file)
    (place / "broken.jpg").write_bytes(b"nothing that anybody reads")
    (place / "day 1" / "cut.png").write_bytes((place / "day 0" / "000.png").read_bytes()[:300])
    (place / "notes.txt").write_text("a text")
    return place


def run(capfd, *words):
    """The command's exit code, output and errors."""
    sys.argv = ["siglip-ref", *map(str, words)]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    printed = capfd.readouterr()
    assert not any("Traceback" in line for line in map(str, printed.err.splitlines()))
    return code, printed.out, printed.err


def content(place):
    """Every byte of a folder."""
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}
