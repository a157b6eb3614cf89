"""A JAX project that checks its own loss. Copy the functions whose names begin with test_ into your tests.

pytest check_jax_loss.py        as a test
python check_jax_loss.py        prints the report
"""

import jax
import jax.numpy as jnp

import siglip_ref as sr


def siglip_loss(image_embed, text_embed, log_scale, bias):
    """The loss of the project: unit rows in, a number out."""
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(image_embed)


def test_siglip_loss():
    sr.check_loss(siglip_loss).raise_if_failed()


def test_under_jit_and_in_bfloat16():
    sr.check_loss(jax.jit(siglip_loss), framework="jax", dtype="bfloat16").raise_if_failed()


def test_a_loss_with_other_conventions():
    """Any callable with four arguments will do: a lambda, a local function, a partial."""

    def loss_of_features(image_features, text_features, scale, bias):  # normalises, and takes the scale itself
        image, text = (rows / jnp.linalg.norm(rows, axis=-1, keepdims=True) for rows in (image_features, text_features))
        return siglip_loss(image, text, jnp.log(scale), bias)

    sr.check_loss(loss_of_features, scale="linear", embeddings="raw").raise_if_failed()
    sr.check_loss(lambda *inputs: siglip_loss(*inputs)).raise_if_failed()  # conventions found by trying


if __name__ == "__main__":
    report = sr.check_loss(siglip_loss)
    print(report)
    report.raise_if_failed()
