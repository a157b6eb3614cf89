"""Checkpoints are whole or not there; what is broken is passed over; a training goes on bit for bit."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from training_cases import alone, mini, settings

from siglip_ref.errors import UsageError
from siglip_ref.training.loop import Quiet, train
from siglip_ref.training.parallel import Alone
from siglip_ref.training.saved import store
from siglip_ref.training.settings import TrainingStopped

TENSORS = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(2), "c": np.zeros((0, 3))}


class Said(Quiet):
    def __init__(self):
        self.text = ""

    def say(self, text):
        self.text += text + "\n"


def test_what_is_written_is_read(tmp_path):
    store.save(tmp_path, 7, TENSORS, {"seed": 1})
    saved, broken = store.newest(tmp_path)
    assert (saved.step, saved.about, broken) == (7, {"seed": 1}, [])
    assert all(np.array_equal(saved.tensors[name], value) for name, value in TENSORS.items())
    assert all(saved.tensors[name].shape == np.shape(value) for name, value in TENSORS.items())


def test_the_last_two_are_kept_and_rests_are_swept_away(tmp_path):
    (tmp_path / "step-00000001.safetensors.99.part").write_bytes(b"half")
    for step in (1, 2, 3):
        store.save(tmp_path, step, TENSORS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{n}.safetensors" for n in (2, 3)]


def test_every_flipped_or_missing_byte_is_noticed(tmp_path):
    store.save(tmp_path, 1, TENSORS, {"good": True})
    path = store.save(tmp_path, 2, TENSORS, {})
    content = path.read_bytes()
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert store.newest(tmp_path)[0].about == {"good": True}, place
        path.write_bytes(content[:place])
        assert store.newest(tmp_path)[0].about == {"good": True}, place
    path.write_bytes(content)
    assert store.newest(tmp_path)[0].step == 2


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(tmp_path, monkeypatch):
    store.save(tmp_path, 1, TENSORS, {})
    before = store.checkpoints(tmp_path)[0].read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingStopped, match=r"No space left.*last good checkpoint is step-00000001"):
        store.save(tmp_path, 2, TENSORS, {})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_interrupted_twice_it_ends_with_the_same_bits(tmp_path, monkeypatch):
    mini(monkeypatch)
    whole = alone(tmp_path / "whole", steps=12)
    for stop in (4, 9, 0):
        part = train(settings(steps=12), tmp_path / "parts", Alone(), Quiet(), every=2, stop_after=stop)
    assert all(part.params[name].tobytes() == whole.params[name].tobytes() for name in whole.params)
    assert np.array_equal(np.array(part.history), np.array(whole.history))


def test_a_broken_checkpoint_is_passed_over_and_said(tmp_path, monkeypatch):
    mini(monkeypatch)
    whole = alone(tmp_path, steps=6)
    newest = store.checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-9])
    said = Said()
    again = alone(tmp_path, said, steps=6)
    assert "passed over step-00000006" in said.text and "going on from step 5" in said.text
    assert all(np.array_equal(again.params[name], whole.params[name]) for name in whole.params)


def test_another_trainings_folder_is_refused(tmp_path, monkeypatch):
    mini(monkeypatch)
    alone(tmp_path, steps=2)
    with pytest.raises(UsageError) as caught:
        alone(tmp_path, steps=2, lr=1e-4)
    assert "lr 0.003, not 0.0001" in caught.value.got


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # the system's own refusal, as of a full disk
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import training_cases
from pytest import MonkeyPatch
from siglip_ref.cli.main import main
training_cases.mini(MonkeyPatch())
sys.argv[1:] = ["train", "--data", "digits", "--model", "mini", "--steps", "4", "--batch", "8", "--out", sys.argv[2]]
main()
"""


def test_the_command_names_step_and_cause(tmp_path):
    """The first checkpoint is small enough for the limit, its successors, with the optimiser's state, are not."""
    command = [sys.executable, "-c", LIMITED, os.path.dirname(__file__), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert run.returncode == 1, run
    assert "step:     1" in run.stderr and "cannot be written" in run.stderr and "Traceback" not in run.stderr
    assert not list((tmp_path / "checkpoints").iterdir())
