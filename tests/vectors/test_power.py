"""The power table: every mistake is seen, what is equivalent is not, and the unchanged reference never is."""

import numpy as np
import pytest

from siglip_ref.arithmetic.ball import balls, overlap, precision, radius
from siglip_ref.mistakes import CATALOGUE, Mistake, executable, reference
from siglip_ref.noise.measure import TIMES
from siglip_ref.vectors.pages import noise_page, power_page
from siglip_ref.vectors.power import FORMATS, SEEN, errors, measured, mistaken, noise, powers, run
from siglip_ref.vectors.store import packaged
from siglip_ref.vectors.tasks import TASKS

NUMERIC = executable("one vector", "several steps", "across ranks", "recipe")
EQUIVALENT = executable("equivalent")


@pytest.mark.parametrize("mistake", NUMERIC, ids=lambda m: m.id)
def test_every_mistake_is_seen_in_float32(mistake: Mistake) -> None:
    """At ten times the noise, by a vector: as packaged, and again by running it there."""
    factor, name = measured().best(mistake.id, "float32")
    assert factor >= SEEN
    vector = packaged().find(name)
    found = errors(vector, mistaken(vector, mistake, "float32"))
    level = measured().noise_of(vector, "float32")
    assert max(found[tensor] / level[tensor] for tensor in found if level[tensor]) >= SEEN


@pytest.mark.parametrize("mistake", NUMERIC, ids=lambda m: m.id)
def test_every_mistake_is_seen_in_float64(mistake: Mistake) -> None:
    assert measured().best(mistake.id, "float64")[0] >= SEEN


@pytest.mark.parametrize("mistake", EQUIVALENT, ids=lambda m: m.id)
def test_equivalent_changes_show_nothing(mistake: Mistake) -> None:
    """In balls, where only what changes the result can show: the changed reference and the reference enclose the same
    numbers, to 60 digits. In floats: below the tolerance everywhere."""
    assert not measured().best(mistake.id, "float32")[0] >= TIMES
    felt = False
    for name in ("loss/balanced-b6-d13", "ranks/w3-uneven", "ops/attention", "ops/attention-mask", "block/plain"):
        vector = packaged().find(name)
        with precision(512):
            inputs = {n: balls(v) if v.dtype.kind == "f" else v for n, v in vector.inputs.items()}
            right, other = (
                TASKS[vector.task](reference(edits), inputs, vector.all_settings) for edits in ((), mistake.edits)
            )
            for tensor in right:
                difference = balls(right[tensor]) - balls(other[tensor])
                assert overlap(right[tensor], other[tensor]), tensor
                assert max(abs(float(v.mid())) for v in difference.flat) + radius(difference) < 1e-60
                felt |= any(not v.is_zero() for v in difference.flat)
    assert felt, "no vector runs the changed line"


def test_the_balls_above_would_show_a_mistake() -> None:
    vector = packaged().find("loss/balanced-b6-d13")
    with precision(512):
        inputs = {n: balls(v) for n, v in vector.inputs.items()}
        wrong = TASKS[vector.task](reference(CATALOGUE["dscale-wrt-t"].edits), inputs, {})
        assert not overlap(wrong["d_log_scale"], balls(vector.expected["d_log_scale"]))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_unchanged_reference_is_never_flagged(dtype: str) -> None:
    for vector in packaged().vectors.values():
        level = measured().noise_of(vector, dtype)
        for tensor, error in errors(vector, run(vector, reference(), dtype)).items():
            assert level[tensor] is None or error <= TIMES * level[tensor], f"{vector.id} {tensor}"


def test_nothing_is_measured_where_nothing_can_be() -> None:
    found = measured()
    assert found.noise.keys() == packaged().vectors.keys()
    assert found.power.keys() == {mistake.id for mistake in executable()}
    assert set(found.noise_of(packaged().find("loss/beyond-float16"), "float16").values()) == {None}
    assert set(found.noise_of(packaged().find("steps/adamw-tiny"), "float16").values()) == {None}
    for vector in packaged().vectors.values():
        for dtype in FORMATS[:3]:
            assert all(level is not None and level > 0 for level in found.noise_of(vector, dtype).values())


@pytest.mark.parametrize("name", ["loss/balanced-b6-d13", "ops/layer_norm-tiny", "ranks/w2-balanced"])
def test_measurements_are_reproduced_to_a_fifth(name: str) -> None:
    vector = packaged().find(name)
    levels = {dtype: noise(vector, dtype) for dtype in FORMATS}
    for dtype, level in levels.items():
        packed = measured().noise_of(vector, dtype)
        for tensor in level:
            np.testing.assert_allclose(packed[tensor], level[tensor], rtol=0.2, err_msg=f"{dtype} {tensor}")
    for mistake, row in powers(vector, levels).items():
        np.testing.assert_allclose(measured().power[mistake][name], row, rtol=0.2)


def test_blindness_is_said() -> None:
    """LayerNorm's eps and erf GELU cannot be told apart in bfloat16 at ordinary activations; in float32 they can."""
    blind, concerned = measured().blind("bfloat16", {"ops/mlp"})
    assert "gelu-tanh-vs-erf" in blind
    assert concerned > len(blind)
    assert "gelu-tanh-vs-erf" not in measured().blind("float32", {"ops/mlp"})[0]
    assert measured().blind("float32") == ([], len(NUMERIC))
    losses = {name for name in measured().noise if name.startswith("loss/")}
    assert measured().blind("bfloat16", losses)[0] == ["logits-low-precision"]


def test_the_pages_name_every_mistake() -> None:
    page = power_page()
    assert all(f"| {mistake.id} |" in page for mistake in executable())
    assert all(f"| {group} |" in noise_page() for group in ("loss", "model", "steps"))
