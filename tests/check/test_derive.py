"""A derivation on the reference itself: its own formula and no other; a change of it is found, and proven before it is
named."""

from dataclasses import replace

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.diagnosis.derive.derive import confirmed, derive
from siglip_ref.check.diagnosis.derive.evaluate import evaluate
from siglip_ref.check.diagnosis.derive.fit import Entry, expression
from siglip_ref.check.diagnosis.derive.formula import Formula, siglip
from siglip_ref.check.diagnosis.derive.instrument import Subject, drawn
from siglip_ref.check.diagnosis.derive.proof import failures, held_back
from siglip_ref.check.diagnosis.derive.sets import OTHERS, OfPairs, Where, describe, telling_sizes, total
from siglip_ref.check.diagnosis.derive.shapes import NUMBERS, PAIR, SIMILARITY, STARTS, VALUES, Number, Shape, of_number
from siglip_ref.report.computes import in_words

OWN = "your loss: 1/B sum_ij softplus(-z_ij (exp(log_scale) sim_ij + bias)); z = 1 on the diagonal, -1 elsewhere"


def reference(x, y, s, b):
    return sr.sigmoid_loss(x, y, np.asarray(s), np.asarray(b))


def without_bias(x, y, s, b):
    return reference(x, y, s, 0 * b)._replace(d_bias=np.zeros(()))


def test_the_reference_is_its_own_formula():
    derived = derive(Subject(reference), siglip())
    assert derived.certain and derived.differences == () and derived.formula == siglip()
    assert in_words(derived)[:2] == [OWN, "that is SigLIP's own"]


def test_what_is_asked_of_a_right_loss_costs_few_calls():
    subject = Subject(reference)
    assert confirmed(subject, siglip()).certain and subject.calls <= 20
    assert not confirmed(Subject(without_bias), siglip()).certain


def test_a_difference_is_named_with_its_entry():
    [one] = derive(Subject(without_bias), siglip()).differences
    assert (one.place, one.ids) == ("offset", ("logit-bias-dropped",))


def test_a_mean_of_no_negatives_is_said_and_nothing_else_is_lost(capfd):
    def alike(x, y, s, b):
        pairs = len(x)
        logits = np.exp(s) * x @ y.T + b
        own = np.eye(pairs, dtype=bool)
        weights = np.where(own, 0.5 / pairs, 0.5 / max(pairs * (pairs - 1), 1))
        u = np.where(own, -logits, logits)
        g = weights * np.where(own, -1, 1) / (1 + np.exp(-u))
        loss = (weights * np.logaddexp(0, u)).sum() if pairs > 1 else np.nan
        return type(reference(x, y, s, b))(
            loss, np.exp(s) * g @ y, np.exp(s) * g.T @ x, (g * (logits - b)).sum(), g.sum()
        )

    derived = derive(Subject(alike), siglip())
    assert derived.certain and derived.besides == ("no number of one pair",)
    words = " ".join(in_words(derived))
    assert "0.5/(B (B - 1))" in words and words.endswith("the loss is NaN or infinite, or raises")
    assert "DLASCL" not in "".join(capfd.readouterr())


def test_nothing_is_certain_that_held_back_inputs_do_not_bear_out():
    """Right at all experiments, wrong where one similarity is above 0.97: no experiment is so near."""

    def near(x, y, s, b):
        found = reference(x, y, s, b)
        return found._replace(loss=found.loss * (1.001 if np.max(x @ y.T) > 0.97 else 1.0))

    subject = Subject(near)
    x = np.eye(3)
    seen = list(held_back(subject, False))
    extra = replace(seen[2], image_embed=x, text_embed=x, s=1.0, b=-1.0, found=near(x, x, 1.0, -1.0))
    derived = derive(Subject(near), siglip(), [extra])
    assert not derived.certain and any(line.startswith("not certain") for line in in_words(derived))


def test_a_random_loss_is_told_so():
    rng = np.random.default_rng(0)

    def noisy(x, y, s, b):
        return reference(x * (1 + 0.01 * rng.standard_normal()), y, s, b)

    derived = derive(Subject(noisy), siglip())
    assert not derived.certain and derived.measured[0].kind == "random"


def test_the_formula_gives_the_reference_and_its_gradients():
    for held in held_back(Subject(reference), False, seed=5):
        got = evaluate(siglip(), held.image_embed, held.text_embed, held.s, held.b)
        for one, other in zip(got, held.found, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    assert not failures(siglip(), list(held_back(Subject(reference), False)))


def test_slopes_are_derivatives():
    points, h = np.array([-3.1, -0.7, 0.3, 0.8, 2.4]), 1e-6
    for name in (*PAIR, *SIMILARITY, "clamp", "soft cap", *VALUES):
        of = Shape(name, (1.0,) if name in VALUES else STARTS.get(name, ((),))[0])
        x = points / 4 if name in ("angle", "distance") else points
        np.testing.assert_allclose(of.slope(x), (of(x + h) - of(x - h)) / (2 * h), rtol=1e-5, atol=1e-8, err_msg=name)
    cut = Shape("softplus, finite up to", (1.7,))
    x = points[points < 1.7]
    np.testing.assert_allclose(cut.slope(x), (cut(x + h) - cut(x - h)) / (2 * h), rtol=1e-5, atol=1e-8)
    assert not np.isfinite(cut(points[points > 1.7])).any()
    assert Shape("softplus").slope(np.array([-700.0])) == pytest.approx(np.exp(-700.0), rel=1e-12, abs=0)
    assert Shape("exp").slope(np.array([-680.0])) == pytest.approx(np.exp(-680.0), rel=1e-9, abs=0)
    for name in NUMBERS:
        at, steps = np.array([1.3, -0.6, 5.0]), h * np.eye(3)
        for k in (0, 1):
            numeric = of_number(name, 0, *(at + steps[k])) - of_number(name, 0, *(at - steps[k]))
            assert of_number(name, 1 + k, *at) == pytest.approx(numeric / (2 * h), abs=1e-6), name


@pytest.mark.parametrize(
    ("rules", "count"),
    [
        ([(Where(), OfPairs(1.0, -2.0))], 1),
        ([(OTHERS, OfPairs(1.0, -1.0))], 1),
        ([(Where(("not diagonal", "i + j even")), OfPairs(2.0))], 1),
        (
            [
                (Where(("first half of the images",)), OfPairs()),
                (Where(("not first half of the images",)), OfPairs(0.5)),
            ],
            2,
        ),
    ],
)
def test_matrices_are_told_by_sets(rules, count):
    matrices = {pairs: total(rules, pairs) for pairs in (1, 2, 3, 4, 6, 7, 11, 19)}
    found = describe(matrices, 1e-9)
    assert found is not None and len(found) == count
    for pairs in (5, 8, 23):
        assert np.allclose(total(found, pairs), total(rules, pairs))


@pytest.mark.parametrize(
    ("rules", "count"),
    [
        ([(Where(("not diagonal", "not text in the second one after the image's of 4 parts")), OfPairs(1.0, -1.0))], 1),
        ([(Where(("images of the last of chunks of 8",)), OfPairs())], 1),
        ([(Where(("chunks of 8",)), OfPairs(1.0, 0.0, 0.0, "chunks of 8", -1.0))], 1),
        (
            [
                (Where(("not diagonal", "chunks of 8")), OfPairs(1.0, -1.0)),
                (Where(("image in an earlier one than the text of chunks of 8",)), OfPairs(2.0, -1.0)),
            ],
            2,
        ),
    ],
)
def test_matrices_are_told_by_parts_of_a_batch(rules, count):
    """Rings of shards, tiles, means over each chunk."""
    found = describe({pairs: total(rules, pairs) for pairs in (1, 2, 3, 4, 5, 6, 7, 11, 16, 19)}, 1e-9)
    assert found is not None and len(found) == count
    for pairs in (9, 23, 40):
        assert np.allclose(total(found, pairs), total(rules, pairs))


def changed(change):
    """The reference with something done to what it gives: a function of rows, scale and bias, and the reference."""
    return lambda x, y, s, b: change(x, y, s, b, reference(x, y, s, b))


def padded(x, y, s, b, found):
    more = -len(x) % 24 * np.logaddexp(0, b)
    return found._replace(loss=found.loss + more, d_bias=found.d_bias + -len(x) % 24 / (1 + np.exp(-b)))


def by_mean(x, y, s, b, found):
    found = reference(x / x.shape[1], y, s, b)
    return found._replace(d_image_embed=found.d_image_embed / x.shape[1])


def held_weight(x, y, s, b, found):
    """Focal, of which gradients hold the weight constant."""
    z = 2 * np.eye(len(x)) - 1
    u = -z * (np.exp(s) * x @ y.T + b)
    p = 1 / (1 + np.exp(-u))
    g = -z * p**3 / len(x)
    loss = (p**2 * np.logaddexp(0, u)).sum() / len(x)
    return type(found)(loss, np.exp(s) * g @ y, np.exp(s) * g.T @ x, np.exp(s) * (g * (x @ y.T)).sum(), g.sum())


def straight_through(x, y, s, b, found):
    """The value of logits that are kept within 8, gradients as if that were the identity."""
    z = 2 * np.eye(len(x)) - 1
    u = -z * np.clip(np.exp(s) * x @ y.T + b, -8, 8)
    g = -z / (1 + np.exp(-u)) / len(x)
    loss = np.logaddexp(0, u).sum() / len(x)
    return type(found)(loss, np.exp(s) * g @ y, np.exp(s) * g.T @ x, np.exp(s) * (g * (x @ y.T)).sum(), g.sum())


def lost_labels(x, y, s, b, found):
    z = 2 * np.eye(len(x)) - 1
    g = -1 / (1 + np.exp(z * (np.exp(s) * x @ y.T + b))) / len(x)
    return type(found)(found.loss, np.exp(s) * g @ y, np.exp(s) * g.T @ x, np.exp(s) * (g * (x @ y.T)).sum(), g.sum())


@pytest.mark.parametrize(
    ("change", "places"),
    [
        (padded, ["extra"]),
        (by_mean, ["width"]),
        (lambda x, y, s, b, found: type(found)(*(one / np.sqrt(x.shape[1]) for one in found)), ["over"]),
        (held_weight, ["function", "slope"]),
        (straight_through, ["cap", "slope"]),
        (lost_labels, ["backward"]),
    ],
)
def test_kinds_of_mistakes_are_derived(change, places):
    derived = derive(Subject(changed(change)), siglip())
    assert derived.certain and [one.place for one in derived.differences] == places, in_words(derived)


def masked(x, y, s, b, found):
    """Negatives above their image's own logit have the logit 0."""
    logits = np.exp(s) * x @ y.T + b
    suspect = logits > np.diagonal(logits)[:, None]
    own = np.eye(len(x), dtype=bool)
    u = np.where(suspect, 0.0, np.where(own, -logits, logits))
    g = np.where(suspect, 0.0, 1 / (1 + np.exp(-logits)) - own) / len(x)
    loss = np.logaddexp(0, u).sum() / len(x)
    return type(found)(loss, np.exp(s) * g @ y, np.exp(s) * g.T @ x, np.exp(s) * (g * (x @ y.T)).sum(), g.sum())


def of_the_size(x, y, s, b, found):
    logits = np.exp(s) * x @ y.T + b
    g = np.sign(logits) / (1 + np.exp(-abs(logits))) / len(x)
    loss = np.logaddexp(0, abs(logits)).sum() / len(x)
    return type(found)(loss, np.exp(s) * g @ y, np.exp(s) * g.T @ x, np.exp(s) * (g * (x @ y.T)).sum(), g.sum())


@pytest.mark.parametrize(
    ("change", "places", "words"),
    [(masked, ["coupled"], "exceeds its row's positive one"), (of_the_size, ["function"], "softplus(|")],
)
def test_labels_that_other_pairs_decide_or_nothing(change, places, words):
    derived = derive(Subject(changed(change)), siglip())
    assert derived.certain and [one.place for one in derived.differences] == places, in_words(derived)
    assert words in in_words(derived)[0]


def test_gradients_that_are_lost_beyond_a_size_are_read_there():
    """The incomplete last block of 32 images has no gradient; held back are batches of 19 at most."""

    def change(x, y, s, b, found):
        keep = np.arange(len(x)) < len(x) // 32 * 32
        own = np.eye(len(x))
        g = keep[:, None] * (1 / (1 + np.exp(-(np.exp(s) * x @ y.T + b))) - own) / len(x)
        return type(found)(
            found.loss, np.exp(s) * g @ y, np.exp(s) * g.T @ x, np.exp(s) * (g * (x @ y.T)).sum(), g.sum()
        )

    subject = Subject(changed(change))
    [one] = [*held_back(subject, False)][:1]
    rng = np.random.default_rng(1)
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.standard_normal((2, 131, 16)))
    large = replace(one, label="large", image_embed=x, text_embed=y, s=1.5, b=-2.0, found=subject.call(x, y, 1.5, -2.0))
    derived = derive(subject, siglip(), [large])
    assert derived.certain and "whole chunks of 32" in in_words(derived)[1]


def test_a_chunk_is_looked_at_where_another_would_differ():
    """131 pairs do not tell chunks of 64 from chunks of 32."""
    rules = [(Where(("texts of whole chunks of 32, or all",)), OfPairs())]
    others = [(Where(("texts of whole chunks of 64, or all",)), OfPairs())]
    assert np.array_equal(total(rules, 131), total(others, 131))
    assert any(not np.array_equal(total(rules, n), total(others, n)) for n in telling_sizes(rules))


def test_expressions_are_found_and_limits_are_seen():
    points = [(s, b) for s in (0.5, 1.0, 2.0, 3.0, 5.0) for b in (-3.0, 0.5)]
    for wanted in (
        Number((("exp(s)", 1.0),), high=50.0),
        Number((("b", 1.0), ("exp(s)", -0.2))),
        Number((("exp(-s) b", 1.0),)),
        Number(),
    ):
        entries = [Entry(s, b, 6, wanted(s, b, 6), 1e-12) for s, b in points]
        assert expression(entries, ("b", "exp(s)", "s", "1", "exp(-s) b")) == wanted


def test_rows_of_the_instrument_have_the_similarities_that_are_asked_for():
    similarity = drawn(5, 3)
    x, y, _ = Subject(reference).rows(similarity)
    np.testing.assert_allclose(x @ y.T, similarity, atol=1e-14)
    np.testing.assert_allclose((x * x).sum(-1), 1)
    np.testing.assert_allclose((y * y).sum(-1), 1)
    reading = Subject(reference).read(similarity, 1.0, -1.0)
    np.testing.assert_allclose(reading.of_image, reading.of_text, atol=1e-14)


def test_a_formula_is_data():
    """No sentence in it: words are made in the report's room alone."""
    assert isinstance(siglip(), Formula) and hash(siglip()) == hash(siglip())
    assert Shape("softplus") == siglip().terms[0].function


def test_a_set_of_no_name_is_none_where_the_diagonal_says_nothing():
    chosen = {n: np.random.default_rng(n).integers(0, 2, (n, n)) * 1.0 for n in (4, 5)}
    assert describe({n: np.where(np.eye(n), np.nan, matrix) for n, matrix in chosen.items()}, 1e-6) is None
