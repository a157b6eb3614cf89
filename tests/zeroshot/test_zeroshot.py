"""A model we make ourselves: embeddings and scores, images that break, labels by the thousand, the commands."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import siglip_ref as sr
from siglip_ref import ops as specification
from siglip_ref.check.files import checkpoint
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.cli.main import main
from siglip_ref.errors import UsageError
from siglip_ref.use.load import load
from siglip_ref.use.preprocess import PREPROCESS, pixels
from siglip_ref.use.zeroshot import TEMPLATE, fill

CFG = replace(sr.config("mu/16"), conventions=sr.preset("huggingface"))
RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory as transformers would have it, with bytes for a vocabulary: it needs no tokeniser file."""
    params = sr.init(CFG, seed=1, dtype=np.float32)
    return save_checkpoint(tmp_path_factory.mktemp("model") / "mu", params, CFG)


@pytest.fixture(scope="module")
def model(place):
    return load(place, ops=specification)


def picture(height=40, width=50):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five good images of many kinds, four that cannot be read, and a file that is none."""
    place = tmp_path_factory.mktemp("photos")
    picture().save(place / "a.png")
    picture().convert("CMYK").save(place / "b.jpg")
    Image.fromarray(RNG.integers(0, 65536, (30, 20), dtype=np.uint16)).save(place / "c.png")
    picture().save(place / "d.gif", save_all=True, append_images=[picture()])
    sideways = Image.Exif()
    sideways[0x0112] = 6
    picture().save(place / "e.jpg", exif=sideways)
    (place / "f-empty.jpg").touch()
    (place / "g-text.png").write_text("no image")
    whole = io.BytesIO()
    picture(64, 64).save(whole, "JPEG")
    (place / "h-cut.jpg").write_bytes(whole.getvalue()[:700])
    Image.new("1", (20_000, 20_000)).save(place / "i-huge.png")
    (place / "notes.txt").write_text("not looked at")
    return place


def run(capsys, *words):
    """The command's exit code, output and errors."""
    sys.argv = ["siglip-ref", *map(str, words)]
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return end.value.code, printed.out, printed.err


def test_embeddings_are_those_of_the_specification(model):
    """Batched and without caches, yet the very numbers of sr.forward."""
    images = [picture() for _ in range(5)]
    texts = ["a", "two words", "x" * 40, "Ä", "last"]
    stacked = np.stack([pixels(image, CFG.image_size, PREPROCESS["huggingface"]) for image in images])
    expected = sr.forward(model.params, stacked, model.tokenizer()(texts), CFG)
    found = model.embed_images(images, batch=2)
    assert found.names == [f"image {i}" for i in range(5)] and not found.skipped
    assert np.abs(found.embeddings - expected.image_embed).max() <= 1e-6
    assert np.abs(model.embed_texts(texts, batch=2) - expected.text_embed).max() <= 1e-6
    scores = model.zero_shot(images, texts, "{}")
    assert np.abs(scores.logits - expected.logits).max() <= 1e-5
    assert np.abs(scores.scores - 1 / (1 + np.exp(-expected.logits))).max() <= 1e-6


def test_texts_are_padded_to_the_full_length(model):
    """The mistake that costs most: without padding another position is pooled."""
    tokens = model.tokenizer()(["cat"])
    assert tokens.shape == (1, CFG.text_length)
    short = sr.forward(model.params, np.zeros((1, 64, 64, 3), np.float32), tokens[:, :4], CFG).text_embed
    assert np.abs(short - model.embed_texts(["cat"])).max() > 0.01


def test_scores_are_sorted_by_their_logits(model):
    found = model.zero_shot([picture()], ["one", "two", "three"])
    order = found.sorted(0)
    assert [score for _, score in order] == sorted((score for _, score in order), reverse=True)
    assert sorted(label for label, _ in order) == ["one", "three", "two"]


def test_what_cannot_be_read_is_skipped_and_named(model, folder):
    found = model.zero_shot(folder, ["cat", "dog"], batch=3)
    assert [name.rsplit("/", 1)[-1] for name in found.names] == ["a.png", "b.jpg", "c.png", "d.gif", "e.jpg"]
    reasons = {name.rsplit("/", 1)[-1]: reason for name, reason in found.skipped}
    assert sorted(reasons) == ["f-empty.jpg", "g-text.png", "h-cut.jpg", "i-huge.png"]
    assert "empty file" in reasons["f-empty.jpg"] and "memory" in reasons["i-huge.png"]
    assert found.scores.shape == (5, 2) and np.isfinite(found.scores).all()


def test_nothing_readable_at_all(model, tmp_path):
    (tmp_path / "a.jpg").touch()
    found = model.embed_images(tmp_path)
    assert found.embeddings.shape == (0, 32) and len(found.skipped) == 1
    with pytest.raises(UsageError, match="no file of"):
        model.embed_images(folder_without_images(tmp_path))


def folder_without_images(tmp_path):
    place = tmp_path / "none"
    place.mkdir()
    return place


def test_a_thousand_labels(model):
    labels = [f"thing number {i}" for i in range(1000)]
    found = model.zero_shot([picture()], labels)
    assert found.scores.shape == (1, 1000) and len(found.sorted(0)) == 1000
    alone = model.zero_shot([picture()], labels[700:701])
    assert alone.labels == ["thing number 700"]


def test_labels_and_templates():
    assert fill(TEMPLATE, [" cat ", "dog"]) == ["This is a photo of cat.", "This is a photo of dog."]
    assert fill("{}", ["{}"]) == ["{}"]
    assert fill("A photo, of {}.", ["Hot_Dog, bun!"], canonicalise=True) == ["a photo of hot dog, bun"]
    for template, labels in ((TEMPLATE, ["cat", ""]), (TEMPLATE, [" "]), (TEMPLATE, []), ("no place", ["cat"])):
        with pytest.raises(UsageError, match="labels that are not empty"):
            fill(template, labels)


def test_progress_is_told(model, folder):
    told = []
    model.embed_images(folder, batch=4, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 9), (8, 9), (9, 9)]


def test_unknown_preprocessing(place):
    with pytest.raises(UsageError, match="big_vision"):
        load(place, preprocess="keras")


def test_the_command_zeroshot(capsys, place, folder):
    code, out, err = run(capsys, "zeroshot", "--model", place, "--image", folder, "--labels", "cat,dog", "--top", 1)
    assert code == 0
    assert out.count("a.png") == 1 and "need not sum to 1" in out and "computed with" in out
    assert "skipped 4 of 9 images" in err and "g-text.png" in err


def test_the_command_as_json(capsys, place, folder, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\n\ndog, with a comma\n")
    words = ("--labels", f"@{tmp_path / 'labels.txt'}", "--json")
    code, out, _ = run(
        capsys, "zeroshot", "--model", place, "--image", folder / "a.png", "--image", folder / "b.jpg", *words
    )
    content = json.loads(out)
    assert code == 0 and len(content["images"]) == 2 and content["skipped"] == []
    assert {row["label"] for row in content["images"][0]["scores"]} == {"cat", "dog, with a comma"}


def test_the_command_embed(capsys, place, folder, tmp_path, model):
    code, _, _ = run(capsys, "embed", "--model", place, "--images", folder, "--out", tmp_path / "x.npy")
    vectors, names = np.load(tmp_path / "x.npy"), (tmp_path / "x.names.csv").read_text().splitlines()[1:]
    assert code == 0 and vectors.shape == (5, 32) and len(names) == 5
    assert np.abs(vectors - model.embed_images(folder).embeddings).max() <= 1e-5
    (tmp_path / "t.txt").write_text("a cat\nein Hund\n")
    code, _, _ = run(capsys, "embed", "--model", place, "--text", tmp_path / "t.txt", "--out", tmp_path / "t.npy")
    assert code == 0 and np.load(tmp_path / "t.npy").shape == (2, 32)


@pytest.mark.parametrize(
    "words",
    [
        ("zeroshot", "--image", "{folder}", "--labels", "cat,,dog"),
        ("zeroshot", "--image", "{folder}", "--labels", "cat", "--template", "no place"),
        ("zeroshot", "--image", "{folder}/nothing.png", "--labels", "cat"),
        ("zeroshot", "--image", "{folder}", "--labels", "@{folder}/nothing.txt"),
        ("zeroshot", "--image", "{folder}", "--labels", "cat", "--tokenizer", "{folder}/notes.txt"),
        ("zeroshot", "--image", "{folder}/f-empty.jpg", "--labels", "cat"),
        ("embed", "--out", "x.npy"),
        ("embed", "--images", "{folder}", "--text", "{folder}/notes.txt", "--out", "x.npy"),
        ("embed", "--images", "{folder}", "--out", "x.txt"),
        ("embed", "--images", "{folder}", "--out", "{folder}/none/x.npy"),
        ("embed", "--text", "{folder}/a.png", "--out", "{folder}/x.npy"),
    ],
)
def test_wrong_use_ends_with_two_and_an_explanation(capsys, place, folder, words):
    code, _, err = run(
        capsys, words[0], "--model", place, *(word.replace("{folder}", str(folder)) for word in words[1:])
    )
    assert code == 2 and err.strip()


def test_a_missing_tokeniser_is_told_before_any_image_is_read(tmp_path, folder):
    cfg = replace(CFG, vocabulary=300)
    other = save_checkpoint(tmp_path / "m", sr.init(cfg, dtype=np.float32), cfg)
    assert load(other).embed_images(folder).embeddings.shape == (5, 32)  # images alone need none
    with pytest.raises(UsageError, match=r"spiece\.model"):
        load(other).zero_shot(folder, ["cat"])
    with pytest.raises(UsageError, match="the tokeniser of another model"):
        load(other, tokenizer="bytes").zero_shot(folder, ["cat"])


def test_check_checkpoint(capsys, place, tmp_path):
    code, out, _ = run(capsys, "check", "checkpoint", place)
    assert code == 0 and "PASS" in out and "needs the photographs" not in out
    params = sr.init(CFG, dtype=np.float32)
    params["text/norm/beta"][3] = np.nan
    bad = save_checkpoint(tmp_path / "nan", params, CFG)
    code, out, _ = run(capsys, "check", "checkpoint", bad)
    assert code == 1 and "FAIL" in out


def test_logits_on_record_are_compared(capsys, monkeypatch, place, model, folder):
    """As for the ten released sizes, with a record of our own model."""
    photos = [folder / "a.png", folder / "e.jpg"]
    own = load(place, preprocess="big_vision")
    logits = own.zero_shot(photos, checkpoint.TEXTS, "{}").logits
    words = [word for photo in photos for word in ("--images", photo)]
    for shift, code in ((0.0, 0), (0.05, 1)):
        monkeypatch.setitem(checkpoint.RECORDED, CFG.name, logits * (1 + shift))
        assert run(capsys, "check", "checkpoint", place, *words)[0] == code
    assert "needs the photographs" in run(capsys, "check", "checkpoint", place)[1]
    assert run(capsys, "check", "checkpoint", place, *words[:2])[0] == 2
    skipped = run(capsys, "check", "checkpoint", place, "--images", folder / "f-empty.jpg", *words[:2])
    assert "empty file" in skipped[1]
