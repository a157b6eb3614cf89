"""sr.check_tokenize passes what is right and names what is wrong: each mistake by itself."""

from dataclasses import replace

import numpy as np
import pytest
from corpus import like_c4

import siglip_ref as sr
from siglip_ref.use.text_conventions import TEXT_CONVENTIONS
from siglip_ref.use.tokenizer import byte_tokenizer, sentencepiece_tokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("c4") / "spiece.model"
    path.write_bytes(like_c4())
    return path


@pytest.fixture(scope="module")
def right(file):
    return sentencepiece_tokenizer(file, 64, "huggingface")


@pytest.mark.parametrize("name", TEXT_CONVENTIONS)
@pytest.mark.parametrize("length", [16, 64])
def test_each_convention_passes_as_itself(file, name, length):
    own = sentencepiece_tokenizer(file, length, name)
    for tokenizer in (None, file):
        report = sr.check_tokenize(own, name, length=length, tokenizer=tokenizer)
        assert report.passed and not report.findings, report
        assert bool(report.not_checked) == (tokenizer is None)


def test_bytes_pass():
    tokenizer = byte_tokenizer(64)
    assert sr.check_tokenize(tokenizer, tokenizer.convention).passed


def to_longest(right):
    """What a tokeniser does when padding="longest", or True."""

    def fn(texts):
        ids = right(texts)
        longest = max(row.tolist().index(1) for row in ids) + 1
        return ids[:, :longest]

    return fn


def rows(right, change):
    return lambda texts: [change(row) for row in right(texts).tolist()]


def content(row):
    return row[: row.index(1)]


MISTAKES = {
    "padded to the longest": (to_longest, "text-not-padded-to-64"),
    "not padded at all": (lambda r: rows(r, lambda row: [*content(row), 1]), "text-not-padded-to-64"),
    "padded to 77": (lambda r: rows(r, lambda row: row + [1] * 13), "text-not-padded-to-64"),
    "padded on the left": (
        lambda r: rows(r, lambda row: [1] * (63 - len(content(row))) + [*content(row), 1]),
        "text-not-padded-to-64",
    ),
    "padded with 0": (
        lambda r: rows(r, lambda row: [*content(row), 1] + [0] * (63 - len(content(row)))),
        "pad-eos-id",
    ),
    "no end": (lambda r: rows(r, lambda row: content(row) + [0] * (64 - len(content(row)))), "pad-eos-id"),
    "beginning of sentence": (lambda r: rows(r, lambda row: [2, *row[:62], 1]), "pad-eos-id"),
    "not lower-cased": (
        lambda r: replace(r, convention=replace(r.convention, clean="none")),
        "text-not-lowercased-canonicalised",
    ),
    "punctuation kept": (
        lambda r: replace(r, convention=replace(r.convention, clean="lower")),
        "text-not-lowercased-canonicalised",
    ),
    "underscores become spaces": (
        lambda r: replace(r, convention=replace(r.convention, clean="open_clip")),
        "text-not-lowercased-canonicalised",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_named(right, name):
    change, id = MISTAKES[name]
    report = sr.check_tokenize(change(right))
    assert report.verdict == "FAIL"
    assert {finding.id for finding in report.findings} == {id}


def test_the_costliest_mistake_says_what_to_type(right):
    report = sr.check_tokenize(to_longest(right))
    assert 'padding="max_length", max_length=64' in report.findings[0].repair


def test_every_id_counts_where_the_file_is_given(right, file):
    def off_by_one(texts):
        ids = right(texts).copy()
        ids[:, 0] += ids[:, 0] > 5
        return ids

    assert sr.check_tokenize(off_by_one).passed  # nothing to see without the file
    assert sr.check_tokenize(off_by_one, tokenizer=file).verdict == "FAIL"


@pytest.mark.parametrize("used", ["big_vision", "open_clip", "huggingface-2"])
def test_another_library_is_another_convention(file, used):
    report = sr.check_tokenize(sentencepiece_tokenizer(file, 64, used), "huggingface", tokenizer=file)
    assert report.verdict == "OTHER CONVENTION" and f'"{used}"' in report.findings[0].repair


def test_dicts_lists_and_arrays(right):
    for wrap in (lambda ids: {"input_ids": ids}, lambda ids: ids.tolist(), lambda ids: {"input_ids": ids.tolist()}):
        assert sr.check_tokenize(lambda texts, wrap=wrap: wrap(right(texts))).passed


def test_wrong_use(right):
    with pytest.raises(sr.UsageError, match="rows of ids"):
        sr.check_tokenize(lambda texts: right(texts)[:1])
    with pytest.raises(sr.UsageError, match="huggingface-2"):
        sr.check_tokenize(right, "keras")
    with pytest.raises(sr.UsageError, match="length"):
        sr.check_tokenize(right, length=2)
    assert np.asarray(right(["a"])).shape == (1, 64)


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda text: [ord(letter) for letter in text.lower()], "it takes one text"),
        (lambda text: np.array([ord(letter) for letter in text.lower()]), "it takes one text"),
        (lambda texts: 1 / 0, "ZeroDivisionError"),
        (lambda texts: None, "a list of texts"),
        (lambda texts: {"ids": []}, "KeyError"),
    ],
)
def test_what_takes_no_list_of_texts_is_told(fn, words):
    with pytest.raises(sr.UsageError, match=words) as raised:
        sr.check_tokenize(fn)
    assert ("for text in texts" in raised.value.repair) == (words == "it takes one text")


def test_a_long_text_is_shown_by_its_beginning(right):
    """Only the text that is far too long is wrong: it is not cut."""
    report = sr.check_tokenize(lambda texts: [row + [1] * (len(text) > 90) for row, text in zip(
        right(texts).tolist(), texts, strict=True)])  # fmt: skip
    assert report.verdict == "FAIL"
    assert "(100 words)" in report.findings[0].evidence and len(report.findings[0].evidence) < 120
