"""Weights of the same function with factors of powers of two: the same to the last bit, below float16's range."""

import numpy as np
import pytest
from reference_adapter import ReferenceAdapter

import siglip_ref as sr
from siglip_ref.check.model.diagnosis.range import can_be_shifted, shifted
from siglip_ref.check.model.probe import model_probe

TINY = sr.config("tiny")
NORMS = ("image/norm",)  # the head reads it: its own numbers are the ones that move


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_is_the_same_function_to_the_last_bit(dtype):
    probe = model_probe(TINY, 4, dtype)
    moved = shifted(probe.params)
    usual, other = (sr.forward(p, probe.images, probe.tokens, TINY, activations=True) for p in (probe.params, moved))
    for name, value in usual.activations.items():
        if name not in NORMS:
            assert np.array_equal(value, other.activations[name]), name
    assert sum(not np.array_equal(value, moved[name]) for name, value in probe.params.items()) > 40


def test_what_stands_near_the_ends_of_the_range_is_left_alone():
    probe = model_probe(TINY, 4, "float32")
    assert can_be_shifted(probe.params)
    for factor in (2.0**100, 2.0**-100):
        name = "text/block00/attn/k/kernel"
        assert not can_be_shifted({**probe.params, name: probe.params[name] * np.float32(factor)})


def test_a_model_with_a_step_in_float16_is_not_run_on_them():
    adapter = ReferenceAdapter()
    run, largest = adapter.run, []

    def watched(params, images, tokens, dtype):
        largest.append(max(np.max(np.abs(value)) for value in params.values()))
        return run(params, images, tokens, dtype)

    adapter.run = watched
    sr.check_model(adapter, "float32")
    assert max(largest) > 2.0**20
    largest.clear()
    adapter.coarsest = "float16"
    sr.check_model(adapter, "float32")
    assert max(largest) < 2.0**15
