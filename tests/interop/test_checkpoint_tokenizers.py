"""The ids that transformers' and open_clip's tokenisers give, and ours: the same, on texts in many alphabets."""

import sys
from pathlib import Path

import numpy as np
import pytest
from no_torchvision import import_open_clip
from transformers import Siglip2Tokenizer, SiglipTokenizer

from siglip_ref.use.text_conventions import named_convention, open_clip_clean
from siglip_ref.use.tokenizer import find_tokenizer, json_tokenizer, sentencepiece_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "tokenizer"))
from corpus import TEXTS, like_c4, like_gemma  # beside the tokeniser's own tests

LENGTH = 64


@pytest.fixture(scope="module")
def c4(tmp_path_factory):
    file = tmp_path_factory.mktemp("c4") / "spiece.model"
    file.write_bytes(like_c4())
    return file


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A directory with tokenizer.model, and the tokenizer.json that transformers makes of it."""
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    place = tmp_path_factory.mktemp("gemma")
    (place / "tokenizer.model").write_bytes(like_gemma())
    extracted = SentencePieceExtractor(str(place / "tokenizer.model")).extract(None)
    Siglip2Tokenizer(vocab=extracted["vocab"], merges=extracted["merges"]).save_pretrained(place)
    return place


def different(ours, theirs):
    """The texts whose ids differ."""
    return [
        (text, a.tolist(), b.tolist())
        for text, a, b in zip(TEXTS, ours, theirs, strict=True)
        if not np.array_equal(a, b)
    ]


def test_siglip_1_as_in_transformers(c4):
    theirs = SiglipTokenizer(str(c4))(TEXTS, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    ours = sentencepiece_tokenizer(c4, LENGTH, "huggingface")(TEXTS)
    assert not different(ours, np.array(theirs))


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_siglip_2_as_in_transformers(gemma, name):
    reference = Siglip2Tokenizer.from_pretrained(gemma, padding_side="right")
    plain = reference(TEXTS, add_special_tokens=False).input_ids
    theirs = [[*ids[: LENGTH - 1], 1] for ids in plain]
    theirs = [ids + [0] * (LENGTH - len(ids)) for ids in theirs]
    maker = sentencepiece_tokenizer if name.endswith("model") else json_tokenizer
    ours = maker(gemma / name, LENGTH, "huggingface-2")(TEXTS)
    assert not different(ours, np.array(theirs))


def test_open_clip_cleans_as_we_do(c4):
    open_clip = import_open_clip()
    from open_clip.tokenizer import get_clean_fn

    assert open_clip
    clean = get_clean_fn("canonicalize")
    assert [text for text in TEXTS if clean(text) != open_clip_clean(text)] == []


def test_a_directory_of_transformers_is_enough(gemma):
    made = find_tokenizer(
        None,
        gemma,
        sentencepiece_tokenizer(gemma / "tokenizer.model", 8, "huggingface-2").vocabulary,
        16,
        named_convention("huggingface-2"),
    )
    assert made(["A cat"]).shape == (1, 16)
