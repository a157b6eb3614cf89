"""Mistakes of a model, made in a transformers SiglipModel: those of the tests, and two that the tests leave out."""

import sys
from pathlib import Path

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "interop"))
from model_mistakes import joined_with
from model_mistakes_backward import MISTAKES, MixUntransposed, attention_by


class MixWithOtherDropout(MixUntransposed):
    """The mixing of values, gone back through with a mask that was drawn anew."""

    @staticmethod
    def backward(ctx, d):
        probability, value = ctx.saved_tensors
        return functional.dropout(d @ value.transpose(-1, -2), 0.1), probability.transpose(-1, -2) @ d


MODELS = MISTAKES | {
    "cached-rng-mismatch": attention_by(lambda scores, v: MixWithOtherDropout.apply(scores.softmax(-1), v)),
    "one-side-not-normalised": joined_with(
        lambda x: x, lambda y: y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    ),
}
