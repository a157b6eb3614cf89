"""What the first check of a process costs: CPU seconds beyond its imports, each case in fresh processes.

    python benchmarks/first_check.py [--repeats 5] [--case "torch float32"]

A test suite starts a process, and so does the command line: what counts is the first check, not the second. The median
of the repeats goes to results/first_check.json, from which tools/performance_table.py makes the table of the page
docs/checking-a-loss.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from siglip_ref.cli.speed import machine

RESULT = Path(__file__).parent / "results" / "first_check.json"

_LOSSES = {
    "torch": """
import torch
import siglip_ref as sr
import siglip_ref.check.loss.check, siglip_ref.check.call.in_torch

def loss(image, text, log_scale, bias):
    logits = log_scale.exp() * image @ text.T + bias
    labels = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(image)
""",
    "jax": """
import jax, jax.numpy as jnp
import siglip_ref as sr
import siglip_ref.check.loss.check, siglip_ref.check.call.in_jax

def loss(image, text, log_scale, bias):
    logits = jnp.exp(log_scale) * image @ text.T + bias
    return -jax.nn.log_sigmoid((2 * jnp.eye(len(image)) - 1) * logits).sum() / len(image)
""",
    "numpy": """
import siglip_ref as sr
import siglip_ref.check.loss.check, siglip_ref.check.call.in_numpy

loss = sr.sigmoid_loss
""",
}
_MODEL = """
import torch
import siglip_ref as sr
from siglip_ref.check.model.adapters.find import load_target
import siglip_ref.check.model.check

model = load_target("hf:tiny")
"""
DTYPES = ("float64", "float32", "bfloat16", "float16")
# name -> what is done first, and what is timed
CASES = {
    **{f"torch {dtype}": (_LOSSES["torch"], f'sr.check_loss(loss, "torch", "{dtype}")') for dtype in DTYPES},
    "torch float32, dims=dict(batch=128, dim=64)": (
        _LOSSES["torch"],
        'sr.check_loss(loss, "torch", dims=dict(batch=128, dim=64))',
    ),
    "jax float32": (_LOSSES["jax"], 'sr.check_loss(loss, "jax")'),
    "numpy float64": (_LOSSES["numpy"], 'sr.check_loss(loss, "numpy", "float64")'),
    "check_model hf:tiny, float32": (_MODEL, "sr.check_model(model)"),
    "import torch, alone": ("", "import torch"),
}
_TIMED = """
import time
{imports}
start = time.process_time()
report = {call}
print(time.process_time() - start, report.verdict)
"""
_IMPORT = """
import time
start = time.process_time()
{call}
print(time.process_time() - start, "PASS")
"""


def seconds(name: str) -> float:
    """CPU seconds of one case in a process of its own, which has one thread."""
    imports, call = CASES[name]
    program = (_IMPORT if call.startswith("import") else _TIMED).format(imports=imports, call=call)
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | one_thread
    )
    spent, verdict = done.stdout.split()
    if verdict != "PASS":
        raise RuntimeError(f"{name}: {verdict}, but the loss is right\n{done.stderr}")
    return float(spent)


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--case", action="append", choices=CASES)
    chosen = options.parse_args()
    known = json.loads(RESULT.read_text())["seconds"] if RESULT.exists() else {}
    for name in chosen.case or CASES:
        known[name] = statistics.median(seconds(name) for _ in range(chosen.repeats))
        print(f"{name:<46}{known[name]:7.2f} s of CPU", flush=True)
    ordered = {name: round(known[name], 3) for name in CASES if name in known}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine(1), "seconds": ordered}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
