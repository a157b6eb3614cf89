"""The command line: what it prints, what it writes, and its exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from siglip_ref.cli import main as cli
from siglip_ref.errors import UsageError

LOSSES = """
import numpy as np
import siglip_ref as sr

def right(x, y, log_scale, bias):
    return tuple(sr.sigmoid_loss(x, y, log_scale, bias))

def linear(x, y, scale, bias):
    loss, dx, dy, ds, db = sr.sigmoid_loss(x, y, np.log(scale), bias)
    return loss, dx, dy, ds / scale, db

def quarter(x, y, log_scale, bias):
    loss, *gradients = right(x, y, log_scale, bias)
    return loss, *(g / 4 for g in gradients)

def vector(x, y, log_scale, bias):
    return x.sum(1), x, y, log_scale, bias

def two(x, y):
    return 0.0

class Box:
    inner = staticmethod(right)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("project")
    (place / "losses.py").write_text(LOSSES)
    (place / "broken.py").write_text("import no_such_package\n")
    (place / "syntax.py").write_text("def (:\n")
    return place


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, and standard error without the panel's frame."""
    command = [sys.executable, "-c", "from siglip_ref.cli.main import main; main()", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, re.sub(r"[\s│╭╮╰╯─]+", " ", done.stderr)


@pytest.mark.parametrize(
    ("words", "code", "verdict"),
    [
        (["losses.py:right"], 0, "PASS  losses.right"),
        (["losses:right", "--dtype", "float64"], 0, "PASS  losses.right (numpy, float64 on cpu)"),
        (["losses:Box.inner", "--dims", "batch=7,dim=16"], 0, "PASS"),
        (["losses.py:linear", "--scale", "log"], 1, "OTHER CONVENTION"),
        (["losses.py:linear", "--scale", "linear", "--embeddings", "unit"], 0, "PASS"),
        (["losses.py:quarter"], 1, "FAIL"),
    ],
)
def test_verdict_first_and_the_exit_code(folder: Path, words: list[str], code: int, verdict: str) -> None:
    found, out, err = run(folder, "check", "loss", *words)
    assert found == code and out.startswith(verdict), (found, out, err)
    assert ("not precomputed" in err) == ("--dims" in words), err  # only shapes of one's own are measured


WRONG_USE = {
    "no such file": (["nothing.py:fn"], "no such file"),
    "no such module": (["nothing:fn"], "no module nothing"),
    "no such name": (["losses.py:rihgt"], "rihgt in losses.py"),
    "no colon": (["losses"], "no colon"),
    "a module that imports what is missing": (["broken.py:fn"], "No module named 'no_such_package'"),
    "the same by its module name": (["broken:fn"], "broken itself imports no_such_package"),
    "a syntax error": (["syntax.py:fn"], "SyntaxError"),
    "wrong arity": (["losses.py:two"], "four arguments by position"),
    "a vector": (["losses.py:vector"], "an array of shape (9,)"),
    "no framework of this name": (["losses.py:right", "--framework", "mxnet"], '"torch", "jax" or "numpy"'),
    "dtype": (["losses.py:right", "--dtype", "float8"], "float64, float32, bfloat16, float16"),
    "scale": (["losses.py:right", "--scale", "exp"], '"log", "linear" or "auto"'),
    "dims": (["losses.py:right", "--dims", "16"], 'dims "batch=16,dim=32"'),
    "dims with other names": (["losses.py:right", "--dims", "rows=16"], "other keys"),
    "a place that cannot be written": (["losses.py:right", "--json", "no/such/folder.json"], "can be written"),
    "an option that is none": (["losses.py:right", "--dtyp", "float32"], "No such option"),
    "a command that is none": ([], "Missing argument"),
}


@pytest.mark.parametrize("case", WRONG_USE)
def test_wrong_use_is_a_panel_and_exit_code_2(folder: Path, case: str) -> None:
    words, message = WRONG_USE[case]
    code, out, err = run(folder, "check", "loss", *words)
    assert code == 2 and message in err, (code, err)
    assert "FAIL" not in out


def test_json_and_case_are_written(folder: Path, tmp_path: Path) -> None:
    path, case = tmp_path / "r.json", tmp_path / "case"
    code, _, _ = run(folder, "check", "loss", "losses.py:quarter", "--json", str(path), "--save-case", str(case))
    assert code == 1 and json.loads(path.read_text())["verdict"] == "FAIL" and (case / "case.npz").is_file()
    code, out, _ = run(folder, "check", "loss", "losses.py:right", "--json", "-")
    assert code == 0 and json.loads(out)["passed"] is True


def test_the_saved_program_shows_the_fault(folder: Path, tmp_path: Path) -> None:
    run(folder, "check", "loss", "losses.py:quarter", "--save-case", str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run(
        [sys.executable, "reproduce.py"], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True
    )
    assert "image_embed  error 7.5e-01" in done.stdout and "FAIL  losses.quarter" in done.stdout


def test_version_and_help(folder: Path) -> None:
    assert run(folder, "--version")[1].startswith("siglip-ref 0.")
    code, out, _ = run(folder, "--help")
    assert code == 0 and "check" in out


def test_a_standard_output_that_is_full(tmp_path):
    """A traceback, and exit code 1: "not passed"."""
    command = [sys.executable, "-m", "siglip_ref", "vectors", "list"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2 and "takes what is printed" in ended.stderr and "Traceback" not in ended.stderr


def test_a_long_path_is_shown_whole(capsys):
    cli._explain(UsageError("a file", "/" + "x" * 200 + "/name.txt", "", "check it"))
    assert "name.txt" in "".join(line.strip("│ ") for line in capsys.readouterr().err.splitlines())


def test_a_loss_over_ranks_by_the_name_of_its_check(folder: Path) -> None:
    import siglip_ref as sr

    assert sr.check_ranks is sr.check_distributed_loss
    (folder / "ranks.py").write_text(
        "from mpi.loss import ring_sigmoid_loss\n\n\ndef ring(x, y, s, b, comm):\n"
        "    import numpy\n    return tuple(ring_sigmoid_loss(comm, x, y, s, b))\n"
    )
    ways = "--world-size", "2", "--framework", "numpy", "--reduce", "none", "--value", "global"
    code, out, err = run(folder, "check", "ranks", "ranks.py:ring", *ways)
    assert code == 0 and out.startswith("PASS"), (out, err)
