"""What a user's environment feels of this package before it does anything: nothing heavy loads, it starts at once."""

import json
import resource
import subprocess
import sys
from importlib.metadata import metadata, requires
from importlib.resources import files

import pytest

import siglip_ref

FRAMEWORKS = {"torch", "jax", "mpi4py", "transformers", "open_clip"}
HEAVY = FRAMEWORKS | {"scipy", "numba", "rich", "typer", "flint"}
HELP = "import sys; sys.argv = ['siglip-ref', '--help']; from siglip_ref.cli.main import main"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def seconds(code: str, times: int = 5) -> float:
    """Of processor time, in the fastest run: a start-up has one thread, so this is its time on an idle machine."""
    taken = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import siglip_ref", HEAVY | {"numpy"}),
        ("import siglip_ref.model.two_towers, siglip_ref.model.loss", HEAVY),
        ("import siglip_ref.check.loss.check", FRAMEWORKS | {"numba"}),
        ("import mpi.loss, mpi.comm", FRAMEWORKS | {"numba"}),
    ],
)
def test_what_an_import_loads(code: str, forbidden: set[str]) -> None:
    loaded = json.loads(run(f"{code}; import json, sys; print(json.dumps(list(sys.modules)))"))
    assert not forbidden & set(loaded)


def test_help_loads_no_framework() -> None:
    code = f"{HELP}; import atexit; atexit.register(lambda: print('\\nLOADED', *sys.modules)); main()"
    loaded = run(code).rpartition("LOADED")[2].split()
    assert "siglip_ref.cli.main" in loaded
    assert not (FRAMEWORKS | {"scipy", "numba"}) & set(loaded)


def test_import_is_quick() -> None:
    taken = seconds("import siglip_ref") - seconds("pass")
    print(f"import siglip_ref: {taken:.3f} s")
    assert taken < 0.25


def test_help_is_quick() -> None:
    taken = seconds(f"{HELP}; main()")
    print(f"siglip-ref --help: {taken:.3f} s")
    assert taken < 0.6


def test_no_framework_is_required() -> None:
    core = [line for line in requires("siglip-ref") or [] if "extra ==" not in line]
    assert core
    assert not [line for line in core if line.startswith(tuple(FRAMEWORKS))]


def test_only_numpy_has_a_lower_bound_and_nothing_a_pin() -> None:
    bounded = [line for line in requires("siglip-ref") or [] if any(sign in line.partition(";")[0] for sign in "=<>~")]
    assert bounded == ["numpy>=2.0"]


def test_the_version_is_the_installed_one() -> None:
    assert siglip_ref.__version__ == metadata("siglip-ref")["Version"]


@pytest.mark.parametrize("package", ["siglip_ref", "mpi"])
def test_types_are_shipped(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", siglip_ref.__all__)
def test_public_names_exist_and_say_what_they_are(name: str) -> None:
    value = getattr(siglip_ref, name)
    assert name == "__version__" or (value.__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sigmoid_los'"):
        siglip_ref.sigmoid_los  # noqa: B018
