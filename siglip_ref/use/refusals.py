"""What a loaded model does not do: another tower's work, ids it never learnt, answers that are no numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.process.typed import visible

if TYPE_CHECKING:
    from siglip_ref.use.zeroshot import Model


def require_side(sides: Sequence[str], cfg: Config, side: str) -> None:
    """Refuse what needs the tower that is not in the file."""
    if side not in sides:
        raise UsageError(
            expected=f"a model with its {side} tower",
            got=f"the {sides[0]} tower alone ({cfg.name})",
            cause=f"nothing of a SigLIP's {side} tower is in the file: it embeds {sides[0]}s only",
            repair="load the whole SigLIP that it was taken from",
        )


def require_known(model: "Model", tokens: Array) -> None:
    """Refuse ids that the embedding table does not have."""
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < model.config.vocabulary:
        raise UsageError(
            expected=f"ids below {model.config.vocabulary:,}, as the model's embedding table",
            got=f"ids from {tokens.min()} to {tokens.max()}",
            cause="a text that holds one of the tokeniser's extra signs, which the model never learnt",
            repair="take such signs (<extra_id_0>) out of the text",
        )


def require_finite(values: Array, names: Sequence[str], model: "Model") -> None:
    """Refuse rows that are no numbers: NaN has no place among scores."""
    wrong = np.flatnonzero(~np.isfinite(values).all(1))
    if not len(wrong):
        return
    bad = [name for name, value in model.params.items() if not np.isfinite(value).all()]
    how = (*model.preprocess.mean, *model.preprocess.std)
    if bad:
        cause = f"the weights hold NaN or infinity in {len(bad)} of {len(model.params)} tensors: {', '.join(bad[:3])}"
        repair = "take another checkpoint: this one's training diverged, or the file was damaged"
    elif not np.isfinite(how).all() or 0 in model.preprocess.std:
        cause = f"images are prepared with mean {model.preprocess.mean} and std {model.preprocess.std}"
        repair = "repair the settings of images beside the weights, or give preprocess= (--preprocess)"
    else:
        cause = f"the weights are finite, but so large that {values.dtype} overflows: look at log_scale and norms"
        repair = "take another checkpoint; or load it with dtype=numpy.float64"
    raise UsageError(
        "results that are numbers",
        f"NaN or infinity for {len(wrong)} of {len(values)}, the first: {visible(names[int(wrong[0])])}",
        cause,
        repair,
    )


def clear_notes(count: int) -> tuple[str, ...]:
    """Of images with transparency, which is dropped: a black logo on nothing becomes an all black image."""
    if not count:
        return ()
    images = "1 image has transparency: its" if count == 1 else f"{count} images have transparency: their"
    return (f"{images} hidden colours are used",)
