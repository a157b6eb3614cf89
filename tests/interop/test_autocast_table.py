"""What Torch's autocast does on this CPU, against what `siglip_ref.noise.measure` says that it does."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it

from siglip_ref.arithmetic.rounded import FORMATS, rounded
from siglip_ref.noise.measure import REGIMES

WIDE, NARROW = torch.float32, torch.bfloat16
PRODUCTS: dict[str, Callable[[Any], Any]] = {
    "matmul": lambda x: x @ x.mT,
    "linear": lambda x: F.linear(x, x),
    "batched": lambda x: torch.bmm(x[None], x.mT[None]),
    "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
}
OTHERS: dict[str, Callable[[Any], Any]] = {
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "softmax": lambda x: x.softmax(-1),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "logsigmoid": F.logsigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "sum": torch.sum,
    "normalize": F.normalize,
}


def under_autocast(fn: Callable[[Any], Any], dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        return fn(torch.randn(4, 6).to(dtype))


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_come_out_narrow(name: str) -> None:
    assert under_autocast(PRODUCTS[name], WIDE).dtype == NARROW


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_follows_its_input(name: str) -> None:
    assert under_autocast(OTHERS[name], WIDE).dtype == WIDE
    assert under_autocast(OTHERS[name], NARROW).dtype == NARROW


def test_one_product_gives_the_same_bits() -> None:
    """The model of it, number by number: factors rounded, terms added in float32, the result rounded."""
    torch.manual_seed(1)
    x, y = torch.randn(5, 7), torch.randn(7, 3)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = (x @ y).double().numpy()
    regime = REGIMES["autocast bfloat16 on cpu"].rounding
    ours = rounded(x.double().numpy(), regime) @ rounded(y.double().numpy(), regime)
    assert ours.rounding.format is FORMATS["bfloat16"]
    # only the order of terms may differ: nearly always the same number, never more than one neighbour away
    assert (np.asarray(ours) == theirs).mean() >= 0.9
    assert np.abs(np.asarray(ours) - theirs).max() <= 2 * FORMATS["bfloat16"].unit * np.abs(theirs).max()
