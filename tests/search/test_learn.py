"""Locked-image tuning that ends: the head alone, or the text tower slowly; what is locked stays, bit for bit."""

import numpy as np
import pytest
from PIL import Image
from search_cases import make_model, run

from siglip_ref.errors import UsageError
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.training import gradient as gradients
from siglip_ref.training.data.inputs import read_inputs
from siglip_ref.training.locked import locked_texts
from siglip_ref.training.loop import Quiet, train
from siglip_ref.training.parallel import Alone
from siglip_ref.training.saved import store
from siglip_ref.training.settings import Settings
from siglip_ref.training.task import prepare
from siglip_ref.use.inference import text_features
from siglip_ref.use.load import load

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "white": (245, 245, 245)}
HEAD = {"text/head/kernel", "text/head/bias", "log_scale", "bias"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model to start from, and pictures of four colours with captions of two forms."""
    folder = tmp_path_factory.mktemp("learn")
    make_model(folder / "m", seed=3)
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        name, colour = list(COLOURS.items())[number % 4]
        pixels = np.clip(np.array(colour) + rng.normal(0, 25, (30, 30, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:02d}.png")
        (folder / "photos" / f"{number:02d}.txt").write_text(f"{name}\nsomething {name}\n")
    return folder


def settings(place, **changes):
    chosen = {"data": str(place / "photos"), "init": str(place / "m"), "freeze": "image", "learn": "head"}
    return Settings(**chosen | {"steps": 40, "batch": 16} | changes)


class Heard(Quiet):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_nothing_but_the_head_moves_and_it_learns(place, tmp_path):
    heard = Heard()
    done = train(settings(place), tmp_path / "run", Alone(), heard, judge_every=1)
    before = load(place / "m").params
    moved = {name for name, value in done.params.items() if not np.array_equal(value, before[name])}
    assert moved == HEAD == set(done.task.learnt)
    assert done.judged[-1]["recall@5 of images"] >= done.judged[0]["recall@5 of images"]
    assert done.history[-1][0] < 0.9 * done.history[0][0]
    said = " ".join(heard.said)
    assert "images of the locked tower, each once: 54, about" in said and "texts of the locked tower, each once" in said


def test_its_gradient_is_that_of_the_whole_tower(place, tmp_path):
    chosen = settings(place)
    inputs = read_inputs(chosen, 1)
    task = prepare(chosen, inputs, Alone(), tmp_path, lambda text: None)
    whole = prepare(settings(place, learn=""), inputs, Alone(), tmp_path, lambda text: None)
    (loss, grads), (want, wanted) = (t.gradient(inputs.params, 3) for t in (task, whole))
    assert loss == pytest.approx(want, rel=1e-5) and grads.keys() >= HEAD
    for name in HEAD:
        assert np.abs(grads[name] - wanted[name]).max() <= 1e-5 * np.abs(wanted[name]).max() + 1e-7, name
    found, expected = task.judge(inputs.params), whole.judge(inputs.params)
    assert found == expected


def test_head_side_is_the_end_of_the_text_side(place):
    model = load(place / "m", ops=SPECIFICATION)
    tokens = model.tokenizer()(["red", "blue", "white"])
    features = text_features(model.params, tokens, model.config, SPECIFICATION)
    d_embed = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    x, back = gradients.head_side(model.params, features, model.config, SPECIFICATION)
    y, whole = gradients.text_side(model.params, tokens, model.config, SPECIFICATION)
    assert np.abs(x - y).max() < 1e-6
    for name, grad in back(d_embed).items():
        assert np.abs(grad - whole(d_embed)[name]).max() < 1e-5


def test_features_are_computed_once_and_read_again(place, tmp_path, monkeypatch):
    train(settings(place, steps=2), tmp_path / "run", Alone(), Quiet(), judge_every=10)
    from siglip_ref.training import locked

    def never(*given):
        raise AssertionError("computed again")

    monkeypatch.setattr(locked, "text_features", never)
    monkeypatch.setattr(locked, "image_embeddings", never)
    train(settings(place, steps=2), tmp_path / "run", Alone(), Quiet(), judge_every=10)


def test_interrupted_it_goes_on_bit_for_bit_from_small_checkpoints(place, tmp_path):
    whole = train(settings(place, steps=12), tmp_path / "a", Alone(), Quiet(), every=3, judge_every=100)
    train(settings(place, steps=12), tmp_path / "b", Alone(), Quiet(), every=3, judge_every=100, stop_after=6)
    saved = store.newest(tmp_path / "b" / "checkpoints")[0]
    assert saved.step == 6 and {name[7:] for name in saved.tensors if name.startswith("params/")} == HEAD
    done = train(settings(place, steps=12), tmp_path / "b", Alone(), Quiet(), every=3, judge_every=100)
    assert all(np.array_equal(done.params[name], whole.params[name]) for name in whole.params)


def test_the_text_tower_learns_at_a_tenth_of_the_rate(place, tmp_path):
    text, plain = (
        train(settings(place, learn=learn, steps=3), tmp_path / (learn or "plain"), Alone(), Quiet(), judge_every=100)
        for learn in ("text", "")
    )
    before = load(place / "m").params["text/head/kernel"]
    steps = [np.abs(run.params["text/head/kernel"] - before).max() for run in (text, plain)]
    assert steps[0] == pytest.approx(0.1 * steps[1], rel=0.3)
    assert all(np.array_equal(text.params[n], v) for n, v in load(place / "m").params.items() if n.startswith("image/"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"init": "", "freeze": ""}, "name a checkpoint"), ({"loss": "labels"}, "--learn or --labels|data with classes")],
)
def test_wrong_use(changes, words, place):
    with pytest.raises(UsageError, match=words):
        read_inputs(settings(place, **changes), 1)


def test_the_command(place, tmp_path, capfd):
    words = ("--data", place / "photos", "--init", place / "m", "--learn", "head", "--steps", 3, "--batch", 16)
    code, out, err = run(capfd, "train", *words, "--out", tmp_path / "run")
    assert code == 0 and (tmp_path / "run" / "model" / "modules.json").exists(), err
    assert "1,058 numbers to learn" in out  # 32 x 32 and 32 of the head, scale and bias
    new, old = load(tmp_path / "run" / "model").params, load(place / "m").params
    assert {name for name in new if not np.array_equal(new[name], old[name])} <= HEAD


def test_captions_that_were_not_listed_are_computed_as_they_come(place, tmp_path):
    inputs = read_inputs(settings(place), 1)
    given = inputs.data, inputs.tokenizer, inputs.params, inputs.cfg, SPECIFICATION, Alone(), tmp_path, print
    found = locked_texts(*given)(["red", "a caption of no picture"])
    ids = inputs.tokenizer(["red", "a caption of no picture"])
    assert np.abs(found - text_features(inputs.params, ids, inputs.cfg, SPECIFICATION)).max() < 1e-6
