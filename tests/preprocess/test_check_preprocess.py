"""sr.check_preprocess passes what is right and names what is wrong: each mistake by itself."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import siglip_ref as sr
from siglip_ref.check.files.preprocess import SHAPES, picture
from siglip_ref.use.preprocess import PREPROCESS, patches, pixels

SIDE = 96


def as_declared(name, side=SIDE):
    return lambda image: pixels(image, (side, side), PREPROCESS[name])


@pytest.mark.parametrize("name", PREPROCESS)
@pytest.mark.parametrize("side", [32, 224])
def test_each_convention_passes_as_itself(name, side):
    report = sr.check_preprocess(as_declared(name, side), name)
    assert report.passed and not report.findings
    assert all(row.note.startswith("bit for bit") for row in report.rows)


def test_every_layout_is_understood():
    right = as_declared("huggingface")
    for wrap in (
        lambda x: x.transpose(2, 0, 1),
        lambda x: x.transpose(2, 0, 1)[None],
        lambda x: {"pixel_values": x.transpose(2, 0, 1)[None]},
        lambda x: {"pixel_values": [x.transpose(2, 0, 1)]},
        lambda x: x.astype(np.float16),
    ):
        assert sr.check_preprocess(lambda image, wrap=wrap: wrap(right(image))).passed


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("value", [np.nan, 0.25])
def test_one_wrong_answer_among_all_that_were_asked_for_never_passes(number, value):
    right, asked = as_declared("huggingface"), []

    def fn(image):
        asked.append(image)
        return right(image) + (value if len(asked) == number + 1 else 0)

    assert sr.check_preprocess(fn).verdict == "FAIL"
    assert len(asked) == 6


def test_rounding_by_single_levels_is_no_alarm():
    rng = np.random.default_rng(1)
    shaken = lambda image: as_declared("huggingface")(image) + rng.integers(-1, 2, (SIDE, SIDE, 3)) / 255  # noqa: E731
    report = sr.check_preprocess(shaken)
    assert report.passed and "levels off" in report.rows[0].note


def changed(**fields):
    return lambda image: pixels(image, (SIDE, SIDE), replace(PREPROCESS["huggingface"], **fields))


def cropped(image):
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return as_declared("huggingface")(image.crop((left, top, left + side, top + side)))


def resized_then_cropped(image):
    scale = max(SIDE / image.width, SIDE / image.height)
    large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (large.width - SIDE) // 2, (large.height - SIDE) // 2
    return as_declared("huggingface")(large.crop((left, top, left + SIDE, top + SIDE)))


def padded(image):
    scale = min(SIDE / image.width, SIDE / image.height)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    whole = Image.new("RGB", (SIDE, SIDE))
    whole.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return as_declared("huggingface")(whole)


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("fn", "id", "word"),
    [
        (changed(filter="nearest"), "resize-filter-antialias", "nearest"),
        (changed(filter="lanczos"), "resize-filter-antialias", "lanczos"),
        (cropped, "squash-vs-crop", "crop first"),
        (resized_then_cropped, "squash-vs-crop", "crop,"),
        (padded, "squash-vs-crop", "pad"),
        (changed(**IMAGENET), "mean-std", "ImageNet"),
        (changed(mean=(0, 0, 0), std=(1, 1, 1)), "mean-std", "0 to 1"),
        (lambda image: as_declared("huggingface")(image)[..., ::-1], "unknown", "BGR"),
        (lambda image: (as_declared("huggingface")(image) + 1) * 127.5, "mean-std", "0 to 255"),
    ],
    ids=["nearest", "lanczos", "crop first", "crop", "pad", "imagenet", "0 to 1", "bgr", "0 to 255"],
)
def test_each_mistake_is_named(fn, id, word):
    report = sr.check_preprocess(fn)
    assert report.verdict == "FAIL"
    assert [finding.id for finding in report.findings] == [id]
    assert word in report.findings[0].evidence


def test_two_mistakes_at_once():
    report = sr.check_preprocess(changed(filter="nearest", **IMAGENET))
    assert {finding.id for finding in report.findings} == {"resize-filter-antialias", "mean-std"}


@pytest.mark.parametrize(
    ("declared", "used"),
    [("huggingface", "huggingface-2"), ("huggingface", "big_vision"), ("big_vision", "huggingface")],
)
def test_another_library_is_another_convention(declared, used):
    report = sr.check_preprocess(as_declared(used), declared)
    assert report.verdict == "OTHER CONVENTION"
    assert used in report.findings[0].repair or used == "huggingface"


def test_nonsense_and_nan_do_not_pass():
    for fn in (lambda image: np.zeros((3, 32, 32)), lambda image: np.full((3, 32, 32), np.nan)):
        report = sr.check_preprocess(fn)
        assert report.verdict == "FAIL" and report.findings[0].id == "unknown"
    one = lambda image: np.where(image.height == 90, np.nan, as_declared("huggingface")(image))  # noqa: E731
    assert sr.check_preprocess(one).verdict == "FAIL"


def test_wrong_use():
    with pytest.raises(sr.UsageError, match="big_vision"):
        sr.check_preprocess(as_declared("huggingface"), "keras")
    with pytest.raises(sr.UsageError, match="one image"):
        sr.check_preprocess(lambda image: np.zeros((2, 3, 32, 32)))


def test_no_test_image_is_square():
    assert all(height != width for height, width in SHAPES)
    assert picture(4, 6).size == (6, 4)


def in_floats(image, clip=False):
    """Torch's own resize of floats, which overshoots at edges."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]
    x = torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True) * 2 - 1
    return (x.clamp(-1, 1) if clip else x).numpy()


def test_the_declared_convention_is_never_advised_again():
    """What is nearest to the declared steps, and yet not them, is told by what it does."""
    report = sr.check_preprocess(in_floats, "huggingface")
    assert report.verdict == "FAIL" and [finding.id for finding in report.findings] == ["resize-not-clipped"], report
    assert "levels beyond it" in report.findings[0].evidence and "clip" in report.findings[0].repair
    assert sr.check_preprocess(lambda image: in_floats(image, clip=True), "huggingface").passed


@pytest.mark.parametrize("name", PREPROCESS)
def test_nearly_declared_is_no_other_convention(name):
    """Every pixel a level too bright: nothing else is nearer, for each of the conventions."""
    fn = as_declared(name)
    report = sr.check_preprocess(lambda image: fn(image) + 2 / 255, name)
    assert report.verdict == "FAIL" and report.findings, report
    assert f'check_preprocess(fn, "{name}")' not in report.findings[0].repair
    if report.findings[0].id == "unknown":
        assert "nothing is nearer than what was declared" in report.findings[0].evidence


def batched(images):
    return np.stack([as_declared("huggingface")(image) for image in images])


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (batched, "it takes a list of images"),
        (lambda image: 1 / 0, "ZeroDivisionError"),
        (lambda image: "a text", "as numbers"),
        (lambda image: {"pixels": as_declared("huggingface")(image)}, "with 'pixels'"),
        (lambda image: [np.zeros((3, 4, 4)), np.zeros((3, 5, 5))], "as numbers"),
        (lambda image: np.zeros((32, 32)), "without an axis"),
        (lambda image: np.zeros((1, 32, 32)), "1 channels"),
        (lambda image: None, "one image"),
    ],
)
def test_what_is_no_preprocessing_of_one_image_is_told(fn, words):
    with pytest.raises(sr.UsageError, match=words):
        sr.check_preprocess(fn)


def test_a_batched_function_is_told_how_to_be_given():
    with pytest.raises(sr.UsageError) as raised:
        sr.check_preprocess(batched)
    assert raised.value.repair == "lambda image: fn([image])"
    assert sr.check_preprocess(lambda image: batched([image])).passed


def bytes_of(image):
    return np.rint((as_declared("huggingface")(image) + 1) * 127.5)


def bicubic_of_torch(image):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None]
    return (torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bicubic").round().clamp(0, 255) / 127.5 - 1).numpy()


def augmented():
    rng = np.random.default_rng(5)
    return lambda image: as_declared("huggingface")(image)[:, :: rng.choice([-1, 1])]


PORTS = {
    "bicubic without antialias": (bicubic_of_torch, "bicubic without antialias"),
    "area": (lambda image: np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)) / 127.5 - 1, "area"),
    "not rescaled": (lambda image: (bytes_of(image) - 0.5) / 0.5, "not rescaled"),
    "rescaled twice": (lambda image: (bytes_of(image) / 255 / 255 - 0.5) / 0.5, "twice"),
    "minus a half": (lambda image: bytes_of(image) / 255 - 0.5, "no division"),
    "transposed": (lambda image: as_declared("huggingface")(image).swapaxes(0, 1), "exchanged"),
    "mirrored": (lambda image: as_declared("huggingface")(image)[:, ::-1], "left to right"),
    "upside down": (lambda image: as_declared("huggingface")(image)[::-1], "upside down"),
    "reshaped": (lambda image: as_declared("huggingface")(image).reshape(3, SIDE, SIDE), "reshaped"),
    "augmented": (augmented(), "augmentation"),
}


@pytest.mark.parametrize("name", PORTS)
def test_what_ports_do_is_named(name):
    fn, words = PORTS[name]
    report = sr.check_preprocess(fn)
    assert report.verdict == "FAIL"
    assert len(report.findings) == 1 and words in report.findings[0].evidence, report


def test_a_wrong_size_is_named():
    assert sr.check_preprocess(as_declared("huggingface"), size=SIDE).passed
    report = sr.check_preprocess(as_declared("huggingface"), size=224)
    assert not report.passed and "the model wants 224 x 224" in report.findings[0].evidence
    report = sr.check_preprocess(lambda image: np.asarray(image) / 127.5 - 1)
    assert not report.passed and "4 sizes" in report.findings[0].evidence


@pytest.mark.parametrize("words", ["along rows first", "along columns first"])
def test_both_orders_of_passes_are_right_and_told(words):
    def in_two_passes(image):
        between = (SIDE, image.height) if words == "along rows first" else (image.width, SIDE)
        twice = image.resize(between, Image.Resampling.BICUBIC).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return as_declared("huggingface")(twice)

    report = sr.check_preprocess(in_two_passes)
    assert report.passed
    assert all(row.note.startswith("bit for bit") for row in report.rows)
    assert any(words in row.note for row in report.rows)


def patched(image, patch=8, room=64):
    values, grid = patches(image, patch, replace(PREPROCESS["huggingface-2"], max_patches=room))
    mask = np.arange(room) < grid[0] * grid[1]
    return {"pixel_values": values[None], "pixel_attention_mask": mask[None], "spatial_shapes": np.array([grid])}


def columns_first(out):
    grid, values = tuple(out["spatial_shapes"][0]), out["pixel_values"][0].copy()
    own = grid[0] * grid[1]
    values[:own] = values[:own].reshape(*grid, -1).swapaxes(0, 1).reshape(own, -1)
    return out | {"pixel_values": values}


NAFLEX = {
    "column by column": columns_first,
    "channels come first": lambda out: (
        out | {"pixel_values": out["pixel_values"].reshape(-1, 8, 8, 3).transpose(0, 3, 1, 2).reshape(1, 64, -1)}
    ),
    "no mask": lambda out: {name: value for name, value in out.items() if name != "pixel_attention_mask"},
    "the mask is not": lambda out: out | {"pixel_attention_mask": np.ones(64)},
    "rows and columns exchanged": lambda out: out | {"spatial_shapes": out["spatial_shapes"][:, ::-1]},
    "padding is not zero": lambda out: (
        out | {"pixel_values": np.where(out["pixel_values"] == 0, -1, out["pixel_values"])}
    ),
}


@pytest.mark.parametrize("words", NAFLEX)
def test_patches_for_naflex(words):
    assert sr.check_preprocess(patched, "huggingface-2").passed
    report = sr.check_preprocess(lambda image: NAFLEX[words](patched(image)), "huggingface-2")
    assert report.verdict == "FAIL"
    assert words in report.findings[0].evidence, report


@pytest.mark.parametrize("name", ["pixel_values", "pixel_attention_mask", "spatial_shapes"])
@pytest.mark.parametrize("place", [0, -1])  # an image's own patch, and padding
def test_nan_in_what_is_given_to_naflex_never_passes(name, place):
    def spoiled(image):
        out = patched(image)
        values = np.array(out[name], float)
        values.reshape(-1)[place] = np.nan
        return out | {name: values}

    assert sr.check_preprocess(spoiled, "huggingface-2").verdict == "FAIL"
