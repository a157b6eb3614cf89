"""Each stage of a model by itself: the reference, right or with mistakes made in it, on the model's own input to it.

A stage leads from one activation that the model shows to the next. Since it starts from what the model itself had, a
stage is right or wrong whatever happened before it, and a mistake is seen in every stage in which it was made.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.tower import shown as shown_of
from siglip_ref.check.model.tower import tower_of
from siglip_ref.mistakes import Reference
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.record import ABSENT, Pair, alone_of

TOWERS = ("image", "text")
_NO_ATTENTION = ("attn/out/kernel", "attn/out/bias")


def doubled(probe: Probe) -> Probe:
    """The same inputs in float64."""
    params = {name: np.asarray(value, np.float64) for name, value in probe.params.items()}
    return replace(probe, params=params, images=np.asarray(probe.images, np.float64))


def stage_values(
    spec: Reference,
    tower: str,
    shown: Mapping[str, Array],
    probe: Probe,
    cfg: Config,
    conventions: Conventions,
    wanted: Collection[str] | None = None,
    through: bool = False,
) -> dict[str, Array]:
    """What each stage of one tower should give, by the name of the activation it leads to.

    Parameters
    ----------
    spec : the reference, or a copy of it with mistakes
    tower : "image" or "text"
    shown : the model's own activations; where one is not among them, its stage continues from the one before
    probe, cfg, conventions : as in the check
    wanted : stages of blocks, and after them, that are computed; None: all. The others are passed by, where the model
        shows them
    through : whether the norm's own output is handed on in the reference, so that a pool may read what comes before it
    """
    return prepared(spec, tower, shown, probe, cfg, conventions, wanted, through)()


def prepared(
    spec: Reference, tower: str, shown: Mapping[str, Array], probe: Probe, cfg: Config, conventions: Conventions,
    wanted: Collection[str] | None = None, through: bool = False,
) -> Callable[[], dict[str, Array]]:  # fmt: skip
    """What gives `stage_values`, for a reference whose edits are made and unmade: called once for each."""
    own = subtree(shown, tower)
    weights, values = subtree(probe.params, tower), dict[str, Array]()
    inputs = probe.given if tower == "image" else probe.tokens
    alone = _block_alone(spec, tower, own, wanted)
    numbers = count()  # of blocks, in a forward pass

    def passed_by(name: str) -> bool:
        return wanted is not None and name in own and f"{tower}/{name}" not in wanted

    def block_forward(
        x: Array, of_block: dict[str, Array], heads: int, gelu: Any, eps: float, mask: Array | None
    ) -> tuple[Array, Array, None]:
        number = next(numbers)
        attn, mlp = (f"block{number:02d}/{half}" for half in ("+attn", "+mlp"))
        out, after = own.get(mlp, x), own.get(attn, x)
        x = own.get("stem", x) if number == 0 else x
        rest = (heads, gelu, eps, mask)
        if wanted is None or f"{tower}/{attn}" in wanted or not (attn in own or passed_by(mlp)):
            out, after, _cache = spec.ops.block.forward(x, of_block, *rest)
            values[attn] = after
        if attn in own and not passed_by(mlp):  # with a projection of zeros, the first half hands on what it was given
            silent = {name: np.zeros_like(of_block[name]) for name in _NO_ATTENTION}
            out = spec.ops.block.forward(own[attn], of_block | silent, *rest)[0]
        if not passed_by(mlp):
            values[mlp] = out
        return own.get(mlp, out), own.get(attn, after), None

    def one_block(x: Array, all_weights: Any, tower: Any, *rest: Any) -> Any:
        nonlocal numbers
        numbers, block = count(alone or 0), f"block{alone:02d}"
        out, after, _ = block_forward(x, subtree(all_weights, block), tower.heads, *rest)
        return own["norm"], None, {f"{block}/+attn": after, f"{block}/+mlp": out}

    def fed(name: str, to: str, source: str = "") -> Pair:
        function, back = getattr(spec.ops, name)

        def forward(x: Array, *rest: Any) -> Any:
            if name == "linear" and x.ndim > 2:  # of every token: a bottleneck's, not the head's
                return function(x, *rest)
            return (own[to], None) if passed_by(to) else function(own.get(source, x), *rest)

        return Pair(forward, back)

    def norm_forward(*given: Any) -> tuple[Array, None]:  # the one outside of blocks: a pool that reads it or not
        values["norm"] = spec.ops.layer_norm.forward(*given)[0]
        return own.get("norm", values["norm"]), None

    source = "" if through else "norm"
    changed: dict[str, Any] = {"block": Pair(block_forward, spec.ops.block.backward)}
    if through:
        changed["layer_norm"] = Pair(norm_forward, spec.ops.layer_norm.backward)
    if tower == "image":
        changed["map_head"] = fed("map_head", "pool", source)
    else:
        changed |= {"pool": fed("pool", "pool", source), "linear": fed("linear", "head", "pool")}
    if alone is not None:
        before = own["stem" if not alone else f"block{alone - 1:02d}/+mlp"]
        given = Pair(lambda *_: (before, None), ABSENT.backward)
        changed |= {name: given for name in ("patch_embed", "token_embed", "bottleneck", "position")}
        changed["encoder"] = Pair(one_block, ABSENT.backward)
    ops = replace(spec.ops, **changed)  # once: each record binds all its functions
    way = tower_of(ops, cfg, tower)

    def run() -> dict[str, Array]:
        nonlocal numbers
        numbers = count()
        values.clear()
        pooled, _, activations = way.forward(inputs, weights, cfg, conventions)
        last = own.get("head" if tower == "text" and cfg.text_head else "pool", pooled)
        activations["embed"] = spec.ops.normalize.forward(last, conventions.embed_norm, conventions.embed_norm_eps)[0]
        passed = {name: value for name, value in activations.items() if not name.startswith("block")}
        stages = {name: (passed | values)[name] for name in activations if name in passed | values}
        return shown_of(prefixed(tower, stages), cfg)

    return run


def _block_alone(spec: Reference, tower: str, own: Mapping[str, Array], wanted: Collection[str] | None) -> int | None:
    """The number of the block in which all wanted stages are, where it is run alone: what comes before and behind it is
    shown, and no edit of the encoder reads it otherwise."""
    blocks = {name.split("/")[1] for name in wanted or ()}
    number = int(block[5:]) if len(blocks) == 1 and (block := min(blocks)).startswith("block") else None
    if number is None or not {"norm", "pool", f"block{number - 1:02d}/+mlp" if number else "stem"} <= own.keys():
        return None
    unchanged = alone_of(spec.ops.encoder.forward).__code__ is alone_of(SPECIFICATION.encoder.forward).__code__
    return number if unchanged else None


def stage_of(name: str) -> str:
    """The stage that reads a parameter of a tower.

    >>> stage_of("text/block01/norm2/gamma"), stage_of("image/patch/bias"), stage_of("text/head/kernel")
    ('text/block01/+mlp', 'image/stem', 'text/head')
    """
    tower, part, *rest = name.split("/")
    if part.startswith("block"):
        return f"{tower}/{part}/{'+attn' if rest[0] in ('norm1', 'attn') else '+mlp'}"
    return f"{tower}/{'stem' if part in ('patch', 'token', 'position') else part}"


def readable(run: Mapping[str, Array], exact: Mapping[str, Array], precision: type) -> dict[str, Array]:
    """The activations that can stand as the input of a stage: of the right shape, and finite."""
    return {
        name: np.asarray(value, precision)
        for name, value in run.items()
        if name in exact and np.shape(value) == np.shape(exact[name]) and np.isfinite(value).all()
    }
