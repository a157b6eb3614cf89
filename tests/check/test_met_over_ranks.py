"""What ranks met, by the numbers: factors, rows in other places, terms that are missing or twice; and hop by hop."""

from types import SimpleNamespace

import numpy as np
import pytest
from loss_terms import loss_terms

from siglip_ref.check.call.frameworks import Setting
from siglip_ref.check.diagnosis.blocks.derive import worked_out
from siglip_ref.check.diagnosis.blocks.faults import faults_of
from siglip_ref.check.diagnosis.blocks.groups import describe
from siglip_ref.check.diagnosis.blocks.parts import calls_of
from siglip_ref.check.diagnosis.predict import Context
from siglip_ref.check.engine.expected.expected import CONVENTIONS, truth
from siglip_ref.check.engine.expected.probes import POINTS, make_probe
from siglip_ref.check.engine.expected.tolerance import SAFETY
from siglip_ref.check.engine.seen import Seen
from siglip_ref.check.ranks.hops import NO_BLOCK, hops_of
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


RANKS = case((5, 5, 5, 5), (5, 5, 5))


def found(change, tensors=NAMES):
    """What is told of each tensor, and the entries of the catalogue, where all of it is reproduced, of what comes when
    `change(name, values, context, terms)` is done to some tensors, in float32."""
    seen = []
    for label, right in RANKS.right.items():
        for name in NAMES:
            exact = right.exact[name]
            values = change(name, exact, RANKS.contexts[label], RANKS.terms[label]) if name in tensors else exact
            noise = SAFETY * right.noise[name]
            seen.append(Seen(label, name, np.asarray(values, np.float32), exact, noise))
    with np.errstate(all="ignore"):
        blocks = worked_out(calls_of(seen, RANKS.contexts))
    faults = faults_of(blocks) if blocks.certain else []
    return {name: text for fault in faults for name, text in fault.told.items()}, {fault.id for fault in faults}


def weighted(weight):
    """Terms counted weight(key, context) times."""
    return lambda name, exact, context, terms: sum(weight(t.key, context) * t.tensors[name] for t in terms)


@pytest.mark.parametrize("convention", [LOG, RAW])
def test_terms_sum_up_to_the_loss(convention):
    for context in RANKS.contexts.values():
        right = truth(context.probe, convention, Setting("float64", "float64", "cpu", False)).exact
        terms = loss_terms(context.probe, convention, context.sizes)
        for name in NAMES:
            total = sum(term.tensors[name] for term in terms)
            assert np.abs(total - right[name]).max() <= 1e-13 * max(np.abs(right[name]).max(), 1e-3)


@pytest.mark.parametrize(
    ("words", "factor", "tensors", "id"),
    [
        ("1/W", lambda c: 1 / len(c.sizes), ["image_embed", "bias"], ""),
        ("1/B", lambda c: 1 / c.probe.shape[0], NAMES, "sum-vs-mean-vs-b2"),
        ("-1", lambda c: -1, ["text_embed"], ""),
        ("0.37", lambda c: 0.37, ["text_embed"], ""),
        ("4", lambda c: 4, NAMES, "accum-loss-not-divided"),
        ("4", lambda c: 4, ["log_scale", "bias"], "accum-cached-not-divided"),
        ("4", lambda c: 4, ["bias"], ""),
    ],
)
def test_factors_are_called_by_their_names(words, factor, tensors, id):
    told, ids = found(lambda name, exact, context, terms: factor(context) * exact, tensors)
    assert told == dict.fromkeys(tensors, f"{words} times the right one") and ids == {id}


def test_rows_in_other_places():
    for ranks in (1, -1, 2):
        told, ids = found(lambda n, x, c, t, s=ranks: np.roll(x, -5 * s, 0), ["text_embed"])
        assert ids == {"text-grad-to-wrong-rank"}
        assert f"rank r {'+' if ranks > 0 else '-'} {abs(ranks)}" in told["text_embed"]
    _, ids = found(lambda n, x, c, t: np.roll(x, -5, 0), ["image_embed"])
    assert ids == {""}


def hop(key, context):
    return (key[1] - key[0]) % len(context.sizes)


@pytest.mark.parametrize(
    ("words", "weight"),
    [
        ("the texts of rank r + 1 missing", lambda k, c: hop(k, c) != 1),
        ("the texts of rank r - 1 counted 2 times", lambda k, c: 1 + (hop(k, c) == len(c.sizes) - 1)),
        ("positives of all blocks counted 3 times", lambda k, c: 3 if k[2] else 1),
        ("negatives of the own block missing", lambda k, c: not (k[0] == k[1] and not k[2])),
        ("all remote blocks counted 0.5 (1/2) times", lambda k, c: 1 if k[0] == k[1] else 0.5),
        ("the texts of rank 2 missing", lambda k, c: k[1] != 2),
        ("the block of rank 1's images and rank 0's texts missing", lambda k, c: k[:2] != (1, 0)),
    ],
)
def test_terms_that_are_missing_or_counted_twice(words, weight):
    told, _ = found(weighted(weight))
    assert told == dict.fromkeys(NAMES, words)


def test_a_hop_that_is_missing_has_a_name_where_everything_lacks_it():
    def less(key, context):
        return hop(key, context) != 1

    assert found(weighted(less))[1] == {"ring-hop-missing"}
    told, ids = found(weighted(less), ["text_embed"])
    assert ids == {""} and told["text_embed"] == "the texts of rank r + 1 missing"


def test_a_buffer_of_zeros_is_known_by_its_loss():
    def zeros(name, exact, context, terms):
        second = {term.key: hop(term.key, context) == 2 for term in terms}
        return sum(t.against_zeros.get(name, 0) if second[t.key] else t.tensors[name] for t in terms)

    told, ids = found(zeros)
    assert ids == {"ring-received-buffer-zero"} and "softplus(bias) a pair" in told["loss"]


def test_nothing_is_made_up_of_noise():
    random = np.random.default_rng(3)
    assert found(lambda n, x, c, t: x * (1 + 0.1 * random.standard_normal(np.shape(x))))[0] == {}
    assert found(lambda n, x, c, t: x * np.nan)[0] == {}


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
