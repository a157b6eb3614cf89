"""What is read off a model: patches in another order, another table of positions, gradients that are zero or scaled."""

from types import SimpleNamespace

import numpy as np
import pytest

from siglip_ref.check.model.diagnosis.gradients import _relation, places
from siglip_ref.check.model.diagnosis.last_stage import _formula
from siglip_ref.check.model.diagnosis.stems import _read

GRID = (4, 6)


class _Sizes:
    grid = GRID


def windows(a, b):
    height, width = GRID
    square = np.arange(height * width).reshape(height // a, a, width // b, b)
    return square.transpose(0, 2, 1, 3).ravel()


def read(change, tower="image"):
    rng = np.random.default_rng(0)
    patches, table = rng.standard_normal((3, 24, 5)), rng.standard_normal((24, 5))
    return _read(change(patches, table), patches + table, table, 1e-6, tower, _Sizes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, p: x[:, windows(2, 2)] + p, "the patches in another order than their positions: windows of 2 x 2"),
        (lambda x, p: x[:, windows(2, 3)] + p, "windows of 2 x 3"),
        (lambda x, p: x[:, ::-1] + p, "turned by 180 degrees"),
        (
            lambda x, p: x + p.reshape(4, 6, -1)[::-1].reshape(24, -1),
            "position is read in another order: rows from",
        ),
        (lambda x, p: x + np.roll(p, -1, 0), "shifted by 1, around the end"),
        (lambda x, p: x + 0 * p, "left out (0)"),
        (lambda x, p: x + 0.5 * p, "position is multiplied by 0.5"),
        (lambda x, p: x + p + np.arange(5.0), "the table and one more vector"),
        (lambda x, p: x + p**2, "the same in every one of them, and not their table"),
    ],
)
def test_orders_and_tables_are_read_off(change, said):
    assert said in read(change)[0]


def test_nothing_is_read_off_what_depends_on_the_image():
    assert read(lambda x, p: x + p * x[:, :1]) is None


_NAMES = ("text/token", "k/kernel")
_JUDGE = SimpleNamespace(
    of_grad=dict.fromkeys(_NAMES, 1e-6), exact=SimpleNamespace(key_terms={}, grads=dict.fromkeys(_NAMES, np.ones(1)))
)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("k/kernel", lambda g: 0 * g, "are zero"),
        ("k/kernel", lambda g: 2 * g, "are 2 times"),
        ("k/kernel", lambda g: g * np.arange(1, 5.0), "a factor of each column, 1 to 4"),
        ("k/kernel", lambda g: g * (np.arange(6) > 1)[:, None], "lack 2 of 6 rows"),
        ("text/token", lambda g: g / np.array([[1], [2], [3], [1], [5], [2]]), "by how often the token"),
        ("k/kernel", lambda g: g + 1e-3 * g[::-1], "nearly right"),
        ("k/kernel", lambda g: g[::-1], "other numbers"),
    ],
)
def test_gradients_beside_the_right_ones(name, change, said):
    exact = np.random.default_rng(1).standard_normal((6, 4))
    assert said in _relation(name, change(exact), exact, _JUDGE, np.array([1, 2, 3, 1, 5, 2]))


def test_all_blocks_are_one_name():
    names = ["text/block00/norm1/beta", "text/block01/norm1/beta", "text/token"]
    assert places(names, dict.fromkeys([*names, "image/block00/norm1/beta"])) == "text/block*/norm1/beta, text/token"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (lambda t, b: (t, t * b), "the logits are exp(log_scale) * similarity + exp(log_scale) * bias, where"),
        (lambda t, b: (1 / t, -b), "the logits are exp(-log_scale) * similarity + -bias, where"),
        (lambda t, b: (t + 0.1, b), ""),
    ],
)
def test_logits_are_one_formula_at_every_scale(line, said):
    scales = [SimpleNamespace(scale=t, bias=b) for t, b in ((4.0, -2.0), (100.0, -16.0), (0.5, 11.0))]
    told = _formula([(one, np.array(line(one.scale, one.bias))) for one in scales])
    assert said in told and bool(said) == bool(told)
