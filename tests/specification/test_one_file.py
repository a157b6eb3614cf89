"""examples/siglip.py, SigLIP in one file, computes what the package computes: loss and every gradient."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.architecture.params import shapes

FILE = Path(__file__).parents[2] / "examples" / "siglip.py"


@pytest.fixture(scope="module")
def one_file():
    return runpy.run_path(str(FILE))


def inputs(cfg, pairs):
    rng = np.random.default_rng(7)
    height, width = cfg.image_size
    return rng.uniform(-1, 1, (pairs, height, width, 3)), rng.integers(0, cfg.vocabulary, (pairs, cfg.text_length))


@pytest.mark.parametrize("pairs", [1, 5])
def test_it_is_the_package_in_one_file(one_file, pairs):
    """Weights without any zeros, so that every parameter takes part."""
    cfg = sr.config("tiny")
    rng = np.random.default_rng(3)
    params = {name: value + 0.3 * rng.normal(size=value.shape) for name, value in sr.init(cfg).items()}
    images, tokens = inputs(cfg, pairs)
    loss, d = one_file["loss_and_grads"](params, images, tokens, one_file["TINY"])
    expected, grads = sr.loss_and_grads(params, images, tokens, cfg)
    assert abs(loss - expected) <= 1e-14 * abs(expected)
    assert d.keys() == grads.keys()
    largest = max(np.abs(g).max() for g in grads.values())
    for name, gradient in grads.items():
        assert d[name].shape == gradient.shape, name
        # a key bias has gradient zero by structure: there only the rest of rounding is compared
        allowed = 1e-15 * largest if name.endswith("k/bias") else 1e-13 * np.abs(gradient).max()
        assert np.abs(d[name] - gradient).max() <= allowed, name


def test_it_has_the_package_parameters(one_file):
    cfg = sr.config("tiny")
    assert {name: value.shape for name, value in one_file["init"](one_file["TINY"]).items()} == shapes(cfg)


def test_it_learns_and_says_so(one_file, capsys):
    one_file["main"]()
    lines = capsys.readouterr().out.splitlines()
    by_hand, by_step = (float(part.split()[-1]) for part in lines[0].split(","))
    assert abs(by_hand - by_step) < 1e-13 * abs(by_hand)
    assert lines[-1].endswith("8 of 8 images find their own text")
