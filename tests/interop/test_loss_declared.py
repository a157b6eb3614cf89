"""Declared variants of the loss, in Torch and in JAX: a right one passes, a planted mistake does not; modules with
parameters of their own; and the block of pairs with labels and weights behind all of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import siglip_ref as sr
from siglip_ref.arithmetic.complex_step import gradient
from siglip_ref.check.call.frameworks import Setting
from siglip_ref.check.engine.expected.captions import with_captions
from siglip_ref.check.engine.expected.convention import Objective, as_given
from siglip_ref.check.engine.expected.exact import exact_loss, proven
from siglip_ref.check.engine.expected.expected import conventions_of, given_of, noise_of
from siglip_ref.check.engine.expected.labelled import labelled_loss, text_order
from siglip_ref.check.engine.expected.probes import POINTS, loss_probes, points_of
from siglip_ref.check.engine.expected.repeated import MIDDLE, Repeated, repeated_probe
from siglip_ref.check.engine.expected.tolerance import loss_noise
from siglip_ref.model.loss import sigmoid_loss, weighted_loss

Loss = Callable[..., Any]


@dataclass(frozen=True)
class Library:
    """The two frameworks, by the functions that a loss needs. several : every row k times, side by side."""

    logsigmoid: Loss
    exp: Loss
    eye: Loss
    number: Loss
    several: Loss


TORCH = Library(
    F.logsigmoid,
    torch.exp,
    lambda x: torch.eye(len(x), dtype=x.dtype),
    lambda m, x: m.to(x.dtype),
    lambda m, k: m.repeat_interleave(k, 1),
)
JAX = Library(
    jax.nn.log_sigmoid,
    jnp.exp,
    lambda x: jnp.eye(len(x), dtype=x.dtype),
    lambda m, x: m.astype(x.dtype),
    lambda m, k: jnp.repeat(m, k, 1),
)


def logits_of(at: Library, x: Any, y: Any, s: Any, b: Any = 0.0) -> Any:
    return at.exp(s) * (x @ y.T) + b


def soft(at: Library, logits: Any, labels: Any, weights: Any = 1.0) -> Any:
    return -(weights * (labels * at.logsigmoid(logits) + (1 - labels) * at.logsigmoid(-logits)))


def mean(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.eye(x)).mean() * (len(x) / (len(x) + 1) if wrong else 1)


def no_bias(at: Library, x: Any, y: Any, s: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s), at.eye(x)).sum() / (len(x) * (2 if wrong else 1))


def by_ids(at: Library, x: Any, y: Any, s: Any, b: Any, ids: Any, wrong: bool) -> Any:
    same = at.eye(x) if wrong else at.number(ids[:, None] == ids, x)
    return soft(at, logits_of(at, x, y, s, b), same).sum() / len(x)


def by_pairs(at: Library, x: Any, y: Any, s: Any, b: Any, weights: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.eye(x), weights.T if wrong else weights).sum() / len(x)


def by_rows(at: Library, x: Any, y: Any, s: Any, b: Any, weights: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.eye(x), weights if wrong else weights[:, None]).sum() / len(x)


def by_columns(at: Library, x: Any, y: Any, s: Any, b: Any, weights: Any, wrong: bool) -> Any:
    return by_rows(at, x, y, s, b, weights, not wrong)


def weighed(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    own = at.eye(x)
    return soft(at, logits_of(at, x, y, s, b), own, 1 + (2.0 if not wrong else 2.1) * own).sum() / len(x)


def smoothed(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.eye(x) * 0.9 + (0.1 if wrong else 0.05)).sum() / len(x)


def both(at: Library, x: Any, y: Any, s: Any, b: Any, ids: Any, weights: Any, wrong: bool) -> Any:
    same, by_row = at.number(ids[:, None] == ids, x), weights if wrong else weights[:, None]
    return soft(at, logits_of(at, x, y, s, b), same, by_row).mean()


def by_captions(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    first = slice(1) if wrong else slice(None)  # of a row only the first number is compared
    same = at.number((y[:, None, first] == y[None, :, first]).all(-1), x)
    return soft(at, logits_of(at, x, y, s, b), same).sum() / len(x)


def three(at: Library, x: Any, y: Any, s: Any, b: Any, wrong: bool) -> Any:
    return soft(at, logits_of(at, x, y, s, b), at.several(at.eye(x), 3)).sum() / len(y if wrong else x)


def two_by_ids(at: Library, x: Any, y: Any, s: Any, b: Any, ids: Any, text_ids: Any, wrong: bool) -> Any:
    same = at.several(at.eye(x), 2) if wrong else at.number(ids[:, None] == text_ids, x)
    return soft(at, logits_of(at, x, y, s, b), same).sum() / len(x)


def two_by_columns(at: Library, x: Any, y: Any, s: Any, b: Any, weights: Any, wrong: bool) -> Any:
    """Of equal captions, the mean over all pairs, a weight of each text."""
    same = (y[:, None] == y).all(-1)
    same = at.number(same.reshape(len(x), 2, len(y)).any(1) if not wrong else same[::2], x)
    return soft(at, logits_of(at, x, y, s, b), same, weights).mean()


VARIANTS: dict[str, tuple[Loss, dict[str, Any]]] = {
    "mean": (mean, {"reduction": "mean"}),
    "no bias": (no_bias, {"bias": None}),
    "ids": (by_ids, {"positives": "ids"}),
    "pairs": (by_pairs, {"weights": "pairs"}),
    "rows": (by_rows, {"weights": "rows"}),
    "columns": (by_columns, {"weights": "columns"}),
    "two weights": (weighed, {"weights": (3.0, 1.0)}),
    "smoothing": (smoothed, {"label_smoothing": 0.1}),
    "ids, rows, mean": (both, {"positives": "ids", "weights": "rows", "reduction": "mean"}),
    "captions": (by_captions, {"positives": "captions"}),
    "three captions": (three, {"captions_per_image": 3}),
    "two captions by ids": (two_by_ids, {"captions_per_image": 2, "positives": "ids"}),
    "two captions, columns, mean": (
        two_by_columns,
        {"captions_per_image": 2, "positives": "captions", "weights": "columns", "reduction": "mean"},
    ),
}


def objective_of(declared: dict[str, Any]) -> Objective:
    fields = {"label_smoothing": "smoothing", "captions_per_image": "per_image"}
    values = {fields.get(key, key): value for key, value in declared.items()}
    return Objective(**(values | ({"bias": False} if "bias" in values else {})))


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        ("torch", "float32"),
        ("jax", "float64"),
        pytest.param("torch", "float64", marks=pytest.mark.nightly),
        pytest.param("jax", "float32", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("name", VARIANTS)
def test_right_passes_and_wrong_fails(name: str, library: str, dtype: str) -> None:
    fn, declared = VARIANTS[name]
    at = TORCH if library == "torch" else JAX
    right = sr.check_loss(partial(fn, at, wrong=False), library, dtype, **declared)
    assert right.passed, right
    assert right.smallest_tolerance < 3
    assert right.sight is not None and not right.sight.blind
    assert all(f"{key}=" in str(right.notes) for key in declared)
    if library == "torch":
        assert sr.check_loss(partial(fn, at, wrong=True), library, dtype, **declared).verdict == "FAIL"


@pytest.mark.parametrize("name", ["mean", "ids", "rows"])
def test_planted_mistakes_in_jax(name: str) -> None:
    fn, declared = VARIANTS[name]
    assert sr.check_loss(partial(fn, JAX, wrong=True), "jax", **declared).verdict == "FAIL"


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_right_ones_pass_in_16_bits(name: str, dtype: str) -> None:
    fn, declared = VARIANTS[name]
    report = sr.check_loss(partial(fn, TORCH, wrong=False), "torch", dtype, **declared)
    assert report.verdict == "PASS", report


def test_mistakes_of_the_catalogue_are_named_in_a_variant() -> None:
    report = sr.check_loss(lambda x, y, s, b: mean(TORCH, x, y, s, -b, False), "torch", reduction="mean")
    assert [finding.id for finding in report.findings] == ["bias-subtracted"]


TOLD = {  # what is said of the wrong one, beside the right one's formula
    "mean": ("1/B^2 sum_ij softplus", "is -bias, not bias (add the bias, do not subtract it)"),
    "no bias": ("(exp(log_scale) sim_ij))", "multiplied by 0.5/B, not 1/B"),
    "two weights": ("3/B sum over i = j", "positives: i = j with weight 3.1/B"),
    "smoothing": ("- 0.05 (", "positives: softplus(u) in place of"),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_a_declared_variant_computes_is_worked_out(name: str) -> None:
    """Beside what was declared, not beside SigLIP's own."""
    fn, declared = VARIANTS[name]
    formula, difference = TOLD[name]
    right = sr.check_loss(partial(fn, TORCH, wrong=False), "torch", explain=True, **declared)
    assert formula in right.computes[0] and right.computes[1] == "that is what was declared", right.computes
    astray = (lambda x, y, s, b: mean(TORCH, x, y, s, -b, False)) if name == "mean" else partial(fn, TORCH, wrong=True)
    wrong = sr.check_loss(astray, "torch", **declared)
    said = [line for line in wrong.computes if line.startswith("not what was declared")]
    assert said and difference in str(said), wrong.computes
    assert all("make it what was declared" in line for line in said) or name == "mean", said
    assert not any("negatives" in line for line in said) or name == "smoothing", said


COUNTED = {  # how pairs count in the wrong one
    "ids": "pairs that stand side by side belong together",
    "pairs": "transposed",
    "rows": "transposed",
    "ids, rows, mean": "transposed",
    "three captions": "divided by the number of texts",
    "two captions by ids": "pairs that stand side by side belong together",
}


@pytest.mark.parametrize("name", COUNTED)
def test_how_pairs_count_otherwise_is_worked_out(name: str) -> None:
    fn, declared = VARIANTS[name]
    report = sr.check_loss(partial(fn, TORCH, wrong=True), "torch", **declared)
    assert report.computes[0].startswith("declared: 1/B") and COUNTED[name] in report.computes[1], report.computes
    assert [finding.id for finding in report.findings] == ["derived"] and COUNTED[name] in report.findings[0].evidence


def test_ids_that_are_compared_the_wrong_way_are_told() -> None:
    def different(x: Any, y: Any, s: Any, b: Any, ids: Any) -> Any:
        return soft(TORCH, logits_of(TORCH, x, y, s, b), (ids[:, None] != ids).to(x.dtype)).sum() / len(x)

    report = sr.check_loss(different, "torch", positives="ids")
    assert report.verdict == "FAIL" and "taken for the others" in report.computes[1]


@pytest.mark.parametrize("name", ["ids", "pairs", "two captions, columns, mean", "softmax"])
def test_what_a_right_one_computes_is_said_where_it_is_asked_for(name: str) -> None:
    def clip(x: Any, y: Any, s: Any) -> Any:
        logits, own = s.exp() * x @ y.T, torch.arange(len(x))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    fn, declared = VARIANTS.get(name, (None, {"loss": "softmax"}))
    right = partial(fn, TORCH, wrong=False) if fn else clip
    said = sr.check_loss(right, "torch", explain=True, **declared).computes
    assert said[0].startswith("your loss: 1/") and said[1] == "that is what was declared"
    assert not sr.check_loss(right, "torch", **declared).computes


def test_what_counts_in_no_known_way_is_not_told() -> None:
    fn, declared = VARIANTS["captions"]
    assert not sr.check_loss(partial(fn, TORCH, wrong=True), "torch", **declared).computes


@pytest.mark.parametrize(
    ("name", "argument"), [("mean", 'reduction="mean"'), ("two weights", "weights="), ("smoothing", "label_smoothing=")]
)
def test_an_undeclared_variant_names_its_argument(name: str, argument: str) -> None:
    report = sr.check_loss(partial(VARIANTS[name][0], TORCH, wrong=False), "torch")
    assert report.verdict == "FAIL" and argument in str([finding.repair for finding in report.findings]), report


def test_what_was_declared_and_is_not_is_another_convention() -> None:
    plain = partial(smoothed, TORCH, wrong=False)
    own = lambda x, y, s, b: soft(TORCH, logits_of(TORCH, x, y, s, b), torch.eye(len(x), dtype=x.dtype)).sum() / len(x)  # noqa: E731
    report = sr.check_loss(own, "torch", reduction="mean")
    assert report.verdict == "OTHER CONVENTION" and report.findings[0].repair.endswith("check_loss(fn)")
    assert sr.check_loss(plain, "torch", reduction="mean").verdict == "FAIL"


def test_numpy_is_given_ids_and_returns_three_gradients_without_a_bias() -> None:
    def fn(x: Any, y: Any, s: Any, ids: Any) -> tuple[Any, ...]:
        same = (ids[:, None] == ids).astype(x.dtype)
        return tuple(weighted_loss(x, y, s, 0 * s, same, 1 - same))[:4]

    assert sr.check_loss(fn, "numpy", bias=None, positives="ids").passed


# --- modules


class Own(torch.nn.Module):
    """As most people write it."""

    def __init__(self, kind: str, shape: tuple[int, ...] = (), bias: bool = True, detached: bool = False) -> None:
        super().__init__()
        self.kind, self.detached = kind, detached
        self.temp = torch.nn.Parameter(torch.full(shape, 2.0))
        self.b = torch.nn.Parameter(torch.full(shape, -10.0)) if bias else None

    def forward(self, image: Any, text: Any) -> Any:
        temp = self.temp.detach() if self.detached else self.temp
        scale = {"log_scale": temp.exp(), "scale": temp, "temperature": 1 / temp}[self.kind]
        logits = scale * image @ text.T + (self.b if self.b is not None else 0)
        loss = -F.logsigmoid((2 * torch.eye(len(image), dtype=image.dtype) - 1) * logits).sum() / len(image)
        return {"accuracy": logits.max(), "contrastive_loss": loss} if self.kind == "scale" else (loss, logits)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("kind", ["log_scale", "scale", "temperature"])
def test_modules_with_parameters_of_their_own(kind: str, shape: tuple[int, ...]) -> None:
    module = Own(kind, shape)
    report = sr.check_loss(module, parameters={"temp": kind, "b": "bias"})
    assert report.passed, report
    assert module.temp.grad is None and module.temp.item() == 2.0
    frozen = sr.check_loss(Own(kind, shape, detached=True), parameters={"temp": kind, "b": "bias"})
    assert [finding.id for finding in frozen.findings] == ["no-gradient-arrives"]


def test_a_module_without_bias() -> None:
    assert sr.check_loss(Own("log_scale", bias=False), parameters={"temp": "log_scale"}).passed


@pytest.mark.parametrize("parameters", [{"tmp": "log_scale"}, {"temp": "tau"}, {"b": "bias"}])
def test_the_refusal_lists_the_modules_parameters(parameters: dict[str, str]) -> None:
    with pytest.raises(sr.UsageError, match=r"temp \[\], b \[\]"):
        sr.check_loss(Own("log_scale"), parameters=parameters)


# --- the block of pairs with labels and weights


def inputs() -> tuple[Any, ...]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((4, 3)), rng.standard_normal((5, 3)), np.array(0.3), np.array(-0.4)


def test_its_gradients_agree_with_complex_step() -> None:
    x, y, s, b = inputs()
    rng = np.random.default_rng(4)
    positive, negative = rng.random((4, 5)), rng.random((4, 5))
    arrays = {"image_embed": x, "text_embed": y, "log_scale": s, "bias": b}
    found = weighted_loss(**arrays, positive=positive, negative=negative)
    for name in arrays:
        wanted = gradient(lambda a: weighted_loss(**a, positive=positive, negative=negative).loss, arrays, name)
        assert np.abs(getattr(found, f"d_{name}") - wanted).max() <= 1e-13 * np.abs(wanted).max()


def test_todays_loss_is_a_special_case_bit_for_bit() -> None:
    x, y, s, b = inputs()
    own = np.eye(4)
    for one, other in zip(weighted_loss(x, y[:4], s, b, own, 1 - own), sigmoid_loss(x, y[:4], s, b), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", VARIANTS)
def test_truths_are_proven_by_balls(name: str) -> None:
    objective = objective_of(VARIANTS[name][1])
    convention = conventions_of(objective)[0]
    points = (*points_of("unit", "float64")[:8], *(point for point in POINTS if point.texts in ("duplicates", "axes")))
    for standard in loss_probes(points, None, "float64", "float64")[0]:
        probe = with_captions(standard, objective.per_image)
        found, right = exact_loss(probe, convention)._asdict(), proven(probe, convention)._asdict()
        assert not [key for key in right if not np.array_equal(found[key], right[key])], probe.label


# --- what belongs together


def test_equal_captions_are_found_by_their_numbers() -> None:
    captions = np.array([[0.0, 1.0], [1.0, 0.0], [-0.0, 1.0], [0.5, 0.5]])
    own = Objective(positives="captions").match(4, captions)
    assert (own == np.eye(4, dtype=bool) + np.eye(4, dtype=bool)[[2, 3, 0, 1]] * [[1], [0], [1], [0]]).all()
    of_two = Objective(positives="captions", per_image=2).match(2, captions)  # both images have the first caption
    assert of_two.tolist() == [[True, True, True, False], [True, False, True, True]]
    assert Objective(per_image=2).match(2, captions).tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]


@pytest.mark.parametrize("name", [name for name in VARIANTS if "captions" in name])
def test_their_gradients_agree_with_complex_step(name: str) -> None:
    objective = objective_of(VARIANTS[name][1])
    [probe] = loss_probes([p for p in POINTS if p.texts == "duplicates"], None, "float64", "float64")[0]
    probe = with_captions(probe, objective.per_image)
    arrays = {
        "image_embed": probe.image_embed,
        "text_embed": probe.text_embed,
        "log_scale": np.array(probe.log_scale),
        "bias": np.array(probe.bias),
    }
    computed = partial(objective.computed, captions=probe.text_embed)
    found = computed(*arrays.values())
    for key in arrays:
        wanted = gradient(lambda a: computed(*a.values()).loss, arrays, key)
        assert np.abs(getattr(found, f"d_{key}") - wanted).max() <= 1e-13 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["captions", "three captions"])
def test_who_ignores_what_was_declared_does_not_pass(name: str) -> None:
    declared = VARIANTS[name][1]
    plain = partial(by_ids, TORCH, wrong=True)
    report = sr.check_loss(lambda x, y, s, b: plain(x, y[:: len(y) // len(x)], s, b, None), "torch", **declared)
    assert report.verdict == ("OTHER CONVENTION" if name == "captions" else "FAIL")


def test_the_captions_of_an_image_stand_side_by_side() -> None:
    def one_after_another(x: Any, y: Any, s: Any, b: Any) -> Any:
        own = torch.eye(len(x), dtype=x.dtype).repeat(1, len(y) // len(x))
        return soft(TORCH, logits_of(TORCH, x, y, s, b), own).sum() / len(x)

    assert sr.check_loss(one_after_another, "torch", captions_per_image=3).verdict == "FAIL"
    ordered = lambda x, y, s, b: one_after_another(x, y.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1), s, b)  # noqa: E731
    assert sr.check_loss(ordered, "torch", captions_per_image=3).passed


@pytest.mark.parametrize("number", [0, 2.5, True, "two"])
def test_another_number_of_captions_is_refused(number: Any) -> None:
    with pytest.raises(sr.UsageError, match="captions_per_image"):
        sr.check_loss(partial(three, TORCH, wrong=False), "torch", captions_per_image=number)


# --- large batches


LABELLED = {name: how for name, how in VARIANTS.items() if objective_of(how[1]).labelled}


def large(name: str, pairs: int, dtype: str = "float64") -> tuple[Repeated, Objective]:
    """Some more pairs than there are distinct ones."""
    probe = repeated_probe(replace(MIDDLE, shape=(pairs, 14)), None, dtype, dtype)
    assert probe is not None
    objective = objective_of(VARIANTS[name][1])
    return with_captions(probe, objective.per_image), objective  # type: ignore[return-value]  # of the same kind


@pytest.mark.parametrize("name", LABELLED)
def test_few_distinct_rows_give_what_all_pairs_give(name: str) -> None:
    probe, objective = large(name, 263)
    for convention in conventions_of(objective)[:3:2]:
        computed = partial(objective.computed, captions=probe.text_embed)
        whole = as_given(computed, convention.normalises, convention.linear)
        wanted = whole(probe.image_embed, probe.text_embed, np.array(probe.log_scale), np.array(probe.bias))
        for one, other in zip(exact_loss(probe, convention), wanted, strict=True):
            assert np.shape(one) == np.shape(other)
            assert np.abs(one - other).max() <= 1e-13 * np.abs(other).max()


@pytest.mark.parametrize("name", ["captions", "two captions, columns, mean", "smoothing"])
def test_its_gradients_of_few_rows_agree_with_complex_step(name: str) -> None:
    """Along directions in which all copies of a row move alike."""
    probe, objective = large(name, 140)
    loss = labelled_loss(probe, objective, np.asarray)
    at = probe.image_embed, probe.text_embed, np.array(probe.log_scale), np.array(probe.bias)
    rng, copies = np.random.default_rng(5), (probe.order, text_order(probe), (), ())
    for place, (value, d_value) in enumerate(zip(at, loss(*at)[1:], strict=True)):
        for _ in range(3):
            direction = rng.standard_normal(value.shape)[copies[place]]
            moved = [one + 1e-30j * direction if number == place else one + 0j for number, one in enumerate(at)]
            wanted = loss(*moved).loss.imag / 1e-30
            assert abs((d_value * direction).sum() - wanted) <= 1e-13 * np.abs(d_value * direction).sum()


@pytest.mark.parametrize("name", ["captions", "ids"])
def test_a_large_truth_is_proven_by_balls(name: str) -> None:
    probe, objective = large(name, 140)
    convention = conventions_of(objective)[0]
    found, right = exact_loss(probe, convention)._asdict(), proven(probe, convention)._asdict()
    assert not [key for key in right if not np.array_equal(found[key], right[key])]


@pytest.mark.parametrize("name", LABELLED)
def test_a_large_batch_has_noise_of_its_size(name: str) -> None:
    """Beside the noise that all pairs show where they are computed: neither a small part of it nor far more."""
    probe, objective = large(name, 263, "float32")
    convention, setting = conventions_of(objective)[0], Setting("float32", "float32", "cpu", False)
    exact = exact_loss(probe, convention)
    found = noise_of(probe, convention, setting, exact).absolute
    rows = probe.image_embed, probe.text_embed, probe.log_scale, probe.bias
    measured = loss_noise(given_of(convention, setting), *rows, exact).absolute
    for key in ("d_image_embed", "d_text_embed"):
        assert 0.5 < np.median(found[key] / measured[key]) < 25
    assert all(0.02 < found[key] / measured[key] < 10 for key in ("loss", "d_log_scale", "d_bias"))


@pytest.mark.parametrize("name", ["captions", "ids", "rows", "three captions"])
def test_what_is_wrong_beyond_a_tile_is_found_in_a_variant(name: str) -> None:
    """Images beyond the thousandth have no gradient."""
    fn, declared = VARIANTS[name]

    def cut(x: Any, *others: Any) -> Any:
        return fn(TORCH, torch.cat([x[:1000], x[1000:].detach()]), *others, False)

    assert sr.check_loss(partial(fn, TORCH, wrong=False), "torch", **declared).notes[0].endswith("up to 1,151 pairs")
    report = sr.check_loss(cut, "torch", **declared)
    assert report.verdict == "FAIL" and "beyond-a-tile" in [finding.id for finding in report.findings], report


@pytest.mark.nightly
@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("name", ["captions", "ids", "rows"])
def test_variants_at_a_real_size(name: str, library: str) -> None:
    fn, declared = VARIANTS[name]
    report = sr.check_loss(
        partial(fn, TORCH if library == "torch" else JAX, wrong=False), library, size="real", **declared
    )
    assert report.passed and "4,100 pairs" in report.notes[0], report
    assert report.smallest_tolerance < 3
