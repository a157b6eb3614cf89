"""Labels and results in the form in which they are used: cleaned, cut, equal, no numbers; and who computed them."""

import json
import subprocess
import sys
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_zeroshot import CFG, run

import siglip_ref as sr
from siglip_ref import ops as specification
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.errors import UsageError
from siglip_ref.process.typed import read_lines, tidy, visible
from siglip_ref.use.labels import look_alike, require_words, same_to_the_model
from siglip_ref.use.load import load
from siglip_ref.use.text_conventions import TEXT_CONVENTIONS
from siglip_ref.use.tokenizer import Tokenizer, byte_tokenizer, cut_note

LONG = replace(CFG, text_length=64)


def saved(folder, cfg=LONG, **changes):
    params = sr.init(cfg, seed=1, dtype=np.float32)
    return save_checkpoint(folder, params | {name: value(params[name]) for name, value in changes.items()}, cfg)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model") / "mu")


@pytest.fixture
def photos(tmp_path):
    """Four pictures, three of them below."""
    place = tmp_path / "photos"
    for number, folder in enumerate((".", "a", "a/b", "c")):
        (place / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(place / folder / f"{number}.png")
    return place


def words(convention, length=64):
    """A tokeniser of whole words, cleaned as the library does it."""

    def pieces(text):
        return [zlib.crc32(word.encode()) % 1000 for word in text.split()]

    return Tokenizer("words", pieces, 1000, length, TEXT_CONVENTIONS[convention])


@pytest.mark.parametrize("convention", ["huggingface", "big_vision", "open_clip"])
@pytest.mark.parametrize("label", ["???", "?!", "\u200b", "\ufeff ", " - "])
def test_labels_of_which_nothing_is_left_are_refused(convention, label):
    """The bare template scored, and won."""
    tokenizer = words(convention)
    model = replace(load_small(), tokenizer=lambda: tokenizer)
    with pytest.raises(UsageError, match=r"something is left|not empty"):
        model.zero_shot([Image.new("RGB", (9, 9))], ["cat", label])
    assert require_words(["cat", "C++ code"], tokenizer) == ["cat", "C++ code"]


def load_small():
    from siglip_ref.use.preprocess import PREPROCESS
    from siglip_ref.use.zeroshot import Model

    params = sr.init(CFG, seed=1, dtype=np.float32)
    return Model(CFG, params, PREPROCESS["huggingface"], lambda: byte_tokenizer(16), specification)


def test_unseen_characters_at_the_ends_are_taken_off_and_others_shown():
    assert tidy("\ufeff cat \u200b\n") == "cat" and tidy("\u200b") == ""
    assert visible("c\u200bat\x1b[2J\udce9") == "c\\u200bat\\x1b[2J\\udce9" and visible("Ä 猫") == "Ä 猫"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lines_are_what_editors_call_lines(tmp_path, encoding):
    (tmp_path / "x.txt").write_bytes("cat\r\n\r\n  a dog\x0cwith a form feed\u2028 \rlast".encode(encoding))
    assert read_lines(tmp_path / "x.txt") == ["cat", "a dog\x0cwith a form feed", "last"]


def test_a_label_file_with_a_byte_order_mark(capsys, place, photos, tmp_path):
    results = []
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "labels.txt").write_bytes("cat\ndog\n".encode(encoding))
        words = ("--image", photos / "0.png", "--labels", f"@{tmp_path / 'labels.txt'}", "--json")
        results.append(json.loads(run(capsys, "zeroshot", "--model", place, *words)[1]))
    assert results[0] == results[1]


def test_a_label_given_twice_is_kept_once_and_said(capsys, place, photos):
    words = ("--image", photos / "0.png", "--labels", "cat, dog,cat ,\u200bdog")
    code, out, err = run(capsys, "zeroshot", "--model", place, *words)
    assert code == 0 and out.count("  cat\n") == out.count("  dog\n") == 1 and "kept once: cat, dog" in err


def test_labels_that_are_the_same_to_the_model_are_named(capsys, photos, tmp_path):
    """Fifteen bytes of "This is a photo of": every label had the same score, without a word."""
    short = saved(tmp_path / "short", CFG)
    arguments = ("--image", photos / "0.png", "--labels", "cat,dog", "--json")
    code, out, err = run(capsys, "zeroshot", "--model", short, *arguments)
    assert code == 0 and "2 of 2 labels in their template are longer than the 15 bytes" in err
    assert "the same to this model, and so with the same score: 'cat' = 'dog'" in err
    images, *labels = json.loads(out)["notes"]  # the first: where the settings of images come from
    assert images.startswith("images:") and len(labels) == 2
    tokenizer = words("huggingface")
    assert same_to_the_model(["Cat!", "cat", "dog"], ["Cat!", "cat", "dog"], tokenizer)[0].endswith("'Cat!' = 'cat'")
    assert same_to_the_model(["cat", "dog"], ["cat", "dog"], tokenizer) == []


def test_texts_that_are_cut_are_counted(capsys, place, tmp_path):
    (tmp_path / "t.txt").write_text("short\n" + "long " * 20 + "one\n" + "long " * 20 + "two\n")
    words = ("--text", tmp_path / "t.txt", "--out", tmp_path / "x.npy")
    code, _, err = run(capsys, "embed", "--model", place, *words)
    assert code == 0 and "2 of 3 texts are longer than the 63 bytes" in err and "1 can no longer be told" in err
    with pytest.warns(UserWarning, match="1 of 1 texts are longer"):
        load(place, ops=specification).embed_texts(["long " * 20])
    assert cut_note(byte_tokenizer(64), ["x" * 63], "texts") == []


def test_folders_are_gone_into(capsys, place, photos, tmp_path):
    found = load(place, ops=specification).embed_images(photos)
    assert [name.removeprefix(f"{photos}/") for name in found.names] == ["0.png", "a/1.png", "a/b/2.png", "c/3.png"]
    code, out, _ = run(capsys, "embed", "--model", place, "--images", photos, "--out", tmp_path / "x.npy")
    assert code == 0 and "4 vectors" in out
    (photos / "0.png").unlink()
    assert run(capsys, "zeroshot", "--model", place, "--image", photos, "--labels", "a,b")[1].count(".png") == 3


def test_names_that_are_no_text_are_shown_and_kept(capsys, place, tmp_path):
    """A file name is bytes: Latin-1, a line feed."""
    (tmp_path / "in").mkdir()
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        with open(bytes(tmp_path / "in") + b"/" + name, "wb") as file:
            Image.new("RGB", (9, 9)).save(file, "PNG")
    code, out, _ = run(capsys, "zeroshot", "--model", place, "--image", tmp_path / "in", "--labels", "a,b")
    assert code == 0 and "caf\\udce9.png" in out and "two\\nlines.png" in out
    assert run(capsys, "embed", "--model", place, "--images", tmp_path / "in", "--out", tmp_path / "x.npy")[0] == 0
    import csv

    with (tmp_path / "x.names.csv").open(newline="", errors="surrogateescape") as file:
        assert [row["name"].rsplit("/")[-1] for row in csv.DictReader(file)] == ["caf\udce9.png", "two\nlines.png"]


@pytest.mark.parametrize(
    "changes, cause",
    [
        ({"text/norm/gamma": lambda v: v * np.nan}, "the weights hold NaN or infinity in 1 of"),
        ({"image/patch/kernel": lambda v: v * np.inf}, "image/patch/kernel"),
        ({"log_scale": lambda v: v * 0 + 200}, "overflows"),
    ],
)
@pytest.mark.parametrize("json_", [(), ("--json",)])
def test_what_is_no_number_is_never_a_score(changes, cause, json_, capsys, photos, tmp_path):
    broken = saved(tmp_path / "broken", **changes)
    code, out, err = run(capsys, "zeroshot", "--model", broken, "--image", photos, "--labels", "cat,dog", *json_)
    assert code == 2 and not out and " ".join(cause.split()) in " ".join(err.replace("│", " ").split())


def test_vectors_that_are_no_numbers_are_not_written(capsys, photos, tmp_path):
    broken = saved(tmp_path / "broken", **{"image/patch/kernel": lambda v: v * np.nan})
    code, _, err = run(capsys, "embed", "--model", broken, "--images", photos, "--out", tmp_path / "x.npy")
    assert code == 2 and "NaN or infinity for 4 of 4" in err and not (tmp_path / "x.npy").exists()


BLOCKED = """
import sys
sys.modules["numba"] = None
from siglip_ref.cli.main import main
main()
"""


def test_who_computed_it_is_told_as_it_was(place, photos, tmp_path):
    """Without Numba: the specification, in words and in JSON, in zeroshot, embed and train."""
    common = ["--model", place, "--image", photos / "0.png", "--labels", "cat,dog"]
    train = ["--data", "digits", "--model", "small", "--steps", "1", "--batch", "4", "--out", tmp_path / "out"]
    said = []
    for line in (
        ["zeroshot", *common],
        ["zeroshot", *common, "--json"],
        ["embed", "--model", place, "--images", photos, "--out", tmp_path / "x.npy"],
        ["train", *train],
    ):
        command = [sys.executable, "-c", BLOCKED, *map(str, line)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "no compiled kernels" in done.stderr, done
        assert "twins" not in done.stdout and "siglip_ref.fast" not in done.stdout, done.stdout
        said.append(done.stdout)
    assert json.loads(said[1])["ops"] == "siglip_ref.ops"
    assert all("the specification, plain NumPy" in text for text in said)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_text_of_two_or_four_bytes_a_letter_is_never_taken_for_utf_8(capsys, place, photos, tmp_path, encoding):
    """Without a mark its letters are UTF-8 with a zero byte beside each: they were scored so."""
    (tmp_path / "t.txt").write_bytes("cat\ndog\n".encode(encoding))
    for words in (
        ("zeroshot", "--image", photos, "--labels", f"@{tmp_path}/t.txt"),
        ("embed", "--text", tmp_path / "t.txt", "--out", tmp_path / "x.npy"),
    ):
        code, out, err = run(capsys, words[0], "--model", place, *words[1:])
        assert code == 2 and not out and "UTF-32" in err and "save it as UTF-8" in err
    (tmp_path / "t.txt").write_bytes(b"cat\ndog\0\nbird\n")
    with pytest.raises(UsageError, match="a zero byte at byte 7"):
        read_lines(tmp_path / "t.txt")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_a_line_is_named(capsys, place, photos, tmp_path, content):
    """`embed` ended with 2 and no word; `zeroshot` spoke of the template."""
    (tmp_path / "t.txt").write_bytes(content)
    for words in (
        ("zeroshot", "--image", photos, "--labels", f"@{tmp_path}/t.txt"),
        ("embed", "--text", tmp_path / "t.txt", "--out", tmp_path / "x.npy"),
    ):
        code, _, err = run(capsys, words[0], "--model", place, *words[1:])
        assert code == 2 and "no line that holds anything" in err
        assert "t.txt" in "".join(line.strip("│ ") for line in err.splitlines())


@pytest.mark.parametrize(
    "name, words", [("", "a folder of this name, or no name"), ("none", "a spelling mistake"), ("in", "a folder")]
)
def test_why_a_file_of_labels_is_not_read(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError) as caught:
        read_lines(Path(name))
    assert words in caught.value.cause


def test_blank_lines_between_texts_are_counted(capsys, place, tmp_path):
    """A row of the vectors is not the line of that number."""
    (tmp_path / "t.txt").write_text("a\n\n \nb\n\n")
    code, out, err = run(capsys, "embed", "--model", place, "--text", tmp_path / "t.txt", "--out", tmp_path / "x.npy")
    assert code == 0 and "2 vectors" in out and "2 blank lines of" in err


def test_labels_that_look_the_same_are_named(capsys, place, photos):
    """An accent in its letter, and one after it: two labels on the screen that nobody can tell apart."""
    code, _, err = run(
        capsys, "zeroshot", "--model", place, "--image", photos / "0.png", "--labels", "caf\u00e9,cafe\u0301"
    )
    assert code == 0 and r"look the same" in err and r"'caf\xe9' = 'cafe\u0301'" in err
    assert look_alike(["a", "b", "a"]) == []


def test_overflow_is_said_once_in_our_words(photos, tmp_path):
    """Not as warnings that name the lines of this package."""
    huge = saved(tmp_path / "huge", **{"image/pool/mlp/in/kernel": lambda value: value + np.float32(3e38)})
    with warnings.catch_warnings(action="error"), pytest.raises(UsageError, match="results that are numbers"):
        load(huge, ops=specification).embed_images(photos)
