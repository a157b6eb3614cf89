"""examples/ddp.py: gradients after DDP, with the factor W and without, and what docs/ddp.md shows of them."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import siglip_ref as sr
from siglip_ref.mistakes import find

pytest.importorskip("torch")
import ddp_repairs  # needs torch

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


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_by_how_much_steps_and_an_added_weight_decay_are_off(factor):
    """SGD's steps by the factor; the decay, relative to the gradient, by its inverse."""
    start = stepped("SGD", 0.0)
    assert (stepped("SGD", factor) - start).allclose(factor * (stepped("SGD", 1.0) - start))
    assert stepped("Adam", factor, weight_decay=0.1).allclose(
        stepped("Adam", 1.0, weight_decay=0.1 / factor), rtol=0, atol=1e-7
    )


GATHERED = find("gather-own-slot-one-over-w").repair
FACTORS = [find(name).repair for name in ("grad-times-w", "embed-grad-times-w")]
SCALARS = find("scalar-grads-one-over-w").repair
# The program, what is done to gradients, what the loss is; where it stands in the catalogue: each half of a repair.
REPAIRS = (
    ("gathered_with_gradient", "mean", "global", "gather with gradient", [GATHERED]),
    ("embeddings_times_w", "mean", "global", "gradients of the embeddings by W, but not those of scale", [GATHERED]),
    ("gathered_with_gradient", "mean", "global", "average over ranks the gradients of the global loss", FACTORS),
    ("own_rows_by_own_images", "mean", "local", "or of own rows / own images", FACTORS),
    ("own_rows_by_all_images", "sum", "local", "or sum those of own rows / all images", FACTORS),
    ("own_rows_by_all_images", "sum", "local", "own rows, divided by all images: sum over ranks", [SCALARS]),
    ("own_rows_by_own_images", "mean", "local", "divided by its own images, or the global loss: average", [SCALARS]),
)


@cache
def verdict(name, reduce, value):
    """With two and with three real processes."""
    return sr.check_ranks(getattr(ddp_repairs, name), world_size=2, reduce=reduce, value=value)


@pytest.mark.parametrize(("name", "reduce", "value", "words", "printed"), REPAIRS, ids=lambda one: str(one)[:40])
def test_a_printed_repair_that_is_followed_word_for_word_gives_pass(name, reduce, value, words, printed):
    assert all(words in repair for repair in printed), (words, printed)
    assert verdict(name, reduce, value).verdict == "PASS", verdict(name, reduce, value)


def test_each_part_of_these_repairs_is_followed():
    for repair in {GATHERED, *FACTORS, SCALARS}:
        followed = [words for *_, words, printed in REPAIRS if repair in printed]
        assert len(followed) == 1 + len(re.findall(r", or multiply|, or of|; or sum|; divided", repair)), repair


@pytest.mark.parametrize("name", ["loss_times_w", "own_rows_without_gradient"])
def test_what_was_once_printed_as_a_repair_is_none(name):
    """Times W on the loss also multiplies what is right, the gradients of log_scale and bias."""
    value = "local" if "rows" in name else "global"
    report = verdict(name, "mean", value)
    assert report.verdict == "FAIL"
    wrong = {row.name for row in report.rows if row.verdict == "FAIL"}
    assert wrong == ({"loss", "log_scale", "bias"} if name == "loss_times_w" else {"text_embed"})


def test_the_mistake_itself_is_named():
    assert [one.id for one in verdict("wrong", "mean", "global").findings] == ["gather-own-slot-one-over-w"]


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
