"""parametrize_with_checks in a real run of pytest: ids, failures, skips, and what is expected to fail."""

import re
import subprocess
import sys

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.report.compare import compare
from siglip_ref.report.data import Report

PROGRAM = """
import numpy as np
import siglip_ref as sr

calls = []

def right(*given):
    calls.append(1)
    return tuple(map(np.asarray, sr.sigmoid_loss(*given)))

def wrong(*given):
    loss, *grads, d_bias = right(*given)
    return loss, *grads, 2 * d_bias

@sr.parametrize_with_checks(right, framework="numpy", dtype="float64")
def test_right(check):
    before = len(calls)
    check()
    assert len(calls) == before

@sr.parametrize_with_checks(wrong, framework="numpy", dtype="float64")
def test_wrong(check):
    check()

@sr.parametrize_with_checks(
    wrong, framework="numpy", dtype="float64", expected_failed_checks={"d_bias[init]": "known", "loss[init]": "not so"}
)
def test_known(check):
    check()
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "test_theirs.py").write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-rA",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "test_theirs.py",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300).stdout


def outcomes(out, test):
    return dict(re.findall(rf"::{test}\[(.*)\] (PASSED|FAILED|XFAIL|SKIPPED)", out))


def test_a_right_loss_passes_at_every_tensor_and_probe(out):
    found = outcomes(out, "test_right")
    assert set(found.values()) <= {"PASSED", "SKIPPED"} and len(found) > 90
    assert found["verdict"] == found["d_bias[init]"] == "PASSED"


def test_a_wrong_gradient_fails_alone_and_is_named(out):
    found = outcomes(out, "test_wrong")
    failed = {name for name, outcome in found.items() if outcome == "FAILED"}
    assert "verdict" in failed and all(name.startswith("d_bias[") for name in failed - {"verdict"})
    assert found["loss[init]"] == "PASSED" and "d_bias[init]: error 1, allowed" in out


def test_what_is_expected_to_fail_is_strict(out):
    found = outcomes(out, "test_known")
    assert found["d_bias[init]"] == "XFAIL" and found["loss[init]"] == "FAILED" and "[XPASS(strict)] not so" in out


def test_an_unknown_id_is_refused_with_those_near_it():
    def right(*given):
        return tuple(map(np.asarray, sr.sigmoid_loss(*given)))

    with pytest.raises(sr.UsageError, match=r"d_bias\[init\]"):
        sr.parametrize_with_checks(
            right, framework="numpy", dtype="float64", expected_failed_checks={"d_bias[inot]": "why"}
        )


def test_any_check_that_gives_a_report_will_do():
    def check(fn, **how):
        row = compare("x", np.ones(2), np.ones(2), 0.1)
        return Report(fn, "PASS", [row], details=[row], **how)

    mark = sr.parametrize_with_checks("mine", check=check).mark
    assert mark.args[0] == "check" and [one.id for one in mark.args[1]] == ["d_x", "verdict"]
