"""The fused AdamW against the specification: several steps, clipped and not, decayed and not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from siglip_ref import fast
from siglip_ref.fast import optim as fused
from siglip_ref.model import optim
from siglip_ref.model.optim import AdamW, State

SHAPES = {"a/kernel": (7, 5), "a/bias": (5,), "log_scale": (), "b/kernel": (300, 40)}


def draw(seed: int, kind: type, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(scale * rng.standard_normal(shape), kind) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("rule", [AdamW(lr=0.1), AdamW(lr=0.01, decay=0.3, max_norm=1.0), AdamW(max_norm=1e6)])
def test_steps(rule: AdamW, kind: type) -> None:
    ours: Any = (draw(0, kind), State())
    theirs: Any = (draw(0, kind), State())
    for number in range(4):
        grads = draw(number + 1, kind, 10.0 ** (number - 2))
        ours = fast.adamw_step(ours[0], grads, ours[1], rule, 0.5)
        theirs = optim.adamw_step(theirs[0], grads, theirs[1], rule, 0.5)
    assert ours[1].steps == theirs[1].steps
    assert set(ours[0]) == set(theirs[0]) and set(ours[1].slots) == set(theirs[1].slots)
    for got, wanted in [(ours[0], theirs[0]), (ours[1].slots, theirs[1].slots)]:
        for name in wanted:
            assert got[name].dtype == kind and got[name].shape == wanted[name].shape
            np.testing.assert_allclose(got[name], wanted[name], rtol=64 * np.finfo(kind).eps, atol=np.finfo(kind).eps)


@pytest.mark.parametrize("large", [0, 1 << 20])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_in_place_the_same_bits(kind: type, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "LARGE", large)
    mine, before = draw(0, kind), draw(0, kind)
    apart: Any = (mine, State())
    over: Any = (mine, State())
    rule = AdamW(lr=0.1, max_norm=1.0)
    for number in range(3):
        grads = draw(number + 1, kind)
        grads["b/kernel"] = np.asfortranarray(grads["b/kernel"])
        last = over[0]
        apart = fast.adamw_step(apart[0], grads, apart[1], rule)
        over = fused.adamw_in_place(over[0], grads, over[1], rule)
        for name in SHAPES:
            np.testing.assert_array_equal(over[0][name], apart[0][name])
            np.testing.assert_array_equal(mine[name], before[name])
            assert np.shares_memory(over[0][name], last[name]) == (number > 0)


def test_together_belongs_to_the_steps_from_the_first_on() -> None:
    mine, rule, grads = draw(0, np.float32), AdamW(lr=0.1), draw(1, np.float32)
    laid = fused.together(mine)
    wanted = fast.adamw_step(mine, grads, State(), rule)[0]
    moved = fused.adamw_in_place(laid, grads, State(), rule)[0]
    for name in SHAPES:
        np.testing.assert_array_equal(moved[name], wanted[name])
        assert np.shares_memory(moved[name], laid[name]) and not np.shares_memory(laid[name], mine[name])
    mixed = mine | {"a/bias": np.zeros(5)}
    assert fused.together(mixed) is mixed


def test_frozen_parameters_go_to_the_specification() -> None:
    rule = replace(AdamW(), frozen=lambda name: name == "a/bias")
    params = draw(0, np.float64)
    moved, _ = fast.adamw_step(params, draw(1, np.float64), State(), rule)
    assert moved["a/bias"] is params["a/bias"]
    assert (moved["a/kernel"] != params["a/kernel"]).all()


def test_rates_by_name_go_to_the_specification() -> None:
    rule = replace(AdamW(), rates=lambda name: 0.5 if name == "a/bias" else 1.0)
    params, grads = draw(0, np.float64), draw(1, np.float64)
    ours, theirs = (step(params, grads, State(), rule)[0] for step in (fast.adamw_step, optim.adamw_step))
    for name in params:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_replaced_parameter_counts() -> None:
    params, state = fast.adamw_step(draw(0, np.float64), draw(1, np.float64), State(), AdamW())
    params["a/bias"] = np.full(5, 9.0)
    moved, _ = fast.adamw_step(params, draw(2, np.float64), state, AdamW())
    assert (moved["a/bias"] > 8.9).all()


def test_two_parameters_that_changed_places_count() -> None:
    twins = {"a/kernel": np.zeros((2, 2)), "b/kernel": np.ones((2, 2))}
    grads = {name: np.ones((2, 2)) for name in twins}
    params, state = fast.adamw_step(twins, grads, State(), AdamW())
    params["a/kernel"], params["b/kernel"] = params["b/kernel"], params["a/kernel"]
    moved, _ = fast.adamw_step(params, grads, state, AdamW())
    assert (moved["a/kernel"] > 0.9).all() and (moved["b/kernel"] < 0.1).all()


def test_parameters_in_another_order_keep_their_means() -> None:
    rule, grads = AdamW(lr=0.1), draw(1, np.float64)
    ours, theirs = (step(draw(0, np.float64), grads, State(), rule) for step in (fast.adamw_step, optim.adamw_step))
    turned = dict(reversed(ours[0].items()))
    moved, state = fast.adamw_step(turned, grads, ours[1], rule)
    wanted, wanted_state = optim.adamw_step(theirs[0], grads, theirs[1], rule)
    for got, exact in [(moved, wanted), (state.slots, wanted_state.slots)]:
        for name in exact:
            np.testing.assert_allclose(got[name], exact[name], rtol=1e-12, atol=1e-15)


def test_a_gradient_of_another_shape_is_refused() -> None:
    params = {"a/kernel": np.zeros((2, 3)), "b/kernel": np.zeros((3, 2))}
    with pytest.raises(ValueError, match="shapes"):
        fast.adamw_step(params, {"a/kernel": np.ones((3, 2)), "b/kernel": np.ones((2, 3))}, State(), AdamW())


def test_a_rule_may_thaw_a_parameter_between_steps() -> None:
    frozen = {"a/bias"}
    rule = replace(AdamW(), frozen=lambda name: name in frozen)
    params, state = fast.adamw_step(draw(0, np.float64), draw(1, np.float64), State(), rule)
    frozen.clear()
    moved, _ = fast.adamw_step(params, draw(1, np.float64), state, rule)
    assert (moved["a/bias"] != params["a/bias"]).all()
