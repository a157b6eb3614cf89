"""The first check of a process: no noise is measured, nothing heavy is imported on the way, nothing is emulated.

What it costs in seconds is measured by benchmarks/first_check.py; here its work is counted, which no other process and
no processor changes.
"""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
import siglip_ref as sr
from siglip_ref.arithmetic.rounded import Rounded

def loss(image, text, log_scale, bias):
    logits = log_scale.exp() * image @ text.T + bias
    labels = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(image)

operations, plain = [], Rounded.__array_ufunc__

def counted(self, *arguments, **options):
    operations.append(arguments[0])
    return plain(self, *arguments, **options)

Rounded.__array_ufunc__ = counted
report = sr.check_loss(loss, "torch", {arguments})
print(report.verdict, len(operations), "sympy" in sys.modules)
"""

KERNEL = "dims=dict(batch=128, dim=64)"  # a hundred thousand emulated operations, if its noise were measured
FIRST = [
    '"float32"',
    f'"float64", {KERNEL}',
    f'"bfloat16", {KERNEL}',
    '"bfloat16"',
    f'"float32", {KERNEL}',
    f'"float16", {KERNEL}',
]


@pytest.mark.parametrize("arguments", FIRST)
@pytest.mark.sampled(2)
def test_the_first_check_of_a_process_is_quick(arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(arguments=arguments)], capture_output=True, text=True)
    assert done.stderr == "", "nothing is measured, which would be announced"
    assert done.stdout.split() == ["PASS", "0", "False"]
