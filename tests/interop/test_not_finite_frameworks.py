"""Nothing that is not finite passes: the generated ways of tests/check/not_finite.py in Torch, JAX, and on real ranks.

And the other side: right programs in float16 pass, also where a value of theirs overflows on the way.
"""

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.engine.subject import Answer
from siglip_ref.check.loss import subject as loss_subject
from siglip_ref.check.model import subject as model_subject

sys.path.insert(0, str(Path(__file__).parent.parent / "check"))
from not_finite import TARGETS, Calls, Way, cases

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
F = torch.nn.functional
Tensor = Any


def never_passes(check: Callable[[], Any]) -> None:
    try:
        report = check()
    except sr.UsageError:
        return
    assert report.verdict in ("FAIL", "NOT JUDGED"), report


class Spoilt(torch.autograd.Function):
    """The identity, whose gradient is spoilt."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, way: Way) -> Tensor:
        ctx.way = way
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return put(ctx.way, grad), None


def put(way: Way, x: Tensor) -> Tensor:
    """The way's value in a tensor; the rest keeps its graph."""
    spoilt = torch.tensor(way.spoil(x.detach().double().numpy())).to(x.dtype)
    return torch.where(spoilt.isfinite(), x, spoilt)


def torch_loss(way: Way) -> Callable[..., Tensor]:
    calls = Calls(way.when)

    def loss(*given: Tensor) -> Tensor:
        strikes = calls.strike(*(x.detach().double().numpy() for x in given))

        def at(places: tuple[str, ...], x: Tensor) -> Tensor:
            return put(way, x) if strikes and way.target in places else x

        if strikes and way.target in ("gradient", "gradients"):
            chosen = (1,) if way.target == "gradient" else range(4)
            given = tuple(Spoilt.apply(x, way) if k in chosen else x for k, x in enumerate(given))
        image, text, log_scale, bias = given
        image, text = at(("embedding", "everything"), image), at(("tower", "everything"), text)
        logits = at(("scale",), log_scale.exp()) * image @ text.T + at(("bias",), bias)
        signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
        terms = F.logsigmoid(signs * at(("logits", "weights"), logits))
        return at(("loss",), -terms.sum() / len(image))

    return loss


@pytest.fixture
def unexplained(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Leaves out what explains a failure, which is most of the time of a check that fails."""

    def leave_out() -> None:
        monkeypatch.setattr(loss_subject, "explained", lambda *_: Answer([]))
        monkeypatch.setattr(model_subject, "explain", lambda *_: ("FAIL", []))

    return leave_out


@pytest.mark.parametrize(("way", "dtype", "whole"), cases(TARGETS, 3, ("float32", "float64", "bfloat16", "float16")))
def test_torch_losses(way: Way, dtype: str, whole: bool, unexplained: Callable[[], None]) -> None:
    if not whole:
        unexplained()
    never_passes(lambda: sr.check_loss(torch_loss(way), "torch", dtype))


@pytest.mark.parametrize(("way", "dtype", "whole"), cases(TARGETS, 1, every=4))
def test_jax_losses(way: Way, dtype: str, whole: bool) -> None:
    """Traced once for each shape, so a way strikes always, or where the numbers themselves say so."""
    jnp = jax.numpy
    value = {"infinity": jnp.inf, "minus infinity": -jnp.inf, "log 0": -jnp.inf, "an overflow": jnp.inf}
    bad = value.get(way.value, jnp.nan)

    def put_in(x: Any) -> Any:
        mask = np.zeros(x.shape, bool)
        way_mask = ~np.isfinite(way.spoil(np.ones(x.shape)))
        return jnp.where(mask | way_mask, bad, x)

    def loss(image: Any, text: Any, log_scale: Any, bias: Any) -> Any:
        scale = jnp.exp(log_scale)
        strikes = jnp.asarray(True)
        if way.when == "extreme":
            strikes = jnp.abs(scale * image @ text.T + bias).max() > 20
        elif way.when != "always":
            strikes = jnp.abs(bias + 10) < 0.5

        def at(places: tuple[str, ...], x: Any) -> Any:
            return jnp.where(strikes, put_in(x), x) if way.target in places else x

        image, text = at(("embedding", "gradients", "everything"), image), at(("tower", "gradient"), text)
        logits = at(("scale",), scale) * image @ text.T + at(("bias",), bias)
        terms = jax.nn.log_sigmoid((2 * jnp.eye(len(image)) - 1) * at(("logits", "weights"), logits))
        return at(("loss",), -terms.sum() / len(image))

    never_passes(lambda: sr.check_loss(loss, "jax"))


def tiny() -> Any:
    from siglip_ref.check.model.adapters.find import load_target

    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return load_target("hf:tiny")


@pytest.mark.parametrize(("way", "dtype", "whole"), cases(TARGETS, 2, ("float32", "float16"), every=2))
def test_torch_models(way: Way, dtype: str, whole: bool, unexplained: Callable[[], None]) -> None:
    """In weights of its own, in what modules give, in gradients; the model computes on with it."""
    if not whole:
        unexplained()
    model, own = tiny(), way.target in ("weights", "scale", "bias")
    parameters = {"weights": "text_model.encoder.layers.0.mlp.fc1.weight", "scale": "logit_scale", "bias": "logit_bias"}
    modules = {
        "tower": "vision_model.encoder.layers.0",
        "embedding": "text_model.head",
        "logits": "vision_model.head",
        "everything": "text_model.final_layer_norm",
        "loss": "vision_model.post_layernorm",
    }
    if own:
        tensor = model.get_parameter(parameters[way.target])
        tensor.data.copy_(torch.tensor(way.spoil(tensor.detach().numpy())))
    elif way.target in modules:
        hook = lambda _, __, out: (put(way, out[0]), *out[1:]) if isinstance(out, tuple) else put(way, out)  # noqa: E731
        model.get_submodule(modules[way.target]).register_forward_hook(hook)
    else:
        place = "text_model.final_layer_norm" if way.target == "gradient" else "vision_model.encoder.layers.1.mlp.fc2"
        model.get_submodule(place).register_forward_hook(lambda _, __, out: Spoilt.apply(out, way))
    never_passes(lambda: sr.check_model(model, dtype, "own" if own else "probe"))


OWN = list(product((1e-40, 1e-20, 50.0, 1e4, 1e10, 1e30), ("float64", "float32", "float16")))


@pytest.mark.parametrize(("factor", "dtype"), [pytest.param(*own, marks=pytest.mark.nightly) for own in OWN])
def test_models_whose_own_loss_is_none_never_pass(factor: float, dtype: str) -> None:
    model = tiny()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    model.text_model.head.register_forward_hook(lambda _, __, out: out * 0 + 7)  # and it is wrong, too
    never_passes(lambda: sr.check_model(model, dtype, "own"))


def other_results() -> dict[str, Callable[..., Any]]:
    def right(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
        return -F.logsigmoid(signs * (log_scale.exp() * image @ text.T + bias)).sum() / len(image)

    def steep(*given: Tensor) -> bool:
        return bool(given[3].abs() > 20)

    def masked(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        """The positives by a mask of minus infinity, times zero."""
        logits = log_scale.exp() * image @ text.T + bias
        eye = torch.eye(len(image), dtype=torch.bool)
        negatives = logits.masked_fill(eye, -torch.inf)
        return (F.softplus(negatives) * (~eye) - (F.logsigmoid(logits.masked_fill(~eye, -torch.inf)) * eye)).sum() / 9

    return {
        "None": lambda *g: None,
        "None where steep": lambda *g: None if steep(*g) else right(*g),
        "a number of Python": lambda *g: float("nan"),
        "complex": lambda *g: torch.complex(right(*g), right(*g)),
        "complex where steep": lambda *g: torch.complex(right(*g), right(*g)) if steep(*g) else right(*g),
        "an integer": lambda *g: right(*g).long(),
        "huge, then cast": lambda *g: (right(*g) * 1e30).half().float() / 1e30,
        "huge, then divided": lambda *g: right(*g) * 1e38 * 1e10 / 1e48,
        "tiny, then divided": lambda *g: right(*g) * 1e-38 * 1e-10 / 1e-48,
        "infinity times zero": lambda *g: right(*g) + 0 * torch.tensor(torch.inf),
        "minus infinity in a mask": masked,
        "log of a sigmoid": lambda i, t, s, b: (
            -((2 * torch.eye(len(i)) - 1) * (s.exp() * i @ t.T + b)).sigmoid().log().sum() / len(i)
        ),
        "NaN hidden": lambda *g: (right(*g) * torch.nan).nan_to_num(),
        "NaN hidden where steep": lambda *g: (right(*g) * torch.nan).nan_to_num() if steep(*g) else right(*g),
        "root of a negative": lambda *g: right(*g) + (-(g[1].sum() ** 2) - 1).sqrt() * 0,
        "no graph": lambda *g: right(*g).detach() * torch.nan,
        "raises where steep": lambda *g: right(*g) if not steep(*g) else (_ for _ in ()).throw(ArithmeticError("inf")),
    }


@pytest.mark.parametrize("name", list(other_results()))
@pytest.mark.sampled(2)
def test_other_results_never_pass(name: str) -> None:
    never_passes(lambda: sr.check_loss(other_results()[name], "torch"))


def ring_free(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor, rank: int, world_size: int) -> Tensor:
    """A right loss on ranks: texts are gathered with their gradients."""
    import torch.distributed.nn.functional as dist

    texts = torch.cat(dist.all_gather(text))
    logits = log_scale.exp() * image @ texts.T + bias
    signs = -torch.ones_like(logits)
    own = torch.arange(len(image))
    signs[own, own + rank * len(image)] = 1
    return -F.logsigmoid(signs * logits).sum() / len(image)


RANKS = [
    ("loss", "NaN", None),
    ("loss", "NaN", 1),
    ("loss", "inf", 0),
    ("image", "NaN", None),
    ("text", "inf", 1),
    ("text", "-inf", None),
    ("log_scale", "NaN", 1),
    ("bias", "inf", None),
    ("gradient", "NaN", 1),
    ("gradient", "inf", None),
]


@pytest.mark.nightly
@pytest.mark.parametrize(("target", "value", "only"), RANKS)
def test_real_ranks(target: str, value: str, only: int | None) -> None:
    """Ten through real processes; the rest through the judge that they share, in tests/check."""

    def loss(*given: Any) -> Any:
        rank = given[4]
        strikes = only is None or rank == only
        tensors = dict(zip(("image", "text", "log_scale", "bias"), given[:4], strict=True))
        if strikes and target in tensors:
            tensors[target] = tensors[target] + float(value)
        if strikes and target == "gradient":
            tensors["text"] = tensors["text"] * 1
            tensors["text"].register_hook(lambda grad: grad + float(value))
        out = ring_free(*tensors.values(), *given[4:])
        return out + float(value) if strikes and target == "loss" else out

    never_passes(lambda: sr.check_distributed_loss(loss, 2, "torch", limit=600))


RIGHT: dict[str, Callable[..., Tensor]] = {
    "log-sigmoid": lambda i, t, s, b: (
        -F.logsigmoid((2 * torch.eye(len(i), dtype=i.dtype) - 1) * (s.exp() * i @ t.T + b)).sum() / len(i)
    ),
    "softplus": lambda i, t, s, b: (
        F.softplus((1 - 2 * torch.eye(len(i), dtype=i.dtype)) * (s.exp() * i @ t.T + b), threshold=50).sum() / len(i)
    ),
    "mean of rows": lambda i, t, s, b: (
        F.softplus((1 - 2 * torch.eye(len(i), dtype=i.dtype)) * (s.exp() * i @ t.T + b), threshold=50).sum(1).mean()
    ),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dims", [None, {"batch": 128, "dim": 64}])
def test_right_float16_losses_pass(name: str, dims: Any) -> None:
    """At 128 pairs and logits of 1000 the sum over all pairs is beyond float16: out of range there, and right."""
    report = sr.check_loss(RIGHT[name], dtype="float16", dims=dims)
    assert report.passed, report
    if dims and name != "mean of rows":  # each row's sum fits
        assert any(row.verdict == "out of range" and row.trouble == "overflows" for row in report.details)


@pytest.mark.parametrize("weights", ["probe", "own"])
def test_right_float16_models_pass(weights: str) -> None:
    assert sr.check_model(tiny(), "float16", weights).passed
