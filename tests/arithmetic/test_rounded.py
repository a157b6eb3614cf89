"""Rounded arithmetic against NumPy's own float32 and float16, and what is known of stochastic rounding."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from cases import MODEL_CASES, OP_CASES, Case

from siglip_ref import ops
from siglip_ref.arithmetic.rounded import FORMATS, Rounded, Rounding, cast, round_to, rounded
from siglip_ref.arithmetic.variants import fused, pair_block
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.record import Pair

SINGLE, HALF, BRAIN = (FORMATS[name] for name in ("float32", "float16", "bfloat16"))
NUMBERS = np.concatenate(
    [
        np.random.default_rng(0).standard_normal(4000) * 2.0 ** np.random.default_rng(1).integers(-160, 130, 4000),
        np.array(
            [0.0, -0.0, 1.0, 1 + 2.0**-9, 1 + 3 * 2.0**-9, 65504, 65519.9, 65520, 3.4e38, 3.5e38, np.inf, -np.inf]
        ),
        2.0**-24 * np.array([0.49, 0.5, 0.51, 1.5, 2.5]),
    ]
)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """The usual bit trick, on float32 numbers."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32).astype(float)


def test_round_to_nearest() -> None:
    with np.errstate(over="ignore"):
        assert np.array_equal(round_to(NUMBERS, SINGLE), NUMBERS.astype(np.float32).astype(float))
        assert np.array_equal(round_to(NUMBERS, HALF), NUMBERS.astype(np.float16).astype(float))
        assert np.array_equal(round_to(NUMBERS, replace(SINGLE, name="the long way")), round_to(NUMBERS, SINGLE))
        singles = NUMBERS.astype(np.float32).astype(float)
        assert np.array_equal(round_to(singles, BRAIN), bfloat16(singles))
    assert np.isnan(round_to(np.array(np.nan), BRAIN))


@pytest.mark.parametrize("form", [SINGLE, HALF, BRAIN], ids=lambda form: form.name)
def test_stochastic_rounding_is_one_of_two_neighbours_and_right_on_average(form) -> None:
    exact = 1 + form.unit * 2 * 0.3
    drawn = round_to(np.full(40_000, exact), form, np.random.default_rng(0))
    assert set(drawn) == {1.0, 1 + 2 * form.unit}
    assert abs((drawn > 1).mean() - 0.3) < 0.01  # four standard deviations
    representable = round_to(NUMBERS, form)
    assert np.array_equal(round_to(representable, form, np.random.default_rng(1)), representable)


@pytest.mark.parametrize("name", ["gelu quick", "normalize none", "pool mean", "position"])
def test_float32_is_numpys_float32(name: str) -> None:
    """Where no order of summation and no library function is involved, bit for bit."""
    case = next(case for case in OP_CASES if case.name == name)
    arrays = {key: value.astype(np.float32) for key, value in case.arrays.items()}
    native = case.forward(arrays)
    ours = case.forward({key: rounded(value, Rounding(SINGLE, order="sequential")) for key, value in arrays.items()})
    assert native.dtype == np.float32 and isinstance(ours, Rounded)
    error = np.abs(np.asarray(ours) - native).max() / np.abs(native).max()
    assert error <= (2 * SINGLE.unit if name.startswith(("gelu", "normalize")) else 0)


def test_order_of_summation() -> None:
    terms = np.array([1.0, *[2.0**-24] * 8])
    totals = {order: float(rounded(terms, Rounding(SINGLE, order=order)).sum()) for order in ("sequential", "reversed")}
    assert totals == {"sequential": 1.0, "reversed": 1 + 2.0**-21}
    pairs = rounded(np.tile(terms[1:], 2), Rounding(SINGLE)).sum()
    assert pairs == 2.0**-20


@pytest.mark.parametrize("order", ["sequential", "reversed", "pairwise"])
@pytest.mark.parametrize("fma", [True, False])
def test_product(order, fma: bool) -> None:
    """Against a loop over float32 scalars."""
    rng = np.random.default_rng(4)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 5), (5, 4)))
    got = rounded(x, Rounding(SINGLE, order=order, fma=fma)) @ y.astype(float)
    for i in itertools.product(range(2), range(3), range(4)):
        terms = x[i[0], i[1]].astype(float) * y[:, i[2]]
        if order != "pairwise" or fma:
            total = np.float32(0)
            for term in terms[::-1] if order == "reversed" else terms:
                total = np.float32(float(total) + (term if fma else float(np.float32(term))))
        else:
            a, b, c, d, e = (np.float32(term) for term in terms)
            total = np.float32(np.float32(np.float32(a + c) + np.float32(b + d)) + e)
        assert abs(got[i] - total) <= (0 if order != "pairwise" or fma else 2 * SINGLE.unit * np.abs(terms).sum())


def test_products_of_narrow_formats_accumulate_in_float32() -> None:
    x = rounded(np.array([[1.0, *[2.0**-9] * 8]]), Rounding(BRAIN, order="sequential"))
    assert (x @ np.ones((9, 1))).item() == 1 + 2.0**-6  # one after the other in bfloat16, it would stay 1


def test_tf32_and_autocast_round_what_goes_into_products() -> None:
    third = 1 / 3
    x = rounded(np.array([[third]]), Rounding(SINGLE, product_in=FORMATS["tf32"]))
    assert x.item() == np.float32(third)
    assert (x @ np.ones((1, 1))).item() == round_to(np.array(third), FORMATS["tf32"])
    autocast = rounded(np.array([[third]]), Rounding(SINGLE, product_in=BRAIN, product_out=BRAIN)) @ np.ones((1, 1))
    assert autocast.rounding.format is BRAIN
    assert (autocast + x).rounding.format is SINGLE  # Torch promotes
    assert (autocast * rounded(1.0, Rounding(SINGLE))).rounding.format is BRAIN  # but not for a 0-d array


def test_a_library_may_err_to_one_side() -> None:
    x = rounded(np.linspace(0.1, 1, 9), Rounding(SINGLE, library=4.0))
    off = np.asarray(np.exp(x)) / np.exp(np.asarray(x)) - 1
    assert (off >= 3 * SINGLE.unit).all() and (off <= 5 * SINGLE.unit).all()
    assert np.array_equal(np.sqrt(x), np.sqrt(rounded(np.asarray(x), Rounding(SINGLE))))


def test_add_at_rounds_each_sum() -> None:
    table = rounded(np.zeros((2, 1)), Rounding(BRAIN))
    np.add.at(table, np.array([[0, 1], [0, 0]]), rounded(np.array([[[256.0], [7.0]], [[1.0], [1.0]]]), table.rounding))
    assert table.ravel().tolist() == [256.0, 7.0]


@pytest.mark.parametrize("case", [*OP_CASES, MODEL_CASES[0]], ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_specification_runs_unchanged(case: Case, name: str) -> None:
    """Results are of the format, and within 200 roundings of the exact ones."""
    form = FORMATS[name]
    arrays = {key: np.asarray(rounded(value, Rounding(form))).view(np.ndarray) for key, value in case.arrays.items()}
    d_out = round_to(np.random.default_rng(1).standard_normal(np.shape(case.forward(arrays))), form)
    exact = {"out": case.forward(arrays)} | case.backward(arrays, d_out)
    inputs = {key: rounded(value, Rounding(form)) for key, value in arrays.items()}
    got = {"out": case.forward(inputs)} | case.backward(inputs, rounded(d_out, Rounding(form)))
    for key, value in exact.items():
        assert isinstance(got[key], Rounded)
        assert np.array_equal(got[key], round_to(np.asarray(got[key]).view(np.ndarray), form))
        if not key.endswith("k/bias"):
            assert np.abs(np.asarray(got[key]) - value).max() <= 200 * form.unit * np.abs(value).max()


def test_changes_reach_inner_calls() -> None:
    """Attention and the map head call the softmax that was put in; the module itself stays as it was."""
    called = []

    def softmax(x):
        called.append(1)
        return ops.softmax_forward(x)

    changed = replace(SPECIFICATION, softmax=Pair(softmax, ops.softmax_backward))
    case = next(case for case in OP_CASES if case.name == "map head")
    weights = {key[2:]: value for key, value in case.arrays.items() if key != "x"}
    out = changed.map_head.forward(case.arrays["x"], weights, 2, "tanh", 1e-6)[0]
    assert called == [1]
    assert np.array_equal(out, case.forward(case.arrays))
    assert called == [1]


def test_a_fused_kernel_rounds_once() -> None:
    case = next(case for case in OP_CASES if case.name == "layer norm")
    inputs = [rounded(value, Rounding(BRAIN)) for value in case.arrays.values()]
    out = fused().layer_norm.forward(*inputs, 1e-6)[0]
    assert np.array_equal(out, cast(ops.layer_norm_forward(*(cast(x, SINGLE) for x in inputs), 1e-6)[0], BRAIN))
    assert not np.array_equal(out, ops.layer_norm_forward(*inputs, 1e-6)[0])


@pytest.mark.parametrize("positives", ["signed", "subtracted", "apart"])
@pytest.mark.parametrize("scale_first", [False, True])
@pytest.mark.parametrize("by_logarithm", [False, True])
def test_all_forms_of_the_loss_are_equal(positives, scale_first: bool, by_logarithm: bool) -> None:
    case = next(case for case in OP_CASES if case.name == "pair block")
    match = np.random.default_rng(3).random((4, 7)) < 0.3
    wanted = ops.pair_block(**case.arrays, match=match)
    got = pair_block(positives, scale_first, by_logarithm)(*case.arrays.values(), match)
    for a, b in zip(got, wanted, strict=True):
        assert np.abs(a - b).max() <= 1e-14 * max(1, np.abs(b).max())
