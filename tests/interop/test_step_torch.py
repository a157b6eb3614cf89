"""check_step on training steps in torch: right ones pass, every mistake of the catalogue is named first."""

import pytest
from step_mistakes import MISTAKES, RIGHT, RULE

import siglip_ref as sr

DTYPES = (pytest.param("float64", marks=pytest.mark.nightly), "float32")


def report_of(arguments):
    return sr.check_step(**{"rule": RULE, "model": arguments["step_fn"].model} | arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RIGHT)
def test_right_steps_pass(name, dtype):
    report = report_of(RIGHT[name](dtype))
    assert report.verdict == "PASS", report
    assert max(row.excess for row in report.rows) <= 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_named(name, dtype):
    report = report_of(MISTAKES[name](dtype))
    assert report.verdict == "FAIL"
    assert report.findings[0].id == name, report
