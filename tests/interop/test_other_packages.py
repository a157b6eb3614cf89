"""Code that people install: in an environment of its own, as the index has it today, unchanged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "elsewhere"
ROOT = Path(__file__).parents[2]
OURS = (
    "numpy",
    "scipy",
    "pillow",
    "numba",
    "threadpoolctl",
    "typer",
    "rich",
    "python-flint",
    "safetensors",
    "jsonschema",
)

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs a program where these packages are installed beside what siglip-ref itself needs."""
    place = tmp_path_factory.mktemp("elsewhere")

    def run(program: Path, packages: tuple[str, ...], **environment: str) -> subprocess.CompletedProcess[str]:
        python = place / packages[0].partition("[")[0] / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *OURS, *packages], check=True, timeout=1200)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run([python, program], capture_output=True, text=True, env=env, timeout=900)

    return run


def test_keras_hubs_backbone(installed):
    program = HERE / "keras_hub_backbone.py"
    done = installed(program, ("keras-hub", "torch"), KERAS_BACKEND="torch", TF_CPP_MIN_LOG_LEVEL="3")
    assert done.returncode == 0 and "PASS  keras-hub SigLIPBackbone" in done.stdout, (done.stdout, done.stderr)


def test_siglip_kernels_paths(installed):
    done = installed(HERE / "siglip_kernel_paths.py", ("siglip-kernel", "torch"))
    found = json.loads(done.stdout.splitlines()[-1])
    cancels = found.pop("triton, bf16 chunks")
    assert {name: one["verdict"] for name, one in found.items()} == dict.fromkeys(found, "PASS"), found
    # it takes the scale's gradient from logits with their bias, and subtracts: where logits are hardly more than the
    # bias, nothing is left of its digits
    assert cancels["verdict"] == "FAIL" and {one.partition(" at ")[0] for one in cancels["wrong"]} == {"log_scale"}
    assert all("2^-14" in one for one in cancels["wrong"])


def test_a_model_in_mlx(installed):
    done = installed(ROOT / "examples" / "check_mlx_model.py", ("mlx[cpu]",))
    assert done.returncode == 0 and done.stdout.count("PASS  MLX") == 2, (done.stdout, done.stderr)
