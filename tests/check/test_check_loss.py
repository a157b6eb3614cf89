"""check_loss on NumPy functions: verdicts, conventions, refusals, messages, and that nothing of the user's changes."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.call.frameworks import framework_of
from siglip_ref.check.loss.check import check_loss
from siglip_ref.errors import UsageError
from siglip_ref.ops.normalize import normalize_backward, normalize_forward

DTYPES = ("float64", "float32", "float16")
Loss = Callable[..., Any]


def right(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
    return tuple(sr.sigmoid_loss(x, y, log_scale, bias))


def linear(x: Any, y: Any, scale: Any, bias: Any) -> tuple[Any, ...]:
    loss, *gradients = sr.sigmoid_loss(x, y, np.log(scale), bias)
    gradients[2] = gradients[2] / scale
    return (loss, *gradients)


def raw(x: Any, y: Any, log_scale: Any, bias: Any, kind: Any = "additive", eps: float = 1e-8) -> tuple[Any, ...]:
    (unit_x, x_cache), (unit_y, y_cache) = (normalize_forward(rows, kind, eps) for rows in (x, y))
    r = sr.sigmoid_loss(unit_x, unit_y, log_scale, bias)
    d_x, d_y = normalize_backward(r.d_image_embed, x_cache), normalize_backward(r.d_text_embed, y_cache)
    return r.loss, d_x, d_y, r.d_log_scale, r.d_bias


def raw_without_eps(*inputs: Any) -> tuple[Any, ...]:
    return raw(*inputs, kind="none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fn", [right, linear, raw, raw_without_eps])
def test_right_losses_pass(fn: Loss, dtype: str) -> None:
    report = check_loss(fn, dtype=dtype)
    assert report.verdict == "PASS", report
    assert {row.name for row in report.rows} == {"loss", "image_embed", "text_embed", *report_scalars(report)}
    assert not report.not_checked


def report_scalars(report: Any) -> set[str]:
    return {"scale" if 'scale="linear"' in report.conventions else "log_scale", "bias"}


def test_float64_agrees_far_below_what_is_asked() -> None:
    rows = check_loss(right, dtype="float64").details
    # gradients of scale or bias are sums that nearly vanish there
    cancelling = ("saturated, right", "numbers below 2^-14", "a thousand pairs")
    judged = [row for row in rows if not row.probe.startswith(cancelling)]
    assert max(row.error for row in judged) < 1e-14


@pytest.mark.parametrize(
    ("fn", "scale", "embeddings"),
    [(right, "log", "unit"), (linear, "linear", "unit"), (raw, "log", "raw"), (raw_without_eps, "log", "raw")],
)
def test_conventions_are_found_named_and_declared(fn: Loss, scale: str, embeddings: str) -> None:
    found = check_loss(fn)
    assert {f'scale="{scale}"', f'embeddings="{embeddings}"'} <= set(found.conventions)
    assert "(found" in found.conventions[f'scale="{scale}"']
    declared = check_loss(fn, scale=scale, embeddings=embeddings)  # type: ignore[arg-type]
    assert declared.passed and "(declared)" in declared.conventions[f'scale="{scale}"']


@pytest.mark.parametrize(
    ("fn", "declared", "argument"),
    [
        (linear, {"scale": "log"}, 'check_loss(fn, scale="linear")'),
        (right, {"scale": "linear"}, 'check_loss(fn, scale="log")'),
        (raw, {"embeddings": "unit"}, 'check_loss(fn, embeddings="raw")'),
        (right, {"scale": "linear", "embeddings": "raw"}, 'check_loss(fn, scale="log", embeddings="unit")'),
    ],
)
def test_another_convention_than_declared_is_no_pass(fn: Loss, declared: dict[str, Any], argument: str) -> None:
    report = check_loss(fn, **declared)
    assert report.verdict == "OTHER CONVENTION" and not report.passed
    assert report.findings[0].id == "convention" and argument in report.findings[0].repair


def test_the_eps_of_normalising_is_seen_in_float64() -> None:
    conventions = check_loss(raw, dtype="float64").conventions
    assert "x / (|x| + 1e-8)" in conventions['embeddings="raw"']
    wrong_eps = check_loss(lambda *inputs: raw(*inputs, eps=1e-6), dtype="float64")
    assert wrong_eps.verdict == "FAIL"


def wrong(change: Callable[[list[Any], Any, Any], None]) -> Loss:
    """The right loss with its five results changed in place."""

    def fn(x: Any, y: Any, log_scale: Any, bias: Any) -> list[Any]:
        results = list(right(x, y, log_scale, bias))
        change(results, x, y)
        return results

    return fn


def set_to(index: int, value: Callable[[Any], Any]) -> Loss:
    def change(results: list[Any], x: Any, y: Any) -> None:
        results[index] = value(results[index])

    return wrong(change)


def last_row(array: Any, value: float) -> Any:
    out = array.copy()
    out[-1] = value
    return out


MISTAKES = {
    "loss one percent off": set_to(0, lambda v: v * 1.01),
    "loss is NaN": set_to(0, lambda v: v * np.nan),
    "loss is infinite": set_to(0, lambda v: v * np.inf),
    "image gradient / 4": set_to(1, lambda v: v / 4),
    "text gradient missing": set_to(2, lambda v: None),
    "text gradient zero": set_to(2, lambda v: v * 0),
    "NaN in one place": set_to(1, lambda v: last_row(v, np.nan)),
    "infinity in one place": set_to(2, lambda v: last_row(v, np.inf)),
    "last row missing": set_to(2, lambda v: last_row(v, 0.0)),
    "gradients swapped": wrong(lambda r, x, y: r.__setitem__(slice(1, 3), [r[2], r[1]])),
    "gradient by the scale itself": set_to(3, lambda v: v / 10),
    "bias gradient negated": set_to(4, lambda v: -v),
    "gradient of another shape": set_to(1, lambda v: v.T),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.sampled(3)
def test_mistakes_fail(mistake: str, dtype: str) -> None:
    report = check_loss(MISTAKES[mistake], framework="numpy", dtype=dtype)
    assert report.verdict == "FAIL"
    assert report.first_divergent is not None


def test_the_report_names_factor_rows_and_missing_gradients() -> None:
    quarter = check_loss(MISTAKES["image gradient / 4"], framework="numpy")
    assert "0.25 times the right one" in quarter.findings[0].evidence
    last = check_loss(MISTAKES["last row missing"], framework="numpy")
    assert "wrong, the rest right" in next(row.rows for row in last.rows if row.verdict == "FAIL")
    missing = check_loss(MISTAKES["text gradient missing"], framework="numpy")
    assert "no gradient arrives" in missing.findings[0].evidence


def test_a_mistake_in_the_row_that_is_small_is_seen_beside_a_huge_one() -> None:
    def one_row_off(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
        loss, d_x, d_y, *rest = raw(x, y, log_scale, bias, "none")
        lengths = np.sqrt((y * y).sum(-1))
        if lengths.max() > 100:  # only there; 0.5 % of the row with the smallest gradient, 1000 times below the largest
            d_y = d_y.copy()
            d_y[lengths.argmax()] *= 1.005
        return (loss, d_x, d_y, *rest)

    report = check_loss(one_row_off, framework="numpy")
    wrong_row = next(row for row in report.rows if row.name == "text_embed")
    assert wrong_row.verdict == "FAIL" and wrong_row.error < 1e-5 and "row 21" in wrong_row.rows


def test_changed_inputs_and_kept_state_are_found() -> None:
    def changes(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
        result = right(x, y, log_scale, bias)
        y *= 2
        return result

    assert [f.id for f in check_loss(changes, framework="numpy").findings] == ["inputs-modified"]
    calls: list[int] = []

    def tires(*inputs: Any) -> tuple[Any, ...]:
        calls.append(1)
        results = right(*inputs)
        return results if len(calls) < 16 else tuple(result * 1.1 for result in results)

    assert "not-reproducible" in [f.id for f in check_loss(tires, framework="numpy").findings]

    def assumes_contiguous(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
        return right(x.ravel(order="K").reshape(x.shape), y, log_scale, bias)

    assert "contiguity-assumed" in [f.id for f in check_loss(assumes_contiguous, framework="numpy").findings]


def test_a_loss_that_is_never_the_same_is_noted() -> None:
    calls: list[int] = []

    def shaky(*inputs: Any) -> tuple[Any, ...]:
        calls.append(1)
        loss, *gradients = right(*inputs)
        # in a dozen calls it drifts by more than float32's last bit, and by less than the noise of the loss
        return (loss * (1 + 1e-8 * len(calls)), *gradients)

    report = check_loss(shaky, framework="numpy", dtype="float32")
    assert report.passed and any("differ in bits" in note for note in report.notes)
    assert not any("differ in bits" in note for note in check_loss(right, framework="numpy").notes)


def test_what_fn_refuses_is_not_checked_with_its_reason() -> None:
    def kernel(x: Any, *rest: Any) -> tuple[Any, ...]:
        if len(x) > 128:
            raise ValueError("at most 128 pairs\nsecond line")
        return right(x, *rest)

    report = check_loss(kernel, framework="numpy")
    refused = ("many pairs (B=131, D=10)", "a thousand pairs (B=1151, D=14)")
    assert report.passed and report.not_checked == [f"{probe}: ValueError: at most 128 pairs" for probe in refused]
    assert "at most 128 pairs" in str(report)
    assert not any(row.probe in refused for row in report.details)


def test_dims_bring_a_kernel_the_shapes_it_needs() -> None:
    seen = set()

    def kernel(x: Any, *rest: Any) -> tuple[Any, ...]:
        seen.add(x.shape)
        if x.shape[0] % 16 or x.shape[1] % 32:
            raise ValueError("tiles of 16 x 32")
        return right(x, *rest)

    report = check_loss(kernel, framework="numpy", dims={"batch": 16, "dim": 32})
    assert report.passed and report.not_checked == ["one pair: B = 1 is no multiple of 16"]
    assert check_loss(right, framework="numpy", dims=[(64, 128), (96, 128)]).passed
    with pytest.raises(UsageError, match="tiles of 16 x 32"):
        check_loss(kernel, framework="numpy")


@pytest.mark.parametrize(("dims", "said"), [((64, 128), r"dims=\[\(64, 128\)\]"), (5, "dict"), ([(64,)], "dict")])
def test_dims_that_are_none_are_refused_with_what_was_meant(dims: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_loss(sr.sigmoid_loss, framework="numpy", dims=dims)


def test_overflow_of_float16_is_out_of_range_and_not_a_failure() -> None:
    report = check_loss(right, framework="numpy", dtype="float16", dims=[(131, 10)])
    kinds = {row.verdict for row in report.details}
    assert report.passed and "out of range" in kinds
    assert check_loss(right, framework="numpy", dtype="float64", dims=[(131, 10)]).passed


def test_random_states_are_put_back() -> None:
    def rolls(*inputs: Any) -> tuple[Any, ...]:
        random.random(), np.random.rand(3)
        return right(*inputs)

    random.seed(1), np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    check_loss(rolls, framework="numpy")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[union-attr]


def test_progress_names_every_step() -> None:
    steps: list[str] = []
    check_loss(right, framework="numpy", progress=steps.append)
    assert "finding the convention" in steps and "many pairs (B=131, D=10)" in steps


def test_a_case_runs_again(tmp_path: Path) -> None:
    report = check_loss(MISTAKES["image gradient / 4"], framework="numpy")
    folder = report.save_case(tmp_path)
    case = np.load(folder / "case.npz")
    inputs = [case[f"input/{name}"] for name in ("image_embed", "text_embed", "log_scale", "bias")]
    exact = right(*inputs)[1]
    assert np.abs(case["got/image_embed"] - exact / 4).max() < 1e-6 * np.abs(exact).max()
    assert np.abs(case["expected/image_embed"] - exact).max() < 1e-14 * np.abs(exact).max()
    compile((folder / "reproduce.py").read_text(), "reproduce.py", "exec")


class Callable4:
    def __call__(self, a: Any, b: Any, c: Any, d: Any) -> Any:
        return right(a, b, c, d)


MESSAGES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "too few arguments": (lambda x, y: 0, {}, "four arguments by position"),
    "too many arguments": (lambda a, b, c, d, e: 0, {}, "four arguments by position"),
    "a class": (Callable4, {}, r"give an instance: Callable4\(\.\.\.\)"),
    "no function": (3.0, {}, "can be called"),
    "one result": (lambda a, b, c, d: a.sum(), {"framework": "numpy"}, "the loss and the four gradients"),
    "a vector": (lambda *a: (a[0].sum(1), *right(*a)[1:]), {"framework": "numpy"}, "one number, the loss"),
    "no framework seen": (lambda a, b, c, d: 0, {}, 'framework="torch"'),
    "an unknown framework": (right, {"framework": "mxnet"}, '"torch", "jax" or "numpy"'),
    "an unknown dtype": (right, {"dtype": "float8"}, "float64, float32, bfloat16, float16"),
    "an unknown scale": (right, {"scale": "exp"}, '"log", "linear" or "auto"'),
    "autocast in float32": (right, {"precision": "autocast"}, 'dtype="bfloat16", precision="autocast"'),
    "a device for NumPy": (right, {"device": "cuda", "framework": "numpy"}, 'device="cpu"'),
    "raises always": (lambda *a: 1 / 0, {"framework": "numpy"}, "division by zero at every probe"),
    "no colon": ("losses.siglip", {}, '"module:name" or "file.py:name"'),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_wrong_use_is_explained(case: str) -> None:
    fn, options, words = MESSAGES[case]
    with pytest.raises(UsageError, match=words):
        check_loss(fn, **options)


def test_a_framework_that_is_not_installed_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siglip_ref.check.call.frameworks.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install jax"):
        check_loss(right, framework="jax")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UsageError, match="pip install ml_dtypes"):
        check_loss(right, framework="numpy", dtype="bfloat16")


def test_the_framework_is_seen_from_the_function() -> None:
    assert framework_of(right) == framework_of(lambda *a: right(*a)) == framework_of(Callable4()) == "numpy"
    assert check_loss(sr.sigmoid_loss, framework="numpy").passed
