"""What a wrong softmax loss computes: a formula, proven at inputs that no experiment used; never a false one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
from test_loss_softmax import WRONG as NAMED
from test_loss_softmax import cross

import siglip_ref as sr


def both(logits: Any, **how: Any) -> Any:
    return (cross(logits, **how) + cross(logits.T, **how)) / 2


def own(x: Any) -> Any:
    return torch.eye(len(x), dtype=x.dtype)


def in_jax(x: Any, y: Any, s: Any) -> Any:
    logits = jnp.exp(2 * s) * (x @ y.T)
    return -jnp.diagonal(jax.nn.log_softmax(logits, 1) + jax.nn.log_softmax(logits, 0)).mean() / 2


ROWS, COLUMNS = (f"sum of cross-entropy of each {side}'s softmax" for side in ("row", "column"))
LOGIT = "logit_ij = exp(log_scale) sim_ij"
RIGHT = f"0.5/B {ROWS} + 0.5/B {COLUMNS}"
WRONG: dict[str, tuple[Callable[..., Any], str, str]] = {  # the loss, its formula, and what is not as declared
    "one direction": (
        lambda x, y, s: cross(s.exp() * x @ y.T),
        f"1/B {ROWS}; {LOGIT}",
        f"what is summed is 1/B {ROWS}",
    ),
    "rows over columns": (
        lambda x, y, s: -torch.log_softmax(s.exp() * x @ y.T, 0).diagonal().mean(),
        f"1/B {COLUMNS}; {LOGIT}",
        f"what is summed is 1/B {COLUMNS}",
    ),
    "a sum": (
        lambda x, y, s: both(s.exp() * x @ y.T, reduction="sum"),
        f"0.5 {ROWS} + 0.5 {COLUMNS}; {LOGIT}",
        f"what is summed is 0.5 {ROWS}",
    ),
    "one direction, a sum": (
        lambda x, y, s: cross(s.exp() * y @ x.T, reduction="sum"),
        f"{COLUMNS}; {LOGIT}",
        f"what is summed is {COLUMNS}",
    ),
    "scale twice": (
        lambda x, y, s: both(s.exp() * (s.exp() * x @ y.T)),
        f"{RIGHT}; logit_ij = exp(2 log_scale) sim_ij",
        "similarities are multiplied by exp(2 log_scale), not exp(log_scale)",
    ),
    "scale twice, in JAX": (
        in_jax,
        f"{RIGHT}; logit_ij = exp(2 log_scale) sim_ij",
        "similarities are multiplied by exp(2 log_scale), not exp(log_scale)",
    ),
    "a side detached": (
        lambda x, y, s: both(s.exp() * x @ y.detach().T),
        f"{RIGHT}; {LOGIT}; d text_embed: no gradient arrives",
        "d text_embed: no gradient arrives",
    ),
    "smoothing": (
        lambda x, y, s: both(s.exp() * x @ y.T, label_smoothing=0.1),
        f"-0.1/B^2 sum of all logits + 0.1/B sum of the positives' logits + {RIGHT}; {LOGIT}",
        "labels are smoothed: 0.9 + 0.1/B where i = j, 0.1/B elsewhere",
    ),
    "a margin": (
        lambda x, y, s: both(s.exp() * x @ y.T - 0.2 * own(x)),
        f"{RIGHT}; {LOGIT}, and -0.2 more where i = j",
        "what is added to the logits of own pairs, i = j, is -0.2, not 0",
    ),
    "a margin, added": (
        lambda x, y, s: both(s.exp() * x @ y.T + 0.37 * own(x)),
        f"{RIGHT}; {LOGIT}, and 0.37 more where i = j",
        "what is added to the logits of own pairs, i = j, is 0.37, not 0",
    ),
    "a margin of similarities": (
        lambda x, y, s: both(s.exp() * (x @ y.T - 0.35 * own(x))),
        f"{RIGHT}; {LOGIT}, and -0.35 exp(log_scale) more where i = j",
        "what is added to the logits of own pairs, i = j, is -0.35 exp(log_scale), not 0",
    ),
}


def check(fn: Callable[..., Any], dtype: str = "float64", framework: str = "torch", **options: Any) -> Any:
    options = {"scale": "log", "embeddings": "unit"} | options
    return sr.check_loss(fn, framework, dtype, loss="softmax", **options)


@pytest.mark.parametrize(
    "dtype", ["float64", *(pytest.param(dtype, marks=pytest.mark.nightly) for dtype in ("float32", "bfloat16"))]
)
@pytest.mark.parametrize("name", WRONG)
def test_what_a_wrong_one_computes_is_worked_out(name: str, dtype: str) -> None:
    fn, formula, difference = WRONG[name]
    report = check(fn, dtype, "jax" if fn is in_jax else "torch")
    assert report.verdict == "FAIL", report
    assert report.computes[0] == f"your loss: {formula}", report.computes
    said = [line for line in report.computes if line.startswith("not what was declared: ")]
    assert len(said) == 1 and said[0].startswith(f"not what was declared: {difference}"), said
    assert report.computes[-1].startswith("this reproduces your loss at held-out inputs")
    assert "unknown" not in [finding.id for finding in report.findings], report


def test_a_scale_that_is_squared_where_it_is_given_itself() -> None:
    report = check(lambda x, y, t: both(t * t * x @ y.T), scale="linear")
    assert "similarities are multiplied by scale^2, not scale" in report.computes[1], report.computes


def test_of_rows_that_the_loss_normalises() -> None:
    report = check(lambda x, y, s: cross(s.exp() * F.normalize(x) @ F.normalize(y).T), embeddings="raw")
    assert report.computes[1].startswith(f"not what was declared: what is summed is 1/B {ROWS}"), report.computes
    assert len(report.computes) == 3


def test_two_differences_are_both_told() -> None:
    report = check(lambda x, y, s: cross(s.exp() * s.exp() * x @ y.T - 0.2 * own(x)))
    assert [finding.id for finding in report.findings] == ["derived"] * 3, report
    assert report.computes[0].endswith("logit_ij = exp(2 log_scale) sim_ij, and -0.2 more where i = j")


UNKNOWN = {  # no formula of these is known: none is told
    "a softmax of the softmax": lambda x, y, s: both((s.exp() * x @ y.T).softmax(1)),
    "a margin in one direction": lambda x, y, s: (
        (cross(s.exp() * x @ y.T - 0.2 * own(x)) + cross(s.exp() * y @ x.T)) / 2
    ),
    "a margin of each row": lambda x, y, s: both(s.exp() * x @ y.T + torch.diag(torch.arange(len(x)) / 9).to(x.dtype)),
    "a margin by the bias of nothing": lambda x, y, s: both(s.exp() * x @ y.T - s.sqrt() * own(x)),
    "a focal weight": lambda x, y, s: (
        -((1 - (s.exp() * x @ y.T).softmax(1).diagonal()) * (s.exp() * x @ y.T).log_softmax(1).diagonal()).mean()
    ),
}


@pytest.mark.parametrize(
    "name", [name if "focal" in name else pytest.param(name, marks=pytest.mark.nightly) for name in UNKNOWN]
)
def test_nothing_is_told_for_certain_that_is_not_known(name: str) -> None:
    report = check(UNKNOWN[name])
    assert report.verdict == "FAIL"
    assert not any(line.startswith("your loss:") for line in report.computes), report.computes
    assert "derived" not in [finding.id for finding in report.findings]


def test_each_side_alone_detached_in_its_direction_is_told_and_has_its_name() -> None:
    name = "softmax-keys-detached"
    report = check(NAMED[name][0])
    assert [finding.id for finding in report.findings] == [name]
    assert report.computes[0].startswith("your loss: ")
    for side, line in (("image", "row"), ("text", "column")):
        assert f"d {side}_embed: each pair's part is 0.5 times that of a softmax over its {line}" in report.computes[0]


def test_a_sigmoid_loss_that_is_wrong_is_told_as_one() -> None:
    def not_divided(x: Any, y: Any, s: Any, b: Any) -> Any:
        return -F.logsigmoid((2 * own(x) - 1) * (s.exp() * x @ y.T + b)).sum()

    report = check(not_divided)
    assert report.verdict == "FAIL"
    assert "pairs are summed one by one, without a softmax" in str(report.computes)
