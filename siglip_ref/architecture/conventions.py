"""Every convention as data: one record, shared by the model, the checker, the golden vectors and the reports."""

from dataclasses import dataclass, replace
from typing import Literal

from siglip_ref.errors import lookup
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.ops.normalize import NormKind
from siglip_ref.ops.pooling import Pooling

Mask = Literal["none", "causal"]


@dataclass(frozen=True)
class Conventions:
    """What two correct implementations of SigLIP may do differently. Where libraries stand: docs, conventions page.

    The loss has no choice here: it is the sum over all pairs divided by the number of images, the scale is stored as
    its logarithm, the bias is added.
    """

    name: str
    image_gelu: GeluForm = "tanh"
    text_gelu: GeluForm = "tanh"
    image_norm_eps: float = 1e-6  # layer norms of the image tower
    text_norm_eps: float = 1e-6  # layer norms of the text tower
    embed_norm: NormKind = "additive"  # how embeddings are divided by their length
    embed_norm_eps: float = 1e-8
    text_pooling: Pooling = "last"
    text_mask: Mask = "none"


PRESETS = {
    "big_vision": Conventions("big_vision"),
    "huggingface": Conventions("huggingface", embed_norm="none", embed_norm_eps=0.0),
    "open_clip": Conventions("open_clip", image_gelu="erf", text_gelu="erf", embed_norm="clamp", embed_norm_eps=1e-12),
}


def preset(name: str, **changes: object) -> Conventions:
    """A preset, with fields changed by name.

    >>> preset("huggingface", text_gelu="erf").text_gelu
    'erf'
    """
    repair = 'sr.preset("big_vision", text_gelu="erf") changes single fields of a preset'
    found = lookup(PRESETS, name, "preset of conventions", repair)
    return replace(found, **changes)  # type: ignore[arg-type]  # replace checks the names itself
