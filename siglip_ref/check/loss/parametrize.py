"""parametrize_with_checks: a check as tests of pytest, one for each tensor at each probe."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from siglip_ref.check.loss.check import check_loss
from siglip_ref.errors import UsageError, near
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Report

VERDICT = "verdict"  # of the whole report, a test of its own
F = TypeVar("F", bound=Callable[..., Any])


def parametrize_with_checks(
    fn: Any,
    *,
    expected_failed_checks: Mapping[str, str] | None = None,
    check: Callable[..., Report] = check_loss,
    **how: Any,
) -> Callable[[F], F]:
    """A decorator: the test is run once for each tensor at each probe, with `check`, a function to call.

    fn is checked once, when pytest collects the tests. A test's id is `tensor[probe]`, as "d_bias[released]", and
    "verdict" that of the whole report. What a dtype cannot hold is skipped, with the reason.

    Parameters
    ----------
    fn : what `check` takes
    expected_failed_checks : id: why it is known to fail. Strict: one that passes fails the test
    check : `check_loss`, or another check that gives a report
    how : arguments of the check: dtype, scale, dims, ...

    Raises
    ------
    UsageError : pytest is not installed, or an id is expected to fail that is not among the tests

    Source: scikit-learn, sklearn.utils.estimator_checks.parametrize_with_checks, whose habit this is.

    Examples
    --------
    >>> import siglip_ref as sr
    >>> @sr.parametrize_with_checks(sr.sigmoid_loss, framework="numpy", dtype="float64")
    ... def test_my_loss(check):
    ...     check()
    """
    try:
        import pytest
    except ImportError:
        raise UsageError(
            expected="pytest, which runs the tests",
            got="an environment without it",
            cause="siglip-ref does not bring it",
            repair="pip install pytest",
        ) from None
    report = check(fn, **how)
    tests: dict[str, Callable[[], None]] = {_id(row): _judged(row, report) for row in report.details}
    tests[VERDICT] = report.raise_if_failed
    known = dict(expected_failed_checks or {})
    for name in known:
        if name not in tests:
            raise UsageError(
                expected="in expected_failed_checks ids of tests",
                got=repr(name),
                cause="no test of this check has this id",
                repair=f"one of {len(tests)}: pytest --collect-only lists them",
                near=near(name, tests),
            )
    marks = {name: (pytest.mark.xfail(reason=reason, strict=True),) for name, reason in known.items()}
    return pytest.mark.parametrize(
        "check", [pytest.param(test, id=name, marks=marks.get(name, ())) for name, test in tests.items()]
    )


def _id(row: Row) -> str:
    """tensor[probe]; the probe without its sizes."""
    probe = re.sub(r" \(B=.*?\)", "", row.probe)
    return ("d_" if row.kind == "gradient" else "") + row.name + (f"[{probe}]" if probe else "")


def _judged(row: Row, report: Report) -> Callable[[], None]:
    """What a test does: nothing if the tensor is right."""

    def judged() -> None:
        __tracebackhide__ = True
        if row.verdict in ("out of range", "not checked"):
            import pytest

            pytest.skip(f"{row.verdict}: {row.note}")
        if not row.right:
            named = "".join(f"\n{one.id}: {one.evidence}\nrepair: {one.repair}" for one in report.findings)
            note = f" {row.note}" if row.note else ""
            raise AssertionError(f"{_id(row)}: error {row.error:.2g}, allowed {row.tolerance:.2g}.{note}{named}")

    return judged
