"""Our own matrix product: any shape and layout, and the same bits for any threads and neighbours."""

import numba
import numpy as np
import pytest

from siglip_ref.fast import OPS
from siglip_ref.fast.block import ORDER
from siglip_ref.fast.linear import linear_backward, linear_forward
from siglip_ref.fast.machine.fit import layer_shapes
from siglip_ref.fast.machine.product import LEAST, MANY, PACKED
from siglip_ref.fast.machine.tile import DEPTH, ROWS, STRIP, VECTOR
from siglip_ref.fast.prepack import prepacked

SIDE = STRIP * VECTOR // 4  # columns of a strip in float32
# Rows, width, columns: whole tiles; one row; a number more or less than whole tiles, strips, depths and blocks of rows.
SHAPES = [
    (ROWS, DEPTH, SIDE * 2),
    (1, LEAST + 1, LEAST + 1),
    (ROWS + 1, DEPTH + 1, SIDE * 2 + 1),
    (2 * ROWS - 1, 2 * DEPTH - 1, SIDE * 3 - 1),
    (MANY + 3, 100, 130),
    (5, 1030, 70),
]


def layer(shape: tuple[int, int, int], kind: type, turned: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random rows, weights and bias."""
    rows, width, columns = shape
    draw = np.random.default_rng(sum(shape))
    weights = draw.standard_normal((columns, width) if turned else (width, columns)).astype(kind)
    x, bias = draw.standard_normal((rows, width)).astype(kind), draw.standard_normal(columns).astype(kind)
    return x, weights.T if turned else weights, bias


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_is_the_sum(shape: tuple[int, int, int], kind: type, turned: bool) -> None:
    x, weights, bias = layer(shape, kind, turned)
    wide = np.longdouble
    exact = x.astype(wide) @ weights.astype(wide) + bias
    size = np.abs(x.astype(wide)) @ np.abs(weights.astype(wide)) + np.abs(bias)
    error = np.abs(linear_forward(x, weights, bias)[0] - exact)
    # A sum of n products errs by less than n roundings of the sum of their sizes; of that, random signs leave little.
    assert (error <= 0.05 * shape[1] * np.finfo(kind).eps * size).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_row_has_the_same_bits_alone_and_among_others(kind: type) -> None:
    x, weights, bias = layer((MANY + 40, 2 * DEPTH + 5, 100), kind, False)
    whole = linear_forward(x, weights, bias)[0]
    for first, last in ((0, 1), (7, 9), (MANY - 1, MANY + 1), (MANY + 30, MANY + 40)):
        assert np.array_equal(linear_forward(x[first:last], weights, bias)[0], whole[first:last])


@pytest.mark.parametrize("shape", [(300, 200, 250), (64, 400, 1000)])  # parts are rows; parts are columns
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, int, int]) -> None:
    before, layered = numba.get_num_threads(), layer(shape, np.float32, True)
    found = []
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            found.append(linear_forward(*layered)[0])
    finally:
        numba.set_num_threads(before)
    assert all(np.array_equal(found[0], other) for other in found)


def test_what_is_not_a_number_stays_in_its_row_and_column() -> None:
    x, weights, bias = layer((ROWS + 3, 100, SIDE * 2 + 7), np.float32, False)
    x[2, 5], weights[50, -1] = np.nan, np.inf
    out = linear_forward(x, weights, bias)[0]
    wrong = np.zeros(out.shape, bool)
    wrong[2], wrong[:, -1] = True, True
    assert np.array_equal(~np.isfinite(out), wrong)


@pytest.mark.parametrize(
    ("width", "mlp"), [(96, 200), (130, 70), (400, 100), (96, 700)]
)  # strips that end within the last one
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_packed_weights_give_the_same_bits(width: int, mlp: int, turned: bool, kind: type) -> None:
    draw = np.random.default_rng(width)
    shapes = dict(zip(ORDER, [(width,), (width,), *layer_shapes(width, mlp)], strict=True))
    weights = {name: draw.standard_normal(shape).astype(kind) for name, shape in shapes.items()}
    if turned:
        weights = {name: np.ascontiguousarray(weight.T).T for name, weight in weights.items()}
    packed = prepacked({f"image/block00/{name}": weight for name, weight in weights.items()}, OPS)
    read = packed.block.forward.args[0].values()
    assert len(read) == len(ORDER) and sum(form == PACKED for _, form, _ in read) == 6  # four projections and the MLP
    for batch, tokens in ((1, 3), (2, 150)):  # parts are columns; parts are rows
        x, d_out = draw.standard_normal((2, batch, tokens, width)).astype(kind)
        (out, _, cache), (same, _, again) = (
            ops.block.forward(x, weights, 2, "tanh", 1e-6, None) for ops in (OPS, packed)
        )
        assert np.array_equal(out, same)
        assert np.isfinite(out).all()
        (d_x, _, d), (d_same, _, d_again) = (
            ops.block.backward(d_out, kept) for ops, kept in ((OPS, cache), (packed, again))
        )
        assert np.array_equal(d_x, d_same)
        assert all(np.array_equal(d[name], d_again[name]) for name in ORDER)


@pytest.mark.parametrize("tokens", [MANY // 2 - 3, MANY + 5])  # a thread takes two sequences at a time; one
def test_a_sequence_has_the_same_bits_alone_and_among_others_for_any_threads(tokens: int) -> None:
    width, mlp, before = 2 * LEAST, 3 * LEAST, numba.get_num_threads()
    draw = np.random.default_rng(tokens)
    drawn = [
        draw.standard_normal(shape).astype(np.float32) for shape in [(width,), (width,), *layer_shapes(width, mlp)]
    ]
    x, weights = draw.standard_normal((9, tokens, width)).astype(np.float32), dict(zip(ORDER, drawn, strict=True))

    def block(some: np.ndarray) -> np.ndarray:
        out, after, cache = OPS.block.forward(some, weights, 2, "tanh", 1e-6, None)
        return np.stack([out, after, OPS.block.backward(out, cache)[0]])

    whole = block(x)
    try:
        numba.set_num_threads(1)
        assert np.array_equal(block(x), whole)
    finally:
        numba.set_num_threads(before)
    for first, last in ((0, 1), (3, 5), (4, 9), (8, 9)):
        assert np.array_equal(block(x[first:last]), whole[:, first:last])


def test_other_weights_than_the_packed_ones_are_read_as_they_are() -> None:
    width, mlp = 96, 200
    shapes = dict(zip(ORDER, [(width,), (width,), *layer_shapes(width, mlp)], strict=True))
    draw = np.random.default_rng(0)
    first, second = ({name: draw.standard_normal(shape) for name, shape in shapes.items()} for _ in range(2))
    packed = prepacked({f"text/block00/{name}": weight for name, weight in first.items()}, OPS)
    x = draw.random((1, 9, width))
    found, wanted = (ops.block.forward(x, second, 2, "tanh", 1e-6, None)[0] for ops in (packed, OPS))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_gradient_is_the_sum(shape: tuple[int, int, int], kind: type, turned: bool) -> None:
    x, weights, bias = layer(shape, kind, turned)
    draw = np.random.default_rng(1)
    d_out, before = draw.standard_normal((shape[0], shape[2])).astype(kind), draw.standard_normal(x.shape).astype(kind)
    cache = linear_forward(x, weights, bias)[1]
    d_x, d_weights, _ = linear_backward(d_out, cache)
    more = linear_backward(d_out, cache, before.copy())[0]
    wide = np.longdouble
    for found, left, right, terms, begin in (
        (d_x, d_out, weights.T, shape[2], 0),
        (more, d_out, weights.T, shape[2], before),
        (d_weights, x.T, d_out, shape[0], 0),
    ):
        exact = left.astype(wide) @ right.astype(wide) + begin
        size = np.abs(left.astype(wide)) @ np.abs(right.astype(wide)) + np.abs(begin)
        # As above; of few terms, no more than half a rounding of each.
        assert (np.abs(found - exact) <= max(0.05 * terms, min(terms / 2, 4)) * np.finfo(kind).eps * size).all()


def test_gradients_have_the_same_bits_for_any_number_of_threads() -> None:
    before, (x, weights, bias) = numba.get_num_threads(), layer((300, 200, 250), np.float32, True)
    d_out, found = np.random.default_rng(2).standard_normal((300, 250)).astype(np.float32), []
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            found.append(linear_backward(d_out, linear_forward(x, weights, bias)[1]))
    finally:
        numba.set_num_threads(before)
    assert all(np.array_equal(a, b) for others in found for a, b in zip(found[0], others, strict=True))
