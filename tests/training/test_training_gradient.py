"""The training's gradients are the model's: in one piece, in micro-batches, of a classifier."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from training_cases import MINI, alone, mini, worst

import siglip_ref as sr
from siglip_ref import fast
from siglip_ref.architecture.sizes import Tower
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.training.classify import classifier_gradient, head, logits_of
from siglip_ref.training.gradient import gradient, image_side, of_parameters


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (7, *MINI.image_size, 3))
    return sr.init(MINI, 1), images, rng.integers(0, MINI.vocabulary, (7, MINI.text_length))


@pytest.mark.parametrize("micro", [0, 1, 3, 7, 9])
def test_micro_batches_keep_every_negative(batch, micro):
    params, images, tokens = batch
    loss, want = sr.loss_and_grads(params, images, tokens, MINI)
    found, grads = gradient(
        params,
        images,
        tokens,
        lambda x, y: sigmoid_loss(x, y, params["log_scale"], params["bias"]),
        MINI,
        SPECIFICATION,
        micro,
    )
    assert abs(found.loss - loss) <= 1e-13 * abs(loss)
    towers = {name: g for name, g in want.items() if "/" in name and not name.endswith("/k/bias")}
    assert grads.keys() == {name for name in want if "/" in name}
    assert worst(grads, towers)[0] <= 1e-12


def test_micro_batches_bound_the_memory_of_activations():
    rng = np.random.default_rng(0)
    params = sr.init(MINI, 1)
    images = rng.uniform(-1, 1, (96, *MINI.image_size, 3))
    tokens = rng.integers(0, MINI.vocabulary, (96, MINI.text_length))
    peaks = {}
    for micro in (0, 6):
        tracemalloc.start()
        gradient(params, images, tokens, lambda x, y: sigmoid_loss(x, y, 2.0, -9.0), MINI, SPECIFICATION, micro)
        peaks[micro] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[6] <= peaks[0] / 4, peaks


def test_gradients_by_parameters_alone_hold_no_activations_that_nobody_asked_for():
    wide = Tower(96, 6, 576, 6)
    cfg = replace(MINI, image=wide, text=wide, image_size=(64, 64))
    params, rng = sr.init(cfg, 1, np.float32), np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, *cfg.image_size, 3)).astype(np.float32)
    tokens = rng.integers(0, cfg.vocabulary, (2, cfg.text_length))
    peaks, found = {}, {}
    for name, ops in {"compiled": fast.OPS, "all": fast.OPS, "alone": of_parameters(fast.OPS)}.items():
        if found:  # the first compiles, which is not counted
            tracemalloc.start()
        found[name] = sr.loss_and_grads(params, images, tokens, cfg, ops=ops)[1]
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found["all"].keys() == found["alone"].keys()
    for name, grad in found["all"].items():
        np.testing.assert_array_equal(found["alone"][name], grad)
    of_blocks = 2 * wide.depth * 2 * cfg.patches * wide.width * 4  # of both halves of each, of images
    assert peaks["alone"] <= peaks["all"] - of_blocks, (peaks, of_blocks)


def test_a_locked_tower_learns_nothing(batch):
    params, images, tokens = batch
    embeddings, _ = image_side(params, images, MINI, SPECIFICATION)

    def loss(x, y):
        return sigmoid_loss(x, y, params["log_scale"], params["bias"])

    _, want = gradient(params, images, tokens, loss, MINI, SPECIFICATION)
    _, grads = gradient(params, embeddings, tokens, loss, MINI, SPECIFICATION, image_side="locked")
    assert grads.keys() == {name for name in want if name.startswith("text/")}
    assert all(np.array_equal(grads[name], want[name]) for name in grads)


@pytest.mark.parametrize("micro", [0, 3])
def test_the_classifiers_gradient_is_the_slope_of_its_loss(batch, micro):
    params, images, _ = batch
    rng = np.random.default_rng(2)
    params = params | {name: rng.normal(size=value.shape) for name, value in head(4, MINI, np.dtype(float)).items()}
    labels = rng.integers(0, 4, 7)

    def loss_at(moved):
        logits = logits_of(moved, image_side(moved, images, MINI, SPECIFICATION)[0])
        top = logits.max(1, keepdims=True)
        return (np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(7), labels]).sum() / 7

    loss, grads = classifier_gradient(params, images, labels, 7, MINI, SPECIFICATION, micro, "image")
    assert abs(loss - loss_at(params)) <= 1e-13
    for name in ("head/kernel", "head/bias", "image/patch/kernel", "image/pool/probe"):
        way = rng.normal(size=params[name].shape)
        step = 1e-6
        up, down = (loss_at(params | {name: params[name] + sign * step * way}) for sign in (1, -1))
        slope = (up - down) / (2 * step)
        assert abs((grads[name] * way).sum() - slope) <= 1e-6 * max(1, abs(slope)), name


def test_accumulation_averages_batches(monkeypatch, tmp_path):
    """One step over two batches of 12 is the mean of the steps' gradients, clipped once."""
    mini(monkeypatch)
    plain = {"steps": 1, "warmup": 0, "clip": 1e9, "optimiser": "big_vision", "decay": 0.0}
    whole = alone(tmp_path / "a", batch=12, accumulate=2, **plain)
    assert len(whole.history) == 1
    first = whole.task.gradient(whole.task.params, 0)
    second = whole.task.gradient(whole.task.params, 1)
    assert abs(whole.history[0][0] - (first[0] + second[0]) / 2) <= 1e-12
    slots = {name: value for name, value in whole.state.slots.items() if name == "second/image/patch/bias"}
    mean = (first[1]["image/patch/bias"] + second[1]["image/patch/bias"]) / 2
    rate = min(0.95, 1 - 1.0**-0.8)  # the first step keeps nothing of what was
    assert np.allclose(slots["second/image/patch/bias"], (1 - rate) * (mean**2 + 1e-30), rtol=1e-10)
