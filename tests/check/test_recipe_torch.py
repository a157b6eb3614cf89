"""Every mistake of the recipe that can be run, planted in a program in plain Torch: flagged, and called by its name."""

from typing import Any

import pytest
import torch
from torch_recipe import Program

import siglip_ref as sr
from siglip_ref.mistakes import entries

# what is checked: the program's part, and the mistakes that are planted there
PLANTED = {
    "captions": (
        "captions",
        "caption-no-shift caption-shift-two caption-no-causal-mask caption-causal-one-ahead caption-parallel-causal "
        "caption-mode-of-batch caption-mask-id-start caption-pad-counted average-over-all-places average-not-divided "
        "caption-end-not-predicted decoder-norms-context decoder-embedding-overwritten decoder-position-forgotten",
    ),
    "decoder/smoothed": ("captions", "token-loss-smoothing-share"),
    "recipe/token_loss": ("token_loss", "token-loss-softmax-of-chunk"),
    "recipe/bottleneck": ("bottleneck", "bottleneck-scatter-after-widening"),
    "recipe/head-short": ("head_alone", "head-eps"),
    "objective/captions": ("objective", "caption-before-final-norm caption-tokens-detached"),
    "local": (
        "objective",
        "distill-centre-early distill-centre-missing distill-centre-added distill-centre-after-temperature "
        "distill-centre-of-student distill-temperature-of-student distill-cross-entropy-swapped distill-kl "
        "head-without-unit-length head-without-weight-norm distill-diagonal-skipped distill-sum-over-views "
        "view-position-not-resized distill-view-major distill-teacher-drops",
    ),
    "mask": (
        "objective",
        "mask-after-position mask-seen-by-teacher mask-inverted mask-loss-of-all mask-loss-of-visible "
        "mask-mean-of-patches mask-on-output mask-unused mask-token-constant average-of-nothing mask-before-bias",
    ),
    "objective": (
        "objective",
        "caption-reads-pooled distill-original-view distill-weight-of-twenty-percent mask-head-of-images "
        "mask-centre-of-images",
    ),
    "mask/patches": ("said", "mask-centre-other-patches"),
    "steps": (
        "steps",
        "recipe-unequal-shards distill-centre-of-rank distill-centre-mean-of-means ema-before-step ema-reversed "
        "ema-per-micro-batch ema-head-left-out",
    ),
    "objective/two-steps": ("steps", "ema-momentum-late ema-momentum-reaches-one"),
    "curation": (
        "curation",
        "curation-sign curation-diagonal-only curation-rows-only curation-columns-only curation-with-replacement "
        "curation-sublist-indices curation-one-scale curation-chunk-rounded curation-without-noise",
    ),
}
# right, but under another of the conventions that nobody published
CONVENTIONS = {"caption-pad-keys-hidden": 'pad_keys="hidden"', "caption-mean-of-tokens": 'mean="token"'}
CASES = [(part, way, mistake) for part, (way, names) in PLANTED.items() for mistake in names.split()]
LARGE = ("objective", "objective/two-steps")  # all four losses: seconds each, so every night


def check(part: str, way: str, made: str = "", dtype: str = "float64") -> Any:
    program = Program(made)
    return sr.check_recipe(lambda a, s: getattr(program, way)(a, s), part, framework="torch", dtype=dtype)


@pytest.mark.parametrize("part", PLANTED)
def test_the_right_program_passes(part: str) -> None:
    report = check(part, PLANTED[part][0])
    assert report.verdict == "PASS", report


@pytest.mark.parametrize("part", ["local", "mask", "objective", "steps", "curation"])
def test_the_right_program_passes_in_float32(part: str) -> None:
    report = check(part, PLANTED[part][0], dtype="float32")
    assert report.verdict == "PASS", report


@pytest.mark.parametrize(
    ("part", "way", "mistake"),
    [pytest.param(*case, marks=pytest.mark.nightly) if case[0] in LARGE else case for case in CASES],
    ids=[f"{part} {mistake}" for part, _, mistake in CASES],
)
@pytest.mark.sampled(3)
def test_a_mistake_is_flagged_and_named(part: str, way: str, mistake: str) -> None:
    report = check(part, way, mistake)
    assert report.verdict == "FAIL" and mistake in [finding.id for finding in report.findings], report


@pytest.mark.parametrize(("made", "words"), CONVENTIONS.items())
def test_another_convention_is_told_from_a_mistake(made: str, words: str) -> None:
    report = check("captions", "captions", made)
    assert report.verdict == "OTHER CONVENTION" and words in str(report)


@pytest.mark.parametrize(("part", "other"), [("local", "distill/sinkhorn"), ("curation", "curation/diagonal")])
def test_the_other_convention_of_a_teacher_or_a_choice_is_told_too(part: str, other: str) -> None:
    """Sinkhorn for the centre; the diagonal for the first chunk."""
    from siglip_ref.vectors.store import packaged

    settings, program = packaged().find(other).all_settings, Program()
    way = getattr(program, PLANTED[part][0])
    report = sr.check_recipe(lambda a, s: way(a, settings), part, framework="torch", dtype="float64")
    assert report.verdict == "OTHER CONVENTION", report


def test_every_mistake_that_can_be_run_is_planted_here() -> None:
    planted = {mistake for _, _, mistake in CASES} | CONVENTIONS.keys()
    assert planted == {mistake.id for mistake in entries("siglip2") if mistake.edits}


def test_the_six_typical_errors_of_public_attempts_are_among_them() -> None:
    """Read as code: a port of TIPS, one of SigLIP 2, two of JEST."""
    typical = (
        "distill-centre-of-student mask-on-output mask-token-constant distill-centre-missing caption-mode-of-batch "
        "curation-sublist-indices"
    )
    assert set(typical.split()) <= {mistake for _, _, mistake in CASES}


def test_nothing_of_the_teacher_has_a_gradient() -> None:
    """The two that change no number of the student are seen by looking at the teacher."""
    from siglip_ref.vectors.store import packaged

    vector = packaged().find("distill/local")
    given = {name: torch.tensor(value) for name, value in vector.inputs.items()}
    given = {name: x.double().requires_grad_() if x.is_floating_point() else x for name, x in given.items()}
    Program().objective(given, vector.all_settings).backward()
    assert all(x.grad is None for name, x in given.items() if name.startswith(("teacher/", "centre/")))
