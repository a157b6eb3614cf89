"""Modules with parameters of their own: each is judged at what it holds."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
from torch.utils.checkpoint import checkpoint

import siglip_ref as sr


class Own(torch.nn.Module):
    """As most people write it."""

    def __init__(self, kind: str, shape: tuple[int, ...] = (), bias: bool = True, detached: bool = False) -> None:
        super().__init__()
        self.kind, self.detached = kind, detached
        self.temp = torch.nn.Parameter(torch.full(shape, 2.0))
        self.b = torch.nn.Parameter(torch.full(shape, -10.0)) if bias else None

    def forward(self, image: Any, text: Any) -> Any:
        temp = self.temp.detach() if self.detached else self.temp
        scale = {"log_scale": temp.exp(), "scale": temp, "temperature": 1 / temp}[self.kind]
        logits = scale * image @ text.T + (self.b if self.b is not None else 0)
        loss = -F.logsigmoid((2 * torch.eye(len(image), dtype=image.dtype) - 1) * logits).sum() / len(image)
        return {"accuracy": logits.max(), "contrastive_loss": loss} if self.kind == "scale" else (loss, logits)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("kind", ["log_scale", "scale", "temperature"])
@pytest.mark.sampled(2, in_turn=True)
def test_modules_with_parameters_of_their_own(kind: str, shape: tuple[int, ...]) -> None:
    module = Own(kind, shape)
    report = sr.check_loss(module, parameters={"temp": kind, "b": "bias"})
    assert report.passed, report
    assert module.temp.grad is None and module.temp.item() == 2.0
    frozen = sr.check_loss(Own(kind, shape, detached=True), parameters={"temp": kind, "b": "bias"})
    assert [finding.id for finding in frozen.findings] == ["no-gradient-arrives"]


def test_a_module_without_bias() -> None:
    assert sr.check_loss(Own("log_scale", bias=False), parameters={"temp": "log_scale"}).passed


@pytest.mark.parametrize("parameters", [{"tmp": "log_scale"}, {"temp": "tau"}, {"b": "bias"}])
def test_the_refusal_lists_the_modules_parameters(parameters: dict[str, str]) -> None:
    with pytest.raises(sr.UsageError, match=r"temp \[\], b \[\]"):
        sr.check_loss(Own("log_scale"), parameters=parameters)


@pytest.mark.parametrize(
    ("parameters", "cause", "repair"),
    [
        ({"tmp": "log_scale"}, "'tmp' is no parameter of the module", "name one of these: temp, b"),
        ({"temp": "tau"}, "'tau' is none of these words", "of log_scale, scale, temperature, bias"),
        ({"b": "bias"}, "declared to be the scale, and nothing is said of temp", '{"temp": "log_scale", "b": "bias"}'),
        ({"temp": "scale", "b": "log_scale"}, "temp and b are all declared", "declare the one that is it"),
    ],
)
def test_a_refusal_of_parameters_says_what_is_wrong_with_these(parameters: dict[str, str], cause: str, repair: str):
    with pytest.raises(sr.UsageError) as refused:
        sr.check_loss(Own("log_scale"), parameters=parameters)
    assert cause in refused.value.cause and repair in refused.value.repair, refused.value
    with pytest.raises(sr.UsageError, match="no Torch module"):
        sr.check_loss(lambda image, text: 0.0, parameters=parameters)


class Fixed(torch.nn.Module):
    """A bias, and a temperature that nothing learns; as a number, or as a buffer."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(-10.0))
        if buffer:
            self.register_buffer("temperature", torch.tensor(0.05))
        else:
            self.temperature = 0.05

    def forward(self, image: Any, text: Any) -> Any:
        logits = image @ text.T / self.temperature + self.bias
        return -F.logsigmoid((2 * torch.eye(len(image), dtype=image.dtype) - 1) * logits).sum() / len(image)


@pytest.mark.parametrize("buffer", [False, True])
def test_a_fixed_scale_is_said_to_be_one_and_is_judged_as_the_repair_says(buffer: bool):
    fn = Fixed(buffer)
    with pytest.raises(sr.UsageError) as refused:
        sr.check_loss(fn, parameters={"bias": "bias"})
    assert "no parameter that is the scale" in refused.value.cause and "temperature = 0.05" in refused.value.cause
    text = refused.value.repair
    assert "fn.temperature = log_scale.exp() (1 / log_scale.exp() where similarities are divided by it)" in text
    assert 'return torch.func.functional_call(fn, {"bias": bias}, (image, text))' in text

    def loss(image: Any, text: Any, log_scale: Any, bias: Any) -> Any:
        fn.temperature = 1 / log_scale.exp()
        return torch.func.functional_call(fn, {"bias": bias}, (image, text))

    assert sr.check_loss(loss).passed
    with pytest.raises(sr.UsageError) as refused:
        sr.check_loss(fn)
    assert 'parameters={"bias": "bias"}' in str(refused.value)


def test_the_repair_of_a_module_declares_all_of_its_parameters():
    with pytest.raises(sr.UsageError) as refused:
        sr.check_loss(Own("log_scale"))
    assert 'parameters={"temp": "log_scale", "b": "bias"}' in str(refused.value)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("wrong", [False, True])
def test_what_is_computed_again_in_the_backward_meets_the_same_numbers(reentrant: bool, wrong: bool) -> None:
    class Checkpointed(Own):
        def rows(self, image: Any, text: Any) -> Any:
            logits = self.temp.exp() * image @ text.T + (self.b if not wrong else -self.b)
            return -F.logsigmoid((2 * torch.eye(len(image), dtype=image.dtype) - 1) * logits).sum()

        def forward(self, image: Any, text: Any) -> Any:
            return checkpoint(self.rows, image, text, use_reentrant=reentrant) / len(image)

    report = sr.check_loss(Checkpointed("log_scale"), parameters={"temp": "log_scale", "b": "bias"})
    # reentrant checkpoints give a module's parameters no gradient where neither embedding asks for one
    lost = {"partial-gradients"} if reentrant else set()
    assert {one.id for one in report.findings} == ({"bias-subtracted"} if wrong else lost), report
    assert report.passed == (not wrong and not lost)
