"""What a user's environment feels of this package before it does anything: nothing heavy loads, and it starts at once."""

import subprocess
import sys
import time
from importlib.metadata import requires

import pytest

HEAVY = ("torch", "jax", "mpi4py", "scipy", "numba", "rich", "typer", "flint", "transformers")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)


def best_of(times: int, *words: str) -> float:
    """Seconds of the fastest run: the others measure what else the machine did."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run(*words)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.parametrize("statement", ["import siglip_ref", "import siglip_ref.towers.model, siglip_ref.loss"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    loaded = run("-c", f"{statement}; import sys; print(*sys.modules)").stdout.split()
    assert not set(HEAVY) & set(loaded)


def test_import_is_quick() -> None:
    """A user's own start-up must not notice us: 0.25 s beyond what Python itself takes."""
    assert best_of(7, "-c", "import siglip_ref") - best_of(7, "-c", "pass") < 0.25


def test_help_is_quick() -> None:
    code = "import sys; sys.argv = ['siglip-ref', '--help']; from siglip_ref.cli import main; main()"
    assert best_of(5, "-c", code) < 0.6


def test_no_framework_is_required() -> None:
    core = [line for line in requires("siglip-ref") or [] if "extra ==" not in line]
    assert not [line for line in core if line.startswith(("torch", "jax", "transformers", "mpi4py"))]


def test_public_names_exist() -> None:
    import siglip_ref

    assert [name for name in siglip_ref.__all__ if not hasattr(siglip_ref, name)] == []
