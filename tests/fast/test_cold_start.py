"""Kernels' cache on disk never breaks a run: missing, read-only, stale; nor does a machine without Numba."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import siglip_ref

LOSS = """
import numpy as np
from siglip_ref import fast
from siglip_ref.model.loss import sigmoid_loss
x = np.eye(3)
print(sigmoid_loss(x, x, 0.0, -1.0, ops=fast).loss == np.float64(sigmoid_loss(x, x, 0.0, -1.0).loss), fast.COMPILED)
"""
HOME = str(Path(siglip_ref.__file__).parents[1])


def run(code: str, **environment: str) -> tuple[str, str]:
    # One twin alone, with the loss's kernel: a cold start of seconds, not of a minute
    known = {"PATH": os.environ["PATH"], "PYTHONPATH": HOME, "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=known | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_the_second_start_is_warm_and_says_nothing(tmp_path: Path) -> None:
    out, said = run(LOSS, NUMBA_CACHE_DIR=str(tmp_path))
    assert out.endswith("True")
    assert "compiling kernels" in said
    _, said = run(LOSS, NUMBA_CACHE_DIR=str(tmp_path))
    assert "compiling" not in said


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run(LOSS, NUMBA_CACHE_DIR=str(blocked / "cache"))[0].endswith("True")


def test_without_numba_the_specification_computes() -> None:
    out, said = run("import sys; sys.modules['numba'] = None\n" + LOSS)
    assert out == "True False"
    assert said.count("\n") == 1 and "the NumPy specification computes instead" in said


@pytest.mark.parametrize("module", ["siglip_ref", "siglip_ref.model.loss", "siglip_ref.model.two_towers"])
def test_the_specification_needs_no_numba(module: str) -> None:
    assert run(f"import sys, {module}; print('numba' in sys.modules)")[0] == "False"


def test_functions_of_no_module_can_be_compiled_beside_it() -> None:
    code = "import numba; from siglip_ref import fast; made = {}; exec('def f(x): return x + 1', made)"
    assert run(f"{code}; made['f'].__module__ = None; print(numba.njit(made['f'])(2))")[0] == "3"


def test_without_kernels_no_blas_is_held_to_one_thread() -> None:
    code = "import sys; sys.modules['numba'] = None\nfrom siglip_ref import fast\n"
    code += "from siglip_ref.process import blas_threads\nblas_threads._blas = None\n"
    assert run(code + "with blas_threads.one_pool(fast.OPS.compiled): print('free')")[0] == "free"


def test_a_kernel_that_others_call_by_its_name_may_be_missing_from_the_cache(tmp_path: Path) -> None:
    run(LOSS, NUMBA_CACHE_DIR=str(tmp_path))
    gone = [file for file in tmp_path.rglob("*") if "._band-" in file.name]
    assert gone and any("pairs.sweep-" in file.name for file in tmp_path.rglob("*"))
    for file in gone:
        file.unlink()
    out, said = run(LOSS, NUMBA_CACHE_DIR=str(tmp_path))
    assert out.endswith("True") and "compiling kernels" in said


HALF = """
from siglip_ref.fast.machine.compile import inner, kernel

@inner()
def part(x):
    return x * 0.5

@kernel()
def half(x):
    return part(x)
"""


def test_files_that_two_processes_mixed_up_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "halves.py").write_text(HALF)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from halves import half; print(half(2.5), half(3))"
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path))[0] == "1.25 1.5"
    one, two = sorted(file for file in tmp_path.rglob("*.nbc") if "half-" in file.name)
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path))[0] == "1.25 1.5"


def test_a_kernel_that_only_kernels_call_says_so(tmp_path: Path) -> None:
    (tmp_path / "halves.py").write_text(HALF)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from halves import half, part; half(3)\n"
    code += "try: part(3)\nexcept TypeError as problem: print(problem)"
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path))[0] == "part is only for kernels to call"
