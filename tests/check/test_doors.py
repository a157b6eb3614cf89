"""A check's command is its Python function: the same name without check_, the same arguments; names of functions, and a
framework's own types, are taken everywhere."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import typer

import siglip_ref as sr
from siglip_ref.cli.main import app

CHECKS = {name.removeprefix("check_"): getattr(sr, name) for name in sr.__all__ if name.startswith("check_")}
OLD = "distributed_loss"  # another name of ranks
COMMANDS = typer.main.get_command(app).commands["check"].commands
# what no shell can hand over, and what every command has
GIVEN_BY_THE_COMMAND = {"progress", "ranks"}
OF_COMMANDS = {"json", "save_case", "force", "help"}
MADE_BY_A_FUNCTION = {"step"}  # its target returns all arguments as a dict


def test_every_check_has_its_command():
    assert CHECKS.pop(OLD) is sr.check_ranks
    assert CHECKS.keys() == COMMANDS.keys() and len(CHECKS) >= 9


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_arguments_are_the_same(name):
    asked = {parameter.name for parameter in COMMANDS[name].params} - OF_COMMANDS
    parameters = inspect.signature(getattr(sr, f"check_{name}")).parameters
    first = next(iter(parameters))
    assert asked == ({first} if name in MADE_BY_A_FUNCTION else {*parameters} - GIVEN_BY_THE_COMMAND)


PROJECT = """
import numpy as np
import siglip_ref as sr
from siglip_ref.model.optim import State, adamw_step
from siglip_ref.use.preprocess import PREPROCESS, pixels
from siglip_ref.mistakes import reference
from siglip_ref.vectors.tasks import TASKS

RULE = sr.AdamW(lr=1e-3, decay=0.1, max_norm=1.0)

def loss(x, y, log_scale, bias):
    return tuple(sr.sigmoid_loss(x, y, log_scale, bias))

def step(params, grads, state):
    return adamw_step(params, grads, state or State(), RULE)

def whole_step():
    return dict(step_fn=step, rule=RULE, framework="numpy")

def prepare(image):
    return pixels(image, (64, 64), PREPROCESS["huggingface"])

def wide(image):
    return pixels(image, (64, 48), PREPROCESS["huggingface"])

def ones(texts):
    return [[1] * 64 for _ in texts]

def captions(inputs, settings):
    return TASKS["captions"](reference(), inputs, settings)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    place = tmp_path_factory.mktemp("project") / "project.py"
    place.write_text(PROJECT)
    return place


# check, the name of the function, further arguments in Python, the same on the command line, verdict
ALIKE = [
    ("loss", "loss", {"dtype": np.float64, "framework": "numpy"}, "--dtype float64 --framework numpy", "PASS"),
    ("step", "whole_step", {}, "", "PASS"),
    ("preprocess", "prepare", {"size": 64}, "--size 64", "PASS"),
    ("preprocess", "wide", {"size": (64, 48)}, "--size 64x48", "PASS"),
    ("preprocess", "wide", {"size": 64}, "--size 64", "FAIL"),
    ("tokenize", "ones", {"length": 64}, "--length 64", "FAIL"),
    ("recipe", "captions", {"part": "captions", "framework": "numpy", "dtype": np.dtype("float64")},
     "captions --framework numpy --dtype float64", "PASS"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "name", "arguments", "words", "verdict"), ALIKE, ids=lambda x: str(x)[:12])
def test_a_name_does_for_the_function_in_both(project, check, name, arguments, words, verdict):
    target = f"{project}:{name}"
    report = getattr(sr, f"check_{check}")(target, **arguments)
    command = [sys.executable, "-m", "siglip_ref", "check", check, target, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert report.verdict == verdict and done.stdout.startswith(verdict), (report, done)
    assert done.returncode == (0 if verdict == "PASS" else 1)


@pytest.mark.parametrize("check", ["preprocess", "tokenize", "loss"])
def test_a_size_or_a_name_that_is_none_is_told(project, check):
    words = {"preprocess": [":prepare", "--size", "64x"], "tokenize": [":nobody"], "loss": [":loss", "--dims", "x"]}[
        check
    ]
    command = [sys.executable, "-m", "siglip_ref", "check", check, f"{project}{words[0]}", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "repair" in done.stderr, done.stderr


def test_progress_is_told_of_what_takes_long():
    for name in ("loss", "ranks", "model", "step"):
        assert "progress" in inspect.signature(getattr(sr, f"check_{name}")).parameters


def test_a_torch_model_by_name_with_a_type_of_torch_on_a_device():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    told = []
    report = sr.check_model("hf:tiny", torch.float64, device="cpu", conventions="huggingface", progress=told.append)
    assert report.passed and told[0] == "loading hf:tiny", report
    with pytest.raises(sr.UsageError, match="a device that Torch can use here"):
        sr.check_model("hf:tiny", device="nowhere")


def test_where_a_torch_model_computes_it_stays_where_it_is():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from dataclasses import replace

    from siglip_ref.check.model.adapters.find import adapter_for, load_target

    model = load_target("hf:tiny")
    adapter = replace(adapter_for(model), device="meta")
    pixels, tokens = adapter.inputs(np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 4), np.int64))
    made = adapter._stand_ins(adapter.parameters("float32"), torch.float32)
    assert {x.device.type for x in (pixels, tokens, *made.values())} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_an_adapter_of_ones_own_chooses_its_device_itself():
    from reference_adapter import ReferenceAdapter

    with pytest.raises(sr.UsageError, match="device for a Torch model"):
        sr.check_model(ReferenceAdapter(), device="cpu")
