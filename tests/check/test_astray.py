"""Gradients that end at a rank that does not own them: the ring page's own mistakes, and their kind."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loss_terms import loss_terms

from mpi import loss
from siglip_ref.check.call.frameworks import Setting
from siglip_ref.check.diagnosis.blocks.derive import derive
from siglip_ref.check.diagnosis.blocks.faults import faults_of
from siglip_ref.check.diagnosis.blocks.parts import calls_of
from siglip_ref.check.diagnosis.predict import Context
from siglip_ref.check.engine.expected.expected import CONVENTIONS, truth
from siglip_ref.check.engine.expected.probes import POINTS, make_probe
from siglip_ref.check.engine.expected.tolerance import SAFETY
from siglip_ref.check.engine.seen import Seen
from siglip_ref.ops.normalize import normalize_backward, normalize_forward

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from ring_breaks import BREAKS, broken_modules, judged

BY_NAME = {broken.name: broken for broken in BREAKS}
HOME = BY_NAME["astray"].old
ADDED = "            combine(travelling, answer, out=travelling)"
BLOCK = BY_NAME["forget"].old


def named(broken):
    """What the checker says first."""
    report = judged(loss if broken.reduce == "mean" else broken_modules(broken), broken)
    assert report.verdict == ("OTHER CONVENTION" if broken.reduce == "mean" else "FAIL")
    return report.findings


@pytest.mark.parametrize("name", BY_NAME)
def test_every_break_of_the_page_is_named_with_certainty(name):
    findings = named(BY_NAME[name])
    assert [finding.id for finding in findings] == [BY_NAME[name].named], findings
    assert "suspicion" not in findings[0].evidence
    assert "100%" in findings[0].evidence or BY_NAME[name].reduce == "mean"


# one edited line of the ring each; none stands on the page
KIND = {
    "one move too many": (
        HOME,
        "    home = move(ANSWER, travelling, answers, world)\n"
        "    return combine(at_home, move(ANSWER, home.copy(), answers, world + 1))",
        "text-grad-to-wrong-rank",
        "all remote blocks: what belongs to rank r lies with rank r - 1",
    ),
    "added before it moves": (
        "            travelling = move(ANSWER, travelling, answers, hop)\n" + ADDED,
        ADDED + "\n            travelling = move(ANSWER, travelling, answers, hop)",
        "derived",
        "the texts of rank r + 2, the texts of rank r - 1: what belongs to rank r lies with rank r - 1, modulo W (W=4)"
        " / the texts of rank r - 1: what",
    ),
    "own share lost": (HOME, HOME.replace("combine(at_home, ", "(")[:-1] + ")", "derived", "the own block missing"),
    "overwritten": (
        ADDED,
        "            travelling = answer",
        "derived",
        "the texts of rank r + 1, the texts of rank r + 2 missing (W=4)",
    ),
    "zeros at hop 2": (
        BLOCK,
        BLOCK.replace("held)", "held if hop != 2 else np.zeros_like(held))"),
        "ring-received-buffer-zero",
        "the texts of rank r + 2 missing (W=4) / the texts of rank r - 1 missing (W=3), scored against zeros instead",
    ),
}


@pytest.mark.parametrize("name", KIND)
def test_others_of_their_kind_are_told_exactly(name):
    old, new, id, words = KIND[name]
    findings = named(replace(BY_NAME["astray"], name=f"kind_{list(KIND).index(name)}", old=old, new=new))
    assert findings[0].id == id, findings
    assert words in findings[0].evidence and "explains 100% of the deviation" in findings[0].evidence


def astray(seen, contexts):
    """What is said of gradients that were taken apart."""
    blocks = derive(calls_of(seen, contexts))
    return [] if blocks.failed else [(fault.id, *fault.told.values()) for fault in faults_of(blocks)]


SETTING = Setting("float32", "float32", "cpu", False)


def seen_with(convention, name, placed, sizes=(5, 5, 5, 5)):
    """An embedding's gradient of which each block lies with rank `placed(images, texts)`, in float32."""
    seen, contexts, ends = [], {}, np.cumsum(sizes)[:-1]
    for point in (point for point in POINTS if point.name in ("balanced", "trained")):
        probe = make_probe(point, (sum(sizes), 14))
        right = truth(probe, convention, SETTING)
        unit, caches = probe, None
        if convention.embeddings == "raw":  # carried as gradients of unit rows, normalised at the end
            x, y = (normalize_forward(rows, convention.norm, 1e-8)[0] for rows in (probe.image_embed, probe.text_embed))
            unit = replace(probe, image_embed=x, text_embed=y)
            caches = normalize_forward(getattr(probe, name), convention.norm, 1e-8)[1]
        rows = [0.0] * len(sizes)
        for term in loss_terms(unit, replace(convention, embeddings="unit"), sizes):
            block = term.key[:2]
            share = np.split(term.tensors[name], ends)[block[name == "text_embed"]]
            rows[placed(*block)] = rows[placed(*block)] + share
        got = np.concatenate(rows)
        got = normalize_backward(got, caches) if caches else got
        seen.append(Seen(probe.label, name, np.float32(got), right.exact[name], SAFETY * right.noise[name]))
        contexts[probe.label] = Context(probe, convention, sizes)
    return seen, contexts


@pytest.mark.parametrize("convention", [CONVENTIONS[0], CONVENTIONS[2]])
def test_rows_are_taken_apart_in_float32_and_where_the_loss_normalises(convention):
    told = {
        "all remote blocks: what belongs to rank r lies with rank r + 2, modulo W": lambda i, o: (
            o if i == o else (o + 2) % 4
        ),
        "the texts of rank r - 1: what belongs to rank r lies with rank r - 1, modulo W": lambda i, o: (
            o - ((o - i) % 4 == 3)
        ),
        "rank 3 holds 1 times what the block of rank 0's images and rank 1's texts gives to rank 1": lambda i, o: (
            3 if (i, o) == (0, 1) else o
        ),
    }
    for words, placed in told.items():
        id = "text-grad-to-wrong-rank" if words.startswith("all") else ""
        assert astray(*seen_with(convention, "text_embed", placed)) == [(id, words)]


def test_images_may_travel_too():
    found = astray(*seen_with(CONVENTIONS[0], "image_embed", lambda i, o: i if i == o else (i - 1) % 4))
    words = "all remote blocks: what belongs to rank r lies with rank r - 1, modulo W"
    assert found == [("", words)]  # the name is that of texts


def test_what_is_at_home_or_random_is_not_astray():
    seen, contexts = seen_with(CONVENTIONS[0], "text_embed", lambda i, o: o)
    assert not astray(seen, contexts)
    noise = np.random.default_rng(5)
    shaken = [replace(one, got=one.got * (1 + 0.1 * noise.standard_normal(one.got.shape))) for one in seen]
    assert not astray(shaken, contexts)
