"""Patterns in wrong tensors: factors that have names, rows in other places, terms that are missing; and hop by hop."""

from types import SimpleNamespace

import numpy as np
import pytest
from loss_terms import loss_terms

from siglip_ref.check.call.frameworks import Setting
from siglip_ref.check.diagnosis.patterns import patterns
from siglip_ref.check.diagnosis.predict import Context, Predicted
from siglip_ref.check.diagnosis.terms import describe
from siglip_ref.check.engine.expected.expected import CONVENTIONS, truth
from siglip_ref.check.engine.expected.probes import POINTS, make_probe
from siglip_ref.check.engine.expected.tolerance import SAFETY
from siglip_ref.check.engine.explain import explain
from siglip_ref.check.engine.seen import Seen
from siglip_ref.check.ranks.hops import NO_BLOCK, hops_of
from siglip_ref.mistakes import suspects
from siglip_ref.report.data import Report
from siglip_ref.report.text import to_text

LOG, RAW = CONVENTIONS[0], CONVENTIONS[2]
SETTING = Setting("float32", "float32", "cpu", False)
HUNTED = [point for point in POINTS if point.name in ("balanced", "init", "trained")]
NAMES = ("loss", "image_embed", "text_embed", "log_scale", "bias")


def case(*splits):
    """Contexts by label, and by label the terms and the truth."""
    contexts, terms, right = {}, {}, {}
    for sizes in splits:
        for point in HUNTED:
            probe = make_probe(point, (sum(sizes), 14))
            label = f"{point.name} {sizes}"
            contexts[label] = Context(probe, LOG, sizes)
            terms[label] = loss_terms(probe, LOG, sizes)
            right[label] = truth(probe, LOG, SETTING)
    return SimpleNamespace(contexts=contexts, terms=terms, right=right)


ONE = case((13,), (9,))
RANKS = case((5, 5, 5, 5), (5, 5, 5))


def found(where, change, tensors=NAMES):
    """Patterns of what comes when `change(name, values, context, terms)` is done to some tensors, in float32."""
    seen = []
    for label, right in where.right.items():
        for name in NAMES:
            exact = right.exact[name]
            values = change(name, exact, where.contexts[label], where.terms[label]) if name in tensors else exact
            noise = SAFETY * right.noise[name]
            seen.append(Seen(label, name, np.asarray(values, np.float32), exact, noise))
    return seen, {pattern.tensor: pattern for pattern in patterns(seen, where.contexts)}


def weighted(weight):
    """Terms counted weight(key, context) times."""
    return lambda name, exact, context, terms: sum(weight(t.key, context) * t.tensors[name] for t in terms)


@pytest.mark.parametrize("where", [ONE, RANKS])
@pytest.mark.parametrize("convention", [LOG, RAW])
def test_terms_sum_up_to_the_loss(where, convention):
    for context in where.contexts.values():
        right = truth(context.probe, convention, Setting("float64", "float64", "cpu", False)).exact
        terms = loss_terms(context.probe, convention, context.sizes)
        for name in NAMES:
            total = sum(term.tensors[name] for term in terms)
            assert np.abs(total - right[name]).max() <= 1e-13 * max(np.abs(right[name]).max(), 1e-3)


def test_factors_are_called_by_their_names():
    factors = {
        "1/B": lambda c: 1 / c.probe.shape[0],
        "1/t": lambda c: 1 / c.probe.scale,
        "-1": lambda c: -1,
        "1/log(2)": lambda c: 1 / np.log(2),
        "0.37": lambda c: 0.37,
    }
    for words, factor in factors.items():
        _, patterns_of = found(ONE, lambda n, x, c, t, f=factor: f(c) * x, ["text_embed"])
        assert patterns_of["text_embed"].text == f"{words} times the right one"
    _, over_ranks = found(RANKS, lambda n, x, c, t: x / len(c.sizes), ["image_embed", "bias"])
    assert {p.text for p in over_ranks.values()} == {"1/W times the right one"}
    assert {p.id for p in over_ranks.values()} == {"unknown"}


def test_a_whole_number_in_everything_is_accumulation():
    _, everything = found(ONE, lambda n, x, c, t: 4 * x)
    assert {p.id for p in everything.values()} == {"accum-loss-not-divided"}
    _, scalars = found(ONE, lambda n, x, c, t: 4 * x, ["log_scale", "bias"])
    assert {p.id for p in scalars.values()} == {"accum-cached-not-divided"}
    for name in ("text_embed", "log_scale", "bias"):
        _, one = found(ONE, lambda n, x, c, t: 4 * x, [name])
        assert {p.id for p in one.values()} == {"unknown"}, name


def test_rows_in_other_places():
    _, reversed_rows = found(ONE, lambda n, x, c, t: x[::-1], ["text_embed"])
    assert reversed_rows["text_embed"].text == "the right rows in reverse order"
    _, rolled = found(ONE, lambda n, x, c, t: np.roll(x, -1, 0), ["image_embed"])
    assert rolled["image_embed"].text == "the right rows, up by one"
    for ranks in (1, -1, 2):
        _, moved = found(RANKS, lambda n, x, c, t, s=ranks: np.roll(x, -5 * s, 0), ["text_embed"])
        assert moved["text_embed"].id == "text-grad-to-wrong-rank"
        assert f"rank r {'+' if ranks > 0 else '-'} {abs(ranks)}" in moved["text_embed"].text
    _, image = found(RANKS, lambda n, x, c, t: np.roll(x, -5, 0), ["image_embed"])
    assert image["image_embed"].id == "unknown"


def test_terms_that_are_missing_or_counted_twice():
    def hop(key, context):
        return (key[1] - key[0]) % len(context.sizes)

    rules = {
        "the texts of rank r + 1 missing": lambda k, c: hop(k, c) != 1,
        "the texts of rank r - 1 counted 2 times": lambda k, c: 1 + (hop(k, c) == len(c.sizes) - 1),
        "positives of all blocks counted 3 times": lambda k, c: 3 if k[2] else 1,
        "negatives of the own block missing": lambda k, c: not (k[0] == k[1] and not k[2]),
        "all remote blocks counted 0.5 (1/2) times": lambda k, c: 1 if k[0] == k[1] else 0.5,
        "the texts of rank 2 missing": lambda k, c: k[1] != 2,
        "the block of rank 1's images and rank 0's texts missing": lambda k, c: k[:2] != (1, 0),
        "all blocks counted 0.37 times": lambda k, c: 0.37,
    }
    for words, weight in rules.items():
        _, of = found(RANKS, weighted(weight))
        assert set(of) == set(NAMES)
        if "0.37" not in words:  # a factor of its own, seen before
            assert of["image_embed"].text == words
            assert of["loss"].text == words
    _, missing = found(RANKS, weighted(rules["the texts of rank r + 1 missing"]))
    assert {p.id for p in missing.values()} == {"ring-hop-missing"}
    _, only_text = found(RANKS, weighted(rules["the texts of rank r + 1 missing"]), ["text_embed"])
    assert only_text["text_embed"].id == "unknown" and only_text["text_embed"].text == "the texts of rank r + 1 missing"


def test_a_buffer_of_zeros_is_known_by_its_loss():
    def zeros(name, exact, context, terms):
        total = 0
        for term in terms:
            second = (term.key[1] - term.key[0]) % len(context.sizes) == 2
            total = total + (term.against_zeros.get(name, 0) if second else term.tensors[name])
        return total

    seen, of = found(RANKS, zeros)
    assert of["loss"].id == "ring-received-buffer-zero"
    assert "softplus(bias) a pair" in of["loss"].text
    findings = explain(
        seen,
        suspects(ranks=True),
        lambda made: Predicted(made, RANKS.contexts, "float64"),
        lambda wrong: patterns(wrong, RANKS.contexts),
    )
    assert findings[0].id == "ring-received-buffer-zero", findings


def test_nothing_is_made_up_of_noise():
    random = np.random.default_rng(3)
    _, of = found(RANKS, lambda n, x, c, t: x * (1 + 0.1 * random.standard_normal(np.shape(x))))
    assert of == {}
    _, nan = found(ONE, lambda n, x, c, t: x * np.nan)
    assert nan == {}


def test_words_for_weights():
    ones = {(i, j, sign): 1.0 for i in range(3) for j in range(3) for sign in (True, False) if i == j or not sign}
    assert describe(ones, 3) == ""
    assert (
        describe(ones | {(0, 1, False): 0.0, (1, 2, False): 0.0, (2, 0, False): 0.0}, 3)
        == "the texts of rank r + 1 missing"
    )
    odd = ones | {(2, 0, False): 0.0, (0, 0, True): -1.0}
    assert "rank 2's images and rank 0's texts missing" in describe(odd, 3)


# --- hop by hop


def told(context, order, loss=None):
    """What ranks tell that meet texts in this order; loss(rank, owner, right) may tell something else."""
    terms = {term.key: float(term.tensors["loss"]) for term in loss_terms(context.probe, LOG, context.sizes)}
    world = len(context.sizes)

    def block(rank, owner):
        right = sum(terms.get((rank, owner, sign), 0.0) for sign in (True, False)) * world
        return loss(rank, owner, right) if loss else right

    return [np.array([block(rank, owner) for owner in order(rank, world)]) for rank in range(world)]


BALANCED = RANKS.contexts["balanced (5, 5, 5, 5)"]


def rows(numbers, dtype="float64"):
    return hops_of(BALANCED.probe, LOG, BALANCED.sizes, numbers, dtype)


@pytest.mark.parametrize("order", [lambda r, w: [(r + h) % w for h in range(w)], lambda r, w: range(w)])
def test_any_order_of_hops_is_right(order):
    table = rows(told(BALANCED, order))
    assert len(table) == 16 and all(row.right for row in table)
    assert [row.text for row in table[:4]] == [f"texts of rank {owner}" for owner in order(0, 4)]
    assert all(row.right for row in rows([5 * part for part in told(BALANCED, order)]))  # another divisor


def ring(rank, world):
    return [(rank + hop) % world for hop in range(world)]


def test_what_goes_wrong_at_a_hop_is_read_off_its_loss():
    missing = rows(told(BALANCED, lambda r, w: ring(r, w)[:-1]))
    assert next((row.rank, row.text) for row in missing if not row.right) == (0, "texts of rank 3: never met")
    again = rows(told(BALANCED, lambda r, w: [*ring(r, w)[:-1], ring(r, w)[-2]]))
    assert "texts of rank 2, met before" in {row.text for row in again if row.rank == 0}
    softplus = np.log1p(np.exp(BALANCED.probe.bias))
    zeros = rows(told(BALANCED, ring, lambda r, o, x: 25 * softplus / 5 if o == (r + 1) % 4 else x))
    assert "zeros: 25 softplus(bias), from a buffer that was never filled" in {row.text for row in zeros}
    assert sum(not row.right for row in zeros) == 8  # four hops, and the texts that were never met
    odd = rows(told(BALANCED, ring, lambda r, o, x: 1.01 * x if (r, o) == (2, 0) else x))
    assert [row.text for row in odd if not row.right] == [NO_BLOCK, "texts of rank 0: never met"]
    both = rows([np.array([x[0], x[1] + x[3], x[2]]) for x in told(BALANCED, ring)])
    assert all(row.right for row in both)
    assert rows([None, None, None, None]) == []


def test_hops_stand_in_every_form_of_the_report():
    from siglip_ref.report.html import to_html

    table = rows(told(BALANCED, lambda r, w: ring(r, w)[:-1]))
    report = Report("a ring", "FAIL", [], hops=table)
    assert "texts of rank 3: never met" in to_text(report) and "texts of rank 3: never met" in to_html(report)
    assert report.to_dict()["hops"][0] == {
        "rank": 0,
        "hop": 0,
        "loss": table[0].loss,
        "text": "texts of rank 0",
        "right": True,
    }
    assert "every rank met" in to_text(Report("a ring", "PASS", [], hops=rows(told(BALANCED, ring))))
