"""Mistakes of a model that stand in no catalogue are flagged, placed, and given no name of it."""

import sys
from pathlib import Path

import pytest
from models import hugging_face

import siglip_ref as sr

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from uncatalogued_models import MISTAKES


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.nightly), "float32"])
@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.sampled(6)
def test_what_nobody_has_listed_is_placed(name, dtype):
    make, place = MISTAKES[name]
    model = hugging_face()
    make(model)
    report = sr.check_model(model, dtype)
    assert not report.passed
    assert [finding.tensor for finding in report.findings] == [place]
    assert {finding.id for finding in report.findings} <= {"unknown", "derived"}
