"""Before a first training a child compiles what the forwards do not need, and ends with the training."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from siglip_ref.fast.machine import ready
from siglip_ref.training import first_step
from siglip_ref.training.data.inputs import read_inputs
from siglip_ref.training.parallel import Alone
from siglip_ref.training.settings import Settings

SETTINGS = Settings(data="digits", batch=8, steps=1)


def test_the_child_compiles_the_way_back_and_no_forward(tmp_path):
    code = "from siglip_ref.training import first_step; from siglip_ref.training.settings import Settings\n"
    code += f"first_step.compile_rest({SETTINGS})"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    kernels = {file.name.partition("-")[0] for file in tmp_path.rglob("*.nbc")}
    assert {"towers.d_some_images", "towers.d_some_texts", "pairs.sweep", "optim._all"} <= kernels
    assert not {"towers.some_images", "towers.some_texts", "towers.all_images"} & kernels


@pytest.fixture
def started(monkeypatch):
    """Every child that was started; each sleeps."""
    found, start = [], subprocess.Popen

    def popen(command, **settings):
        assert command[1:] == ["-m", "siglip_ref.training.first_step"]
        found.append(start([sys.executable, "-c", "import time; time.sleep(600)"], **settings))
        return found[-1]

    monkeypatch.setattr(first_step.subprocess, "Popen", popen)
    return found


def test_the_child_ends_with_the_training(started, monkeypatch):
    monkeypatch.setattr(ready, "is_ready", lambda job: False)
    monkeypatch.setattr(ready, "can_keep", lambda: True)
    before = time.monotonic()
    beside = first_step.compiled_beside(SETTINGS, read_inputs(SETTINGS, 1), Alone(), True)
    with pytest.raises(KeyboardInterrupt), beside:
        raise KeyboardInterrupt
    assert [child.returncode for child in started] == [-9] and time.monotonic() - before < 60


@pytest.mark.parametrize(
    "settings, compiled, done, kept, ranks",
    [
        (SETTINGS, True, True, True, 1),
        (SETTINGS, False, False, True, 1),
        (SETTINGS, True, False, False, 1),
        (SETTINGS, True, False, True, 2),
        (replace(SETTINGS, loss="labels"), True, False, True, 1),
    ],
)
def test_no_child_where_it_would_bring_nothing(settings, compiled, done, kept, ranks, started, monkeypatch):
    monkeypatch.setattr(ready, "is_ready", lambda job: done)
    monkeypatch.setattr(ready, "can_keep", lambda: kept)
    parallel = Alone()
    parallel.size = ranks
    with first_step.compiled_beside(settings, read_inputs(settings, 1), parallel, compiled) as wait:
        wait()
    assert started == []


def test_no_child_computes_a_step_of_a_large_model(started, monkeypatch):
    monkeypatch.setattr(ready, "is_ready", lambda job: False)
    monkeypatch.setattr(first_step, "FEW", 10)
    with first_step.compiled_beside(SETTINGS, read_inputs(SETTINGS, 1), Alone(), True) as wait:
        wait()
    assert started == []
