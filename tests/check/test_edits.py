"""Single edits of the specification's formulas: generated, tried against another program, named only with proof."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from reference_adapter import ReferenceAdapter

import siglip_ref as sr
from siglip_ref.check.engine.edits import Fitted, fitting
from siglip_ref.mistakes.grammar.switched import edited, made, named, singles
from siglip_ref.model import optim
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import number
from siglip_ref.ops.record import Pair
from siglip_ref.report.edits import finding_of

RULE = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
ATTENTION = named(SPECIFICATION.attention.forward)


def test_without_an_edit_made_the_operations_are_the_specifications():
    rng = np.random.default_rng(0)
    x, size = rng.standard_normal((2, 5, 8)), 8
    weights = {f"{part}/kernel": rng.standard_normal((size, size)) for part in ("q", "k", "v", "out")}
    weights |= {f"{part}/bias": rng.standard_normal(size) for part in ("q", "k", "v", "out")}
    given = (x, x, weights, 2, None)
    ours = edited((ATTENTION,)).ops.attention.forward
    right = SPECIFICATION.attention.forward(*given)[0]
    assert np.array_equal(ours(*given)[0], right)
    changes = 0
    for one in singles([ATTENTION]):
        with made([one]), np.errstate(all="ignore"):
            try:
                changes += not np.array_equal(ours(*given)[0], right)
            except Exception:  # no program
                continue
    assert changes > 300  # of some hundreds that run
    assert np.array_equal(ours(*given)[0], right)  # and none is left behind


def test_an_edit_says_what_is_computed():
    [one] = [one for one in singles([ATTENTION]) if one.new == "query" and one.old == "query / root"]
    assert (one.was, one.now) == (
        "scores = query / root @ key.swapaxes(-1, -2)",
        "scores = query @ key.swapaxes(-1, -2)",
    )


def by_hand(params, grads, state, *, eps_inside=False, decays=optim.kernels, coupled=False, odd=0.0):
    """AdamW as somebody else writes it, with places for mistakes."""
    k, means = state or (0, {})
    k, means = k + 1, dict(means)
    length = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
    factor = min(1.0, RULE.max_norm / (length + 1e-6))
    moved = {}
    for name, p in params.items():
        g = grads[name] * np.float32(factor)
        m, v = means.get(name, (0 * p, 0 * p))
        m, v = np.float32(0.9) * m + np.float32(0.1) * g, np.float32(0.95) * v + np.float32(0.05) * g * g
        means[name] = m, v
        square = v / np.float32(1 - 0.95**k)
        root = np.sqrt(square + np.float32(1e-8)) if eps_inside else np.sqrt(square) + np.float32(1e-8)
        keep = np.float32(1 - (RULE.lr * RULE.decay if decays(name) else 0.0))
        moved[name] = p * keep - np.float32(RULE.lr / (1 - 0.9**k)) * m / root + np.float32(odd) * np.sin(p)
    return moved, (k, means)


def test_a_right_step_is_left_alone():
    report = sr.check_step(by_hand, RULE)
    assert report.verdict == "PASS" and not report.computes, report


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (dict(eps_inside=True), "every step is right with eps within the root"),
        (dict(decays=lambda name: True), "decay = decay"),
        (dict(decays=lambda name: not name.endswith("/kernel")), "what should decay and what should not exchanged"),
    ],
)
def test_what_a_step_computes_is_worked_out(mistake, words):
    report = sr.check_step(lambda *given: by_hand(*given, **mistake), RULE)
    assert report.verdict == "FAIL"
    assert words in "; ".join([*report.computes, *(one.evidence for one in report.findings)]), report


def test_no_name_without_proof():
    report = sr.check_step(lambda *given: by_hand(*given, odd=1e-4), RULE)
    assert report.verdict == "FAIL" and not any(line.startswith("your step") for line in report.computes), report


def scores_by_size(x_query, x_key, weights, heads, mask=None):
    """Attention whose scores are divided by the head's size, not by its root: the scores of a query that is smaller."""
    root = np.sqrt(number(weights["q/kernel"].shape[1] // heads, x_query))
    shrunk = {name: value / root if name.startswith("q/") else value for name, value in weights.items()}
    out, cache = SPECIFICATION.attention.forward(x_query, x_key, shrunk, heads, mask)
    return out, (cache, root)


def scores_by_size_back(d_out, cache):
    inner, root = cache
    d_query, d_key, d = SPECIFICATION.attention.backward(d_out, inner)
    return d_query, d_key, {name: grad / root if name.startswith("q/") else grad for name, grad in d.items()}


class Wrong(ReferenceAdapter):
    """The reference with other operations."""

    ops = replace(SPECIFICATION, attention=Pair(scores_by_size, scores_by_size_back))
    back = staticmethod(lambda grads: grads)

    def run(self, params, images, tokens, dtype):
        from siglip_ref.check.model.adapters import Run
        from siglip_ref.check.model.tower import values_and_grads

        params = {name: value.astype(np.float64) for name, value in params.items()}
        given = (params, images.astype(np.float64), tokens, self.config, self.config.conventions, self.ops)
        values, loss, grads = values_and_grads(*given)
        return Run(loss, values, self.back(grads))


def test_what_a_tower_computes_is_worked_out_and_proven_in_a_further_run():
    report = sr.check_model(Wrong(), "float32")
    assert report.computes[0].startswith("image/block00/+attn"), report
    assert "root = query.shape[-1], where the specification has root = sqrt(query.shape[-1])" in report.computes[0]
    assert report.computes[1].startswith("reproduced in a further run")


def test_an_edit_whose_gradients_are_others_is_not_named():
    wrong = Wrong()
    wrong.back = lambda grads: grads | {"text/norm/gamma": 1.01 * grads["text/norm/gamma"]}
    report = sr.check_model(wrong, "float32")
    assert report.computes[0].startswith("measured: "), report
    assert "d text/norm/gamma of a further run is not the model's" in report.computes[1]


def test_what_is_no_number_explains_nothing():
    looks = {"first": [0.5, np.nan], "last": [np.nan, 0.5], "right": [0.9, 0.9]}

    @contextmanager
    def program(changes) -> Iterator[tuple[str, ...]]:
        yield changes

    def look(changes):
        return looks[changes[0]] if changes else [2.0, 2.0]

    assert fitting(list(looks), program, look) == [("right",)]
    assert fitting(list(looks), program, lambda _: [0.5], look) == [("right",)]


def test_a_setting_that_is_always_the_same_is_told_as_that():
    kinds = [one for one in singles(["siglip_ref.ops.pooling:pool_forward"]) if one.old == "kind" and "mean" in one.new]
    assert {(one.now, one.was) for one in kinds} == {
        ("kind is always 'mean'", "out = x.mean(1) only where kind == 'mean'")
    }


def test_every_repair_is_one_that_a_reader_can_follow():
    functions = [named(one) for pair in vars(SPECIFICATION).values() if isinstance(pair, Pair) for one in pair]
    for due in {one.was for one in singles([*functions, named(optim.adamw_step), named(optim.clip)])}:
        assert " = " in due or due.split(" only where ")[0].endswith(" as it is"), due
        assert "ops" not in due and "QUICK" not in due and not re.search(r"\birst", due), due
    split = next(one for one in singles([ATTENTION]) if "_split" in one.was)
    repair = finding_of([Fitted((split,))], "image/block00/+attn").repair
    assert repair.startswith("there should be query, key, value = (_split(query, heads)")
    assert repair.endswith(" (_split(x) is x (B, N, C) as (B, heads, N, h))")
