"""Is a checkpoint whole, and does it give the logits on record for its size?"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.params import shapes
from siglip_ref.check.files.preprocess import picture
from siglip_ref.check.model.probe import probe_tokens
from siglip_ref.checkpoint.tables.names import of_sides
from siglip_ref.errors import UsageError
from siglip_ref.model.naflex import Patches
from siglip_ref.process.data import read_toml
from siglip_ref.report.compare import Row, compare, not_checked, out_of_range
from siglip_ref.report.data import Report
from siglip_ref.report.verdict import did_not_finish, judgement
from siglip_ref.use.inference import image_embeddings, text_embeddings
from siglip_ref.use.load import load
from siglip_ref.use.preprocess import patches, pixels
from siglip_ref.use.zeroshot import Model

PHOTOS = ("apple-ipod.jpg", "apple-blank.jpg")
TEXTS = ("an apple", "a picture of an apple")
RECORDED = read_toml(__file__, "recorded")  # logits of these photographs with these texts, by size
# The record was made from the same pixels, to 1e-3; another JPEG decoder moves single pixels by a level or two.
TOLERANCE = 0.02


def check_checkpoint(
    path: str | Path,
    photos: Sequence[str | Path] | None = None,
    *,
    tokenizer: str | Path | None = None,
    preprocess: str = "big_vision",
    prefix: str | None = None,
) -> Report:
    """Read every tensor, and embed a test image and a test caption; with the two photographs of `PHOTOS`, compare the
    logits with those on record.

    Parameters
    ----------
    path : as in `siglip_ref.load`
    photos : apple-ipod.jpg and apple-blank.jpg, in this order; None: nothing is compared with the record
    tokenizer, preprocess, prefix : as in `siglip_ref.load`; the record was made with big_vision's preprocessing;
        without photographs the report tells the checkpoint's own
    """
    model = load(path, tokenizer=tokenizer, preprocess=preprocess if photos else None, prefix=prefix)
    cfg, params = model.config, model.params
    found = sum(array.size for array in params.values())
    wanted = sum(math.prod(shape) for shape in of_sides(shapes(cfg), model.sides).values())
    lost = sum(int((~np.isfinite(array)).sum()) for array in params.values())
    rows = [
        compare("parameters", _number(found), _number(wanted), 0.0, kind="value", note=f"{found:,} of {cfg.name}"),
        compare("numbers not finite", _number(lost), _number(0), 0.0, kind="value"),
        *_outputs(model),
        _logits(model, photos),
    ]
    unread = rows[-1].note if photos and rows[-1].verdict == "not checked" else ""
    cut = did_not_finish(
        f"logits: {unread}", "leave the photographs out, or give those of a size on record", ["logits"]
    )
    found_so = judgement(rows, unfinished=cut if unread else None)
    report = Report(f"checkpoint {path}", found_so.verdict, rows, notes=[*model.notes], unjudged=found_so.unjudged)
    report.not_checked += [f"logits: {row.note}" for row in rows if row.verdict == "not checked"]
    report.conventions = {"preprocessing": model.preprocess.name, "computed with": model.computes_with}
    report.conventions |= {found.name: f"{found.value} ({found.source})" for found in model.settings}
    return report


@np.errstate(all="ignore")
def _outputs(model: Model) -> list[Row]:
    """Whether an image and a caption come out as numbers: finite weights may be far too large, or too small."""
    cfg, params, found = model.config, model.params, dict[str, Any]()
    if "image" in model.sides:
        found["image_embed"] = image_embeddings(params, _test_image(model), cfg, model.ops)
    if "text" in model.sides:
        found["text_embed"] = text_embeddings(params, probe_tokens(cfg, 1), cfg, model.ops)
    if len(found) == 2:
        similarity = found["image_embed"] @ found["text_embed"].T
        found["logits"] = np.exp(params["log_scale"]) * similarity + params["bias"]
    rows = []
    for name, values in found.items():
        lost = int((~np.isfinite(values)).sum())
        if lost:
            reason = f"{lost} of {values.size} NaN or infinite in {values.dtype}, for a test image and a test caption"
            rows.append(out_of_range(f"finite/{name}", "value", reason))
        else:
            rows.append(compare(f"finite/{name}", _number(lost), _number(0), 0.0, kind="value"))
    return rows


def _test_image(model: Model) -> Any:
    """A batch of one, as the checkpoint's settings want it."""
    cfg, how, image = model.config, model.preprocess, picture(90, 140)
    dtype = next(iter(model.params.values())).dtype
    if cfg.naflex:
        values, grid = patches(image, cfg.patch, how)
        return Patches(values[None].astype(dtype), np.array([grid]))
    return pixels(image, cfg.image_size, how)[None].astype(dtype)


def _logits(model: Model, photos: Sequence[str | Path] | None) -> Row:
    recorded = RECORDED.get(model.config.name)
    if recorded is None:
        return not_checked("logits", "value", f"nothing is on record for {model.config.name}")
    if photos is None:
        return not_checked("logits", "value", f"needs the photographs {' and '.join(PHOTOS)}: --images, twice")
    if len(photos) != len(PHOTOS):
        raise UsageError(
            expected=f"two photographs: {', '.join(PHOTOS)}",
            got=f"{len(photos)}",
            cause="the record is of these two",
            repair=f"--images {PHOTOS[0]} --images {PHOTOS[1]}",
        )
    found = model.zero_shot(photos, TEXTS, "{}")
    if found.skipped:
        return not_checked("logits", "value", f"{found.skipped[0][0]}: {found.skipped[0][1]}")
    return compare("logits", found.logits, np.array(recorded), TOLERANCE, kind="value")


def _number(value: int) -> Any:
    return np.array([float(value)])
