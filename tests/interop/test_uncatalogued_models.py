"""Mistakes of a model that stand in no catalogue are flagged, placed, and worked out or unknown."""

import sys
from pathlib import Path

import pytest
from models import hugging_face

import siglip_ref as sr

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from uncatalogued_models import MISTAKES

UNKNOWN = {
    "one more in softmax's sum": ("float32",),  # float64 tells it from its neighbours
    "texts divided by the images' lengths": ("float32", "float64"),
    "labels smoothed": ("float32", "float64"),
}


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.nightly), "float32"])
@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.sampled(6)
def test_what_nobody_has_listed_is_placed_and_worked_out_or_unknown(name, dtype):
    make, place = MISTAKES[name]
    model = hugging_face()
    make(model)
    report = sr.check_model(model, dtype)
    assert not report.passed
    told = "unknown" if dtype in UNKNOWN.get(name, ()) else "derived"
    assert [(finding.id, finding.tensor) for finding in report.findings] == [(told, place)]
