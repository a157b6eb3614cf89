"""The studies: every variant with every seed, nothing computed twice, the same picture for the same numbers."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from training_cases import mini, on_ranks

from mpi.comm import RankFailed
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.training.settings import Settings
from siglip_ref.training.study import masking, table
from siglip_ref.training.study import run as studies

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def counted(monkeypatch):
    asked = []

    def trained(settings):
        asked.append(settings)
        accuracy = 0.5 + 0.1 * settings.seed + 0.01 * len(settings.optimiser)
        history = [np.array([1.0, 0.0, 0.0])] * 12
        return SimpleNamespace(judged=[{"zero-shot accuracy": accuracy}], params={"bias": -3.0}, history=history)

    monkeypatch.setattr(studies, "trained", trained)
    return asked


@pytest.mark.parametrize("name", table.STUDIES)
def test_a_study_is_whole_and_goes_on_where_it_was(name, counted, tmp_path):
    study = table.STUDIES[name]
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


@pytest.mark.parametrize("name", table.STUDIES)
def test_every_training_of_a_study_sees_as_much(name, counted, tmp_path):
    """As many pictures; or as many steps, or as many pairs, where the study says so."""
    studies.run(table.STUDIES[name], 2, tmp_path, print)
    pictures = {settings.steps * settings.batch for settings in counted}
    if name == "beta2":
        assert {settings.steps for settings in counted} == {500} and len(pictures) == 3
    elif name == "negatives":
        pairs = {round(settings.steps * min(settings.negatives or 63, 63), -2) for settings in counted
                 if settings.steps != 500}  # fmt: skip
        assert pairs == {500 * 63} and table.SEEN in pictures
    else:
        assert pictures == {table.SEEN}


@pytest.mark.parametrize("name", sorted(path.stem for path in (DOCS / "studies").glob("*.json")))
def test_the_documentation_shows_what_was_measured(name):
    """Figure, numbers and text on the page are those of the packaged figures, five seeds each."""
    result = json.loads((DOCS / "studies" / f"{name}.json").read_text(encoding="utf-8"))
    assert result["settings"] == {**table.TOY, "seeds": 5}
    assert all(len(values) == 5 for values in result["found"].values())
    page = studies.page(table.STUDIES[name], studies.Result(**result), 5, "studies/")
    assert page.strip() in (DOCS / "training.md").read_text(encoding="utf-8")
    assert (DOCS / "studies" / f"{name}.svg").is_file()


def test_a_study_says_what_came_out():
    noise, starts = table.STUDIES["noise"], table.STUDIES["initialisation"]
    found = {f"{line}: {place}": [0.5] for line, place, _ in noise.variants} | {
        "softmax: 30%": [0.4],
        "sigmoid: 60%": [0.3],
    }
    assert studies.outcome(noise, found) == "sigmoid leads at 0%, 30%, softmax leads at 0%, 60%"
    found = {f"sigmoid: {place}": [0.1 * number] for number, (_, place, _) in enumerate(starts.variants)}
    assert studies.outcome(starts, found).startswith("0, log 1 > 0, log 10 > ")


def test_a_study_of_lines_with_different_places_says_where_each_leads():
    study = table.STUDIES["negatives"]
    found = {f"{line}: {place}": [{"random": 0.4, "hard": 0.6}.get(line, 0.1)] for line, place, _ in study.variants}
    assert studies.outcome(study, found) == "hard leads at 1:16, 1:6.3, 1:1.6"


@pytest.mark.parametrize("name", ["beta2", "negatives", "bottleneck"])
def test_the_quick_form_really_trains(name, monkeypatch, tmp_path):
    mini(monkeypatch)
    monkeypatch.setitem(table.TOY, "model", "mini")
    study = replace(table.STUDIES[name], variants=table.STUDIES[name].variants[-2:])
    short = tuple((line, place, changes | {"steps": 100, "batch": 16}) for line, place, changes in study.variants)
    page = studies.run(replace(study, variants=short), 2, tmp_path, print, quick=True)
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["settings"]["quick"] and all(len(values) == 2 for values in result["found"].values())
    assert study.paper in page and (study.also is None or study.also[0] in page)


@pytest.mark.parametrize("kind, side", [("hard", 1), ("easy", -1)])
def test_negatives_are_kept_by_their_loss_and_in_number(kind, side):
    logits = np.random.default_rng(0).normal(size=(6, 6))
    kept = masking.kept_negatives(logits, 9, kind, np.random.default_rng(0))
    left = ~kept & ~np.eye(6, dtype=bool)
    assert kept.sum() == 9 and not kept.diagonal().any()
    assert (side * logits)[kept].min() > (side * logits)[left].max()
    draws = [masking.kept_negatives(logits, 9, "random", np.random.default_rng(seed)) for seed in range(400)]
    share = np.mean(draws, 0)[~np.eye(6, dtype=bool)]
    assert all(draw.sum() == 9 for draw in draws) and np.abs(share - 0.3).max() < 0.12


def test_a_loss_of_all_negatives_is_the_sigmoid_loss_and_fewer_add_up():
    rng = np.random.default_rng(0)
    x, y = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rng.normal(size=(2, 5, 4)))
    params = {"log_scale": np.array(1.0), "bias": np.array(-2.0)}
    settings = Settings(negatives=4.0, kept="hard")
    whole = sigmoid_loss(x, y, params["log_scale"], params["bias"])
    for one, other in zip(masking.masked_loss(x, y, params, settings, 0, SPECIFICATION), whole, strict=True):
        assert np.abs(one - other).max() < 1e-14
    hard, easy = (masking.masked_loss(x, y, params, replace(settings, negatives=2.0, kept=kind), 0, SPECIFICATION)
                  for kind in ("hard", "easy"))  # fmt: skip
    logits = np.exp(1.0) * (x * y).sum(1) - 2.0
    assert np.isclose(hard.loss + easy.loss, whole.loss + np.logaddexp(0, -logits).mean(), rtol=1e-13)


def test_studies_of_negatives_are_of_one_process(monkeypatch, tmp_path):
    mini(monkeypatch)
    with pytest.raises(RankFailed, match="one process for a loss of fewer negatives"):
        on_ranks(2, tmp_path, negatives=2.0, steps=2)
