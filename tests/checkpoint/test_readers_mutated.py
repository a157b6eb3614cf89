"""Spoilt files of every kind: no error without a type, no allocation above the caps, nothing wrong taken for good."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
PROGRAM = Path(__file__).with_name("mutated.py")


def spoil(count, seed):
    """The program's summary."""
    words = [sys.executable, str(PROGRAM), str(count), str(seed)]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | threads, check=False)
    assert done.returncode == 0, done.stderr[-3000:]  # below 0: the process itself died
    return json.loads(done.stdout)


def require_sound(told, count):
    assert told["faults"] == [] and told["number of faults"] == 0
    assert sum(sum(kind.values()) for kind in told["counts"].values()) == count
    for name, kind in told["counts"].items():  # spoiling that no reader notices would prove nothing
        assert kind.get("refused", 0) >= 0.1 * sum(kind.values()), name


def test_two_thousand_spoilt_files():
    require_sound(spoil(2_000, 1), 2_000)


@pytest.mark.nightly
def test_a_hundred_thousand_spoilt_files():
    require_sound(spoil(100_000, 2), 100_000)
