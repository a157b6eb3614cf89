"""Settings beside the weights: which file decides, what is said where two disagree, what is refused at once."""

import json

import numpy as np
import pytest
from PIL import Image
from saved import CFG, PARAMS, save, settings

import siglip_ref as sr
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.errors import UsageError
from siglip_ref.use.preprocess import PREPROCESS

OWN = {"resample": 0, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.28]}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))


@pytest.fixture
def place(tmp_path):
    return save(tmp_path / "model")


def source(model, name):
    """Where a setting comes from, and what it is."""
    (found,) = [setting for setting in model.settings if setting.name == name]
    return found.source, found.value


def test_the_nested_settings_of_transformers_5(place):
    """Its only file; before it was read, the cosine with transformers' own vectors was 0.49."""
    plain = sr.load(place).embed_images([PHOTO]).embeddings
    settings(place, "processor_config.json", image_processor=OWN, processor_class="SiglipProcessor")
    model = sr.load(place)
    assert (model.preprocess.filter, model.preprocess.mean, model.preprocess.std) == (
        "nearest",
        (0.48, 0.45, 0.4),
        (0.27, 0.26, 0.28),
    )
    assert source(model, "images: mean") == ("processor_config.json", (0.48, 0.45, 0.4))
    nested = model.embed_images([PHOTO]).embeddings
    (place / "processor_config.json").unlink()
    settings(place, "preprocessor_config.json", **OWN)
    assert np.array_equal(nested, sr.load(place).embed_images([PHOTO]).embeddings)
    assert not np.array_equal(nested, plain)


def test_without_any_file_the_defaults_are_said(place):
    model = sr.load(place)
    assert source(model, "images: std") == ("default", (0.5, 0.5, 0.5))
    assert source(model, "image tower")[0] == "config.json"
    assert any("preprocessor_config.json" in note and "bicubic" in note for note in model.notes)
    assert source(sr.load(place, preprocess="big_vision"), "images as") == ("given", "big_vision")


def test_where_two_files_disagree_the_nested_one_decides_as_in_transformers(place):
    settings(place, "preprocessor_config.json", **OWN | {"resample": 3})
    settings(place, "processor_config.json", image_processor=OWN)
    model = sr.load(place)
    assert model.preprocess.filter == "nearest"
    assert (
        "images: filter nearest of processor_config.json is taken; preprocessor_config.json says bicubic" in model.notes
    )
    settings(place, "preprocessor_config.json", **OWN)
    assert not [note for note in sr.load(place).notes if note.startswith("images:")]


def test_a_processor_config_without_images_decides_nothing(place):
    settings(place, "processor_config.json", processor_class="SiglipProcessor")
    settings(place, "preprocessor_config.json", **OWN)
    assert source(sr.load(place), "images: filter") == ("preprocessor_config.json", "nearest")


def test_settings_of_open_clip(tmp_path):
    place = save_checkpoint(tmp_path / "m", PARAMS, CFG, "open_clip")
    told = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "interpolation": "bilinear", "resize_mode": "squash"}
    settings(place, "open_clip_config.json", model_cfg={}, preprocess_cfg=told)
    model = sr.load(place)
    assert (model.preprocess.filter, model.preprocess.mean, model.preprocess.levels) == (
        "bilinear",
        (0.4, 0.5, 0.6),
        "divided",
    )
    settings(place, "open_clip_config.json", model_cfg={}, preprocess_cfg=told | {"resize_mode": "shortest"})
    with pytest.raises(UsageError, match="squash"):
        sr.load(place)
    (place / "open_clip_config.json").unlink()
    settings(place, "preprocessor_config.json", **OWN)  # the other library's file is better than none
    assert sr.load(place).preprocess.std == (0.27, 0.26, 0.28)
    (place / "preprocessor_config.json").unlink()
    settings(place, "config.json", architecture="vit", pretrained_cfg={"mean": 0.25, "std": 0.5})  # timm's
    assert source(sr.load(place), "images: mean") == ("config.json", (0.25, 0.25, 0.25))


def test_settings_of_naflex(tmp_path):
    from dataclasses import replace

    place = save(tmp_path / "m", replace(CFG, naflex=True))
    settings(place, "processor_config.json", image_processor=OWN | {"max_num_patches": 12, "patch_size": 16})
    model = sr.load(place)
    assert source(model, "images: max_patches") == ("processor_config.json", 12)
    assert any("says patches of 16; the model's are of 4" in note for note in model.notes)
    assert model.embed_images([PHOTO]).embeddings.shape == (1, 10)


def test_a_size_that_is_not_the_models(place):
    settings(place, "preprocessor_config.json", **OWN, size={"height": 384, "width": 384})
    assert any("the model takes 20 x 20" in note for note in sr.load(place).notes)
    settings(place, "preprocessor_config.json", **OWN, size={"shortest_edge": 20})
    assert any("says size {'shortest_edge': 20}" in note for note in sr.load(place).notes)
    settings(place, "preprocessor_config.json", **OWN, size={"height": 20, "width": 20})
    assert not [note for note in sr.load(place).notes if "size" in note]


NAMES = ("preprocessor_config.json", "processor_config.json")
WRONG = {
    "image_std": [
        0,
        [0, 0.5, 0.5],
        [float("nan")] * 3,
        [-0.5] * 3,
        ["x"] * 3,
        [10**400] * 3,
        [1e300] * 3,
        [True] * 3,
        {},
        "0.5",
    ],
    "image_mean": [[float("inf")] * 3, [None] * 3, [0.5] * 2, [1e9] * 3, ["0.5"] * 3, {"a": 1}],
    "resample": [7, -1, "cubic", 2.5, [3], True, 10**400],
    "rescale_factor": [1.0, "x", float("nan"), 10**400, [], True],
    "max_num_patches": [0, -3, "x", 10**12, 2.5, True, []],
    "do_center_crop": [True, 1],
    "do_resize": [False, 0, "no"],
    "do_rescale": [False, "false", []],
    "do_normalize": [0, 1, "no", "", [], 0.0],
    "do_pad": [True, "yes"],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", WRONG)
def test_settings_that_no_image_can_be_prepared_with_are_refused_at_load(place, name, key):
    for value in WRONG[key]:
        content = OWN | {key: value}
        settings(place, name, **content if name.startswith("pre") else {"image_processor": content})
        with pytest.raises(UsageError, match=name):
            sr.load(place)


@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{" * 10**5, b"\xff\xfe", b"\x00" * 9, b'{"a": 1' + b"1" * 5000 + b"}"]
)
def test_broken_files_of_settings(place, name, content):
    (place / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        sr.load(place)


def test_a_byte_order_mark_in_settings(place):
    (place / "preprocessor_config.json").write_text(json.dumps(OWN), encoding="utf-8-sig")
    assert sr.load(place).preprocess.filter == "nearest"


def test_settings_of_texts(tmp_path):
    from dataclasses import replace

    place = save(tmp_path / "m", replace(CFG, vocabulary=259))
    assert source(sr.load(place), "texts: clean") == ("default", "canonical")
    settings(
        place, "tokenizer_config.json", tokenizer_class="Siglip2Tokenizer", padding_side="left", model_max_length=9
    )
    model = sr.load(place)
    assert source(model, "texts: clean") == ("tokenizer_config.json", "lower")
    assert source(model, "texts: side") == ("tokenizer_config.json", "left")
    assert any("padded on the left" in note for note in model.notes)
    settings(place, "tokenizer_config.json", tokenizer_class="SiglipTokenizer", do_lower_case=False, model_max_length=5)
    model = sr.load(place)
    assert source(model, "texts: clean") == ("tokenizer_config.json", "canonical case")
    assert any("says 5 positions; the model has 9" in note for note in model.notes)
    settings(place, "tokenizer_config.json", model_max_length=10**30)
    assert not [note for note in sr.load(place).notes if "positions" in note]


def test_padding_on_the_left(tmp_path):
    from dataclasses import replace

    from siglip_ref.use.tokenizer import byte_tokenizer

    right = byte_tokenizer(6)
    left = replace(right, convention=replace(right.convention, side="left"))
    assert left(["hi", "a long one"]).tolist() == [[0, 0, 0, 107, 108, 1], [*right(["a long one"])[0].tolist()]]


def test_texts_as_open_clip_says(tmp_path):
    place = save_checkpoint(tmp_path / "m", PARAMS, CFG, "open_clip")
    for word, clean in (
        ("canonicalize", "open_clip"),
        ("lower", "open_clip lower"),
        ("whitespace", "open_clip whitespace"),
    ):
        settings(place, "open_clip_config.json", model_cfg={"text_cfg": {"tokenizer_kwargs": {"clean": word}}})
        assert source(sr.load(place), "texts: clean") == ("open_clip_config.json", clean)


def test_a_tokeniser_that_contradicts_itself(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    place = save(tmp_path / "m")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(29)}, unk_token="[UNK]"))
    words.save(str(place / "tokenizer.json"))
    model = sr.load(place)
    with pytest.raises(UsageError, match="contradicts itself"):
        model.embed_texts(["unknown"])


def test_a_text_that_is_no_unicode(tmp_path):
    from dataclasses import replace

    model = sr.load(save(tmp_path / "m", replace(CFG, vocabulary=259)))
    with pytest.raises(UsageError, match="no Unicode"):
        model.embed_texts(["\ud800"])


def test_every_preprocessing_has_its_settings():
    assert set(PREPROCESS) == {"huggingface", "huggingface-2", "open_clip", "big_vision"}


def test_what_training_writes_says_how_images_are_prepared(tmp_path):
    from siglip_ref.use.companions import write_image_settings

    place = save(tmp_path / "model")
    write_image_settings(place, PREPROCESS["huggingface-2"], CFG)
    model = sr.load(place)
    assert source(model, "images: filter") == ("preprocessor_config.json", "bilinear")
    assert not [note for note in model.notes if note.startswith("images")]


def test_one_tower_is_no_beginning_of_a_training(tmp_path):
    from saved import tensors, write

    from siglip_ref.checkpoint.load import load_checkpoint, require_whole
    from siglip_ref.checkpoint.save import save_checkpoint

    place = save(tmp_path / "model")
    write(place, {n: v for n, v in tensors(place).items() if n.startswith("vision_model.")})
    checkpoint = load_checkpoint(place)
    with pytest.raises(UsageError, match="one tower only"):
        require_whole(checkpoint)
    with pytest.raises(UsageError, match="one tower alone"):
        save_checkpoint(tmp_path / "out", checkpoint.params, checkpoint.config)
