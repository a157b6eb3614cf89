"""What a JAX project adds to its tests: two lines a loss. Copy this file; run it with pytest."""

import jax.numpy as jnp
import pytest
from siglip_loss import siglip_loss

import siglip_ref as sr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss(dtype: str) -> None:
    sr.check_loss(siglip_loss, dtype=dtype).raise_if_failed()


def test_a_lambda() -> None:
    sr.check_loss(lambda x, y, log_scale, b: siglip_loss(x, y, log_scale, b), framework="jax").raise_if_failed()


def test_a_local_function_that_normalises() -> None:
    def from_raw(image_features, text_features, log_scale, bias):
        def unit(x):
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        return siglip_loss(unit(image_features), unit(text_features), log_scale, bias)

    sr.check_loss(from_raw, framework="jax", embeddings="raw").raise_if_failed()


def test_a_mistake_is_caught() -> None:
    """The mean over all pairs instead of the sum over texts: every number is too small by the batch size."""
    report = sr.check_loss(lambda x, y, s, b: siglip_loss(x, y, s, b) / len(x), framework="jax")
    assert report.verdict == "FAIL"
