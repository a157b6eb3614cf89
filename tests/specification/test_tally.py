"""Tallies: sums without an order, of any numbers that float32 and float64 have; the twin in kernels is the same."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_ref.fast.kernels import binned
from siglip_ref.ops.reproducible import tally as tallies
from siglip_ref.ops.reproducible.tally import BITS, DIGITS, MOST_TERMS, merge, put, tally, total

KINDS = [np.dtype(np.float32), np.dtype(np.float64)]


def terms_of(kind, seed, number=40, width=5, spread=30):
    """Terms whose exponents differ widely, with zeros among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((number, 1, width)) * 2.0 ** rng.integers(-spread, spread, (number, 1, width))
    return (x * (rng.random(x.shape) < 0.8)).astype(kind)


def sums_of(terms):
    sums = tally(1, terms.shape[2], terms.dtype)
    for term in terms:
        put(sums, term)
    return sums


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    spread=st.sampled_from([2, 30, 120]),
    cut=st.integers(1, 39),
)
def test_order_and_grouping_change_no_bit(seed, kind, spread, cut):
    terms = terms_of(kind, seed, spread=spread)
    whole = sums_of(terms)
    np.testing.assert_array_equal(sums_of(terms[::-1]), whole)
    order = np.random.default_rng(seed).permutation(len(terms))
    np.testing.assert_array_equal(sums_of(terms[order]), whole)
    one, other = sums_of(terms[order[:cut]]), sums_of(terms[order[cut:]])
    np.testing.assert_array_equal(merge(one, other), whole)
    np.testing.assert_array_equal(merge(other, one), whole)
    merge(one, other, out=one)
    np.testing.assert_array_equal(one, whole)


def test_floats_would_not_do():
    terms = terms_of(KINDS[0], 1, spread=2)
    assert (terms.sum(0) != terms[::-1].cumsum(0)[-1]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [-1000, -130, -40, 0, 40, 90])
def test_sums_are_those_of_fractions(kind, power):
    """What is dropped is below 2^-40 (float32) or 2^-80 (float64) of the row's largest term, for each term."""
    if kind == np.float32 and not -130 <= power <= 90:
        power = -130
    terms = np.ldexp(terms_of(np.dtype(np.float64), 3, spread=4), power).astype(kind)
    found = total(sums_of(terms), np.dtype(np.float64))[0]
    bound = len(terms) * np.abs(terms).max() * 2.0 ** (-BITS * (DIGITS[kind.char] - 1))
    for column, got in enumerate(found):
        exact = sum(Fraction(float(term)) for term in terms[:, 0, column])
        assert abs(Fraction(float(got)) - exact) <= Fraction(float(bound)) + abs(exact) * Fraction(2) ** -51


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_of_number_comes_back(kind):
    info = np.finfo(kind)
    for value in (info.max, -info.max, info.tiny, info.smallest_subnormal, -3 * info.smallest_subnormal, 1.0, 0.0):
        terms = np.array([[[value]]], kind)
        assert total(sums_of(terms), kind)[0, 0] == binned.total(sums_of(terms), kind)[0, 0] == kind.type(value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_beyond_the_numbers_is_infinite(kind):
    terms = np.full((3, 1, 2), np.finfo(kind).max, kind) * np.array([1, -1], kind)
    np.testing.assert_array_equal(total(sums_of(terms), kind), [[np.inf, -np.inf]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_terms_do_not_wrap_around(kind):
    """The largest digits that a term can have, as often as terms are allowed: half of int64's room is left."""
    largest = np.nextafter(kind.type(2.0**BITS), kind.type(0))
    sums = sums_of(np.array([[[largest, -largest]]], kind))
    digits = [int(digit) for digit in sums[:, :, 1:].flat]
    assert max(digits) == 2**BITS - (2**16 if kind == np.float32 else 1)
    many = sums.copy()
    many[:, :, 1:] *= 2 * MOST_TERMS
    assert [int(digit) for digit in many[:, :, 1:].flat] == [digit * 2 * MOST_TERMS for digit in digits]
    expected = float(largest) * 2 * MOST_TERMS
    np.testing.assert_allclose(total(many, np.dtype(np.float64)), [[expected, -expected]], rtol=1e-15)


STRANGE = [
    ([math.inf, 1.0], math.inf),
    ([1.0, -math.inf], -math.inf),
    ([math.inf, -math.inf], math.nan),
    ([math.nan, 1.0], math.nan),
    ([math.inf, math.nan], math.nan),
    ([1e300, math.inf], math.inf),
]


@pytest.mark.parametrize(("values", "expected"), STRANGE)
def test_nan_and_infinity_have_no_order_either(values, expected):
    terms = np.array(values)[:, None, None]
    for order in (terms, terms[::-1]):
        np.testing.assert_array_equal(total(sums_of(order), terms.dtype), [[expected]])
    merged = merge(sums_of(terms[:1]), sums_of(terms[1:]))
    np.testing.assert_array_equal(total(merged, terms.dtype), [[expected]])


def test_a_finite_sum_beside_infinity_is_not_made_up():
    terms = np.array([[[1.0, np.inf]], [[1.0, 1.0]]])
    np.testing.assert_array_equal(total(sums_of(terms), terms.dtype), [[np.nan, np.inf]])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    spread=st.sampled_from([2, 30, 120]),
    strange=st.sampled_from([None, np.nan, np.inf, -np.inf]),
)
def test_the_twin_is_the_same_to_the_bit(seed, kind, spread, strange):
    terms = terms_of(kind, seed, width=19, spread=spread)
    if strange is not None:
        terms[7, 0, 3] = strange
    sums = tally(1, 19, kind)
    for term in terms:
        binned.put(sums[0], term[0])
    np.testing.assert_array_equal(sums, sums_of(terms))
    for result in KINDS:
        np.testing.assert_array_equal(binned.total(sums, result), total(sums, result))


def test_moving_up_drops_what_a_larger_term_leaves_no_room_for():
    sums = sums_of(np.array([[[2.0**-90]], [[1.0]]]))
    assert tallies.NOTHING < sums[0, 0, 0] <= 1
    np.testing.assert_array_equal(sums, sums_of(np.array([[[1.0]], [[2.0**-90]]])))
