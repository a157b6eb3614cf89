"""Values and gradients of what is judged: a whole model and its loss, or one tower and a fixed function of its end.

A tower alone has no loss. Its gradients are those of a sum of all numbers that it gives, each times a number of its
own: no gradient of a parameter is then left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import OneTower, has
from siglip_ref.architecture.sizes import Config
from siglip_ref.arithmetic.rounded import Rounded, rounded
from siglip_ref.model import two_towers
from siglip_ref.model.encoder import blocks_backward, blocks_forward
from siglip_ref.model.naflex import Patches
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.record import Ops, Pair

Values = tuple[dict[str, Array], Array, dict[str, Array]]  # activations, loss, gradients


def probe_objective(shape: tuple[int, ...], seen: Array | None = None) -> np.ndarray[Any, Any]:
    """What each number that a tower gives is multiplied by, float32: odd multiples of 1/16 between -1 and 1, which
    every format holds exactly.

    Parameters
    ----------
    shape : of what it gives
    seen : of a NaFlex tower's last states, bool (B, N): which patches are an image's own. Padding counts nothing

    Examples
    --------
    >>> probe_objective((2, 3)).shape
    (2, 3)
    """
    drawn = np.random.default_rng([4, *shape]).integers(-8, 8, shape)
    weights = np.asarray((2.0 * drawn + 1) / 16, np.float32)
    return weights if seen is None or len(shape) < 3 else weights * seen[..., None].astype(np.float32)


def values_and_grads(
    params: Mapping[str, Array], images: Any, tokens: Array, cfg: Config, conventions: Conventions,
    ops: Ops | None = None,
) -> Values:  # fmt: skip
    """Of a whole model as `siglip_ref.model.two_towers` gives them; of one tower with its own objective as the loss."""
    if not isinstance(cfg, OneTower):
        out, loss, grads = two_towers.values_and_grads(params, images, tokens, cfg, conventions, ops)
        return out.activations, loss, grads
    way = tower_of(ops or SPECIFICATION, cfg, cfg.side)
    activations, objective, back = through(way, params, images if cfg.side == "image" else tokens, cfg, conventions)
    return activations, objective, back()


def through(
    way: Pair, params: Mapping[str, Array], inputs: Any, cfg: OneTower, conventions: Conventions
) -> tuple[dict[str, Array], Array, Callable[[], dict[str, Array]]]:
    """Forward through one tower, and what goes back from its objective."""
    out, cache, named = way.forward(inputs, subtree(params, cfg.side), cfg, conventions)
    d_out = _like(out, probe_objective(out.shape, inputs.seen if isinstance(inputs, Patches) else None))

    def back() -> dict[str, Array]:
        of_tower, _ = way.backward(d_out, cache)
        grads = prefixed(cfg.side, of_tower)
        return {name: grads[name] for name in params}

    return shown(prefixed(cfg.side, named), cfg), (out * d_out).sum(), back


def shown(activations: Mapping[str, Array], cfg: Config) -> dict[str, Array]:
    """Those that a tower, cut where it ends, really has."""
    return {name: value for name, value in activations.items() if has(cfg, name)}


def tower_of(ops: Ops, cfg: Config, side: str) -> Pair:
    """The tower of this side, cut where it ends."""
    if isinstance(cfg, OneTower) and cfg.up_to != "pooled":
        ops = replace(ops, map_head=Pair(_handed_on, _with_nothing), pool=Pair(_handed_on, _back))
        if cfg.up_to == "last-but-one":
            ops = replace(ops, encoder=Pair(blocks_forward, blocks_backward))
    if side == "text":
        return ops.text_tower
    return ops.naflex_tower if cfg.naflex else ops.image_tower


def _handed_on(x: Array, *given: Any) -> tuple[Array, None]:
    return x, None


def _back(d_out: Array, cache: None) -> Array:
    return d_out


def _with_nothing(d_out: Array, cache: None) -> tuple[Array, dict[str, Array]]:
    return d_out, {}


def _like(out: Array, weights: Array) -> Array:
    """In the arithmetic of a tower's end."""
    return rounded(weights, out.rounding) if isinstance(out, Rounded) else weights.astype(out.dtype)
