"""Golden vectors answered by Torch: correct losses pass in every dtype, and a wrong one is named."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name

from siglip_ref.check.files.dump import judge
from siglip_ref.vectors.store import Vector, packaged

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSSES = [v for v in packaged().vectors.values() if v.task == "sigmoid_loss"]


def logsigmoid(x: torch.Tensor, y: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    labels = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -F.logsigmoid(labels * (x @ y.T * log_scale.exp() + bias)).sum() / len(x)


def cross_entropy(x: torch.Tensor, y: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    logits = (log_scale.exp() * x) @ y.T + bias
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(x), dtype=x.dtype), reduction="sum") / len(x)


def answer(vector: Vector, loss: object, dtype: str) -> dict[str, np.ndarray]:
    names = ("image_embed", "text_embed", "log_scale", "bias")
    inputs = [torch.tensor(vector.inputs[name], dtype=DTYPES[dtype], requires_grad=True) for name in names]
    value = loss(*inputs)  # type: ignore[operator]
    value.backward()
    got = {f"d_{name}": tensor.grad.double().numpy() for name, tensor in zip(names, inputs, strict=True)}
    return got | {"loss": value.detach().double().numpy()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", [logsigmoid, cross_entropy])
def test_correct_losses_pass(loss: object, dtype: str) -> None:
    for vector in LOSSES:
        if dtype in vector.exact_in:
            report = judge(vector, answer(vector, loss, dtype), dtype, vector.id)
            assert all(row.right or row.verdict == "out of range" for row in report.rows), report


def test_a_wrong_loss_is_named() -> None:
    def mean(*inputs: torch.Tensor) -> torch.Tensor:
        return logsigmoid(*inputs) / len(inputs[0])

    vector = packaged().find("loss/balanced-b6-d13")
    for dtype in ("float32", "bfloat16"):
        report = judge(vector, answer(vector, mean, dtype), dtype, vector.id)
        assert report.verdict == "FAIL"
        assert report.findings[0].id == "sum-vs-mean-vs-b2"
