"""Kill a training at random instants, let it go on, and compare the end with an uninterrupted one, bit for bit.

killed.py FOLDER KILLS SEED RECIPE: prints one line of JSON. The trainings are forked from a process that has loaded
everything, so that nearly all instants lie inside the training.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from pytest import MonkeyPatch
from training_cases import mini, settings

from siglip_ref.training.data.sources import open_data
from siglip_ref.training.finish import finish
from siglip_ref.training.loop import Quiet, train
from siglip_ref.training.parallel import Alone

CHANGES = {
    "siglip": {"batch": 16, "micro": 9},
    "siglip2": {"batch": 7, "recipe": "siglip2", "data": "shapes", "resolution": 24},
}


def training(out, recipe):
    """Forked: the pid."""
    pid = os.fork()
    if pid:
        return pid
    chosen = settings(steps=30, dtype="float32", **CHANGES[recipe])
    run = train(chosen, out, Alone(), Quiet(), every=2, judge_every=10)
    finish(chosen, out, run, Alone(), Quiet())
    os._exit(0)


def result(out):
    """Every byte that a user is left with."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "curves.png")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def main(folder, kills, seed, recipe):
    mini(MonkeyPatch())
    open_data("digits")
    rng = random.Random(seed)
    start = time.monotonic()
    os.waitpid(training(folder / "whole", recipe), 0)
    length = time.monotonic() - start
    want, killed, different = result(folder / "whole"), 0, []
    for number in range(4 * kills):
        out = folder / f"killed-{number}"
        pid = training(out, recipe)
        time.sleep(rng.uniform(0, length))
        os.kill(pid, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            continue  # it was over before: another instant
        killed += 1
        os.waitpid(training(out, recipe), 0)
        if result(out) != want:
            different.append(number)
        if killed == kills:
            break
    print(json.dumps({"killed": killed, "different": different, "files": len(want)}))


main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
