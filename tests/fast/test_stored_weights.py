"""Weights as checkpoints store them, transposed and read-only, are used where they lie: same bits, no copy."""

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref import fast
from siglip_ref.architecture.params import shapes
from siglip_ref.fast.machine.blas import NO, YES
from siglip_ref.fast.machine.fit import as_stored, rows_in_memory
from siglip_ref.ops.elementary import subtree

WIDTH, MLP, HEADS = 256, 384, 4
KINDS = ("float32", "float64")


def as_loaded(weights):
    """As `siglip_ref.load` gives a Torch checkpoint: kernels are transposed views, nothing can be written to."""
    loaded = {}
    for name, weight in weights.items():
        stored = np.array(weight.T if name.endswith("kernel") else weight, order="C")
        stored.flags.writeable = False
        loaded[name] = stored.T if name.endswith("kernel") else stored
    return loaded


def block_weights(kind):
    cfg = sr.config("B/16-256")
    rng = np.random.default_rng(0)
    sizes = {cfg.image.width: WIDTH, cfg.image.mlp: MLP}
    wanted = subtree(shapes(cfg), "image/block00") | {
        f"head/{n}": s for n, s in subtree(shapes(cfg), "image/pool").items()
    }
    return {n: (rng.normal(size=[sizes[side] for side in shape]) / 16).astype(kind) for n, shape in wanted.items()}


def both_ways(weights, kind, batch):
    rng = np.random.default_rng(1)
    x, d_out = (rng.normal(size=(batch, 64, WIDTH)).astype(kind) for _ in range(2))
    d_pooled = rng.normal(size=(batch, WIDTH)).astype(kind)
    head = subtree(weights, "head")
    block = {name: weight for name, weight in weights.items() if not name.startswith("head/")}
    out, after, cache = fast.block_forward(x, block, HEADS, "tanh", 1e-6, None)
    d_x, d_after, d = fast.block_backward(d_out, cache)
    pooled, head_cache = fast.map_head_forward(x, head, HEADS, "tanh", 1e-6)
    d_tokens, d_head = fast.map_head_backward(d_pooled, head_cache)
    wide, wide_cache = fast.linear_forward(x, weights["mlp/in/kernel"], weights["mlp/in/bias"])
    d_narrow = fast.linear_backward(wide, wide_cache)
    return [out, after, d_x, d_after, *d.values(), pooled, d_tokens, *d_head.values(), wide, *d_narrow]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sampled(2)
def test_same_bits(kind, batch):
    """With one image the products of the MAP head are so small that BLAS rounds them otherwise than transposed ones."""
    weights = block_weights(kind)
    plain, loaded = both_ways(weights, kind, batch), both_ways(as_loaded(weights), kind, batch)
    for number, (one, other) in enumerate(zip(plain, loaded, strict=True)):
        assert np.array_equal(one, other), number


@pytest.mark.parametrize("kind", KINDS)
def test_large_products_use_the_memory_of_the_checkpoint(kind):
    weights = as_loaded(block_weights(kind))
    kernels = [weight for name, weight in weights.items() if name.endswith("kernel")]
    turned, stored = as_stored(kernels, [10**6] * len(kernels))
    assert set(turned) == {YES}
    for kernel, lies in zip(kernels, stored, strict=True):
        assert np.shares_memory(kernel, lies) and np.array_equal(kernel.T, lies)
    turned, stored = as_stored(kernels, [1] * len(kernels))  # small ones are copied
    assert set(turned) == {NO} and not any(map(np.shares_memory, kernels, stored))


def test_read_only_arrays_need_no_kernels_of_their_own():
    locked = np.arange(6.0).reshape(2, 3)
    locked.flags.writeable = False
    same = rows_in_memory(locked)
    assert same.flags.writeable and np.shares_memory(same, locked) and np.array_equal(same, locked)


def test_memory_lives_as_long_as_what_is_made_of_it():
    locked = np.arange(1e6)
    locked.flags.writeable = False
    same = rows_in_memory(locked)
    del locked
    assert same.sum() == np.arange(1e6).sum()
