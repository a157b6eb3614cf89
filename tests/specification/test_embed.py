"""Embeddings without gradients are those of `sr.forward`, under every convention and for every kind of model."""

from dataclasses import replace

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref import fast, ops
from siglip_ref.check.model.probe import model_probe
from siglip_ref.use.inference import image_embeddings, text_embeddings

TINY = sr.config("tiny")
CHANGES = (
    {},
    {"text_mask": "causal"},
    *({"text_pooling": kind} for kind in ("first", "mean", "argmax")),
    {"text_gelu": "erf", "image_gelu": "quick"},
    {"text_norm_eps": 1e-5, "image_norm_eps": 1e-5},
    {"embed_norm": "clamp", "embed_norm_eps": 1e-12},
    {"text_mask": "causal", "text_pooling": "argmax"},
)


def inputs(cfg):
    probe = model_probe(cfg, 3, "float64")
    return {name: value.astype(float) for name, value in probe.params.items()}, probe.images.astype(float), probe.tokens


def require_the_same(cfg, operations, **how):
    params, images, tokens = inputs(cfg)
    out = sr.forward(params, images, tokens, cfg)
    for found, expected in (
        (image_embeddings(params, images, cfg, operations, **how), out.image_embed),
        (text_embeddings(params, tokens, cfg, operations, **how), out.text_embed),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_embeddings_are_those_of_the_model(changes, head):
    text = TINY.text if head else replace(TINY.text, width=TINY.embed)
    require_the_same(replace(TINY, text=text, text_head=head, conventions=sr.preset("big_vision", **changes)), ops)


@pytest.mark.parametrize("whole", [False, True])
def test_twins_embed_the_same(whole):
    require_the_same(replace(TINY, conventions=sr.preset("big_vision", text_mask="causal")), fast, whole=whole)


def test_a_causal_tower_is_another_one():
    """Else the test above shows nothing."""
    params, _, tokens = inputs(TINY)
    causal = replace(TINY, conventions=sr.preset("big_vision", text_mask="causal"))
    one, other = (text_embeddings(params, tokens, cfg, ops) for cfg in (TINY, causal))
    assert np.abs(one - other).max() > 0.1
