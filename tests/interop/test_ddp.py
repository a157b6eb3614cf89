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


def stepped(kind, factor, clip=None, **how):
    """A parameter after three steps with gradients that are `factor` times the right ones."""
    import torch

    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    optimizer = getattr(torch.optim, kind)([parameter], lr=0.01, **how)
    for step in range(3):
        parameter.grad = factor * torch.cos(torch.arange(6, dtype=torch.float64) + step)
        if clip:
            torch.nn.utils.clip_grad_norm_([parameter], clip)
        optimizer.step()
    return parameter.detach()


# kind, arguments, whether a constant factor of all gradients changes the steps
OPTIMIZERS = (
    ("Adam", {}, False),
    ("AdamW", {"weight_decay": 0.1}, False),
    ("Adam", {"weight_decay": 0.1}, True),
    ("SGD", {}, True),
    ("SGD", {"clip": 1.0}, True),
)


@pytest.mark.parametrize("kind, how, changes", OPTIMIZERS)
@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_which_optimizers_hide_a_factor(kind, how, changes, factor):
    """What docs/ddp.md and docs/ring.md say of towers whose gradients are W times too small, and of a division by b."""
    if how.get("clip"):  # below the limit nothing is clipped, above it everything is
        assert stepped(kind, factor, **how).allclose(stepped(kind, 1.0, **how)) == (factor > 1)
        return
    assert stepped(kind, factor, **how).allclose(stepped(kind, 1.0, **how), rtol=0, atol=1e-8) != changes


SOLUTION = """
import sys

sys.path.insert(0, {examples!r})
import numpy as np
from ddp import Ranks

import siglip_ref as sr
from mpi.loss import ring_sigmoid_loss


def my_trip(image_embed, text_embed, log_scale, bias, rank, world_size):
    found = ring_sigmoid_loss(Ranks(), image_embed.numpy(), text_embed.numpy(), log_scale.numpy(), bias.numpy())
    return tuple(torch.from_numpy(np.array(part)) for part in found)


if __name__ == "__main__":
    print(sr.check_ranks(my_loss, world_size=4, reduce="none", value="global"))
"""


def test_the_exercise_in_torch_can_be_solved(tmp_path):
    """The program that the exercise gives, with the ring of this project filled in, passes the check that it names."""
    page = (ROOT / "docs" / "notebooks" / "exercise-ring.md").read_text(encoding="utf-8")
    given = re.search(r"```python\n(import torch\n.*?)```", page, re.DOTALL)[1]
    assert 'check_ranks(my_loss, world_size=4, reduce="none", value="global")' in given
    program = tmp_path / "solved.py"
    program.write_text(given + SOLUTION.format(examples=str(ROOT / "examples")), encoding="utf-8")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, str(program)], env=env, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and ran.stdout.startswith("PASS"), (ran.stdout, ran.stderr)
