"""A few pictures do not wait for the compiler; what compiles beside ends with the command, however that ends."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.cli import first_answer
from siglip_ref.fast.machine import ready
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.use.load import load

SLEEPER = """
import sys, time
from siglip_ref.cli import first_answer
from siglip_ref.use.load import load
with first_answer.quick(load(sys.argv[1]), 1):
    print("inside", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    cfg = replace(sr.config("mu/16"), vocabulary=259, conventions=sr.preset("huggingface"))
    save_checkpoint(folder / "model", sr.init(cfg, dtype=np.float32), cfg)
    Image.new("RGB", (40, 40), (200, 0, 0)).save(folder / "red.png")
    return folder


def children(mark):
    """The compiling children whose cache lies there."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as line, open(f"/proc/{pid}/environ", "rb") as environ:
                if b"siglip_ref.cli.first_answer" in line.read() and str(mark).encode() in environ.read():
                    found.append(int(pid))
        except OSError:
            continue
    return found


def wait_for(count, mark):
    """Until there are so many: the command line of a process can be read a moment after it has started or ended."""
    end = time.monotonic() + 60
    while len(children(mark)) != count and time.monotonic() < end:
        time.sleep(0.1)
    assert len(children(mark)) == count


def test_one_picture_is_answered_by_the_specification_and_nothing_stays(place, tmp_path):
    command = ["zeroshot", "--model", place / "model", "--image", place / "red.png", "--labels", "cat,dog"]
    run = subprocess.run(
        [sys.executable, "-m", "siglip_ref", *map(str, command), "--tokenizer", "bytes"],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0 and "computed with the specification, plain NumPy" in run.stdout, run
    assert run.stderr.count(first_answer.NOTE) == 1 and "compiling kernels for this machine" not in run.stderr, run
    assert children(tmp_path) == []


def test_a_command_that_is_killed_leaves_no_child(place, tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SLEEPER, str(place / "model")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "inside\n"
        wait_for(1, tmp_path)
        process.send_signal(signal.SIGKILL)
    wait_for(0, tmp_path)


@pytest.mark.parametrize(
    "done, images, texts, twins",
    [
        ({"image-float32", "text-float32"}, 1, 1, True),
        ({"image-float32"}, 1, 0, True),
        (set(), 11, 0, True),
        (set(), 1, 41, True),
        ({"image-float32"}, 1, 1, False),
        (set(), 10, 40, False),
    ],
)
def test_what_computes(done, images, texts, twins, place, monkeypatch):
    marked = set()
    monkeypatch.setattr(ready, "is_ready", done.__contains__)
    monkeypatch.setattr(ready, "mark_ready", marked.add)
    model = load(place / "model")
    with first_answer.quick(model, images, texts) as (chosen, said):
        assert chosen.ops is (model.ops if twins else SPECIFICATION)
    assert bool(said) != twins
    asked = {f"{side}-float32" for side, number in (("image", images), ("text", texts)) if number}
    assert marked == (asked - done if twins else set())


def test_what_was_computed_is_ready_until_a_kernel_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(ready.block.forward._cache, "_cache_path", str(tmp_path))
    assert not ready.is_ready("image-float32")
    first_answer.compile_for("image-float32")
    assert ready.is_ready("image-float32") and not ready.is_ready("text-float32")
    monkeypatch.setattr(ready, "package_stamp", lambda: ())
    assert not ready.is_ready("image-float32")
