"""What a call of a loss may not do: raise where the same shapes worked, or leave anything of the user's changed."""

import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.call.frameworks import ALONE

torch = pytest.importorskip("torch")
Tensor = Any
Loss = Callable[..., Any]
ARGUMENTS = ("image_embed", "text_embed", "log_scale", "bias")


def right(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = log_scale.exp() * image @ text.T + bias
    labels = 2 * torch.eye(len(image), device=image.device) - 1
    return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(image)


class WithoutSecondCall(torch.autograd.Function):
    """Refuses a gradient that is not 1, and a backward pass after another forward."""

    latest = 0

    @staticmethod
    def forward(ctx: Any, loss: Tensor, upstream: bool, order: bool) -> Tensor:
        WithoutSecondCall.latest += 1
        ctx.number, ctx.upstream, ctx.order = WithoutSecondCall.latest, upstream, order
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if ctx.upstream and grad.item() != 1:
            raise NotImplementedError
        if ctx.order and ctx.number != WithoutSecondCall.latest:
            raise RuntimeError("only the latest forward pass can be differentiated")
        return grad, None, None


def needs_all(*given: Tensor) -> Tensor:
    if not all(x.requires_grad for x in given):
        raise RuntimeError("needs the gradient of every input")
    return right(*given)


def needs_one(name: str, *given: Tensor) -> Tensor:
    if not given[ARGUMENTS.index(name)].requires_grad:
        raise RuntimeError(f"{name} has no gradient")
    return right(*given)


def once() -> Loss:
    many = False

    def loss(image: Tensor, *rest: Tensor) -> Tensor:
        nonlocal many
        if many and len(image) < 100:  # the last of the plain calls has many pairs
            raise RuntimeError("no second batch")
        many = many or len(image) > 100
        return right(image, *rest)

    return loss


REFUSING: dict[str, tuple[Loss, str]] = {
    "all gradients or none": (needs_all, "partial-gradients"),
    **{f"needs {name}": (partial(needs_one, name), "partial-gradients") for name in ARGUMENTS},
    "upstream": (lambda *g: WithoutSecondCall.apply(right(*g), True, False), "upstream-gradient-ignored"),
    "order": (lambda *g: WithoutSecondCall.apply(right(*g), False, True), "state-shared-between-calls"),
    "again": (once(), "not-reproducible"),
}


@pytest.mark.parametrize("name", REFUSING)
def test_a_call_that_is_refused_though_its_shapes_worked_fails(name: str) -> None:
    fn, id = REFUSING[name]
    report = sr.check_loss(fn)
    assert report.verdict == "FAIL"
    finding = next(finding for finding in report.findings if finding.id == id)
    assert "the same shapes had just worked" in finding.evidence
    refused = [row for row in report.details if row.verdict == "FAIL"]
    assert refused and all(row.trouble == "refused" for row in refused)
    if name == "upstream":  # nothing was said, so the line that raised stands for it
        assert "raise NotImplementedError" in finding.evidence


def test_a_layout_may_be_refused() -> None:
    """Raising is better than reading wrongly; the report shows the line, as the assertion says nothing."""

    def contiguous(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        if not (image.is_contiguous() and text.is_contiguous()):
            raise AssertionError
        return right(image, text, log_scale, bias)

    report = sr.check_loss(contiguous)
    assert report.passed and len(report.not_checked) == 1
    assert "AssertionError at test_loss_contract.py:" in report.not_checked[0]
    assert report.not_checked[0].endswith("raise AssertionError")


def test_numbers_may_not_be_refused_but_shapes_and_memory_may() -> None:
    def explodes(*given: Tensor) -> Tensor:
        loss = right(*given)
        if loss > 100:
            raise ValueError("loss exploded")
        return loss

    report = sr.check_loss(explodes)
    assert report.verdict == "FAIL" and "it takes other numbers of the same shapes" in report.findings[0].evidence

    def small(image: Tensor, *rest: Tensor) -> Tensor:
        if len(image) > 100:
            raise ValueError("at most 100 pairs")
        return right(image, *rest)

    def greedy(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        if bias > 40:
            raise MemoryError
        return right(image, text, log_scale, bias)

    for fn in (small, greedy):
        assert sr.check_loss(fn).passed


@pytest.mark.parametrize("frozen", [("image_embed",), ("log_scale", "bias"), ("image_embed", "text_embed")])
def test_frozen_inputs_come_without_a_gradient_and_are_not_asked_for_one(frozen: tuple[str, ...]) -> None:
    asked = set()

    def locked(*given: Tensor) -> Tensor:
        asked.update(name for name, x in zip(ARGUMENTS, given, strict=True) if x.requires_grad)
        return right(*(x.detach() if name in frozen else x for name, x in zip(ARGUMENTS, given, strict=True)))

    assert sr.check_loss(locked).verdict == "FAIL"
    asked.clear()
    report = sr.check_loss(locked, frozen=frozen)
    assert report.passed, report
    assert asked == set(ARGUMENTS) - set(frozen)
    assert {row.name for row in report.rows} == {"loss", *ARGUMENTS} - set(frozen)
    assert [f"d {name}: frozen, as declared" for name in frozen] == report.not_checked
    assert not any(row.probe.endswith(f"only {name}") for row in report.details for name in frozen)
    tried = {row.probe for row in report.details}
    assert {f"balanced, gradient of {way}" for way in ALONE if way[5:] not in frozen} <= tried


def test_frozen_in_jax_and_numpy() -> None:
    jax = pytest.importorskip("jax")

    def in_jax(image: Any, text: Any, log_scale: Any, bias: Any) -> Any:
        logits = jax.numpy.exp(log_scale) * image @ text.T + bias
        labels = 2 * jax.numpy.eye(len(image)) - 1
        return -jax.nn.log_sigmoid(labels * logits).sum() / len(image)

    report = sr.check_loss(lambda x, *rest: in_jax(jax.lax.stop_gradient(x), *rest), "jax", frozen="image_embed")
    assert report.passed and "image_embed" not in {row.name for row in report.rows}
    assert sr.check_loss(lambda x, *rest: in_jax(jax.lax.stop_gradient(x), *rest), "jax").verdict == "FAIL"

    def in_numpy(*given: Any) -> Any:
        loss, _, d_text, d_scale, d_bias = sr.sigmoid_loss(*given)
        return loss, None, d_text, d_scale, d_bias

    assert sr.check_loss(in_numpy, "numpy", "float64", frozen=["image_embed"]).passed


@pytest.mark.parametrize("frozen", [("images",), ARGUMENTS, "image"])
def test_what_cannot_be_frozen(frozen: Any) -> None:
    with pytest.raises(sr.UsageError, match="frozen: some of image_embed"):
        sr.check_loss(right, frozen=frozen)


class Bank(torch.nn.Module):
    """A loss with all that a loss may keep: statistics, a queue, counters, a parameter with a gradient of its own."""

    def __init__(self, raises: bool = False) -> None:
        super().__init__()
        self.raises = raises
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("queue", torch.zeros(3, 2))
        self.plain, self.number, self.seen, self.by_name = torch.ones(2), 0, [0], {"first": torch.ones(1)}
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.weight.grad = torch.full((2,), 7.0)

    def forward(self, *given: Tensor) -> Tensor:
        self.calls += 1
        self.norm(torch.randn(5, 4))
        self.queue = torch.cat([self.queue[1:], torch.ones(1, 2)])  # another tensor under the same name
        self.plain[0], self.number = 3.0, self.number + 1
        self.seen.append(self.number)
        self.by_name["last"] = self.by_name["first"].add_(1)
        self.later = self.weight * 2
        if self.raises:
            raise RuntimeError("afterwards")
        return right(*given) + 0 * self.later.sum()


def state(bank: Bank) -> dict[str, Any]:
    tensors = {**bank.state_dict(keep_vars=True), "plain": bank.plain, "first": bank.by_name["first"]}
    found = {name: (id(t), t._version, t.detach().tolist()) for name, t in tensors.items()}
    grad = bank.weight.grad
    others = (bank.number, list(bank.seen), sorted(bank.by_name), hasattr(bank, "later"), bank.training)
    return found | {"grad": (id(grad), grad.tolist(), grad._version), "others": others}


def held(bank: Bank) -> dict[str, Loss]:
    def inner(*given: Tensor) -> Tensor:
        return bank(*given)

    class Holder:
        def __init__(self) -> None:
            self.parts = {"loss": [bank]}

        def __call__(self, *given: Tensor) -> Tensor:
            return self.parts["loss"][0](*given)

    return {
        "module": bank,
        "method": bank.forward,
        "closure": inner,
        "partial": partial(lambda loss, *given: loss(*given), bank),
        "keyword": partial(lambda *given, loss: loss(*given), loss=bank),
        "default": lambda *given, loss=bank: loss(*given),
        "object": Holder(),
        "lambda of a closure": lambda *given: inner(*given),
    }


@pytest.mark.parametrize("how", list(held(Bank())))
@pytest.mark.parametrize("raises", [False, True])
def test_what_a_loss_keeps_is_put_back(how: str, raises: bool) -> None:
    bank = Bank(raises)
    before = state(bank)
    fn = held(bank)[how]
    if raises:
        with pytest.raises(sr.UsageError, match="afterwards"):
            sr.check_loss(fn, "torch")
    else:
        sr.check_loss(fn, "torch")
    assert state(bank) == before


def test_arrays_and_tensors_of_a_closure_are_put_back_and_notes_are_kept() -> None:
    count, kept, bank, calls = 0, np.zeros(3), torch.zeros(2), []

    def loss(*given: Tensor) -> Tensor:
        nonlocal count
        count += 1
        kept[1] = bank[0] = count
        calls.append(given[0].shape)
        return right(*given)

    sr.check_loss(loss)
    assert kept.tolist() == [0, 0, 0] and bank.tolist() == [0, 0] and bank._version == 0
    assert count == len(calls) > 10  # how often it was called: a test's own notes


def test_gradients_of_hidden_leaves_are_not_touched() -> None:
    """Also where nobody could find the leaf by looking: the graph of the loss leads to it."""
    leaf, other = (torch.ones(1, requires_grad=True) for _ in range(2))
    other.grad = torch.full((1,), 5.0)
    of_iterator: Iterator[Tensor] = iter([leaf * 0 + other * 0] * 1000)
    for fn in (
        lambda *given: right(*given) + 0 * (leaf + other).sum(),
        lambda *given: right(*given) + 0 * (next(of_iterator).detach().sum() + (leaf * other).sum()),
    ):
        assert sr.check_loss(fn).passed
        assert leaf.grad is None and other.grad.tolist() == [5] and other.grad._version == 0


def process_state() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "anomaly": torch.is_anomaly_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "grad": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist()[:40],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "warnings": list(warnings.filters),
        "errors": np.geterr(),
        "numpy": np.random.get_state()[1][:8].tolist(),
    }


@pytest.mark.parametrize("raises", [False, True])
def test_what_a_loss_sets_in_the_process_is_put_back(raises: bool, tmp_path: Any) -> None:
    def rude(*given: Tensor) -> Tensor:
        torch.set_num_threads(1 + torch.get_num_threads() % 2)
        torch.use_deterministic_algorithms(True)
        torch.autograd.set_detect_anomaly(True)
        torch.set_float32_matmul_precision("medium")
        torch.manual_seed(3)
        np.random.seed(3)
        os.environ["SIGLIP_REF_RUDE"] = "1"
        os.chdir(tmp_path)
        warnings.simplefilter("ignore")
        np.seterr(all="raise")
        loss = right(*given)
        torch.set_default_dtype(torch.float64)
        if raises:
            raise RuntimeError("rude")
        return loss

    before = process_state()
    if raises:
        with pytest.raises(sr.UsageError, match="rude"):
            sr.check_loss(rude)
    else:
        assert sr.check_loss(rude).verdict in ("PASS", "FAIL")
    assert process_state() == before


def test_a_default_device_without_numbers_does_not_matter() -> None:
    torch.set_default_device("meta")
    try:
        assert sr.check_loss(right).passed
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    with pytest.raises(sr.UsageError, match="meta"):
        sr.check_loss(right, device="meta")
