"""What was trained here opens elsewhere as it is, with the same scores, and is found as well as its evaluation says."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from search_cases import CFG, run

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.training.command import run as train
from siglip_ref.training.data.files import from_files
from siglip_ref.training.parallel import Alone
from siglip_ref.training.saved.store import newest
from siglip_ref.use.companions import SETTINGS_FILES
from siglip_ref.use.exported import write_settings
from siglip_ref.use.load import load
from siglip_ref.use.preprocess import PREPROCESS

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "white": (245, 245, 245)}
LABELS = ["cat", "dög", "a long label " * 8]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that learnt captions of 120 small pictures."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    names = list(COLOURS)
    for number in range(120):
        above, below = (names[k] for k in rng.integers(0, 4, 2))
        pixels = np.zeros((60, 60, 3)) + np.where(np.arange(60) < 30, 0, 1)[:, None, None]
        pixels = np.where(pixels == 0, COLOURS[above], COLOURS[below]) + rng.normal(0, 12, (60, 60, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "photos" / f"{number:03d}.png")
        (folder / "photos" / f"{number:03d}.txt").write_text(f"{above} over {below}\n")
    chosen = {"data": str(folder / "photos"), "out": folder / "run", "labels": False, "steps": 120, "batch": 32}
    train(chosen | {"lr": 2e-3, "force": False, "save_every": 0, "judge_every": 0}, Alone())
    return folder


def same(found, expected):
    return np.abs(np.asarray(found) - np.asarray(expected)).max() <= 1e-5


def test_transformers_pipeline(trained):
    pipeline = pytest.importorskip("transformers").pipeline
    theirs = pipeline("zero-shot-image-classification", model=str(trained / "run" / "model"))
    image = Image.open(trained / "photos" / "000.png").resize((200, 130))
    ours = load(trained / "run" / "model").zero_shot([image], LABELS, "This is a photo of {}.")
    found = {one["label"]: one["score"] for one in theirs(image, candidate_labels=LABELS)}
    assert same([found[label] for label in LABELS], ours.scores[0])


def test_sentence_transformers(trained):
    loader = pytest.importorskip("sentence_transformers").SentenceTransformer
    theirs, ours = loader(str(trained / "run" / "model"), device="cpu"), load(trained / "run" / "model")
    images = [Image.open(trained / "photos" / f"{number:03d}.png").resize((200, 130)) for number in range(3)]
    texts = ["red over blue", "dög"]
    assert same(theirs.encode(images), ours.embed_images(images).embeddings)
    assert same(theirs.encode(texts), ours.embed_texts(texts))


def test_a_released_model_keeps_its_files_and_gains_those_of_sentence_transformers(tmp_path):
    from siglip_ref.training.finish import copy_companions

    save_checkpoint(tmp_path / "a", sr.init(CFG, dtype=np.float32), CFG)
    write_settings(tmp_path / "a", PREPROCESS["huggingface"], CFG)
    (tmp_path / "b").mkdir()
    copy_companions(tmp_path / "a", tmp_path / "b")
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert {"modules.json", "sentence_bert_config.json", "tokenizer_config.json", "preprocessor_config.json"} <= names
    assert names <= {path.name for path in (tmp_path / "a").iterdir()} and "open_clip_config.json" in SETTINGS_FILES


def test_the_files_change_nothing_here(tmp_path):
    """Bytes stay our tokeniser; nothing is said that was not said before."""
    save_checkpoint(tmp_path / "a", sr.init(CFG, dtype=np.float32), CFG)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write_settings(tmp_path / "b", PREPROCESS["huggingface"], CFG)
    plain, full = load(tmp_path / "a"), load(tmp_path / "b")
    assert full.notes == () and np.array_equal(plain.tokenizer()(LABELS), full.tokenizer()(LABELS))


def test_it_is_found_as_well_as_the_evaluation_says(trained, tmp_path, capfd):
    """Recall at 1 of images: of every held-out caption, through the command line alone."""
    part = from_files(trained / "photos").test
    (tmp_path / "held out").mkdir()
    for number in range(part.count):
        shutil.copy(part.names(number), tmp_path / "held out")
    code, _, _ = run(capfd, "index", tmp_path / "held out", "--model", trained / "run" / "model")
    assert code == 0
    captions = {Path(part.names(n)).name: part.captions(n)[0] for n in range(part.count)}
    right = 0
    for caption in captions.values():
        code, out, _ = run(capfd, "search", tmp_path / "held out", caption, "-t", 1, "-f")
        right += captions[Path(out.splitlines()[0]).name] == caption
    said = newest(trained / "run" / "checkpoints")[0].about["judged"][-1]
    assert right / part.count == pytest.approx(said["recall@1 of images"]) and right / part.count > 0.3
