"""What cannot be called or read is refused with a cause that follows from what came, or with none."""

import sys

import pytest

import siglip_ref as sr
from siglip_ref.check.model.adapters import find
from siglip_ref.cli.main import main

torch = pytest.importorskip("torch")


class Own(torch.nn.Module):
    """The commonest SigLIP loss: scale and bias are its own."""

    def __init__(self, shape=()):
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.full(shape, 2.3))
        self.shift = torch.nn.Parameter(torch.full(shape, -10.0))

    def forward(self, image, text):
        logits = self.temperature.exp() * image @ text.T + self.shift
        return -torch.nn.functional.logsigmoid((2 * torch.eye(len(image)).to(image) - 1) * logits).sum() / len(image)


def refusal(fn, **arguments):
    with pytest.raises(sr.UsageError) as raised:
        sr.check_loss(fn, **arguments)
    return raised.value


@pytest.mark.parametrize("shape", [(), (1,)], ids=["number", "shape 1"])
def test_a_module_with_its_own_parameters_is_told_how_to_be_given(shape):
    """The line in the repair is the one that works."""
    module = Own(shape)
    told = refusal(module)
    assert f"temperature {list(shape)}, shift {list(shape)}" in told.got
    assert "are not among its arguments" in told.cause
    line = told.repair.partition(";")[0]
    assert sr.check_loss(eval(line, {"torch": torch, "fn": module}), "torch", scale="log").passed


def returns(result):
    return lambda image, text, log_scale, bias: result(image, text, log_scale, bias)


def loss(image, text, log_scale, bias):
    return torch.func.functional_call(Own(), {"temperature": log_scale, "shift": bias}, (image, text))


@pytest.mark.parametrize(
    ("result", "words", "repair"),
    [
        (lambda *x: {"accuracy": 0.5, "contrastive_loss": loss(*x)}, "'contrastive_loss'", "['contrastive_loss']"),
        (lambda *x: {"total": 1.0, "loss": loss(*x)}, "'total', 'loss'", "['loss']"),
        (lambda *x: (loss(*x), 0.5), "a tuple of 2", "fn(*inputs)[0]"),
        (lambda *x: None, "nothing (None)", "return loss.sum()"),
        (lambda *x: x[0].sum(-1), "an array of shape (9,)", "return loss.sum()"),
        (lambda *x: "a text", "a str", "return loss.sum()"),
    ],
    ids=["dict", "loss", "tuple", "None", "rows", "str"],
)
def test_results_that_are_no_number(result, words, repair):
    told = refusal(returns(result), framework="torch")
    assert words in told.got and repair in told.repair
    assert "or" not in told.cause.split()  # one cause, or none


def asks_for_a_gpu(image, text, log_scale, bias):
    raise RuntimeError("torch.cuda.Stream requires CUDA support")


def wants_more(image, text, log_scale, bias):
    return loss(image, text)


def test_causes_follow_from_what_was_raised():
    told = refusal(asks_for_a_gpu, framework="torch")
    assert "asks for a GPU" in told.cause and 'device="cuda"' in told.repair and "check dump" in told.repair
    told = refusal(wants_more, framework="torch")
    assert told.cause == "it takes other arguments" and told.repair.startswith("wrap it")
    told = refusal(returns(lambda *x: 1 / 0), framework="torch")
    assert told.cause == "" and "cause" not in str(told) and "ZeroDivisionError" in told.got


def command(monkeypatch, capsys, *words):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["siglip-ref", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_command_line_is_told_its_own_words(monkeypatch, capsys, tmp_path):
    (tmp_path / "other.py").write_text("def other(a, b, c, d):\n    return a\n")
    assert "--framework torch" in command(monkeypatch, capsys, "check", "loss", f"{tmp_path}/other.py:other")
    said = command(monkeypatch, capsys, "check", "loss", f"{tmp_path}/other.py:othre")
    assert "near other" in said and "other.py:other" in said
    said = command(monkeypatch, capsys, "check", "model", "hf:tine")
    assert "near hf:tiny" in said and "siglip-ref check model hf:tiny" in said
    assert "near" not in command(monkeypatch, capsys, "check", "model", "hf:xyzzy").split("cannot")[1].split("tiny")[0]
    said = command(monkeypatch, capsys, "explain", "ring-hop")
    assert "near ring-hop" in said and "cause" not in said


def test_open_clip_is_installed_without_what_does_not_fit():
    """As the README says it: its dependencies bring a torchvision that replaces torch, or does not fit it."""
    with pytest.raises(sr.UsageError) as raised:
        find._needed("open_clip", find._OPEN_CLIP, "open_clip.not_there")
    assert raised.value.repair == "pip install --no-deps open_clip_torch timm"
    with pytest.raises(sr.UsageError, match="is not installed here"):
        find._needed("nobody", "nobody", "nobody")
