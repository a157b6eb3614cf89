"""Which files are opened as images, and with what: no program is started, no format beyond the list is tried."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from pictures import image
from PIL import Image

import siglip_ref as sr
from siglip_ref.errors import UsageError
from siglip_ref.use import pictures as files
from siglip_ref.use.pictures import FORMATS, SUFFIXES, formats, is_see_through, open_image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) show\n%%EOF\n"
SAVED = {"JPEG": "RGB", "MPO": "RGB", "PNG": "RGB", "WEBP": "RGB", "AVIF": "RGB", "JPEG2000": "RGB", "TIFF": "RGB"}
SAVED |= {"BMP": "RGB", "GIF": "P", "PPM": "RGB"}


def written(format, what=None):
    file = io.BytesIO()
    (what or image(20, 30)).convert(SAVED.get(format, "RGB")).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_list_is_read_under_any_name(tmp_path, format):
    for name in ("photo.jpg", "photo.png"):
        (tmp_path / name).write_bytes(written(format))
        assert open_image(tmp_path / name).size == (30, 20)


@pytest.mark.parametrize("format", ["ICO", "TGA", "PCX", "SGI", "DDS", "IM", "ICNS", "PDF", "XBM", "EPS"])
def test_other_formats_are_not_opened(tmp_path, format):
    file = io.BytesIO()
    image(32, 32).convert("1" if format == "XBM" else "RGB").save(file, format)
    (tmp_path / "photo.jpg").write_bytes(file.getvalue())
    with pytest.raises(UsageError, match="not an image of JPEG, MPO"):
        open_image(tmp_path / "photo.jpg")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for Ghostscript")
def test_no_program_is_started_for_what_calls_itself_postscript(tmp_path):
    """Pillow hands EPS to the program gs on the path, whatever the file is called."""
    ran, gs = tmp_path / "ran", tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\necho $@ >> {ran}\n")
    gs.chmod(0o755)
    (tmp_path / "photo.jpg").write_bytes(EPS)
    program = """
import sys
from siglip_ref.errors import UsageError
from siglip_ref.use.preprocess import open_image
try:
    open_image(sys.argv[1])
except UsageError:
    print("refused")
"""
    path = f"{gs.parent}{os.pathsep}{os.environ['PATH']}"
    words = [sys.executable, "-c", program, str(tmp_path / "photo.jpg")]
    done = subprocess.run(words, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused" and not ran.exists()


def heic():
    """The beginning of a photograph of an iPhone."""
    return b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100)


def test_heic_without_pillow_heif_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.cache_clear()
    (tmp_path / "photo.heic").write_bytes(heic())
    with pytest.raises(UsageError, match="pip install pillow-heif"):
        open_image(tmp_path / "photo.heic")
    (tmp_path / "photo.jpg").write_bytes(heic())
    with pytest.raises(UsageError, match="pip install pillow-heif"):
        open_image(tmp_path / "photo.jpg")
    formats.cache_clear()


def test_heic_with_pillow_heif_is_read(tmp_path, monkeypatch):
    """With a stand-in for the package, which reads every HEIC as the same picture."""
    from types import SimpleNamespace

    def register():
        Image.register_open("HEIF", lambda file, name: image(20, 30), lambda head: head[4:8] == b"ftyp")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    formats.cache_clear()
    (tmp_path / "photo.heic").write_bytes(heic())
    assert "HEIF" in formats() and open_image(tmp_path / "photo.heic").size == (30, 20)
    formats.cache_clear()


def test_avif_is_no_heic(tmp_path):
    (tmp_path / "photo.avif").write_bytes(written("AVIF"))
    assert open_image(tmp_path / "photo.avif").size == (30, 20)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "folder.png", "zero.png", "missing.png", "x" * 5000 + ".png", "a\0b.png"):
        with pytest.raises(UsageError):
            open_image(str(tmp_path / name))


def clear(alpha, mode="RGBA"):
    """A black picture, in parts see-through."""
    made = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    made.putpixel((3, 3), (0, 0, 0, alpha))
    return made.convert(mode)


def test_transparency_is_seen(tmp_path):
    assert is_see_through(open_image(clear(0))) and is_see_through(open_image(clear(254)))
    assert is_see_through(open_image(clear(0, "LA")))
    assert not is_see_through(open_image(clear(255))) and not is_see_through(open_image(clear(0, "RGB")))
    palette = image(4, 4).quantize(4)
    palette.save(tmp_path / "p.gif", transparency=1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert is_see_through(open_image(tmp_path / "p.gif")) and is_see_through(open_image(tmp_path / "p.png"))
    palette.save(tmp_path / "o.png", transparency=200)
    assert not is_see_through(open_image(tmp_path / "o.png"))


def test_images_with_transparency_are_counted(tmp_path):
    """A black logo on nothing is an all black image: said, not hidden."""
    sys.path.insert(0, str(files.Path(__file__).parent.parent / "checkpoint"))
    from saved import save

    model = sr.load(save(tmp_path / "model"))
    one = model.embed_images([clear(0), clear(255), image(9, 9)])
    assert one.notes == ("1 image has transparency: its hidden colours are used",)
    two = model.embed_images([clear(0), clear(3)])
    assert two.notes == ("2 images have transparency: their hidden colours are used",)
    assert model.embed_images([image(9, 9)]).notes == ()


@pytest.mark.parametrize(
    "value", [Image.DecompressionBombError("x"), Image.DecompressionBombWarning("x"), MemoryError()]
)
def test_bombs_are_called_too_large(monkeypatch, tmp_path, value):
    def explode(*_, **__):
        raise value

    (tmp_path / "a.png").write_bytes(written("PNG"))
    monkeypatch.setattr(Image, "open", explode)
    with pytest.raises(UsageError, match="make it smaller"):
        open_image(tmp_path / "a.png")


def test_a_broken_exif_block_spoils_no_photograph(tmp_path):
    whole = Image.Exif()
    whole[0x0112] = 6
    file = io.BytesIO()
    image(10, 20).save(file, "JPEG", exif=whole)
    content = file.getvalue()
    at = content.index(b"Exif\0\0") + 6
    for cut in range(4, 20, 3):
        (tmp_path / "a.jpg").write_bytes(content[: at + cut] + b"\xff" * 6 + content[at + cut + 6 :])
        assert sorted(open_image(tmp_path / "a.jpg").size) == [10, 20]


def test_suffixes_are_those_of_the_formats():
    Image.init()
    known = {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}
    assert {".jpg", ".jpeg", ".png", ".webp", ".avif", ".jp2", ".tif", ".bmp", ".gif", ".ppm", ".mpo"} <= set(SUFFIXES)
    assert set(SUFFIXES) - {".heic", ".heif", ".hif", ".jpx", ".j2k"} <= known | {".jpe", ".jfif", ".pnm"}


def test_sixteen_bits_with_a_transparent_value(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(values).save(tmp_path / "a.png", transparency=5)
    assert open_image(tmp_path / "a.png").size == (8, 8)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_a_dark_picture_of_sixteen_bits_is_dark(suffix, tmp_path):
    """Where no value was above 255 they were taken for 8 bits: 256 times too bright."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5\n8 8\n65535\n" + np.full((8, 8), 200, ">u2").tobytes())
    else:
        Image.fromarray(np.full((8, 8), 200, np.uint16)).save(path)
    assert np.asarray(open_image(path)).max() == 0


def test_a_box_that_claims_two_gigabytes_reserves_none(tmp_path):
    """Pillow's reader of JPEG 2000 asks the file for as many bytes as the box says."""
    import tracemalloc

    content = bytearray(written("JPEG2000"))
    at = content.index(b"jp2h") - 4
    content[at : at + 4] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "a.jp2").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UsageError):
        open_image(tmp_path / "a.jp2")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name, content, cause",
    [
        ("none.png", None, "nothing there"),
        ("empty.png", b"", "never began"),
        ("page.jpg", b"<html>", "not an image of JPEG"),
        ("cut.png", "cut", "cut short"),
        ("x" * 300, None, "the system gives no such file"),
    ],
)
def test_the_cause_is_that_of_this_file(tmp_path, name, content, cause):
    """One cause stood for all; and the error named a class of ours."""
    if content == "cut":
        Image.effect_noise((64, 64), 50).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()[:1000]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        open_image(tmp_path / name)
    assert cause in caught.value.cause and "_Bounded" not in caught.value.got


def test_whole_numbers_of_32_bits_are_not_cut_to_white():
    for values in ([[0, 255_000]], [[-5, 7]]):
        with pytest.raises(UsageError, match="whole numbers of 32 bits"):
            open_image(Image.fromarray(np.array(values, np.int32)))
    assert np.asarray(open_image(Image.fromarray(np.array([[0, 65_535]], np.int32)))).max() == 255


def test_the_command_line_takes_what_pillow_warns_of(tmp_path, monkeypatch, capsys):
    """Half the largest size: a warning that names a line of Pillow's."""
    import warnings

    import siglip_ref.cli.main as cli

    text = "Image size (169000000 pixels) exceeds limit of 89478485 pixels"
    monkeypatch.setattr(cli, "app", lambda: warnings.warn(text, Image.DecompressionBombWarning, stacklevel=1))
    with warnings.catch_warnings(action="error"):
        cli.main()
