"""Ctrl-C and SIGTERM at any instant: one sentence, exit code 130 or 143, never a crash, nothing half written."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.process import compiling, interrupt
from siglip_ref.training.saved import store

LOSS = """
import numpy as np
import siglip_ref as sr

def right(*given):
    return tuple(map(np.asarray, sr.sigmoid_loss(*given)))
"""
COMMANDS = {
    "train": [
        "train",
        "--data",
        "shapes",
        "--model",
        "small",
        "--batch",
        "32",
        "--save-every",
        "5",
        "--out",
        "{out}/run",
    ],
    "embed": ["embed", "--model", "{in}/model", "--images", "{in}/photos", "--out", "{out}/x.npy"],
    "index": ["index", "{in}/photos", "--model", "{in}/model", "--out", "{out}/photos"],
    "zeroshot": ["zeroshot", "--model", "{in}/model", "--image", "{in}/photos", "--labels", "cat,dog"],
    "check": ["check", "loss", "{in}/losses.py:right", "--save-case", "{out}/case"],
}
SENTENCE = re.compile(
    r"^siglip-ref: (interrupted \(Ctrl-C\)|ended by SIGTERM); .*the same command (begins anew|goes on).*$", re.M
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, enough pictures for seconds, a loss, and an empty cache of kernels."""
    folder = tmp_path_factory.mktemp("inputs")
    cfg = replace(sr.config("mu/16"), text_length=64, conventions=sr.preset("huggingface"))
    save_checkpoint(folder / "model", sr.init(cfg, dtype=np.float32), cfg)
    (folder / "photos").mkdir()
    for number in range(200):
        Image.new("RGB", (300, 300), (number, 0, 0)).save(folder / "photos" / f"{number}.png")
    (folder / "losses.py").write_text(LOSS)
    return folder


class Ended:
    """A command that was sent a signal: after some seconds, or some seconds after it said that it compiles."""

    def __init__(self, name, place, out, after, number=signal.SIGINT, compiling_first=False):
        words = [word.format(**{"in": place, "out": out}) for word in COMMANDS[name]]
        cache = tempfile.mkdtemp(prefix="kernels-")
        env = os.environ | {"NUMBA_CACHE_DIR": cache} if compiling_first else os.environ
        said = out / "stderr"
        with said.open("w") as err:
            command = [sys.executable, "-m", "siglip_ref", *words]
            process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=err)
            deadline = time.monotonic() + 120
            while compiling_first and process.poll() is None and time.monotonic() < deadline:
                if "compiling kernels" in said.read_text():
                    break
                time.sleep(0.02)
            time.sleep(after)
            process.send_signal(number)
            sent = time.monotonic()
            try:
                self.code = process.wait(60)
            finally:
                process.kill()
            self.seconds, self.err = time.monotonic() - sent, said.read_text()
        shutil.rmtree(cache, ignore_errors=True)

    def __repr__(self):
        return f"exit code {self.code} after {self.seconds:.1f} s\n{self.err}"


def ends_well(ended, out, code=130):
    """Or it was over before the signal came."""
    if ended.code == 0:
        return
    assert ended.code == code and len(SENTENCE.findall(ended.err)) == 1, ended
    assert (
        "Traceback" not in ended.err and ended.err.count("interrupted (Ctrl-C)") + ended.err.count("ended by") == 1
    ), ended
    assert ended.seconds < 10, ended
    saved, broken = store.newest(out / "run" / "checkpoints")
    assert not broken and (saved is None) == ("checkpoint of step" not in ended.err), ended
    assert not list(out.rglob("*.part")) and not (out / "case").exists() and not list(out.glob("x.*")), ended


@pytest.mark.parametrize("name", COMMANDS)
def test_at_some_instant(name, place, tmp_path):
    ends_well(Ended(name, place, tmp_path, 1.5), tmp_path)


@pytest.mark.parametrize("name, after", [("train", 1.0), ("zeroshot", 2.5)])
def test_while_kernels_compile(name, after, place, tmp_path):
    ended = Ended(name, place, tmp_path, after, compiling_first=True)
    ends_well(ended, tmp_path)
    assert ended.code == 130, ended


def test_sigterm(place, tmp_path):
    ended = Ended("train", place, tmp_path, 0.5, signal.SIGTERM, compiling_first=True)
    assert ended.code == 143, ended
    ends_well(ended, tmp_path, 143)


@pytest.mark.nightly
def test_a_hundred_times(place, tmp_path):
    """At random instants; every fifth while kernels compile."""
    rng, interrupted = random.Random(16), 0
    for number in range(100):
        name, compiles = rng.choice(list(COMMANDS) if number % 5 else ["train", "embed", "zeroshot"]), number % 5 == 0
        out = tmp_path / str(number)
        out.mkdir()
        ended = Ended(name, place, out, rng.uniform(0.2, 20 if compiles else 6), compiling_first=compiles)
        print(number, name, "compiling" if compiles else "", ended, flush=True)
        ends_well(ended, out)
        interrupted += ended.code == 130
    assert interrupted >= 70


def test_no_exception_is_thrown_into_the_compiler(monkeypatch):
    guard = interrupt.Guard("x")
    monkeypatch.setattr(compiling, "_depth", 1)
    guard.handle(signal.SIGINT, None)
    monkeypatch.setattr(compiling, "_depth", 0)
    with pytest.raises(interrupt.Interrupted):
        guard.handle(signal.SIGINT, None)
    guard.handle(signal.SIGINT, None)  # a second one does not disturb who cleans up


STUBBORN = """
import os, signal, time
from siglip_ref.process import interrupt
interrupt.GRACE = 0.3
with interrupt.guarded("x"):
    with interrupt.temporary_folder() as folder:
        print(folder, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        try:
            time.sleep(60)
        finally:
            time.sleep(60)
"""


def test_a_clean_up_that_takes_for_ever_is_cut_short():
    run = subprocess.run([sys.executable, "-c", STUBBORN], capture_output=True, text=True, timeout=30)
    assert run.returncode == 130 and SENTENCE.pattern and "x: interrupted (Ctrl-C)" in run.stderr, run
    assert not Path(run.stdout.strip()).exists()


def test_afterwards_all_is_as_it_was():
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    with interrupt.guarded("x"), interrupt.guarded("y"):
        assert [signal.getsignal(number) for number in interrupt.SIGNALS] != before
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
