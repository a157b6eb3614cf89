"""Your own pictures and captions, as people have them: nothing is cut, dropped or misread without a word."""

import numpy as np
import pytest
from PIL import Image
from training_cases import alone, mini

from siglip_ref.errors import UsageError
from siglip_ref.training.data.captioned import STILL
from siglip_ref.training.data.inputs import read_inputs
from siglip_ref.training.data.sources import open_data
from siglip_ref.training.loop import Quiet
from siglip_ref.training.settings import Settings
from siglip_ref.use.tokenizer import byte_tokenizer

PAIR = ("a large yellow triangle", "a large yellow star")


class Said(Quiet):
    def __init__(self):
        self.text = ""

    def say(self, text):
        self.text += text + "\n"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    mini(monkeypatch)


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures without captions."""
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(12):
        Image.new("RGB", (20, 20), (20 * number, 0, 0)).save(place / f"{number:02}.png")
    return place


def captioned(place, words=lambda number: f"number {number}"):
    for path in place.glob("*.png"):
        path.with_suffix(".txt").write_text(words(int(path.stem)) + "\n")
    return str(place)


def listed(place, content, encoding="utf-8"):
    file = place / "captions.csv"
    file.write_bytes(content.encode(encoding))
    return str(file)


def rows(separator=",", head="image,caption"):
    lines = [head.replace(",", separator), *(f"{n:02}.png{separator}number {n}" for n in range(12))]
    return "\n".join(lines) + "\n"


def captions(data):
    return sorted(
        caption for part in (data.train, data.test) for n in range(part.count) for caption in part.captions(n)
    )


WANTED = sorted(f"number {n}" for n in range(12))


def test_own_captions_have_room(photos):
    """Both became "a large yellow " once: sixteen positions, fifteen bytes."""
    data = open_data(captioned(photos, lambda number: PAIR[number % 2]))
    ids = byte_tokenizer(data.config.text_length)(PAIR)
    assert data.config.text_length == 64 and not np.array_equal(*ids)
    inputs = read_inputs(Settings(str(photos), batch=4), 1)
    assert inputs.params["text/position"].shape[0] == 64 and not inputs.notes


def test_captions_that_are_cut_are_counted_and_one_is_shown(photos, tmp_path):
    said = Said()
    chosen = {"data": captioned(photos, lambda number: PAIR[number % 2]), "model": "mu/16", "steps": 1, "batch": 4}
    alone(tmp_path / "out", said, **chosen)
    assert "12 of 12 captions are longer than the 15 bytes this model reads" in said.text
    assert f"'{PAIR[0]}'" in said.text and "1 can no longer be told from others" in said.text


def test_class_names_in_their_prompt_are_counted_too(photos):
    for number, path in enumerate(sorted(photos.glob("*.png"))):
        folder = photos / ("wolf" if number % 2 else "a dog with a very long name " * 3)
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    notes = read_inputs(Settings(str(photos), batch=4), 1).notes
    assert "7 of 14 captions are longer than the 63 bytes" in notes[0]


@pytest.mark.parametrize(
    "content, encoding",
    [
        (rows(), "utf-8"),
        (rows(), "utf-8-sig"),
        (rows(";"), "utf-8-sig"),
        (rows("\t"), "utf-8"),
        (rows().replace("\n", "\r\n"), "utf-8-sig"),
        (rows(head=" Image , Caption "), "utf-8"),
        (rows().replace(",", " , ").replace(".png", ".png "), "utf-8"),
        (rows().replace("\n", "\n\n") + "\n \n", "utf-8"),
        (rows(", ", "image,caption,who").replace("number 3", '"number 3",me'), "utf-8"),
    ],
    ids=["plain", "byte order mark", "semicolons", "tabs", "of Windows", "capitals", "blanks", "empty lines", "quoted"],
)
def test_lists_as_people_write_them(photos, content, encoding):
    data = open_data(listed(photos, content, encoding))
    assert captions(data) == WANTED and not data.notes
    assert all(data.train.picture(n, np.array(STILL)).shape == (20, 20, 3) for n in range(data.train.count))


@pytest.mark.parametrize(
    "content, encoding, words",
    [
        ("file,words\na,b\n", "utf-8", "the first line file, words"),
        ("image,text\na,b\n", "utf-8", "no column caption"),
        ("", "utf-8", "an empty file"),
        (rows(), "utf-16", "UTF-16"),
        (rows() + "é", "latin-1", "another encoding"),
    ],
)
def test_lists_that_are_none_say_why(photos, content, encoding, words):
    with pytest.raises(UsageError) as caught:
        open_data(listed(photos, content, encoding))
    assert words in str(caught.value)


def test_rows_without_a_caption_are_counted(photos):
    data = open_data(listed(photos, rows() + "12.png,\n13.png\n,words\n"))
    assert captions(data) == WANTED and data.notes == (
        "3 of 15 rows of captions.csv have no image or no caption, and are left out",
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_captions_beside_pictures_as_people_write_them(photos, encoding):
    captioned(photos)
    for path in photos.glob("*.txt"):
        path.write_bytes(f"\n  number {int(path.stem)} \u200b\r\n\r\n".encode(encoding))
    data = open_data(str(photos))
    assert captions(data) == WANTED


def test_a_caption_in_another_encoding_names_its_file(photos):
    captioned(photos)
    (photos / "03.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(UsageError, match=r"03\.txt"):
        open_data(str(photos))


def test_pictures_without_a_caption_are_counted(photos):
    captioned(photos)
    (photos / "03.txt").write_text("\n")
    Image.new("RGB", (9, 9)).save(photos / "bare.png")
    assert open_data(str(photos)).notes == ("2 images have no caption, and are left out: 03.png, bare.png",)


def test_a_released_size_trained_from_nothing_reads_bytes(photos, monkeypatch):
    """Its own tokeniser is not here, and a table for it would make a model that no command can feed."""
    from dataclasses import replace

    from siglip_ref.architecture.sizes import SIZES

    monkeypatch.setitem(SIZES, "large", replace(SIZES["mini"], name="large", vocabulary=32_000))
    inputs = read_inputs(Settings(captioned(photos), model="large", batch=4), 1)
    assert inputs.cfg.vocabulary == inputs.tokenizer.vocabulary == len(inputs.params["text/token"]) == 259


@pytest.mark.parametrize(
    "content, words",
    [
        (rows().replace("number 5", '"number 5'), "never closed"),
        (rows() + 'late.png,"words\n', "never closed"),
        (rows(head="image,caption,image"), "the column image twice"),
    ],
)
def test_lists_that_can_be_read_in_two_ways(photos, content, words):
    """An open quotation mark made one caption of all lines after it, without a word."""
    with pytest.raises(UsageError) as caught:
        open_data(listed(photos, content, "utf-8"))
    assert words in caught.value.cause


def test_one_is_counted_as_one(photos):
    captioned(photos)
    (photos / "03.txt").write_text("\n")
    assert open_data(str(photos)).notes == ("1 image has no caption, and is left out: 03.png",)
    assert open_data(listed(photos, rows() + "12.png,\n", "utf-8")).notes == (
        "1 of 13 rows of captions.csv has no image or no caption, and is left out",
    )


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b"])
def test_data_of_no_name(name):
    """ "" was the folder that one happened to be in."""
    with pytest.raises(UsageError, match="there is nothing at this path"):
        open_data(name)
