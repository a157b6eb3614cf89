"""A Torch project that checks its own loss. Copy the functions whose names begin with test_ into your tests.

pytest check_torch_loss.py        as a test
python check_torch_loss.py        prints the report
"""

import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it

import siglip_ref as sr


def siglip_loss(image_embed, text_embed, log_scale, bias):
    """The loss of the project: unit rows in, a number out."""
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(image_embed)


def test_siglip_loss():
    sr.check_loss(siglip_loss).raise_if_failed()


def test_in_the_dtypes_it_is_trained_in():
    sr.check_loss(siglip_loss, dtype="bfloat16").raise_if_failed()
    sr.check_loss(siglip_loss, dtype="bfloat16", precision="autocast").raise_if_failed()


def test_a_loss_with_other_conventions():
    """Any callable with four arguments will do: a lambda, a local function, a method, a module."""

    def loss_of_features(image_features, text_features, scale, bias):  # normalises, and takes the scale itself
        image_embed, text_embed = (F.normalize(rows, dim=-1) for rows in (image_features, text_features))
        return siglip_loss(image_embed, text_embed, scale.log(), bias)

    sr.check_loss(loss_of_features, scale="linear", embeddings="raw").raise_if_failed()
    sr.check_loss(lambda *inputs: 0.5 * loss_of_features(*inputs) * 2).raise_if_failed()  # conventions found by trying


if __name__ == "__main__":
    report = sr.check_loss(siglip_loss)
    print(report)
    report.raise_if_failed()
