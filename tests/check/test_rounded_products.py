"""Rounding one product of a loss, what goes in or what comes out: it shows, at ten times the noise, and is named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.diagnosis.product_findings import INPUTS, OUTPUTS
from siglip_ref.check.loss.check import check_loss

PRODUCTS = ("similarity", "image", "text")
CASES = [("float32", form) for form in ("tf32", "bfloat16", "float16")]
CASES += [("float64", form) for form in ("float32", "tf32", "bfloat16", "float16")]


def cast(x: Any, form: str) -> Any:
    return np.asarray(round_to(np.asarray(x, np.float64), FORMATS[form])).astype(x.dtype)


def rounding(which: str, place: str, form: str) -> Callable[..., Any]:
    """The right loss, but for one product."""

    def multiply(name: str, x: Any, y: Any) -> Any:
        if place == "inputs of all, sums in float32":
            return (cast(x, form).astype(np.float32) @ cast(y, form).astype(np.float32)).astype(x.dtype)
        if name == which and place == "inputs":
            x, y = cast(x, form), cast(y, form)
        out = x @ y
        return cast(out, form) if name == which and place == "output" else out

    def fn(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
        scale, pairs, own = np.exp(log_scale).astype(x.dtype), len(x), np.eye(len(x), dtype=bool)
        similarity = multiply("similarity", x, y.T)
        logits = scale * similarity + bias.astype(x.dtype)
        signed = np.where(own, -logits, logits)
        decay = np.exp(-np.abs(signed))
        loss = (np.maximum(signed, 0) + np.log1p(decay)).sum() / pairs
        d_logits = (
            np.where(own, -1, 1).astype(x.dtype) * np.where(signed > 0, 1, decay) / (1 + decay) / x.dtype.type(pairs)
        )
        d_x, d_y = (
            scale * multiply(name, d, rows) for name, d, rows in (("image", d_logits, y), ("text", d_logits.T, x))
        )
        return loss, d_x, d_y, (d_logits * similarity).sum() * scale, d_logits.sum()

    return fn


@pytest.mark.nightly  # the same in Torch runs always
@pytest.mark.parametrize("place", ["inputs", "output"])
@pytest.mark.parametrize("which", PRODUCTS)
@pytest.mark.parametrize(("dtype", "form"), CASES)
def test_one_rounded_product_shows_and_is_named(dtype: str, form: str, which: str, place: str) -> None:
    report = check_loss(rounding(which, place, form), "numpy", dtype, scale="log", embeddings="unit")
    declared = dtype == "float32" and place == "inputs" and form in ("tf32", "bfloat16")
    assert report.verdict == ("OTHER CONVENTION" if declared else "FAIL")
    if declared:
        assert f'products="{form}"' in report.findings[0].repair
    else:
        assert max(row.times for row in report.details if row.verdict == "FAIL") >= 10
    found = next(finding for finding in report.findings if finding.id != "convention")
    assert found.id == ("products-in-float32" if form == "float32" else INPUTS if place == "inputs" else OUTPUTS)
    assert form in found.evidence and place in found.evidence


@pytest.mark.parametrize("form", ["bfloat16", "float16"])
def test_sums_in_float32_of_a_loss_in_float64_hide_no_other_rounding(form: str) -> None:
    report = check_loss(rounding("", "inputs of all, sums in float32", form), "numpy", "float64")
    assert [finding.id for finding in report.findings] == [INPUTS, "products-in-float32"]
    inputs, sums = (finding.evidence for finding in report.findings)
    assert form in inputs and "image_embed @ text_embed.T" in inputs and "d_logits.T @ image_embed" in inputs
    assert "sums of products: rounded to float32" in sums


@pytest.mark.parametrize(("form", "dtype"), [("float32", "float64"), ("float16", "float64"), ("float16", "float32")])
def test_lengths_in_fewer_bits_fail(form: str, dtype: str) -> None:
    """Of a loss that normalises: rows whose lengths are powers of two would not show it."""

    def loss(x, y, log_scale, bias):
        lengths = [np.sqrt((rows * rows).sum(-1, keepdims=True)).astype(form).astype(dtype) for rows in (x, y)]
        units = [rows / length for rows, length in zip((x, y), lengths, strict=True)]
        found = sr.sigmoid_loss(*units, log_scale, bias)
        d_x, d_y = (
            (d_unit - unit * (d_unit * unit).sum(-1, keepdims=True)) / length
            for d_unit, unit, length in zip(found[1:3], units, lengths, strict=True)
        )
        return found._replace(d_image_embed=d_x, d_text_embed=d_y)

    assert sr.check_loss(loss, framework="numpy", dtype=dtype, embeddings="raw").verdict == "FAIL"
