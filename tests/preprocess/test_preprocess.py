"""Preprocessing against arrays recorded from TensorFlow 2.21 and torchvision 0.29, and images that break readers.

recorded.npz: tf-*: tf.image.resize and the arithmetic of big_vision's pp/ops_image.py, pp/ops_general.py; oc-*:
torchvision's Resize, ToTensor and Normalize as open_clip chains them; hf-*: transformers' SiglipImageProcessor with
torchvision.
"""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import SIZES, image, picture
from PIL import Image

from siglip_ref.errors import UsageError
from siglip_ref.use.preprocess import PREPROCESS, grid, levels, open_image, patches, pixels, read_settings, resize

RECORDED = dict(np.load(Path(__file__).parent / "recorded.npz"))


@pytest.mark.parametrize("side", [16, 33])
@pytest.mark.parametrize("size", SIZES)
def test_big_vision_bit_for_bit(size, side):
    ours = resize(image(*size), (side, side), PREPROCESS["big_vision"])
    assert np.array_equal(ours, RECORDED[f"tf-{size[0]}x{size[1]}-{side}"])


def test_big_vision_values_bit_for_bit():
    assert np.array_equal(pixels(picture(*SIZES[0]), (16, 16), PREPROCESS["big_vision"]), RECORDED["tf-values"])


@pytest.mark.parametrize("size", SIZES)
def test_open_clip_bit_for_bit(size):
    ours = pixels(image(*size), (16, 16), PREPROCESS["open_clip"])
    assert np.array_equal(ours, RECORDED[f"oc-{size[0]}x{size[1]}-16"])


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_torchvision_rounds_its_own_way_by_single_levels(size, name):
    """transformers uses torchvision where it is installed; its resize of bytes is not Pillow's, to the last level."""
    ours = resize(image(*size), (16, 16), replace(PREPROCESS["huggingface"], filter=name))
    off = np.abs(ours.astype(int) - RECORDED[f"hf-{name}-{size[0]}x{size[1]}-16"])
    assert off.max() <= 3 and off.mean() < 0.5


def test_torchvision_values_bit_for_bit():
    fused = levels(replace(PREPROCESS["huggingface"], levels="fused"))
    bytes_, values = RECORDED["hf-bicubic-37x53-16"], RECORDED["hf-values"]
    assert np.array_equal(fused[np.round(values * 127.5 + 127.5).astype(int), np.arange(3)], values)
    assert bytes_.dtype == np.uint8


@pytest.mark.parametrize("size", [(37, 53), (7, 5)])
def test_big_vision_resizes_numbers_for_naflex(size):
    """Scaled first, then resized as float32 with antialias: to rounding."""
    how = replace(PREPROCESS["big_vision"], max_patches=15)
    rows, columns = 5, 3
    from siglip_ref.ops.embedding import position_resize_forward

    scaled = levels(how)[picture(*size), np.arange(3)]
    ours = position_resize_forward(scaled, 4 * rows, 4 * columns)[0].reshape(20, 12, 3)
    assert ours.dtype == np.float32
    assert np.abs(ours - RECORDED[f"tf-naflex-{size[0]}x{size[1]}"]).max() <= 2e-6


def test_without_antialias_is_another_thing():
    plain, smooth = (resize(image(200, 131), (16, 16), PREPROCESS[name]) for name in ("big_vision", "huggingface-2"))
    assert np.abs(plain.astype(int) - smooth).mean() > 10


@pytest.mark.parametrize("height", [12, 64, 480, 3000])
@pytest.mark.parametrize("width", [15, 100, 640, 5000])
@pytest.mark.parametrize("most", [1, 128, 256, 1024])
def test_grids_are_as_large_as_allowed(height, width, most):
    rows, columns = grid(height, width, 16, most)
    assert rows >= 1 and columns >= 1
    assert rows * columns <= most
    shape = max(height, width) / min(height, width)
    if most >= 128 and shape < 4:
        assert rows * columns > 0.7 * most
        assert abs(np.log((columns / rows) / (width / height))) < 0.2


def test_patches_are_padded_with_zeros_and_in_row_order():
    values, (rows, columns) = patches(image(37, 53), 4, replace(PREPROCESS["huggingface-2"], max_patches=30))
    assert values.shape == (30, 48) and values.dtype == np.float32
    assert not values[rows * columns :].any() and values[: rows * columns].any(1).all()
    whole = pixels(image(37, 53), (4 * rows, 4 * columns), PREPROCESS["huggingface-2"])
    assert np.array_equal(values[columns + 1], whole[4:8, 4:8].reshape(-1))


def test_settings_of_transformers():
    how = read_settings({"resample": 2, "image_mean": [0.1, 0.2, 0.3]}, PREPROCESS["huggingface"])
    assert (how.filter, how.mean, how.std) == ("bilinear", (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert read_settings({"max_num_patches": 1024}, PREPROCESS["huggingface-2"]).max_patches == 1024
    for foreign in ({"rescale_factor": 1.0}, {"do_center_crop": True}, {"image_mean": [0.5]}):
        with pytest.raises(UsageError, match="settings of another model"):
            read_settings(foreign, PREPROCESS["huggingface"])


def saved(what: Image.Image, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    what.save(file, **options)
    file.seek(0)
    return file


def test_all_kinds_of_images_become_rgb():
    base = image(20, 30)
    for mode in ("L", "1", "P", "CMYK", "YCbCr", "RGBA", "LA", "HSV"):
        opened = open_image(base.convert(mode))
        assert opened.mode == "RGB" and opened.size == (30, 20)


def test_sixteen_bits_keep_their_upper_eight():
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    opened = np.asarray(open_image(Image.open(saved(Image.fromarray(ramp), format="PNG"))))
    assert np.array_equal(opened[..., 0], np.arange(256).reshape(16, 16))


def test_an_animation_gives_its_first_frame():
    frames = [image(10, 10), Image.new("RGB", (10, 10), "red")]
    file = saved(frames[0], format="PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(np.asarray(open_image(Image.open(file))), picture(10, 10))


@pytest.mark.parametrize("name", PREPROCESS)
def test_photographs_are_turned_upright_whatever_the_pipeline(tmp_path, name):
    """One rule: a photograph that lies on its side in the file, not to the eye, gives the pixels of the upright one."""
    sideways = Image.Exif()
    sideways[0x0112] = 6
    image(10, 20).rotate(90, expand=True).save(tmp_path / "lying.png", exif=sideways)
    image(10, 20).save(tmp_path / "upright.png")
    assert open_image(tmp_path / "lying.png").size == open_image(tmp_path / "upright.png").size == (20, 10)
    lying, upright = (pixels(tmp_path / f"{which}.png", (8, 8), PREPROCESS[name]) for which in ("lying", "upright"))
    assert np.array_equal(lying, upright)
    with Image.open(tmp_path / "lying.png") as opened:
        assert np.array_equal(pixels(opened, (8, 8), PREPROCESS[name]), upright)


def test_broken_images_are_explained(tmp_path):
    whole = saved(image(64, 64), format="JPEG").getvalue()
    bad = {
        "empty.jpg": b"",
        "text.png": b"this is no image",
        "cut.jpg": whole[: len(whole) // 2],
        "cut.png": saved(image(64, 64), format="PNG").getvalue()[:2000],
        "head.gif": b"GIF89a",
        "tiff.tif": b"II*\x00\xff\xff\xff\x7f",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            open_image(tmp_path / name)
    with pytest.raises(UsageError, match=r"missing\.png"):
        open_image(tmp_path / "missing.png")
    with pytest.raises(UsageError, match="floating-point"):
        open_image(Image.fromarray(np.ones((4, 4), np.float32)))


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    """30,000 x 30,000 pixels in a few hundred bytes of header."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    file = tmp_path / "huge.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    with pytest.raises(UsageError, match="make it smaller"):
        open_image(file)


def test_arrays_of_the_wrong_kind():
    for wrong in (picture(4, 4).astype(float), picture(4, 4).transpose(2, 0, 1), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(UsageError, match="channels last"):
            pixels(wrong, (8, 8), PREPROCESS["huggingface"])
