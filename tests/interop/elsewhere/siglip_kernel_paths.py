"""The losses of the package siglip-kernel, as installed: those in plain Torch, and Triton kernels in the interpreter.

Prints the verdict of each, and what its report says. Needs siglip-kernel and torch; no GPU.
"""

import json
import os
from functools import partial

os.environ["TRITON_INTERPRET"] = "1"

import torch

torch.cuda.get_device_capability = lambda *a: (9, 0)  # asked for at import

import siglip_kernel  # noqa: E402
from siglip_kernel import reference  # noqa: E402

import siglip_ref as sr  # noqa: E402

LOSSES = {
    "reference": reference.siglip_loss_reference,
    "bce": reference.siglip_loss_reference_bce,
    "in chunks": reference.siglip_loss_chunked_reference,
    "triton, fused": partial(siglip_kernel.fully_fused_siglip_loss, autotune=False),
    "triton, bf16 chunks": siglip_kernel.fused_chunked_bf16_siglip_loss,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for name, loss in LOSSES.items():
        report = sr.check_loss(loss, framework="torch")
        wrong = sorted({f"{row.name} at {row.probe}" for row in report.details if row.verdict == "FAIL"})
        found[name] = {"verdict": report.verdict, "wrong": wrong, "not checked": report.not_checked}
    print(json.dumps(found))
