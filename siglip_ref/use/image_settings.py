"""How images are prepared, as the settings files of other libraries say it: checked, and in our words."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from siglip_ref.errors import UsageError

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Three = tuple[float, float, float]

# transformers writes Pillow's numbers; open_clip and timm write names.
RESAMPLE: dict[Any, Filter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
NAMES: dict[Any, Filter] = {name: name for name in RESAMPLE.values()}
FLAGS = ("do_normalize", "do_rescale", "do_resize", "do_center_crop", "do_pad")
LEAST_STD, MOST = 1e-4, 1e3  # 1/255 is the deviation of those who leave bytes as they are
MOST_PATCHES = 16_384  # an image of 2048 x 2048 in patches of 16


def image_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a preprocessor_config.json of transformers names, as fields of `siglip_ref.use.preprocess.Preprocess`."""
    found: dict[str, Any] = {}
    if settings.get("resample") is not None:
        found["filter"] = _filter(settings["resample"], "resample")
    for key in ("image_mean", "image_std"):
        if settings.get(key) is not None:
            found[key.removeprefix("image_")] = three(settings[key], key)
    flags = {key: settings[key] for key in FLAGS if settings.get(key) is not None}
    for key, value in flags.items():
        if type(value) is not bool:
            raise _broken(f"{key}: true or false", value, "write true or false, without quotation marks")
    if flags.get("do_normalize") is False:
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    scale, odd = settings.get("rescale_factor"), []
    if scale is not None and not (_is_number(scale) and abs(scale * 255 - 1) <= 1e-6):
        odd.append(f"rescale_factor {_short(scale)}")
    odd += [f"{key} {_short(settings[key])}" for key in ("do_rescale", "do_resize") if flags.get(key) is False]
    odd += [f"{key} {_short(settings[key])}" for key in ("do_center_crop", "do_pad") if flags.get(key)]
    if odd:
        raise _foreign("rescale_factor 1/255, resized without a crop", ", ".join(odd))
    if settings.get("max_num_patches") is not None:
        found["max_patches"] = _patches(settings["max_num_patches"])
    return found


def open_clip_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same of the preprocess_cfg in an open_clip_config.json, or of timm's pretrained_cfg."""
    found: dict[str, Any] = {key: three(settings[key], key) for key in ("mean", "std") if settings.get(key) is not None}
    if settings.get("interpolation") is not None:
        found["filter"] = _filter(settings["interpolation"], "interpolation")
    mode = settings.get("resize_mode")
    if mode not in (None, "squash"):
        raise _foreign('resize_mode "squash": the whole image, not a part of it', f"resize_mode {_short(mode)}")
    return found


def three(value: Any, key: str) -> Three:
    """Three numbers, one a channel, that images can be normalised with; one number stands for three."""
    listed = value if isinstance(value, list | tuple) else [value] * 3
    if len(listed) != 3:
        raise _foreign(f"{key} of three channels", _short(value))
    low: Callable[[float], bool] = (lambda n: n >= LEAST_STD) if key.endswith("std") else (lambda n: n >= -MOST)
    if not all(_is_number(n) and low(n) and n <= MOST for n in listed):
        least = f"{LEAST_STD:g}" if key.endswith("std") else f"{-MOST:g}"
        raise UsageError(
            expected=f"{key}: three numbers between {least} and {MOST:g}",
            got=_short(value),
            cause="images cannot be normalised with these: a broken file, or one edited by hand",
            repair="SigLIP's own are 0.5, 0.5, 0.5, for both mean and deviation",
        )
    red, green, blue = (float(n) for n in listed)
    return red, green, blue


def _filter(value: Any, key: str) -> Filter:
    known = NAMES if isinstance(value, str) else RESAMPLE
    name = value.lower() if isinstance(value, str) else value
    if isinstance(name, bool) or not isinstance(name, int | str) or name not in known:
        raise UsageError(
            expected=f"{key}: one of {', '.join(map(str, [*RESAMPLE, *NAMES]))}",
            got=_short(value),
            cause="a filter that no SigLIP is resized with",
            repair="SigLIP: 3 (bicubic); SigLIP 2: 2 (bilinear)",
        )
    return known[name]


def _patches(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_PATCHES:
        most = f"max_num_patches: a whole number from 1 to {MOST_PATCHES:,}"
        raise _broken(most, value, "NaFlex models were trained with 256")
    return value


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**60 and math.isfinite(value)


def _short(value: Any) -> str:
    """Of any length and kind, in a line."""
    try:
        return repr(value)[:100]
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"


def _broken(expected: str, value: Any, repair: str) -> UsageError:
    return UsageError(expected, _short(value), "a broken file, or one edited by hand", repair)


def _foreign(expected: str, got: str) -> UsageError:
    return UsageError(
        expected=f"settings of images of a SigLIP: {expected}",
        got=got,
        cause="the settings of another model",
        repair="take preprocessor_config.json from the model's own page",
    )
