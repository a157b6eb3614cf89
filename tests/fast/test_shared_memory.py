"""Other threads of the process take and free memory while kernels run: no number changes.

One arena for all threads (the C library's `MALLOC_ARENA_MAX`): what a kernel gave back too early is another thread's at
once, and that writes NaN into it.
"""

import os
import subprocess
import sys

import pytest

BESIDE = """
import threading
from dataclasses import replace
import numpy as np
import siglip_ref as sr
from siglip_ref import fast
from siglip_ref.fast.linear import linear_backward, linear_forward

draw = np.random.default_rng(0).standard_normal
numbers = lambda *shape: draw(shape).astype(np.float32)
tiny = sr.config("tiny")
wide = replace(tiny, image=replace(tiny.image, width=128, depth=1, heads=2, mlp=256))
params = sr.init(wide, dtype=np.float32)
narrow = sr.init(tiny, dtype=np.float32)
x, kernel, bias = numbers(100, 768), numbers(768, 300), numbers(300)
images, ids = numbers(4, *tiny.image_size, 3), np.arange(4 * tiny.text_length).reshape(4, -1) % tiny.vocabulary
rows, columns = numbers(300, 40), numbers(300, 40)

def layer():
    out, cache = linear_forward(x, kernel, bias)
    return out, *linear_backward(out, cache)

def flat(found):
    return [found[0], *(found[1].values() if isinstance(found[1], dict) else found[1:])]

WORK = {
    "layer": layer,
    "wide": lambda: flat(sr.loss_and_grads(params, images, ids, wide, ops=fast)),
    "narrow": lambda: flat(sr.loss_and_grads(narrow, images, ids, tiny, ops=fast)),
    "loss": lambda: flat(sr.sigmoid_loss(rows, columns, 1.0, -2.0, ops=fast)),
    "reproducible": lambda: flat(sr.sigmoid_loss(rows, columns, 1.0, -2.0, ops=fast, deterministic=True)),
}
work = WORK[NAME]
wanted, running = [np.array(value) for value in work()], True

def other(seed):
    size = np.random.default_rng(seed).integers
    while running:
        arrays = [np.full(size(1_000, 120_000), np.nan, np.float32) for _ in range(4)]
        del arrays

others = [threading.Thread(target=other, args=(seed,)) for seed in range(2)]
for thread in others:
    thread.start()
try:
    wrong = sum(
        not all(np.array_equal(a, b) for a, b in zip(work(), wanted, strict=True)) for _ in range(60)
    )
finally:
    running = False
print(wrong)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of the GNU C library")
@pytest.mark.parametrize("name", ["layer", "wide", "narrow", "loss", "reproducible"])
def test_no_number_changes(name: str) -> None:
    code, one_arena = BESIDE.replace("NAME", repr(name)), os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=one_arena, capture_output=True, text=True)
    assert done.stdout == "0\n", done.stdout + done.stderr
