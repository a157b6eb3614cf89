"""The mistakes that people make with the recipe: each that can be run shows where its kind must show."""

import numpy as np
import pytest

from siglip_ref.mistakes import Mistake, entries
from siglip_ref.vectors.power import SEEN, errors, measured, mistaken
from siglip_ref.vectors.store import packaged

MISTAKES = {mistake.id: mistake for mistake in entries("siglip2")}
# gradients alone show these: every value of a forward pass is right
IN_GRADIENTS = {
    "caption-tokens-detached",
    "decoder-embedding-overwritten",
    "decoder-position-forgotten",
    "mask-token-constant",
    "bottleneck-scatter-after-widening",
}
# one step's loss and gradients are right: only what is kept for the next one shows these
IN_STEPS = {
    "ema-before-step",
    "ema-reversed",
    "ema-momentum-late",
    "ema-momentum-reaches-one",
    "ema-head-left-out",
}
# one rank, or ranks of equal size, show nothing
IN_RANKS = {"recipe-unequal-shards", "distill-centre-of-rank", "distill-centre-mean-of-means", "ema-per-micro-batch"}
# a convention, or the centre that the next step will use
IN_WHAT_IS_KEPT = {"mask-centre-other-patches"}
STEPS = {"objective/two-steps", "objective/two-ranks"}
VALUES = ("loss", "out", "scores", "chosen")


def seen_by(mistake: Mistake) -> set[str]:
    """The vectors that show it in float64."""
    return {name for name, row in measured().power[mistake.id].items() if (row[0] or 0) >= SEEN}


@pytest.mark.parametrize("mistake", [m for m in MISTAKES.values() if m.edits], ids=lambda m: m.id)
def test_a_mistake_shows_in_its_class(mistake: Mistake) -> None:
    vectors = seen_by(mistake)
    if mistake.id in IN_RANKS:
        assert vectors == {"objective/two-ranks"}
        return
    if mistake.id in IN_STEPS:
        assert vectors and vectors <= STEPS
        return
    one = min(vectors - STEPS, key=lambda name: len(packaged().find(name).expected))
    vector = packaged().find(one)
    off = {name for name, error in errors(vector, mistaken(vector, mistake)).items() if not error <= 1e-9}
    values = {name for name in off if name.startswith(VALUES)}
    if mistake.id in IN_GRADIENTS:
        assert off and not values
    elif mistake.id in IN_WHAT_IS_KEPT:
        assert {name.split("/")[0] for name in off} == {"said"}
    else:
        assert values


def test_at_least_58_of_the_69_known_ones_can_be_run() -> None:
    """Several of ours are two forms of one of them, and one is our own; four change no number of the reference."""
    cannot = {mistake.id for mistake in MISTAKES.values() if not mistake.edits}
    assert cannot == {
        "distill-teacher-not-stopped", "distill-teacher-is-student", "ema-of-buffers", "curation-through-scores",
    }  # fmt: skip
    assert len(MISTAKES) - len(cannot) >= 58 + 14
    assert all(seen_by(mistake) for mistake in MISTAKES.values() if mistake.edits)


def test_six_typical_errors_of_public_attempts_are_named() -> None:
    """Answers to a vector that were computed with the mistake, judged and explained by the check of a file."""
    from siglip_ref.check.files.dump import judge

    typical = {
        "caption-mode-of-batch": "decoder/mixed",
        "distill-centre-of-student": "distill/local",
        "mask-on-output": "mask/patches",
        "mask-token-constant": "mask/patches",
        "distill-centre-missing": "distill/local",
        "curation-sublist-indices": "curation/uniform",
    }
    for name, vector in typical.items():
        golden = packaged().find(vector)
        answer = {key: np.asarray(value) for key, value in mistaken(golden, MISTAKES[name], "float64").items()}
        report = judge(golden, answer, "float64", "")
        assert report.verdict == "FAIL" and name in [finding.id for finding in report.findings], report
