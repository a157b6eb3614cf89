"""What the benchmarks of search share: results as JSON, a small trained-looking model, pictures by the thousand."""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.use.exported import write_settings
from siglip_ref.use.preprocess import PREPROCESS

RESULTS = Path(__file__).parent / "results"


def write(name, found):
    """results/NAME.json, with the machine."""
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
    content = {"machine": machine, "load before": round(os.getloadavg()[0], 1)} | found
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


def _cpu():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def model(place, size="mu/16", seed=0):
    """A saved model of a size, random weights, bytes for a vocabulary."""
    cfg = replace(sr.config(size), vocabulary=259, text_length=64, conventions=sr.preset("huggingface"), name="")
    save_checkpoint(place, sr.init(cfg, seed=seed, dtype=np.float32), cfg)
    write_settings(place, PREPROCESS["huggingface"], cfg)
    return place


def trained(place, steps=600):
    """A model trained on drawn shapes, through the command line."""
    command(["train", "--data", "shapes", "--steps", str(steps), "--out", str(place)])
    return place / "model"


def photos(place, count, side=64, broken=100, seed=0):
    """Drawn shapes in nested folders; every `broken`th file is cut short."""
    from siglip_ref.training.data.shapes import shapes

    part, rng = shapes().train, np.random.default_rng(seed)
    for number in range(count):
        file = place / f"year {number % 7}" / f"day {number % 31}" / f"{number:06d}.{'jpg' if number % 3 else 'png'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(part.picture(number % part.count, rng.random(8))).resize((side, side)).save(file)
        if broken and number % broken == 0:
            file.write_bytes(file.read_bytes()[:150])
    return place


def command(words, check=True, **more):
    """siglip-ref, in a process of its own: its seconds and the process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "siglip_ref", *words], text=True, check=check, **more)
    return time.perf_counter() - start, done
