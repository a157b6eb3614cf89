"""The probe is exact in every dtype, never zero, the same on every machine, and exercises every row."""

import hashlib

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.model.probe import BITS, PAD, SHORT, odd_integers, probe_images, probe_params, probe_tokens

CONFIG = sr.config("tiny")


def exact_in_bfloat16(x):
    """The low half of every float32 is empty."""
    assert x.dtype == np.float32
    return not np.any(np.ascontiguousarray(x).view(np.uint32) & 0xFFFF)


def tensors(dtype):
    return probe_params(CONFIG, 4, dtype) | {"images": probe_images(CONFIG, 4, BITS[dtype])}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_for_16_bits_every_number_is_exact_in_both_and_never_zero(dtype):
    for name, value in tensors(dtype).items():
        assert exact_in_bfloat16(value), name
        assert np.array_equal(value.astype(np.float16), value), name
        assert np.all(value != 0), name


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_for_float32_and_float64_the_mantissas_are_full(dtype):
    """Rounded to the next coarser format that frameworks use, nearly every number moves."""
    finer = np.dtype(dtype)
    for name, value in tensors(dtype).items():
        assert value.dtype == finer, name
        assert np.all(value != 0), name
        shortened = value.astype(np.float32) if dtype == "float64" else tf32(value)
        assert np.mean(shortened != value) > 0.95, name


def tf32(x):
    """11 bits of the significand, cut."""
    return (np.ascontiguousarray(x).view(np.uint32) & 0xFFFFE000).view(np.float32).reshape(x.shape)


def test_images_differ_from_row_to_row():
    images = probe_images(CONFIG, 8)
    assert np.abs(images).max() <= 1
    colours = images.mean((1, 2))
    assert min(np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]) > 0.2


def test_captions_are_full_and_short_and_in_range():
    tokens = probe_tokens(CONFIG, 4)
    lengths = [np.flatnonzero(row != PAD)[-1] + 1 for row in tokens]
    assert lengths[0] == CONFIG.text_length
    assert sorted(lengths, reverse=True) == lengths
    assert len(set(lengths)) == 4
    assert tokens.min() == 0
    assert tokens.max() == CONFIG.vocabulary - 1
    assert len(set(tokens[0])) < len(tokens[0])


def test_the_first_probe_is_the_same_on_every_machine():
    for dtype, bits, expected in (
        ("float64", None, "d6bd38cc29448913"),
        ("float32", None, "530af161875e9b08"),
        ("float32", SHORT, "40953bc199487a51"),
        ("bfloat16", None, "9953ef0f0af515e2"),
    ):
        params = probe_params(CONFIG, 4, dtype, bits)
        digest = hashlib.sha256(b"".join(x.tobytes() for x in params.values()))
        assert digest.hexdigest()[:16] == expected, dtype


@pytest.mark.parametrize("spread", [1e-3, 0.03, 0.5, 0.51, 1.0, 3.0])
def test_odd_integers_fill_their_spread(spread):
    drawn = odd_integers((4000,), spread, [0])
    assert 0.97 * spread < np.abs(drawn).max() < 1.03 * spread
    assert abs(drawn.std() * np.sqrt(3) / spread - 1) < 0.05


def test_negatives_matter_and_rows_differ():
    params = {name: value.astype(float) for name, value in probe_params(CONFIG, 4, "float32").items()}
    out = sr.forward(params, probe_images(CONFIG, 4).astype(float), probe_tokens(CONFIG, 4), CONFIG)
    pull = 1 / (1 + np.exp(-out.logits))
    negatives = pull[~np.eye(4, dtype=bool)].sum()
    assert 0.15 < negatives / (1 - np.diag(pull)).sum() < 0.8
    for embed in (out.image_embed, out.text_embed):
        cosines = (embed @ embed.T)[~np.eye(4, dtype=bool)]
        assert cosines.max() < 0.99


def test_layer_norm_eps_shows():
    """An eps of 1e-5 moves the result of every layer norm by a thousandth at least."""
    params = {name: value.astype(float) for name, value in probe_params(CONFIG, 4, "float32").items()}
    images, tokens = probe_images(CONFIG, 4).astype(float), probe_tokens(CONFIG, 4)
    other = sr.preset("big_vision", image_norm_eps=1e-5, text_norm_eps=1e-5)
    ours = sr.forward(params, images, tokens, CONFIG, activations=True).activations
    theirs = sr.forward(params, images, tokens, CONFIG, other, activations=True).activations
    for name in ("image/block00/+attn", "image/norm", "image/pool", "text/block00/+attn", "text/norm"):
        assert np.abs(ours[name] - theirs[name]).max() / np.abs(ours[name]).max() > 1e-4, name
