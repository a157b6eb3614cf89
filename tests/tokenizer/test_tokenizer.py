"""Cleaning, ends and padding; wrong and missing files. Parity with other libraries: tests/interop."""

import numpy as np
import pytest
from corpus import TEXTS, like_c4, like_gemma

from siglip_ref.errors import UsageError
from siglip_ref.use.text_conventions import CLEAN, TEXT_CONVENTIONS, ascii_lower
from siglip_ref.use.tokenizer import byte_tokenizer, find_tokenizer, json_tokenizer, sentencepiece_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a file like SigLIP 1's."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "spiece.model").write_bytes(like_c4())
    return folder


def test_lower_case_of_ascii_alone():
    assert ascii_lower("ABZ Ü Я Σ @[") == "abz Ü Я Σ @["


@pytest.mark.parametrize(
    ("clean", "expected"),
    [
        ("none", " A_b, C! &amp; Ü "),
        ("ascii lower", " a_b, c! &amp; Ü "),
        ("lower", " a_b, c! &amp; ü "),
        ("canonical", "ab c amp ü"),
        ("open_clip", "a b c ü"),
    ],
)
def test_each_library_cleans_in_its_own_way(clean, expected):
    assert CLEAN[clean](" A_b, C! &amp; Ü ") == expected


def test_every_row_has_the_full_length_and_one_end(place):
    for name, convention in TEXT_CONVENTIONS.items():
        tokenizer = sentencepiece_tokenizer(place / "spiece.model", 64, name)
        ids = tokenizer(TEXTS)
        assert ids.shape == (len(TEXTS), 64) and ids.dtype == np.int32
        for row in ids:
            end = row.tolist().index(convention.eos)
            assert (row[end + 1 :] == convention.pad).all()
        long = next(text for text in TEXTS if text.startswith("long"))
        assert ids[TEXTS.index(long)].tolist().index(convention.eos) == 63
        assert tokenizer.truncated(TEXTS) == [long]


def test_padding_is_the_end_again_in_siglip_1_and_zero_in_siglip_2(place):
    file = place / "spiece.model"
    first, second = (sentencepiece_tokenizer(file, 16, name)(["a photo"])[0] for name in ("big_vision", "big_vision-2"))
    assert first[-1] == 1 and second[-1] == 0
    assert np.array_equal(np.where(second == 0, 1, second), first)


def test_bytes_of_any_text():
    tokenizer = byte_tokenizer(300)
    for text, row in zip(TEXTS, tokenizer(TEXTS), strict=True):
        length = row.tolist().index(1)
        assert bytes((row[:length] - 3).tolist()) == text.encode()[:299]
    assert tokenizer(TEXTS).max() < tokenizer.vocabulary == 259


def found(place, vocabulary, given=None):
    return find_tokenizer(given, place, vocabulary, 16, TEXT_CONVENTIONS["huggingface"])


def test_a_tokeniser_of_the_wrong_size(place):
    size = sentencepiece_tokenizer(place / "spiece.model", 16, "huggingface").vocabulary
    assert found(place, size).vocabulary == size
    assert found(place, size - 100).vocabulary == size  # mc4 has 100 sentinels more than the table
    for vocabulary in (size + 1, size - 101, 256_000):
        with pytest.raises(UsageError, match="the tokeniser of another model"):
            found(place, vocabulary)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"spiece\.model, tokenizer\.model"):
        found(tmp_path, 32_000)
    with pytest.raises(UsageError, match="nothing at"):
        found(tmp_path, 32_000, tmp_path / "typo.model")
    assert found(tmp_path, 259).name == "bytes"


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", bytes(1000)])
@pytest.mark.parametrize(("name", "reader"), [("a.model", sentencepiece_tokenizer), ("a.json", json_tokenizer)])
def test_a_broken_file(tmp_path, content, name, reader):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="download it again"):
        reader(tmp_path / name, 16, "huggingface")(["a"])


def test_an_unknown_convention(place):
    with pytest.raises(UsageError, match="huggingface-2"):
        sentencepiece_tokenizer(place / "spiece.model", 16, "keras")


def test_gemma_writes_unknown_letters_as_bytes(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(like_gemma())
    tokenizer = sentencepiece_tokenizer(tmp_path / "tokenizer.model", 64, "huggingface-2")
    assert len(set(tokenizer(["\U00010348"])[0][:5].tolist())) == 5  # four bytes and the end
