"""Checks are clean beside others: threads, forks, processes, DDP, any default device; and memory stays flat."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from models import hugging_face
from torch.nn.functional import logsigmoid
from torch.nn.parallel import DistributedDataParallel

import siglip_ref as sr

SMALL = {"dtype": "float64", "dims": [(3, 5)]}
TRAINING = Path(__file__).parents[1] / "training"


def loss(image_embed, text_embed, log_scale, bias):
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    signs = 2 * torch.eye(len(image_embed), dtype=logits.dtype, device=logits.device) - 1
    return -logsigmoid(signs * logits).sum() / len(image_embed)


def test_in_threads_at_the_same_time():
    verdicts = []

    def check():
        verdicts.append(sr.check_loss(loss, **SMALL).verdict)

    threads = [threading.Thread(target=check) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert verdicts == ["PASS"] * 3


FORKED = """
import os, signal, sys, warnings
import torch
import siglip_ref as sr
sys.path.insert(0, sys.argv[1])
from test_checks_beside_others import loss
from models import hugging_face

warnings.simplefilter("ignore")  # Python says of every fork beside threads that it may hang: that is what is tried
rows = torch.randn(2048, 64).requires_grad_()
(rows @ rows.T).exp().sum().backward()  # Torch's threads are there, and wait
assert len(os.listdir("/proc/self/task")) > 1
child = os.fork()
if not child:
    signal.alarm(100)
    try:
        assert sr.check_loss(loss, dtype="float64").passed and sr.check_model(hugging_face()).passed
        os._exit(0 if torch.get_num_threads() == 2 else 3)
    finally:
        os._exit(2)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_in_a_forked_process():
    """Of one that has used Torch's threads, which a fork leaves behind."""
    command = [sys.executable, "-c", FORKED, str(Path(__file__).parent)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


WORKER = """
import torch
import siglip_ref as sr

def loss(image_embed, text_embed, log_scale, bias):
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    signs = 2 * torch.eye(len(image_embed), dtype=logits.dtype) - 1
    return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(image_embed)

print(sr.check_loss(loss, dtype="float64", dims=[(3, 5)]).verdict)
"""


def test_in_several_processes_without_a_terminal():
    """As the workers of pytest-xdist: pipes for input and output, several at once."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([sys.executable, "-c", WORKER], **pipes) for _ in range(2)]
    said = [worker.communicate(timeout=200) for worker in workers]
    assert [out.strip() for out, _ in said] == ["PASS"] * 2, said


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_under_any_default_device(device):
    before = torch.get_default_device()
    torch.set_default_device(device)
    try:
        assert sr.check_loss(
            loss, dtype="float64", dims=[(3, 5)]
        ).passed and torch.get_default_device() == torch.device(device)
    finally:
        torch.set_default_device(before)


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_under_ddp_trains_on_as_if_nobody_had_looked(group):
    """The next step of a wrapped model is the same, bit for bit, with a check before it and without."""
    ends = []
    for checked in (False, True):
        torch.manual_seed(0)
        model = hugging_face()
        wrapped = DistributedDataParallel(model)
        optimiser = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        cfg = model.config
        images = torch.randn(2, 3, cfg.vision_config.image_size, cfg.vision_config.image_size)
        ids = torch.randint(0, cfg.text_config.vocab_size, (2, cfg.text_config.max_position_embeddings))
        for step in range(2):
            if step and checked:
                assert sr.check_model(wrapped.module).passed
            optimiser.zero_grad()
            wrapped(pixel_values=images, input_ids=ids, return_loss=True).loss.backward()
            optimiser.step()
        ends.append([value.detach().numpy().copy() for value in model.parameters()])
    assert all(np.array_equal(one, other) for one, other in zip(*ends, strict=True))


def memory():
    """Of this process now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.nightly
def test_memory_is_flat_over_five_hundred_checks():
    for _ in range(50):
        sr.check_loss(loss)
    before = memory()
    for _ in range(450):
        sr.check_loss(loss)
    print(f"{before:.1f} MiB after 50 checks, {memory():.1f} after 500")
    assert memory() < before + 8


FLAT = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import training_cases
from pytest import MonkeyPatch
from siglip_ref.training.loop import Quiet, train
from siglip_ref.training.parallel import Alone
training_cases.mini(MonkeyPatch())
seen = []
class Watch(Quiet):
    def step(self, step, row):
        if step in (200, 2000):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.append(pages * resource.getpagesize() / 2**20)
train(training_cases.settings(steps=2000, batch=16), Path(sys.argv[2]), Alone(), Watch(), every=100, judge_every=500)
print(*seen)
"""


@pytest.mark.nightly
def test_memory_is_flat_over_two_thousand_training_steps(tmp_path):
    command = [sys.executable, "-c", FLAT, str(TRAINING), str(tmp_path)]
    first, last = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    print(f"{first:.1f} MiB at step 200, {last:.1f} at step 2,000")
    assert last < first + 4
