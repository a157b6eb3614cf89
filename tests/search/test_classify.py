"""Classes: those that a training taught, as accurate as it said; labels in words with prompts; two fitted numbers."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from search_cases import CFG, make_model, run

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import sigmoid
from siglip_ref.ops.softmax import softmax_forward
from siglip_ref.training.classify import calibrating_scale
from siglip_ref.training.data.files import from_files
from siglip_ref.training.saved.store import newest
from siglip_ref.use.load import load
from siglip_ref.use.search import calibrate as fitting
from siglip_ref.use.search import classes
from siglip_ref.use.search.classifier import read_classifier, write_classifier

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 210), "grey": (120, 120, 120)}


def colours(place, each=40):
    """A folder for each colour, with noisy pictures of it; not all can be told."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (place / name).mkdir(parents=True)
        for number in range(each):
            noise = rng.normal(0, 60, (4, 4, 3)) + rng.normal(0, 45, 3)
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((72, 72), Image.Resampling.BICUBIC).save(place / name / f"{number:02d}.png")
    return place


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What train --labels leaves."""
    folder = tmp_path_factory.mktemp("trained")
    colours(folder / "photos")
    from siglip_ref.training.command import run as train
    from siglip_ref.training.parallel import Alone

    chosen = {"data": str(folder / "photos"), "out": folder / "run", "loss": "sigmoid", "labels": True, "steps": 60}
    chosen |= {"batch": 24, "lr": 2e-3, "force": False, "save_every": 0, "judge_every": 0}
    train(chosen, Alone())
    return folder


def held_out(folder):
    """Pictures that the training judged with, and the class of each."""
    data = from_files(folder / "photos")
    part = data.test
    return [Path(part.names(n)) for n in range(part.count)], [data.classes[label] for label in part.labels]


def csv_of(file, images, labels):
    file.write_text("image,label\n" + "".join(f"{i},{label}\n" for i, label in zip(images, labels, strict=True)))
    return file


def test_it_is_as_accurate_as_the_training_said(trained, tmp_path, capfd):
    images, labels = held_out(trained)
    words = [word for image in images for word in ("--image", image)]
    code, out, _ = run(capfd, "classify", "--model", trained / "run" / "model", *words, "--csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    found = np.mean([row["label"] == label for row, label in zip(rows, labels, strict=True)])
    judged = newest(trained / "run" / "checkpoints")[0].about["judged"][-1]["accuracy"]
    assert found == judged and 0.5 < judged <= 1
    assert all(sum(float(row[name]) for name in COLOURS) == pytest.approx(1) for row in rows)


def test_its_probabilities_are_calibrated_on_what_was_held_out(trained):
    learnt = read_classifier(trained / "run" / "model")
    images, labels = held_out(trained)
    logits = learnt.logits(load(trained / "run" / "model").embed_images(images).embeddings)
    truth = np.array([learnt.classes.index(label) for label in labels])

    def loss(scale):
        return -np.log(softmax_forward(scale * logits.astype(float))[0][np.arange(len(truth)), truth]).mean()

    assert learnt.scale != 1 and loss(learnt.scale) <= min(loss(learnt.scale * f) for f in (0.8, 0.97, 1.03, 1.25))


def test_zeroshot_says_that_the_texts_are_untrained(trained, capfd):
    photo = trained / "photos" / "red" / "00.png"
    code, _, err = run(
        capfd, "zeroshot", "--model", trained / "run" / "model", "--image", photo, "--labels", "red,blue"
    )
    assert code == 0 and "the text tower of this model is untrained" in err
    code, out, err = run(capfd, "classify", "--model", trained / "run" / "model", "--image", photo)
    assert code == 0 and "untrained" not in err and "a probability among the classes" in out


@pytest.mark.parametrize("texts", ["fits", "left behind", "untrained"])
def test_what_is_said_depends_on_the_training(texts, tmp_path):
    make_model(tmp_path / "m")
    params = {"head/kernel": np.ones((32, 2), np.float32), "head/bias": np.zeros(2, np.float32)}
    write_classifier(tmp_path / "m", params, ["a", "b"], 2.0, texts)
    assert sum("classify" in note for note in load(tmp_path / "m").notes) == (texts != "fits")
    assert read_classifier(tmp_path / "m").scale == 2.0


def test_the_scale_is_found():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 5))
    chances, _ = softmax_forward(logits)
    truth = np.array([rng.choice(5, p=p) for p in chances])
    for factor in (0.2, 1.0, 7.0):
        assert calibrating_scale(logits / factor, truth) == pytest.approx(factor, rel=0.08)


def test_scale_and_bias_are_found_and_the_curve_is_the_diagonal():
    """Drawn from a model of scale 12 and bias -3, seen through one of scale 30 and bias -10."""
    rng = np.random.default_rng(1)
    cosines = rng.uniform(0, 0.6, (900, 4))
    hit = np.array([rng.choice(4, p=p / p.sum()) for p in sigmoid(12 * cosines - 3)])
    s, b = fitting.fit(cosines, rng.random(cosines.shape) < sigmoid(12 * cosines - 3))
    assert s == pytest.approx(12, rel=0.1) and b == pytest.approx(-3, rel=0.1)
    found = fitting.calibrate(cosines.astype(np.float32), hit, 30.0, -10.0, "m", list("abcd"))
    assert fitting.error_of(found.after) < 0.04 < fitting.error_of(found.before)
    assert sum(bin_.count for bin_ in found.after) == 3600
    assert np.array_equal(found.scores(cosines).argmax(1), cosines.argmax(1))  # the order stays


def test_labels_that_are_never_wrong_end_with_finite_numbers():
    cosines = np.where(np.eye(3, dtype=bool)[np.arange(30) % 3], 0.9, 0.1)
    s, b = fitting.fit(cosines, cosines > 0.5)
    assert np.isfinite([s, b]).all() and sigmoid(s * 0.9 + b) > 0.95 and sigmoid(s * 0.1 + b) < 0.05


def test_prompts_are_averaged(tmp_path):
    model = load(make_model(tmp_path / "m"))
    labels, prompts = ["cat", "dog"], ["{}", "a photo of a {}.", "many {}s"]
    each = [[model.embed_texts([prompt.format(label)])[0] for prompt in prompts] for label in labels]
    total = np.array(each).mean(1)
    want = total / np.linalg.norm(total, axis=1, keepdims=True)
    assert np.abs(classes.text_vectors(model, labels, prompts) - want).max() < 1e-6


def test_calibrated_once_and_used_again(trained, tmp_path, capfd):
    """The command: fits, shows the curve, keeps the numbers, takes them back for this model and these prompts alone."""
    model = trained / "run" / "model"
    images, labels = held_out(trained)
    examples = csv_of(tmp_path / "labels.csv", images, labels)
    (tmp_path / "prompts.txt").write_text("{}\na photo of {}\n")
    base = ("classify", "--model", model, "--image", images[0], "--labels", ",".join(COLOURS))
    more = ("--prompts", tmp_path / "prompts.txt")
    kept = tmp_path / "two.json"
    code, out, err = run(capfd, *base, *more, "--calibrate", examples, "--save", kept, "--json")
    assert code == 0 and "came true" in err and "scale" in err and "accuracy on these examples" in err
    first = json.loads(out)
    assert "calibrated on your examples" in first["meaning"]
    assert json.loads(run(capfd, *base, *more, "--calibration", kept, "--json")[1]) == first
    code, _, err = run(capfd, *base, "--calibration", kept)
    assert code == 2 and "other prompts" in err
    assert run(capfd, *base, *more, "--calibrate", examples, "--save", kept)[0] == 2  # is there already
    code, _, err = run(capfd, "classify", "--model", model, "--image", images[0], "--calibrate", examples)
    assert code == 0 and "accuracy on these examples" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "p.txt"], "need no prompts"),
        (["--save", "x.json"], "nothing is fitted"),
        (["--labels", "a,b", "--prompts", "bad.txt"], "the same for every label"),
        (["--labels", "a,b", "--prompts", "empty.txt"], "no line that holds anything"),
        (["--labels", "a,b", "--calibrate", "few.csv"], "1 in few.csv"),
        (["--labels", "a,b", "--calibrate", "strange.csv"], "the label z"),
        (["--labels", "a,b", "--calibrate", "p.txt"], "no column image"),
        (["--labels", "a,b", "--calibration", "p.txt"], "a calibration in p.txt"),
        (["--labels", "a,b", "--json", "--csv"], "one standard output"),
        ([], "beside which lies no classifier"),
    ],
)
def test_wrong_use(words, said, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "m")
    Image.new("RGB", (9, 9)).save("a.png")
    Path("p.txt").write_text("a {}\n")
    Path("bad.txt").write_text("a {}\nno place\n")
    Path("empty.txt").write_text("\n\n")
    Path("few.csv").write_text("image,label\na.png,a\n")
    Path("strange.csv").write_text("image,label\na.png,z\n")
    code, _, err = run(capfd, "classify", "--model", "m", "--image", "a.png", *words)
    assert code == 2 and said in " ".join(err.replace("│", " ").split()), err


def test_a_damaged_classifier_is_said(trained, tmp_path):
    shutil.copytree(trained / "run" / "model", tmp_path / "m")
    file = tmp_path / "m" / "classifier.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UsageError, match="a classifier"):
        load(tmp_path / "m")
    other = replace(CFG, image=replace(CFG.image, width=64), text=replace(CFG.text, width=64))
    save_checkpoint(tmp_path / "wide", sr.init(other, dtype=np.float32), other)
    for name in ("classifier.safetensors", "classifier.json"):
        shutil.copy(trained / "run" / "model" / name, tmp_path / "wide")
    learnt = read_classifier(tmp_path / "wide")
    with pytest.raises(UsageError, match="another model"):
        classes.by_learnt(load(tmp_path / "wide"), learnt, [trained / "photos" / "red" / "00.png"])
