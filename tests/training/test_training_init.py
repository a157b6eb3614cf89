"""From a released checkpoint: the locked tower stays and embeds once; the result is a whole model; classifiers."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from training_cases import MINI, alone, mini

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.training import locked
from siglip_ref.training.data.captioned import STILL
from siglip_ref.training.data.sources import open_data
from siglip_ref.training.finish import finish
from siglip_ref.training.loop import Quiet
from siglip_ref.training.parallel import Alone
from siglip_ref.training.show import Terminal


@pytest.fixture(autouse=True)
def small(monkeypatch):
    mini(monkeypatch)


@pytest.fixture
def released(tmp_path):
    save_checkpoint(tmp_path / "released", sr.init(MINI, 5, np.float32), MINI)
    (tmp_path / "released" / "preprocessor_config.json").write_text(json.dumps({"resample": 2}))
    return str(tmp_path / "released")


def test_a_locked_tower_stays_and_is_computed_once(released, tmp_path, monkeypatch):
    chosen = {"init": released, "freeze": "image", "model": "", "steps": 5}
    run = alone(tmp_path / "a", **chosen)
    fixed = [name for name, value in run.params.items() if np.array_equal(value, run.task.params[name])]
    assert {name for name in run.params if name.startswith("image/")} <= set(fixed)
    assert run.task.batches.read(0, slice(0, 3))[0].shape == (3, MINI.embed)

    def again(*_):
        raise AssertionError("the embeddings were computed again")

    monkeypatch.setattr(locked, "image_embeddings", again)
    assert alone(tmp_path / "a", **chosen).step == 5


def test_locked_embeddings_are_those_of_the_model(released, tmp_path):
    run = alone(tmp_path / "a", init=released, freeze="image", model="", steps=1)
    part = open_data("digits").train
    model = sr.load(released, dtype=np.float64)
    want = model.embed_images([part.picture(number, np.array(STILL)) for number in range(12)]).embeddings
    found = np.array([run.task.batches.see(number, np.array(STILL)) for number in range(12)])
    assert np.abs(found - want).max() <= 1e-6  # models from files are fed float32 pictures


def test_tokeniser_and_settings_of_images_come_along(released, tmp_path):
    run = alone(tmp_path / "a", init=released, model="", steps=2, dtype="float32")
    finish(run.settings, tmp_path / "a", run, Alone(), Quiet())
    assert json.loads((tmp_path / "a/model/preprocessor_config.json").read_text()) == {"resample": 2}
    assert sr.load(tmp_path / "a/model").preprocess.filter == "bilinear"


def test_it_is_written_in_the_layout_it_came_in(tmp_path):
    save_checkpoint(tmp_path / "weights.npz", sr.init(MINI, 5, np.float32), MINI, "big_vision")
    run = alone(tmp_path / "a", init=str(tmp_path / "weights.npz"), model="", steps=2, dtype="float32", freeze="image")
    finish(run.settings, tmp_path / "a", run, Alone(), Quiet())
    model = sr.load(tmp_path / "a/model")
    assert model.preprocess.name == "big_vision"
    assert all(np.array_equal(model.params[name], value) for name, value in run.params.items())


@pytest.mark.parametrize("freeze", ["", "image"])
def test_a_classifier(freeze, released, tmp_path):
    changes = {"init": released, "model": "", "dtype": "float32"} if freeze else {"dtype": "float32"}
    run = alone(tmp_path / "a", loss="labels", freeze=freeze, steps=60, lr=1e-2, **changes)
    assert run.history[-1][0] < 0.95 * run.history[0][0]
    assert run.judged[-1]["accuracy"] >= 0.2
    assert all(np.array_equal(v, run.task.params[n]) for n, v in run.params.items() if n.startswith("text/"))
    finish(run.settings, tmp_path / "a", run, Alone(), Quiet())
    with safe_open(tmp_path / "a/model/classifier.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["classes"])[3] == "three"
        assert np.array_equal(file.get_tensor("head/kernel"), run.params["head/kernel"])


def test_what_is_shown(tmp_path, capsys):
    alone(tmp_path, Terminal(), steps=6)
    out = capsys.readouterr().out
    assert "computed with the specification" in out
    assert "step 2/6" in out and "ends in" not in out.split("step 4/6")[0] and "ends in" in out.split("step 4/6")[1]
    assert "after 6 steps: zero-shot accuracy" in out and "images/s" in out and "scale 10." in out
