"""The README's numbers are those of the package."""

import math
import re
from pathlib import Path

import siglip_ref as sr

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_table_of_expected_losses() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    assert len(rows) >= 4
    for pairs, at_minus_ten, at_zero in rows:
        for printed, bias in ((at_minus_ten, -10.0), (at_zero, 0.0)):
            digits = len(printed.partition(".")[2])
            assert printed == f"{sr.expected_loss(int(pairs.replace(',', '')), math.log(10), bias):.{digits}f}"
