"""The twins of blocks, towers and the whole model against their specification."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import assert_within_noise
from test_twins import EPS, EXTREMES, KINDS, LEAST, SIZES, Draw, assert_same_answer, mask_of

from siglip_ref import fast, ops
from siglip_ref.architecture.conventions import preset
from siglip_ref.architecture.params import init, shapes
from siglip_ref.architecture.sizes import Config, Tower, config
from siglip_ref.errors import UsageError
from siglip_ref.fast import towers
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.model.two_towers import loss_and_grads
from siglip_ref.ops.elementary import subtree
from siglip_ref.ops.record import Ops

FAST, PLAIN = fast.OPS, SPECIFICATION


def test_a_tower_or_block_refuses_a_gradient_of_another_result_and_loses_nothing() -> None:
    cfg, draw = config("tiny"), Draw(1, np.float32, False)
    tokens, images = draw.rng.integers(0, 7, (3, 9)), draw(3, *cfg.image_size, 3)
    of_block = subtree(tower_weights(draw, cfg, "text"), "block00")
    made = [
        (
            FAST.image_tower.forward(images, tower_weights(draw, cfg, "image"), cfg, cfg.conventions),
            FAST.image_tower.backward,
        ),
        (
            FAST.text_tower.forward(tokens, tower_weights(draw, cfg, "text"), cfg, cfg.conventions),
            FAST.text_tower.backward,
        ),
        (FAST.block.forward(draw(2, 5, 12), of_block, 2, "tanh", EPS, None)[::2], FAST.block.backward),
    ]
    for (out, cache, *_), backward in made:
        for wrong in (out[1:], out[..., 1:], out.astype(np.float64)):
            with pytest.raises(UsageError, match="as the forward's result"):
                backward(wrong, cache)
        backward(out, cache)


def test_images_of_another_size_have_the_specification_answer() -> None:
    cfg, draw = config("tiny"), Draw(1, np.float32, False)
    weights = tower_weights(draw, cfg, "image")
    images = draw(2, 16, 28, 3)
    with pytest.raises(ValueError, match="broadcast"):
        FAST.image_tower.forward(images, weights, cfg, cfg.conventions)
    fewer = replace(cfg, image_size=(8, 28))  # one that has fewer patches than the position table has places
    found, wanted = (
        home.image_tower.forward(images[:, :8], weights, fewer, cfg.conventions)[0] for home in (FAST, PLAIN)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_tower_without_a_block_has_the_specification_answer() -> None:
    cfg = replace(config("tiny"), image=Tower(10, 0, 13, 2), text=Tower(12, 0, 17, 2))
    draw, params = Draw(1, np.float32, False), init(cfg, seed=0, dtype=np.float32)
    images, tokens = draw(3, *cfg.image_size, 3), draw.rng.integers(0, 7, (3, 9))
    found, wanted = (loss_and_grads(params, images, tokens, cfg, ops=home) for home in (FAST, PLAIN))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        np.testing.assert_allclose(found[1][name], gradient, rtol=1e-3, atol=1e-5, err_msg=name)


def walk_block(home: Ops, mask: np.ndarray | None) -> Callable[..., Any]:
    """A block forward and backward, as one function."""

    def run(x: np.ndarray, weights: Any, d_out: np.ndarray) -> Any:
        out, after, cache = home.block.forward(x, weights, 2, "tanh", EPS, mask)
        return out, after, home.block.backward(d_out, cache)

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_block(masked: bool, kind: type) -> None:
    draw = Draw(3, kind, False)
    weights = draw.norm(6, "norm1/") | draw.attention(6, "attn/") | draw.norm(6, "norm2/") | draw.mlp(6, 11, "mlp/")
    mask = mask_of(draw, 2, 1, 5, 5) if masked else None
    assert_within_noise(walk_block(FAST, mask), walk_block(PLAIN, mask), draw(2, 5, 6), weights, draw(2, 5, 6))


def image_model(tower: Tower, grid: tuple[int, int] = (2, 3)) -> Config:
    """A model with this image tower; pixels are left over at two rims."""
    size = (4 * grid[0] + 1, 4 * grid[1] + 2)
    return replace(config("tiny"), image=tower, image_size=size)


def text_model(tower: Tower, length: int = 5, **conventions: Any) -> Config:
    """A model with this text tower; its position table has one place more than is used."""
    how = replace(config("tiny").conventions, **conventions)
    return replace(config("tiny"), text=tower, text_length=length + 1, conventions=how)


def tower_weights(draw: Draw, cfg: Config, tower: str) -> dict[str, np.ndarray]:
    """Random weights, kernels of a size that keeps the stream's."""
    found = subtree(shapes(cfg), tower)
    sizes = {name: shape[0] ** 0.5 if name.endswith("kernel") else 1.0 for name, shape in found.items()}
    return {name: draw(*shape) / draw.kind(sizes[name]) for name, shape in found.items()}


def walk_image_tower(home: Ops, cfg: Config) -> Callable[..., Any]:
    """An image tower forward and backward, as one function."""

    def run(images: np.ndarray, weights: Any, d_out: np.ndarray) -> Any:
        out, cache, activations = home.image_tower.forward(images, weights, cfg, cfg.conventions)
        d, d_activations = home.image_tower.backward(d_out, cache)
        return out, activations, (home.patch_embed.backward(d_activations["stem"], cache.patch)[0], d, d_activations)

    return run


def walk_text_tower(home: Ops, cfg: Config, tokens: np.ndarray, mask: np.ndarray | None) -> Callable[..., Any]:
    """A text tower forward and backward, as one function."""

    def run(weights: Any, d_out: np.ndarray) -> Any:
        out, cache, activations = home.text_tower.forward(tokens, weights, cfg, cfg.conventions, mask)
        return out, activations, home.text_tower.backward(d_out, cache)

    return run


def assert_image_tower(draw: Draw, cfg: Config, batch: int) -> None:
    weights, images = tower_weights(draw, cfg, "image"), draw(batch, *cfg.image_size, 3)
    images.flags.writeable = False
    walks = [walk_image_tower(home, cfg) for home in (FAST, PLAIN)]
    assert_within_noise(*walks, images, weights, draw(batch, cfg.image.width))


def assert_text_tower(draw: Draw, cfg: Config, batch: int, masked: bool) -> None:
    length = cfg.text_length - 1
    tokens, mask = draw.rng.integers(0, 7, (batch, length)), mask_of(draw, batch, length) if masked else None
    walks = [walk_text_tower(home, cfg, tokens, mask) for home in (FAST, PLAIN)]
    assert_within_noise(*walks, tower_weights(draw, cfg, "text"), draw(batch, cfg.embed))


# Sequences, tokens, width, hidden, depth: two threads of several rounds, the last shorter; one sequence; small; wide.
SHAPES = [(75, 16, 32, 128, 1), (1, 40, 32, 128, 2), (5, 21, 10, 13, 3), (3, 40, 64, 600, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_towers(shape: tuple[int, int, int, int, int], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, tokens, width, mlp, depth = shape
    draw, before, tower = Draw(4, np.float32, False), numba.get_num_threads(), Tower(width, depth, mlp, 2)
    run, kernels = towers._run, []
    monkeypatch.setattr(towers, "_run", lambda *arguments: [kernels.append(arguments[0]), run(*arguments)])
    numba.set_num_threads(threads)
    try:
        assert_image_tower(draw, image_model(tower, (2, tokens // 2)), batch)
        assert_text_tower(draw, text_model(tower, tokens), batch, masked=True)
    finally:
        numba.set_num_threads(before)
    assert len(kernels) == (0 if mlp == 600 else 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sampled(2)
def test_towers_of_any_size(kind: type) -> None:
    @settings(deadline=None, max_examples=10)
    @given(**SIZES, depth=st.integers(1, 3), strided=st.booleans(), masked=st.booleans())
    def check(b: int, n: int, h: int, depth: int, strided: bool, masked: bool) -> None:
        draw = Draw(b + 10 * n + 1000 * h, kind, strided)
        tower = Tower(2 * h + LEAST, depth, n + 3, 2)
        assert_image_tower(draw, image_model(tower, (1 + n % 3, 1 + n // 3)), b)
        assert_text_tower(draw, text_model(tower, n), b, masked)

    check()


@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("pooling", ["last", "first", "mean", "argmax"])
def test_text_towers_of_other_conventions(pooling: str, mask: str) -> None:
    cfg = text_model(Tower(12, 2, 17, 2), text_pooling=pooling, text_mask=mask, text_gelu="quick")
    assert_text_tower(Draw(6, np.float32, False), cfg, 3, masked=True)


def test_a_text_tower_without_head() -> None:
    cfg = replace(text_model(Tower(10, 2, 17, 2)), text_head=False)
    assert_text_tower(Draw(6, np.float32, False), cfg, 3, masked=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [12, 600])
def test_a_text_tower_with_a_bottleneck(width: int, kind: type) -> None:
    cfg = replace(text_model(Tower(width, 1, 17, 2)), bottleneck=5)
    assert_text_tower(Draw(6, kind, False), cfg, 3, masked=False)


def test_an_unknown_token_is_refused() -> None:
    cfg, draw = config("tiny"), Draw(6, np.float32, False)
    with pytest.raises(IndexError):
        FAST.text_tower.forward(np.full((2, 3), 29), tower_weights(draw, cfg, "text"), cfg, cfg.conventions)


def test_a_block_goes_back_once() -> None:
    draw = Draw(3, np.float32, False)
    weights = draw.norm(6, "norm1/") | draw.attention(6, "attn/") | draw.norm(6, "norm2/") | draw.mlp(6, 11, "mlp/")
    out, _, cache = FAST.block.forward(draw(2, 5, 6), weights, 2, "tanh", EPS, None)
    fast.block_backward(out, cache)
    with pytest.raises(UsageError, match="one backward"):
        fast.block_backward(out, cache)


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_towers_have_the_specification_answer_to_one_strange_number(where: str, value: float) -> None:
    draw, cfg = Draw(3, np.float32, False), config("tiny")
    images, tokens, d_out = draw(2, *cfg.image_size, 3), draw.rng.integers(0, 29, (2, 9)), draw(2, 10)
    of_image, of_text = tower_weights(draw, cfg, "image"), tower_weights(draw, cfg, "text")
    for x in (images, of_text["token"][tokens[0, 0]]) if where == "forward" else (d_out,):
        x.flat[7] = value
    with np.errstate(all="ignore"):
        found, wanted = (walk_image_tower(home, cfg)(images, of_image, d_out) for home in (FAST, PLAIN))
        assert_same_answer(found, wanted)
        found, wanted = (walk_text_tower(home, cfg, tokens, None)(of_text, d_out) for home in (FAST, PLAIN))
        assert_same_answer(found, wanted)


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_block_has_the_specification_answer_to_one_strange_number(where: str, value: float) -> None:
    draw = Draw(3, np.float32, False)
    weights = draw.norm(6, "norm1/") | draw.attention(6, "attn/") | draw.norm(6, "norm2/") | draw.mlp(6, 11, "mlp/")
    x, d_out = draw(2, 5, 6), draw(2, 5, 6)
    (x if where == "forward" else d_out).flat[7] = value
    with np.errstate(all="ignore"):
        found, wanted = (walk_block(home, None)(x, weights, d_out) for home in (FAST, PLAIN))
    assert_same_answer(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["tiny", "mu/16"])
def test_whole_model(size: str, kind: type) -> None:
    cfg = config(size)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, *cfg.image_size, 3)).astype(kind)
    tokens = rng.integers(0, cfg.vocabulary, (3, cfg.text_length))
    params = {name: np.asarray(value, kind) for name, value in init(cfg).items()} | {"bias": np.array(-1.0, kind)}
    own = preset("huggingface", text_gelu="quick", text_mask="causal") if size == "tiny" else None

    def run(namespace: Any) -> Callable[..., Any]:
        def gradients(params: Any, images: np.ndarray) -> Any:
            wrt = ("params", "images", "activations")
            loss, grads = loss_and_grads(params, images, tokens, cfg, own, namespace, wrt=wrt)
            return loss, grads

        return gradients

    assert_within_noise(run(fast), run(ops), params, images)
