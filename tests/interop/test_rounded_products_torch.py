"""Torch losses with one rounded product: each shows at ten times the noise and more, and is named with its bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
from torch import Tensor

import siglip_ref as sr
from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.diagnosis.product_findings import IN_FLOAT32, INPUTS, LOW_LOGITS, OUTPUTS
from siglip_ref.check.diagnosis.products import EITHER, OF_IMAGE, OF_TEXT, SIMILARITY
from siglip_ref.report.data import Report

PRODUCTS = {"logits": SIMILARITY, "d_image": OF_IMAGE, "d_text": OF_TEXT}
FORMS = {"float32": ("bfloat16", "float16", "tf32"), "float64": ("bfloat16", "float16", "tf32", "float32")}
BITS = {"bfloat16": "8 bits", "float16": "11 bits", "tf32": "11 bits", "float32": "24 bits"}
CASES = [
    (dtype, product, form, place)
    for dtype, forms in FORMS.items()
    for product in PRODUCTS
    for form in forms
    for place in ("inputs", "output")
]
DECLARABLE = ("tf32", "bfloat16")


def cast(x: Tensor, form: str) -> Tensor:
    if form == "tf32":  # no dtype of Torch
        return torch.from_numpy(round_to(x.double().numpy(), FORMATS[form])).to(x.dtype)
    return x.to(getattr(torch, form)).to(x.dtype)


class Product(torch.autograd.Function):
    """x @ y.T with its two backward products; those of `which` are rounded to `form` at `place`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, which: tuple[str, ...], form: str, place: str) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, y)
        ctx.how = which, form, place
        return Product.multiply("logits", x, y.T, *ctx.how)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y = ctx.saved_tensors
        multiply = Product.multiply
        return multiply("d_image", d, y, *ctx.how), multiply("d_text", d.T, x, *ctx.how), None, None, None

    @staticmethod
    def multiply(name: str, x: Tensor, y: Tensor, which: tuple[str, ...], form: str, place: str) -> Tensor:
        if name in which and place == "inputs":
            x, y = cast(x, form), cast(y, form)
        out = x @ y
        return cast(out, form) if name in which and place == "output" else out


def rounding(which: tuple[str, ...], form: str, place: str) -> Callable[..., Tensor]:
    """A right loss, but for these products."""

    def loss(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        logits = log_scale.exp() * Product.apply(x, y, which, form, place) + bias  # type: ignore[no-untyped-call]
        signs = 2 * torch.eye(len(x), dtype=logits.dtype) - 1
        return -F.logsigmoid(signs * logits).sum() / len(x)

    return loss


def check(fn: Callable[..., Tensor], dtype: str, **options: Any) -> Report:
    return sr.check_loss(fn, "torch", dtype, scale="log", embeddings="unit", **options)


@pytest.mark.parametrize(("dtype", "product", "form", "place"), CASES)
@pytest.mark.sampled(3)
def test_one_rounded_product_shows_and_is_named(dtype: str, product: str, form: str, place: str) -> None:
    report = check(rounding((product,), form, place), dtype)
    declarable = dtype == "float32" and place == "inputs" and form in DECLARABLE
    assert report.verdict == ("OTHER CONVENTION" if declarable else "FAIL")
    named = next(finding for finding in report.findings if finding.id != "convention")
    assert named.id == (IN_FLOAT32 if form == "float32" else INPUTS if place == "inputs" else OUTPUTS)
    # in float32 no row of a gradient is so small as a whole that float16 has fewer bits there than tf32
    known = EITHER if form == "float16" and dtype == "float32" and product != "logits" and place == "output" else form
    assert f"{place} of {PRODUCTS[product]}: rounded to {known}" in named.evidence and BITS[form] in named.evidence
    times = float(named.evidence.rsplit("up to ", 1)[1].split(" ")[0])
    print(f"{dtype:8} {product:8} {place:7} {form:9}{times:12.0f} times the noise  {named.id}")
    assert times >= 10


@pytest.mark.parametrize("form", DECLARABLE)
def test_products_rounded_on_purpose_are_declared(form: str) -> None:
    """As tensor cores do, all three: undeclared another convention with the argument to write, declared right."""
    fn = rounding(tuple(PRODUCTS), form, "inputs")
    undeclared = check(fn, "float32")
    assert undeclared.verdict == "OTHER CONVENTION" and not undeclared.passed
    assert f'products="{form}"' in undeclared.findings[0].repair
    declared = check(fn, "float32", products=form)
    assert declared.passed and f"products in {form}" in declared.title
    exact = check(rounding((), form, "inputs"), "float32", products=form)
    assert exact.passed  # rounding less is no mistake


def test_a_mistake_is_none_of_the_rounding_that_is_declared() -> None:
    def wrong(*inputs: Tensor) -> Tensor:
        return 1.02 * rounding(tuple(PRODUCTS), "tf32", "inputs")(*inputs)

    for products in (None, "tf32", "bfloat16"):
        assert check(wrong, "float32", products=products).verdict == "FAIL"


def test_bfloat16_is_no_tf32() -> None:
    assert check(rounding(tuple(PRODUCTS), "bfloat16", "inputs"), "float32", products="tf32").verdict == "FAIL"


def test_logits_in_bfloat16_have_their_own_name() -> None:
    def fn(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        logits = (log_scale.exp() * x @ y.T + bias).bfloat16().to(x.dtype)
        return -F.logsigmoid((2 * torch.eye(len(x), dtype=x.dtype) - 1) * logits).sum() / len(x)

    report = check(fn, "float32")
    assert report.verdict == "FAIL" and report.findings[0].id == LOW_LOGITS


@pytest.mark.parametrize("products", ["fp8", "float16", ""])
def test_other_products_are_refused_with_the_choices(products: str) -> None:
    with pytest.raises(sr.UsageError, match="tf32"):
        check(rounding((), "tf32", "inputs"), "float32", products=products)


def test_float64_products_round_to_nothing() -> None:
    with pytest.raises(sr.UsageError, match="float32"):
        check(rounding((), "tf32", "inputs"), "float64", products="tf32")
