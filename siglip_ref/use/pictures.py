"""Files of images, opened with distrust: a list of formats, a limit of size, one way to turn photographs.

Pillow knows dozens of formats, and for some of them starts programs (Ghostscript for what calls itself EPS). Only those
of `FORMATS` are ever tried, whatever a file is called.
"""

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from siglip_ref.errors import UsageError

Pixels = np.ndarray[Any, Any]

MAX_PIXELS = 178_956_970  # where Pillow itself refuses: half a gigabyte as RGB
# As Pillow names them; MPO is the JPEG of phones with two lenses. HEIF only where pillow-heif is installed.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".jp2", ".j2k", ".jpx", ".tif", ".tiff"),
    *(".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".hif"),
)
HEIF = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"}  # brands of ISO 23008-12
ORIENTATION = 0x0112  # in EXIF
# Where transparency may be, and can be looked at; 16 bits and floats are apart.
CLEAR = ("RGBA", "LA", "PA", "RGBa", "La", "P", "L", "RGB", "1")
READ_AT_ONCE = 1 << 16  # bytes that may be reserved without a look at the file's length
SEE_THROUGH = "see-through"  # in the info of an image that open_image made, if it had transparency


def open_image(source: str | Path | Image.Image | Pixels, least: tuple[int, int] | None = None) -> Image.Image:
    """An RGB image of 8 bits: from a file, a Pillow image, or a uint8 array (height, width, 3).

    least : width and height; a JPEG larger than twice that may be decoded at a half, a quarter or an eighth of its size

    The first frame of an animation, the upper 8 of 16 bits; CMYK and palettes converted as Pillow does; transparency
    dropped, see `is_see_through`; photographs turned as their EXIF tag says. Anything unreadable, of another format
    than `FORMATS`, or larger than `MAX_PIXELS`, raises UsageError.
    """
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    where = "an image" if isinstance(source, Image.Image) else f"an image in {source}"
    try:
        return _open(source, least)
    except UsageError:
        raise
    except (Exception, MemoryError) as error:  # Pillow's plugins raise whatever they like on broken files
        raise _unreadable(source, where, error) from error


def _open(source: str | Path | Image.Image, least: tuple[int, int] | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return _plain(source)
    _require_image(Path(source))
    with _Bounded(io.FileIO(source)) as file:
        image = Image.open(file, formats=formats())
        if least:
            _require_size(image)
            image.draft(None, least)
        return _plain(image)


class NoRangeError(ValueError):
    """Pixels of which nobody knows what is black and what white."""


class _Bounded(io.BufferedReader):
    """A file that is asked for two gigabytes reserves no more than it has: readers believe what a header says."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As the file's own, at most to its end."""
        if size is not None and size > READ_AT_ONCE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def _plain(image: Image.Image) -> Image.Image:
    """Upright, of bytes, and whether it had transparency."""
    _require_size(image)
    image = _upright(image)
    plain = _to_rgb(image)
    plain.info = {SEE_THROUGH: True} if _has_transparency(image) else {}
    return plain


def _require_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")


def is_see_through(image: Image.Image) -> bool:
    """Had the image that `open_image` made of it parts that are not opaque? Their hidden colours are used."""
    return bool(image.info.get(SEE_THROUGH))


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads, and HEIF where pillow-heif is installed."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    return tuple(name for name in (*FORMATS, "HEIF") if name in Image.OPEN)


def _require_image(place: Path) -> None:
    """Refuse what is no file, and what needs a package that is not there."""
    if place.exists() and not place.is_file():
        raise UsageError(
            expected=f"an image in {place}",
            got="no file, but a folder, a pipe or a device",
            cause="something else of this name",
            repair="give the image itself",
        )
    if "HEIF" not in formats() and _is_heif(place):
        raise UsageError(
            expected=f"an image in {place}",
            got="HEIC, the format of iPhones",
            cause="Pillow reads it only with pillow-heif: pip install pillow-heif",
            repair="pip install pillow-heif",
        )


def _is_heif(place: Path) -> bool:
    """By the brands in its first box; AVIF is of the same family, and Pillow reads it."""
    with place.open("rb") as file:
        head = file.read(64)
    if head[4:8] != b"ftyp":
        return False
    brands = {head[at : at + 4] for at in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
    return bool(brands & HEIF) and not brands & {b"avif", b"avis"}


def _upright(image: Image.Image) -> Image.Image:
    """Turned as the camera was held; a photograph whose EXIF block is broken stays as it is."""
    image.load()  # some formats keep the block behind the pixels
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # Pillow's readers of EXIF raise whatever they like
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _unreadable(source: Any, where: str, error: BaseException) -> UsageError:
    try:
        empty = not isinstance(source, Image.Image) and Path(source).is_file() and Path(source).stat().st_size == 0
    except (OSError, ValueError, TypeError):
        empty = False
    large = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning | MemoryError)
    got = f"{type(error).__name__}: {error}"[:300]
    cause, repair = "a broken image, or one cut short", "open it with an image viewer to see"
    if large:
        cause, repair = "the image would need more memory than this program takes", "make it smaller"
    elif empty:
        got, cause = "an empty file", "a download or a copy that never began"
    elif isinstance(error, UnidentifiedImageError):
        got, cause = "nothing that any of its readers knows", f"not an image of {', '.join(FORMATS)}, or a broken one"
    elif isinstance(error, NoRangeError):
        got, cause, repair = str(error), "pixels that have no agreed range", "save it with 8 bits a channel"
    elif isinstance(error, FileNotFoundError):
        cause, repair = "nothing there, or a link to nothing", "check the path"
    elif isinstance(error, PermissionError):
        cause, repair = "its permissions", "give the right to read it"
    elif isinstance(error, OSError) and error.errno is not None:
        cause, repair = "the system gives no such file", "check the path"
    return UsageError(where + f" of at most {MAX_PIXELS:,} pixels" * large, got, cause, repair)


def _has_transparency(image: Image.Image) -> bool:
    """Is any pixel not opaque?"""
    if image.mode not in CLEAR or not ("transparency" in image.info or image.mode[-1] in "Aa"):
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min(initial=255) < 255)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to white
        values = np.asarray(image)
        least, most = int(values.min(initial=0)), int(values.max(initial=0))
        if least < 0 or most > 65_535:
            raise NoRangeError(f"whole numbers of 32 bits, from {least} to {most}")
        sixteen = image.mode.startswith("I;16") or image.format == "PPM" or most > 255  # however dark it is
        image = Image.fromarray((values >> 8 if sixteen else values).astype(np.uint8))
    if image.mode == "F":
        raise NoRangeError("floating-point pixels")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return image.convert("RGB")


def _from_array(array: Pixels) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or array.size == 0:
        raise UsageError(
            expected="an image array of uint8, shape (height, width, 3)",
            got=f"{array.dtype}, shape {array.shape}",
            cause="channels first, or numbers already scaled",
            repair="give the bytes as they were decoded, channels last",
        )
    return Image.fromarray(array)
