"""What the README says that its first command prints is what it prints."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from readme_sample import differences, of_readme, output, shortened

ALLOWED = next(line.split()[3] for line in of_readme().splitlines() if line.startswith("image/stem"))


def test_the_sample_is_what_the_command_prints():
    real = output()
    assert differences(of_readme(), shortened(real)) == [], "python tools/readme_sample.py writes it anew"


@pytest.mark.parametrize(
    ("old", "new"), [("image/stem", "image/stems"), ("1.0000", "0.9990"), ("PASS", "FAIL"), (ALLOWED, "1.0e-02")]
)
def test_another_tolerance_name_or_verdict_would_be_seen(old, new):
    printed = of_readme()
    assert old in printed
    assert differences(printed.replace(old, new, 1), printed)


def test_the_last_digits_of_errors_are_each_processors_own():
    printed = of_readme()
    row = next(line for line in printed.splitlines() if line.startswith("d bias"))
    words = row.split()
    other = row.replace(words[2], "2.2e-07", 1).replace(words[3], "2.00", 1)
    assert other != row and not differences(printed.replace(row, other), printed)


def test_the_picture_of_the_model_has_every_stage_of_the_report():
    """Drawn anew from the report, it is what stands in the docs; and every parameter has its place."""
    import model_picture

    rows = model_picture.names()
    assert model_picture.TARGET.read_text(encoding="utf-8") == model_picture.picture(rows)
    stages = [name for name in rows if not name.startswith("d ")]
    parameters = [name.removeprefix("d ") for name in rows if name.startswith("d ")]
    placed = [(stage, layer) for stage in stages for layer in model_picture.layers_of(stage, stages, parameters)]
    split = [name.split("/", 1) for name in parameters if "/" in name]
    layers = {(tower, name.rpartition("/")[0] or name) for tower, name in split}
    assert len(placed) == len(set(placed)) == len(layers)
