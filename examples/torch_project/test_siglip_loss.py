"""What a Torch project adds to its tests: two lines a loss. Copy this file; run it with pytest."""

import pytest
import torch.nn.functional as F
from siglip_loss import SigLipLoss, chunked_loss

import siglip_ref as sr


def test_the_module() -> None:
    report = sr.check_loss(SigLipLoss(), framework="torch")
    report.raise_if_failed()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_chunked_loss_in_every_dtype(dtype: str) -> None:
    sr.check_loss(chunked_loss, dtype=dtype).raise_if_failed()


def test_under_autocast() -> None:
    sr.check_loss(chunked_loss, dtype="bfloat16", precision="autocast").raise_if_failed()


def test_a_lambda_with_its_convention_written_down() -> None:
    sr.check_loss(lambda x, y, s, b: SigLipLoss()(x, y, s, b), framework="torch", scale="linear").raise_if_failed()


def test_a_local_function_that_normalises() -> None:
    def from_raw(image_features, text_features, log_scale, bias):
        return chunked_loss(F.normalize(image_features), F.normalize(text_features), log_scale, bias)

    sr.check_loss(from_raw, embeddings="raw").raise_if_failed()


def test_a_mistake_is_caught() -> None:
    """Texts detached, as after an all_gather without gradient: the value is right, a gradient is missing."""
    report = sr.check_loss(lambda x, y, s, b: chunked_loss(x, y.detach(), s, b), framework="torch")
    assert report.verdict == "FAIL"
