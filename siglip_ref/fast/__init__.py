"""Numba twins of the specification's operations: same names, same signatures, float32 and float64.

`ops=siglip_ref.fast` chooses them in `sigmoid_loss`, `forward`, `loss_and_grads`; everything else stays as it is.
As one record, like that of the specification, they are `OPS`.
A twin owns the cache of its pair: a forward from here goes with the backward from here. Arrays of another
arithmetic (complex steps, balls, rounded numbers) and mixtures go to the specification, which is the authority.

Where Numba or a fitting BLAS is missing, these names are the specification itself, and one line on stderr says so.
"""

import sys
from dataclasses import replace
from importlib import import_module
from typing import Any

from siglip_ref import ops as _specification
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.record import Ops, Pair

# The file here that holds the twin of each operation ...
TWINS = {
    "attention_backward": "attention",
    "attention_forward": "attention",
    "gelu_backward": "gelu",
    "gelu_forward": "gelu",
    "layer_norm_backward": "layer_norm",
    "layer_norm_forward": "layer_norm",
    "linear_backward": "linear",
    "linear_forward": "linear",
    "map_head_backward": "map_head",
    "map_head_forward": "map_head",
    "mlp_backward": "mlp",
    "mlp_forward": "mlp",
    "normalize_backward": "normalize",
    "normalize_forward": "normalize",
    "pair_block": "loss",
    "patch_embed_backward": "patches",
    "patch_embed_forward": "patches",
    "position_backward": "embedding",
    "position_forward": "embedding",
    "token_embed_backward": "embedding",
}

# ... and of each function of a higher level: the module of its specification.
HIGHER_TWINS = {
    "adamw_step": ("optim", "siglip_ref.model.optim"),
    "block_backward": ("block", "siglip_ref.model.encoder"),
    "block_forward": ("block", "siglip_ref.model.encoder"),
    "image_tower_backward": ("towers", "siglip_ref.model.image"),
    "image_tower_forward": ("towers", "siglip_ref.model.image"),
    "meet": ("kernels.binned", "siglip_ref.ops.reproducible.blocks"),
    "sigmoid_loss": ("loss", "siglip_ref.model.loss"),
    "text_tower_backward": ("towers", "siglip_ref.model.text"),
    "text_tower_forward": ("towers", "siglip_ref.model.text"),
    "total": ("kernels.binned", "siglip_ref.ops.reproducible.tally"),
}

# Operations without a twin, and why one would gain nothing.
WITHOUT_TWIN = {
    "bottleneck_backward": "made of two operations that have twins",
    "bottleneck_forward": "made of two operations that have twins",
    "erf": "a function of NumPy's kind; kernels have their own",
    "number": "a function of NumPy's kind; kernels have their own",
    "pi": "a constant",
    "pool_backward": "takes one token a text: nothing to compute",
    "pool_forward": "takes one token a text: nothing to compute",
    "position_resize_backward": "once an image, of a small table",
    "position_resize_forward": "once an image, of a small table",
    "sigmoid": "a function of NumPy's kind; kernels have their own",
    "softmax_backward": "inside attention's kernels",
    "softmax_forward": "inside attention's kernels",
    "softmax_loss": "the baseline that SigLIP is compared with",
    "softplus": "a function of NumPy's kind; kernels have their own",
    "token_embed_forward": "one NumPy look-up, which copies at memory speed",
}


def _load() -> dict[str, Any]:
    """Every name with its function; without Numba, all from the specification."""
    plain = {name: getattr(_specification, name) for name in _specification.__all__}
    homes = TWINS | {name: home for name, (home, _) in HIGHER_TWINS.items()}
    try:
        from siglip_ref.fast.machine.blas import require

        require()
        return plain | {name: getattr(import_module(f"{__name__}.{home}"), name) for name, home in homes.items()}
    except ImportError as problem:
        print(f"siglip-ref: no compiled kernels ({problem}); the NumPy specification computes instead", file=sys.stderr)
        return plain


def _record(loaded: dict[str, Any]) -> Ops:
    """The specification's record with every twin in the place of what it is the twin of."""
    twins: dict[str, Any] = {}
    for name in (*TWINS, *HIGHER_TWINS):
        operation, _, way = name.rpartition("_")
        if way in ("forward", "backward"):
            pair: Pair = twins.get(operation, getattr(SPECIFICATION, operation))
            twins[operation] = pair._replace(**{way: loaded[name]})
        else:
            twins[name] = loaded[name]
    return replace(SPECIFICATION, **twins, name=__name__, compiled=True)


globals().update(_loaded := _load())
__all__ = sorted(_loaded)
COMPILED = _loaded["pair_block"] is not _specification.pair_block
OPS = _record(_loaded) if COMPILED else replace(SPECIFICATION, name=__name__)
