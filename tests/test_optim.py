"""The optimisers: against worked numbers, in every arithmetic, and rule by rule."""

import numpy as np
import pytest

from siglip_ref.architecture.sizes import config
from siglip_ref.arithmetic.ball import balls, certify, precision
from siglip_ref.model.optim import (
    AdamW,
    BigVision,
    State,
    adamw_step,
    big_vision_shapes,
    big_vision_step,
    clip,
    cosine,
    norm,
)

RNG = np.random.default_rng(3)
PARAMS = {"a/kernel": RNG.standard_normal((5, 3, 4)), "a/bias": RNG.standard_normal(7), "log_scale": np.array(2.3)}
GRADS = [{name: 0.3 * RNG.standard_normal(p.shape) for name, p in PARAMS.items()} for _ in range(3)]
RULES = {
    "adamw": (adamw_step, AdamW(lr=0.1, decay=0.3, max_norm=1.0)),
    "big_vision": (big_vision_step, BigVision(lr=0.1, decay=0.03, max_norm=1.0, smallest=3)),
}


def run(kind: str, of=lambda x: x, steps=GRADS, **changes):
    step, rule = RULES[kind]
    rule = type(rule)(**{**vars(rule), **changes})
    params, state = {name: of(p) for name, p in PARAMS.items()}, State()
    for grads in steps:
        params, state = step(params, {name: of(g) for name, g in grads.items()}, state, rule)
    return params, state


def test_adamw_first_step_by_hand() -> None:
    """At the first step both corrected means are the gradient itself, so the step is lr g / (|g| + eps)."""
    got, _ = run("adamw", steps=GRADS[:1], max_norm=None)
    for name, p in PARAMS.items():
        g = GRADS[0][name]
        decayed = p * (1 - 0.1 * 0.3) if name == "a/kernel" else p
        np.testing.assert_allclose(got[name], decayed - 0.1 * g / (np.abs(g) + 1e-8), rtol=1e-12)


def test_eps_stands_after_the_bias_correction() -> None:
    """Gradients of the size of eps tell the two places apart: a step of lr / 2, not lr / (1 + sqrt(1000))."""
    got, _ = adamw_step({"x": np.zeros(1)}, {"x": np.full(1, 1e-8)}, State(), AdamW(lr=1.0, decay=0.0))
    np.testing.assert_allclose(got["x"], -0.5, rtol=1e-12)


def test_adafactor_first_step_by_hand() -> None:
    """At step 1 the rate is 0: second moments are of this gradient alone; the momentum is a tenth of the update."""
    got, _ = run("big_vision", steps=GRADS[:1], max_norm=None)
    g = GRADS[0]["a/kernel"]  # the two longest axes are 0 and 2
    square = g * g
    row, column = square.mean(0, keepdims=True), square.mean(2, keepdims=True)
    update = g / np.sqrt(row * column / column.mean(0, keepdims=True))
    expected = PARAMS["a/kernel"] - (0.1 * 0.1 * update + 0.03 * PARAMS["a/kernel"])
    np.testing.assert_allclose(got["a/kernel"], expected, rtol=1e-12)
    np.testing.assert_allclose(got["a/bias"], PARAMS["a/bias"] - 0.01 * np.sign(GRADS[0]["a/bias"]), rtol=1e-12)


@pytest.mark.parametrize("kind", RULES)
def test_the_arithmetic_is_kept_and_balls_agree(kind: str) -> None:
    for dtype in (np.float32, np.complex128):
        params, state = run(kind, lambda x, dtype=dtype: x.astype(dtype))
        assert {np.asarray(x).dtype for x in [*params.values(), *state.slots.values()]} == {np.dtype(dtype)}
    exact = certify(lambda: run(kind, balls)[0])
    plain, _ = run(kind)
    single, _ = run(kind, lambda x: x.astype(np.float32))
    for name, proven in exact.items():
        top = np.abs(proven.value).max()
        assert np.abs(plain[name] - proven.value).max() <= 1e-15 * top
        assert np.abs(single[name] - proven.value).max() <= 1e-6 * top


@pytest.mark.parametrize("kind", RULES)
def test_frozen_parameters_stay_and_do_not_count(kind: str) -> None:
    """A frozen tensor is not moved, keeps no state, and its gradient, however large, does not shorten the others."""
    huge = [grads | {"a/kernel": 1e6 * grads["a/kernel"]} for grads in GRADS]
    got, state = run(kind, steps=huge, frozen=lambda name: name == "a/kernel")
    without, _ = run(kind, steps=[{n: g for n, g in grads.items() if n != "a/kernel"} for grads in GRADS])
    np.testing.assert_array_equal(got["a/kernel"], PARAMS["a/kernel"])
    np.testing.assert_array_equal(got["a/bias"], without["a/bias"])
    assert not any("a/kernel" in name for name in state.slots)


@pytest.mark.parametrize("kind", RULES)
def test_a_rate_by_name_is_a_learning_rate_of_its_own(kind: str) -> None:
    """AdamW's decay follows it, as in a parameter group of Torch; big_vision's does not, as with its lr_mults."""

    def rates(name: str) -> float:
        return {"a/kernel": 0.25, "log_scale": 0.0}.get(name, 1.0)

    got, _ = run(kind, rates=rates)
    alone, _ = run(kind, lr=0.25 * 0.1)
    plain, _ = run(kind)
    np.testing.assert_allclose(got["a/kernel"], alone["a/kernel"], rtol=1e-14)
    np.testing.assert_array_equal(got["a/bias"], plain["a/bias"])
    np.testing.assert_array_equal(got["log_scale"], PARAMS["log_scale"])
    proven = certify(lambda: run(kind, balls, rates=rates)[0])["a/kernel"].value
    assert np.abs(got["a/kernel"] - proven).max() <= 1e-15 * np.abs(proven).max()


def test_only_kernels_decay() -> None:
    still = [{name: 0 * g for name, g in GRADS[0].items()}]
    for kind, factor in (("adamw", 1 - 0.1 * 0.3), ("big_vision", 1 - 0.03)):
        got, _ = run(kind, steps=still)
        np.testing.assert_allclose(got["a/kernel"], factor * PARAMS["a/kernel"], rtol=1e-15)
        np.testing.assert_array_equal(got["a/bias"], PARAMS["a/bias"])
        np.testing.assert_array_equal(got["log_scale"], PARAMS["log_scale"])


def test_clip_has_two_rules() -> None:
    grads = {"a": np.array([3.0, 0.0]), "b": np.array(4.0)}
    assert norm(grads) == 5
    assert norm(clip(grads, 2.5, 0.0)) == 2.5
    assert norm(clip(grads, 5.0000005, 0.0)) == 5
    assert norm(clip(grads, 5.0000005, 1e-6)) < 5  # Torch's rule shortens a gradient that is just short enough


def test_the_first_scheduled_step_is_zero() -> None:
    assert cosine(0, 10, 3) == 0
    assert cosine(3, 10, 3) == 1
    assert cosine(0, 10, 0) == 1
    with precision(128):
        assert cosine(1, 7, 0, balls(np.ones(1))).ravel()[0].overlaps(balls(cosine(1, 7, 0)).ravel()[0]) is False
    exact = certify(lambda: {"factor": cosine(1, 7, 0, balls(np.ones(1)))})["factor"].value
    np.testing.assert_allclose(cosine(1, 7, 0), exact, rtol=1e-15)
    step, rule = RULES["big_vision"]
    still, _ = step(PARAMS, GRADS[0], State(), rule, schedule=cosine(0, 10, 3))
    for name, p in PARAMS.items():
        np.testing.assert_array_equal(still[name], p)


def test_momentum_may_be_stored_rounded() -> None:
    step, rule = RULES["big_vision"]
    _, state = step(PARAMS, GRADS[0], State(), rule, keep=lambda x: x.astype(np.float16).astype(x.dtype))
    first = state.slots["first/a/bias"]
    np.testing.assert_array_equal(first, first.astype(np.float16))


def test_big_vision_shapes_have_the_same_sizes() -> None:
    shapes = big_vision_shapes(config("B/16-256"))
    assert shapes["image/block00/attn/q/kernel"] == (768, 12, 64)
    assert shapes["text/block11/attn/out/kernel"] == (12, 64, 768)
    assert shapes["image/patch/kernel"] == (16, 16, 3, 768)
    assert shapes["image/pool/probe"] == (768,)
