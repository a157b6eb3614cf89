"""The studies: every variant with every seed, nothing computed twice, the same picture for the same numbers."""

import json
from pathlib import Path

import pytest

from siglip_ref.training import studies
from siglip_ref.training.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def counted(monkeypatch):
    asked = []

    def accuracy(settings):
        asked.append(settings)
        return 0.5 + 0.1 * settings.seed + 0.01 * len(settings.optimiser)

    monkeypatch.setattr(studies, "accuracy", accuracy)
    return asked


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_study_is_whole_and_goes_on_where_it_was(name, counted, tmp_path):
    study = studies.STUDIES[name]
    shown = studies.run(study, 3, tmp_path, print)
    assert all(f"| {line} | {place} | 6" in shown for line, place, _ in study.variants) and study.honest in shown
    assert len(counted) == 3 * len(study.variants) and len(set(map(repr, counted))) == len(counted)
    assert all(isinstance(settings, Settings) for settings in counted)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(written) == {f"{name}.json", f"{name}.svg"}
    result = json.loads(written[f"{name}.json"])
    result["found"].popitem()
    (tmp_path / f"{name}.json").write_text(json.dumps(result))
    counted.clear()
    studies.run(study, 3, tmp_path, print)
    assert len(counted) == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_every_training_of_a_study_sees_as_much(counted, tmp_path):
    for study in studies.STUDIES.values():
        studies.run(study, 2, tmp_path, print)
    assert {settings.steps * settings.batch for settings in counted} == {studies.SEEN}


@pytest.mark.parametrize("name", sorted(path.stem for path in (DOCS / "studies").glob("*.json")))
def test_the_documentation_shows_what_was_measured(name):
    """Figure, numbers and text on the page are those of the packaged figures, five seeds each."""
    result = json.loads((DOCS / "studies" / f"{name}.json").read_text(encoding="utf-8"))
    assert result["settings"] == {**studies.TOY, "seeds": 5}
    assert all(len(values) == 5 for values in result["found"].values())
    page = studies.page(studies.STUDIES[name], result["found"], 5, "studies/")
    assert page.strip() in (DOCS / "training.md").read_text(encoding="utf-8")
    assert (DOCS / "studies" / f"{name}.svg").is_file()


def test_a_study_says_what_came_out():
    noise, starts = studies.STUDIES["noise"], studies.STUDIES["initialisation"]
    found = {f"{line}: {place}": [0.5] for line, place, _ in noise.variants} | {
        "softmax: 30%": [0.4],
        "sigmoid: 60%": [0.3],
    }
    assert studies.outcome(noise, found) == "sigmoid leads at 0%, 30%, softmax leads at 0%, 60%"
    found = {f"sigmoid: {place}": [0.1 * number] for number, (_, place, _) in enumerate(starts.variants)}
    assert studies.outcome(starts, found).startswith("0, log 1 > 0, log 10 > ")
