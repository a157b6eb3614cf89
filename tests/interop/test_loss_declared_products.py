"""Declared variants whose products are rounded: right where that is declared; where it is not, the report names the
argument."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from declared_losses import TORCH, VARIANTS
from test_rounded_products_torch import PRODUCTS, Product

import siglip_ref as sr


def rounding(form: str, which: tuple[str, ...] = tuple(PRODUCTS), place: str = "inputs") -> Callable[..., Any]:
    return lambda x, y: Product.apply(x, y, which, form, place)


def check(name: str, product: Callable[..., Any], wrong: bool = False, **options: Any) -> Any:
    fn, declared = VARIANTS[name]
    at = replace(TORCH, product=product)
    return sr.check_loss(partial(fn, at, wrong=wrong), "torch", "float32", **declared, **options)


OFTEN = [("no bias", "tf32"), ("rows", "bfloat16")]
NIGHTLY = [(name, form) for name in VARIANTS for form in ("tf32", "bfloat16") if (name, form) not in OFTEN]


@pytest.mark.parametrize(
    ("name", "form"), [*OFTEN, *(pytest.param(*case, marks=pytest.mark.nightly) for case in NIGHTLY)]
)
def test_rounded_products_of_a_variant(name: str, form: str) -> None:
    declared = check(name, rounding(form), products=form)
    assert declared.passed and declared.smallest_tolerance < 3, declared
    undeclared = check(name, rounding(form))
    assert undeclared.verdict == "OTHER CONVENTION", undeclared
    assert [finding.id for finding in undeclared.findings] == ["convention"]
    assert f'products="{form}"' in undeclared.findings[0].repair


@pytest.mark.nightly
def test_fewer_bits_than_were_declared_fail() -> None:
    assert check("rows", rounding("bfloat16"), products="tf32").verdict == "FAIL"


def test_one_product_alone_that_is_rounded_needs_the_argument_too() -> None:
    report = check("rows", rounding("tf32", ("d_text",)))
    assert report.verdict == "OTHER CONVENTION" and 'products="tf32"' in report.findings[0].repair


@pytest.mark.parametrize("declared", [{}, {"products": "tf32"}])
def test_a_mistake_beside_the_rounding_is_not_taken_for_it(declared: dict[str, str]) -> None:
    assert check("rows", rounding("tf32"), wrong=True, **declared).verdict == "FAIL"


def test_an_output_that_is_rounded_is_no_argument() -> None:
    assert check("rows", rounding("bfloat16", place="output")).verdict == "FAIL"
