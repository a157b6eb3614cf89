"""Values known from elsewhere: closed forms, SciPy, published tables. Gradients have their own proof."""

import math

import numpy as np
import pytest
from cases import CFG, TOKENS, weights
from scipy import special

import siglip_ref as sr
from siglip_ref import ops
from siglip_ref.architecture.params import count, init, shapes
from siglip_ref.architecture.sizes import SIZES

# siglip-ref's sizes against the parameter counts of the released models: vision total, text, all (with scale and bias).
# Source: computed from big_vision's decode_variant and the released shapes.
RELEASED = {
    "B/16-224": (92_884_224, 110_271_744, 203_155_970),
    "B/16-256": (92_930_304, 110_271_744, 203_202_050),
    "B/16-384": (93_176_064, 110_271_744, 203_447_810),
    "B/16-512": (93_520_128, 110_271_744, 203_791_874),
    "L/16-256": (315_956_224, 336_194_560, 652_150_786),
    "L/16-384": (316_283_904, 336_194_560, 652_478_466),
    "So400m/14-224": (427_680_704, 449_679_600, 877_360_306),
    "So400m/14-384": (428_225_600, 449_734_896, 877_960_498),
    "B/16-i18n-256": (92_930_304, 277_695_744, 370_626_050),
    "So400m/16-i18n-256": (427_888_064, 699_542_640, 1_127_430_706),
    "siglip2-B/32-256": (94_552_320, 282_303_744, 376_856_066),
    "siglip2-B/16-224": (92_884_224, 282_303_744, 375_187_970),
    "siglip2-B/16-256": (92_930_304, 282_303_744, 375_234_050),
    "siglip2-B/16-384": (93_176_064, 282_303_744, 375_479_810),
    "siglip2-B/16-512": (93_520_128, 282_303_744, 375_823_874),
    "siglip2-L/16-256": (315_956_224, 565_570_560, 881_526_786),
    "siglip2-L/16-384": (316_283_904, 565_570_560, 881_854_466),
    "siglip2-L/16-512": (316_742_656, 565_570_560, 882_313_218),
    "siglip2-So400m/14-224": (427_680_704, 707_782_896, 1_135_463_602),
    "siglip2-So400m/14-384": (428_225_600, 707_782_896, 1_136_008_498),
    "siglip2-So400m/16-256": (427_888_064, 707_782_896, 1_135_670_962),
    "siglip2-So400m/16-384": (428_256_704, 707_782_896, 1_136_039_602),
    "siglip2-So400m/16-512": (428_772_800, 707_782_896, 1_136_555_698),
    "siglip2-g-opt/16-256": (1_163_168_256, 708_225_648, 1_871_393_906),
    "siglip2-g-opt/16-384": (1_163_659_776, 708_225_648, 1_871_885_426),
    "siglip2-B/16-naflex": (92_930_304, 282_303_744, 375_234_050),
    "siglip2-So400m/16-naflex": (427_888_064, 707_782_896, 1_135_670_962),
}


def test_released_sizes_count_exactly() -> None:
    found = {}
    for name in SIZES.keys() - {"tiny", "mu/16"}:
        sizes = {key: math.prod(shape) for key, shape in shapes(sr.config(name)).items()}
        towers = [sum(n for key, n in sizes.items() if key.startswith(tower)) for tower in ("image/", "text/")]
        found[name] = (*towers, count(sr.config(name)))
    assert found == RELEASED
    assert count(CFG) <= 6_000


def test_initialisation_follows_big_vision() -> None:
    cfg = sr.config("mu/16")
    params = init(cfg, seed=3)
    width, hidden = cfg.image.width, cfg.image.mlp
    assert {name: v.shape for name, v in params.items()} == shapes(cfg)
    for name, bound in (("attn/q/kernel", math.sqrt(3 / width)), ("mlp/in/kernel", math.sqrt(6 / (width + hidden)))):
        drawn = params[f"image/block00/{name}"]
        assert 0.97 * bound < np.abs(drawn).max() <= bound
        assert drawn.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert np.abs(params["image/pool/probe"]).max() <= math.sqrt(6 / (1 + width))
    for name, fan_in in (
        ("image/patch/kernel", 768),
        ("text/head/kernel", width),
    ):  # cut at two deviations before scaling
        deviation = math.sqrt(1 / fan_in)
        assert params[name].std() == pytest.approx(deviation, rel=0.05)
        assert np.abs(params[name]).max() <= 2 * deviation / 0.8796
    assert params["text/token"].std() == pytest.approx(width**-0.5, rel=0.05)
    assert 0 < np.abs(params["image/block00/mlp/in/bias"]).max() < 1e-5
    assert (params["image/block00/norm1/gamma"] == 1).all() and (params["image/block00/attn/q/bias"] == 0).all()
    assert params["log_scale"] == math.log(10) and params["bias"] == -10
    again, other = init(cfg, seed=3), init(cfg, seed=4)
    assert all((params[name] == again[name]).all() for name in params)
    assert (params["text/token"] != other["text/token"]).all()


def test_expected_losses_of_a_fresh_model() -> None:
    table = {256: 10.011622, 4096: 10.185954, 16384: 10.743816, 32768: 11.487631}
    assert {b: round(sr.expected_loss(b, math.log(10), -10.0), 6) for b in table} == table
    rows = np.eye(4)[[0, 0, 0, 0]]  # every similarity is 0 with the other axis
    fresh = sr.sigmoid_loss(rows, np.eye(4)[[1, 1, 1, 1]], 2.0, -10.0).loss
    assert fresh == pytest.approx(sr.expected_loss(4, 2.0, -10.0), rel=1e-15)


@pytest.mark.parametrize("tile", [1, 2, 5, 7, 100])
def test_tiles_change_nothing(tile: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 7, 5))
    for whole, tiled in zip(sr.sigmoid_loss(x, y, 0.4, -1.0), sr.sigmoid_loss(x, y, 0.4, -1.0, tile=tile), strict=True):
        assert np.abs(whole - tiled).max() <= 1e-15 * np.abs(whole).max() * 7


def test_loss_against_its_closed_form() -> None:
    """The gradient in logits is (sigmoid(logit) - [i = j]) / B; the value is -log sigmoid of the signed logit."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 6, 3))
    scale, bias = 3.0, -2.0
    logits = scale * x @ y.T + bias
    got = sr.sigmoid_loss(x, y, math.log(scale), bias)
    d_logits = (special.expit(logits) - np.eye(6)) / 6
    sign = 2 * np.eye(6) - 1
    assert got.loss == pytest.approx(-special.log_expit(sign * logits).sum() / 6, rel=1e-14)
    assert np.allclose(got.d_image_embed, scale * d_logits @ y, rtol=1e-12, atol=1e-14)
    assert np.allclose(got.d_text_embed, scale * d_logits.T @ x, rtol=1e-12, atol=1e-14)
    assert got.d_log_scale == pytest.approx((d_logits * (logits - bias)).sum(), rel=1e-12)
    assert got.d_bias == pytest.approx(d_logits.sum(), rel=1e-12)


def test_logits_far_out_stay_exact() -> None:
    """At logits of +-1e4 the loss is the sum of the wrong logits, and no gradient is NaN."""
    eye = np.eye(2)
    got = sr.sigmoid_loss(eye, -eye, math.log(1e4), 0.0)  # matching pairs at -1e4, the others at 0
    assert got.loss == pytest.approx(1e4 + math.log(2), rel=1e-15)
    assert all(np.isfinite(x).all() for x in got)


def test_gelu_forms_differ_as_published() -> None:
    x = np.linspace(-6, 6, 240_001)
    tanh, erf, quick = (ops.gelu_forward(x, form)[0] for form in ("tanh", "erf", "quick"))
    assert np.allclose(erf, x * special.ndtr(x), rtol=1e-14, atol=1e-15)  # 1 + erf cancels in the left tail
    assert np.abs(tanh - erf).max() == pytest.approx(4.73e-4, rel=1e-3)
    assert np.abs(x[np.abs(tanh - erf).argmax()]) == pytest.approx(2.70, abs=0.01)
    assert np.abs(quick - erf).max() == pytest.approx(2.0e-2, rel=0.05)


def test_softmax_loss_against_scipy() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 5, 3))
    logits = 2.0 * x @ y.T
    wanted = -(np.diag(special.log_softmax(logits, 1)).mean() + np.diag(special.log_softmax(logits, 0)).mean()) / 2
    assert ops.softmax_loss(x, y, np.array(math.log(2.0)))[0] == pytest.approx(wanted, rel=1e-14)


def test_masks_hide_what_they_should() -> None:
    params = {f"image/{k}": v for k, v in weights("image").items()} | {
        f"text/{k}": v for k, v in weights("text").items()
    }
    params |= {"log_scale": np.array(0.0), "bias": np.array(0.0)}
    images = np.zeros((3, 12, 28, 3))
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % CFG.vocabulary
    mask = np.arange(9) != np.full((3, 1), 4)
    seen = [sr.forward(params, images, t, CFG, mask=mask).text_embed for t in (TOKENS, changed)]
    assert (seen[0] == seen[1]).all()
    causal = sr.preset("big_vision", text_mask="causal", text_pooling="first")
    only_first = [sr.forward(params, images, t, CFG, conventions=causal).text_embed for t in (TOKENS, changed)]
    assert (only_first[0] == only_first[1]).all()
    free = [sr.forward(params, images, t, CFG).text_embed for t in (TOKENS, changed)]
    assert (free[0] != free[1]).any()
