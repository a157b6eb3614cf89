"""Wrong input is refused before any arithmetic, with what was expected, what came, why, and the repair."""

from typing import Any

import numpy as np
import pytest

import siglip_ref as sr

CFG = sr.config("tiny")
GOOD = {"params": sr.init(CFG), "images": np.zeros((2, 12, 28, 3)), "tokens": np.ones((2, 9), int), "mask": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": np.zeros((2, 3, 12, 28))}, "channels first"),
        ({"images": np.zeros((0, 12, 28, 3))}, "images (0, 12, 28, 3)"),
        ({"tokens": np.ones((3, 9), int)}, "one row per image"),
        ({"tokens": np.ones((2, 10), int)}, "pad or cut every text to 9"),
        ({"tokens": np.ones((2, 9))}, "dtype float64"),
        ({"tokens": np.full((2, 9), 29)}, "integer tokens from 0 to 28"),
        ({"tokens": np.full((2, 9), -1)}, "from -1 to -1"),
        ({"mask": np.zeros((2, 9), bool)}, "nothing to see"),
        ({"mask": np.ones((2, 8), bool)}, "mask (2, 8)"),
        ({"params": {}}, "missing: bias"),
        ({"params": sr.init(sr.config("mu/16"))}, "unknown"),
        ({"params": GOOD["params"] | {"text/token": np.zeros((12, 29))}}, "text/token (12, 29), not (29, 12)"),
    ],
)
def test_bad_input_is_explained(change: dict[str, Any], said: str) -> None:
    given = GOOD | change
    with pytest.raises(sr.UsageError) as caught:
        sr.loss_and_grads(given["params"], given["images"], given["tokens"], CFG, mask=given["mask"])
    text = str(caught.value)
    assert said in text
    assert all(f"{part}:" in text for part in ("expected", "got", "cause", "repair"))


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(sr.UsageError, match="B/16-256"):
        sr.config("B/15")
    with pytest.raises(sr.UsageError, match="huggingface"):
        sr.preset("keras")
    with pytest.raises(sr.UsageError, match="empty batch"):
        sr.expected_loss(0, 0.0, 0.0)
    with pytest.raises(AttributeError, match=r"it has .*Config"):
        _ = sr.no_such_name
