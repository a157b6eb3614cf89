"""A loss whose operators are registered with Torch goes through torch.library.opcheck; compiled ones are judged."""

import numpy as np
import pytest

import siglip_ref as sr

torch = pytest.importorskip("torch")
F = torch.nn.functional
Tensor = torch.Tensor
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def five(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Five:
    logits = log_scale.exp() * image @ text.T + bias
    signs = 2 * torch.eye(len(image), dtype=logits.dtype, device=image.device) - 1
    d = -signs * torch.sigmoid(-signs * logits) / len(image)
    loss = -F.logsigmoid(signs * logits).sum() / len(image)
    scale = log_scale.exp().to(d.dtype)
    return loss, scale * (d @ text), scale * (d.T @ image), (d * (logits - bias)).sum(), d.sum()


def alike(*given: Tensor) -> Five:
    return given[0].new_empty(()), *(torch.empty_like(one) for one in given)  # type: ignore[return-value]


def wider(*given: Tensor) -> Five:
    return given[0].new_empty((1,)), *(torch.empty_like(one) for one in given)  # type: ignore[return-value]


def registered(name: str, kernel=five, fake=alike, autograd=True):
    """A loss by an operator of its own: loss and gradients in one call."""
    op = torch.library.custom_op(f"held::{name}", kernel, mutates_args=())
    if fake:
        op.register_fake(fake)
    if autograd:
        op.register_autograd(
            lambda ctx, d, *_: tuple(d * one for one in ctx.saved_tensors),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*output[1:]),
        )
    return op


def writes(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Five:
    """Its schema says that it writes to nothing."""
    found = five(image, text, log_scale, bias)
    image.mul_(2.0)
    return found


class ByHand(torch.autograd.Function):
    """An operator that is called where nothing asks for a gradient; the backward is written around it."""

    @staticmethod
    def forward(ctx, *given):
        loss, *gradients = BARE(*given)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, d):
        return tuple(d * one for one in ctx.saved_tensors)


OP = registered("whole")
BARE = registered("bare", autograd=False)
NO_FAKE = registered("eager_only", fake=None)
WRONG_FAKE = registered("wrong_fake", fake=wider)
WRITES = registered("writes", writes)


@pytest.mark.parametrize("loss", [lambda *g: OP(*g)[0], lambda *g: ByHand.apply(*g)], ids=["registered", "by hand"])
def test_a_rightly_registered_operator_passes(loss):
    report = sr.check_loss(loss, framework="torch")
    assert report.passed, report
    assert not any("compile" in line for line in report.not_checked)


def test_without_a_fake_kernel_compiling_is_not_checked():
    report = sr.check_loss(lambda *g: NO_FAKE(*g)[0], framework="torch")
    assert report.passed and "held::eager_only under torch.compile: no fake kernel is registered" in report.not_checked


@pytest.mark.parametrize(("op", "test"), [(WRONG_FAKE, "test_faketensor"), (WRITES, "test_schema")])
def test_a_wrong_registration_is_a_mistake(op, test):
    report = sr.check_loss(lambda *g: op(*g)[0], framework="torch")
    [finding] = [one for one in report.findings if one.id == "custom-op-registration"]
    assert report.verdict == "FAIL" and test in finding.evidence and finding.tensor == f"held::{op._name}", report
    assert "opcheck" in {row.probe for row in report.details}


def eager(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return five(image, text, log_scale, bias)[0]


@pytest.mark.parametrize("wrong", [False, True])
def test_a_compiled_loss_is_judged_as_any_other(wrong):
    compiled = torch.compile(lambda *g: eager(*g) * (1.001 if wrong else 1.0), backend="aot_eager", dynamic=True)
    report = sr.check_loss(compiled, framework="torch")
    assert report.verdict == ("FAIL" if wrong else "PASS"), report


def test_without_a_gpu_the_error_points_to_the_dump(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(sr.UsageError, match=r"siglip-ref vectors export FOLDER.*siglip-ref check dump"):
        sr.check_loss(eager, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(sr.UsageError, match="siglip-ref check dump"):
        sr.check_loss(lambda i, t, s, b: eager(i.cuda(), t.cuda(), s.cuda(), b.cuda()), framework="torch")


def test_gradients_of_ones_own_are_kept_while_operators_are_watched():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.temp = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, image, text, log_scale, bias):
            return OP(image, text, log_scale + 0 * self.temp, bias)[0]

    module = Module()
    module.temp.grad = torch.tensor(5.0)
    assert sr.check_loss(module).passed
    assert module.temp.grad == 5.0 and np.isclose(float(module.temp.detach()), 2.0)
