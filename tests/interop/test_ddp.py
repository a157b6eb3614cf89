"""examples/ddp.py: gradients after DDP, with the factor W and without, and what docs/ddp.md shows of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ddp.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rows():
    """Each row's name, and the multiples that it says."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ddp.py")], env=env, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    return dict(line.split(": ") for line in ran.stdout.strip().splitlines())


def multiples(row):
    return [float(number) for number in re.findall(r"-?\d+\.\d{4}", row)]


def test_times_w_is_right_and_times_one_is_w_times_too_small(rows):
    names = re.findall(r"[a-z_]+", rows["times 4"])
    assert names == ["log_scale", "bias", "image_tower", "text_tower"]
    assert multiples(rows["times 4"]) == [1, 1, 1, 1]
    assert multiples(rows["times 1"]) == [1, 1, 0.25, 0.25]


def test_accumulation_is_the_mean_of_micro_batches_and_not_the_large_batch(rows):
    assert multiples(rows["two micro-batches, against their mean"]) == [1, 1, 1, 1]
    assert all(abs(number - 1) > 0.05 for number in multiples(rows["two micro-batches, against the whole batch"]))


def test_the_page_shows_what_the_program_prints(rows):
    shown = re.search(r"<!-- ddp-output -->\n```text\n(.*?)```\n<!-- end -->", PAGE, re.DOTALL)[1]
    assert shown.strip() == "\n".join(f"{name}: {row}" for name, row in rows.items())
