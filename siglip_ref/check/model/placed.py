"""The whole model, forward and backward, with mistakes made in places: a tower, one block, half a block, the loss."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import OneTower, has, sides_of
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.tower import through, tower_of
from siglip_ref.mistakes import Mistake, Reference, reference
from siglip_ref.mistakes.grammar.switched import Single, made
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.record import Ops, Pair, alone_of

LOSS = "loss"  # the stage from the embeddings to the loss
_STAGE_OF = dict.fromkeys(("patch_embed", "token_embed", "bottleneck"), "stem")
_STAGE_OF |= {"map_head": "pool", "pool": "pool", "linear": "head"}


@dataclass(frozen=True)
class Placed:
    """A mistake, and the stages (names of the activations that they lead to) in which it is made; spoils: those of them
    that are wrong by themselves through it, where that is known."""

    mistake: Mistake
    stages: frozenset[str]
    spoils: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Edited:
    """Stages that are computed by a reference with edits of the grammar in it."""

    spec: Reference
    stages: frozenset[str]


def holding(spec: Reference, edits: Collection[Single]) -> Reference:
    """A reference of `siglip_ref.mistakes.grammar.switched.edited` that makes these edits itself, whatever else is made
    around it: two of them may stand in one model, in stages of their own."""

    def held(function: Callable[..., Any]) -> Callable[..., Any]:
        alone = alone_of(function)

        def without(*given: Any) -> Any:
            with made(edits):
                return alone(*given)

        def within(*given: Any, ops: Ops) -> Any:
            with made(edits):
                return alone(*given, ops=ops)

        return without if alone is function else within

    pairs = {f.name: getattr(spec.ops, f.name) for f in fields(spec.ops)}
    kept = {name: Pair(*map(held, pair)) for name, pair in pairs.items() if isinstance(pair, Pair)}
    plain = reference().ops
    unchanged = [name for name in ("block", "encoder") if not any(f":{name}_" in edit.function for edit in edits)]
    return replace(spec, ops=replace(spec.ops, **kept | {name: getattr(plain, name) for name in unchanged}))


def _other(spec: Reference, name: str) -> bool:
    """Whether an operation is not the specification's own function."""
    return alone_of(getattr(spec.ops, name).forward) is not alone_of(getattr(reference().ops, name).forward)


def stages_of(cfg: Config, tower: str) -> tuple[str, ...]:
    """The stages of one tower, in forward order."""
    depth = cfg.image.depth if tower == "image" else cfg.text.depth
    blocks = [f"block{i:02d}/{half}" for i in range(depth) for half in ("+attn", "+mlp")]
    head = ["head"] if tower == "text" and cfg.text_head else []
    every = (f"{tower}/{name}" for name in ("stem", *blocks, "norm", "pool", *head, "embed"))
    return tuple(name for name in every if has(cfg, name))


def with_mistakes(
    made: Sequence[Placed], probe: Probe, cfg: Config, conventions: Conventions
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Loss, activations and gradients, as `siglip_ref.model.two_towers` gives them, with these mistakes.

    Raises
    ------
    ValueError : two mistakes at one place change the same line
    """
    loss, activations, back = forward_with(made, probe, cfg, conventions)
    return loss, activations, back()


def forward_with(
    made: Sequence[Placed | Edited], probe: Probe, cfg: Config, conventions: Conventions
) -> tuple[Array, dict[str, Array], Callable[[], dict[str, Array]]]:
    """Loss and activations, and what gives the gradients of all parameters."""
    params, embedded, ways_back, activations = probe.params, [], [], dict[str, Array]()
    for tower, inputs in (("image", probe.given), ("text", probe.tokens)):
        if tower not in sides_of(cfg):
            continue
        specs = {name.partition("/")[2]: _spec(made, name) for name in stages_of(cfg, tower)}
        whole = _spec(made, *stages_of(cfg, tower))
        way = tower_of(_dispatching(specs, whole.ops), cfg, tower)
        if isinstance(cfg, OneTower):
            activations, objective, back = through(way, params, inputs, cfg, conventions)
            return objective, activations, back
        pooled, cache, named = way.forward(inputs, subtree(params, tower), cfg, conventions)
        norm = specs["embed"].ops.normalize
        embed, norm_cache = norm.forward(pooled, conventions.embed_norm, conventions.embed_norm_eps)
        embedded.append(embed)
        activations |= prefixed(tower, named | {"embed": embed})
        ways_back.append((tower, norm.backward, norm_cache, way.backward, cache))
    activations["logits"] = np.exp(params["log_scale"]) * (embedded[0] @ embedded[1].T) + params["bias"]
    result = _spec(made, LOSS).loss.sigmoid_loss(*embedded, params["log_scale"], params["bias"])

    of_others = dict[str, dict[str, Array]]()  # of a tower without a mistake: the same however often it is asked

    def back_from_loss() -> dict[str, Array]:
        grads: dict[str, Array] = {"log_scale": result.d_log_scale, "bias": result.d_bias}
        d_embeds = (result.d_image_embed, result.d_text_embed)
        for d_embed, (tower, normalize_backward, norm_cache, way_back, cache) in zip(d_embeds, ways_back, strict=True):
            if (known := of_others.get(tower)) is None:
                of_tower, _ = way_back(normalize_backward(d_embed, norm_cache), cache)
                known = prefixed(tower, of_tower)
                if all(place.stages.isdisjoint(stages_of(cfg, tower)) for place in made):
                    of_others[tower] = known
            grads |= known
        return {name: grads[name] for name in params}

    return result.loss, activations, back_from_loss


def _spec(made: Sequence[Placed | Edited], *stages: str) -> Reference:
    here = [p for p in made if p.stages.intersection(stages)]
    edited = [p.spec for p in here if isinstance(p, Edited)]
    edited.sort(key=lambda spec: not (_other(spec, "encoder") or _other(spec, "text_tower")))  # of a whole tower
    made_of = tuple(edit for p in here if isinstance(p, Placed) for edit in p.mistake.edits)
    return edited[0] if edited else reference(made_of)


def _dispatching(specs: Mapping[str, Reference], whole: Ops) -> Ops:
    """Operations that know which stage they are in; a cache remembers whose it is, so the way back is its own.

    whole : where the towers themselves are taken from
    """
    numbers = count()
    plain = reference()

    def block_forward(x: Array, weights: Any, heads: int, gelu: Any, eps: float, mask: Any) -> Any:
        number = next(numbers)
        first, second = (specs[f"block{number:02d}/{half}"] for half in ("+attn", "+mlp"))

        def normed(*given: Any) -> Any:  # an edit may norm once more: whose a norm is, its weights say
            own = first if given[1] is weights["norm1/gamma"] else second
            return _tagged(own.ops.layer_norm).forward(*given)

        changed = second if _other(second, "block") else first  # only its own edits change how a block is put together
        ops = replace(
            changed.ops,
            layer_norm=Pair(normed, _by_owner),
            attention=_tagged(first.ops.attention),
            mlp=_tagged(second.ops.mlp),
        )
        out, after, cache = ops.block.forward(x, weights, heads, gelu, eps, mask)
        return out, after, (ops.block, cache)

    stages: dict[str, Any] = {
        name: _tagged(getattr(specs[stage].ops, name)) for name, stage in _STAGE_OF.items() if stage in specs
    }
    return replace(
        plain.ops,
        **stages,
        layer_norm=_tagged(specs.get("norm", plain).ops.layer_norm),  # the only one outside of blocks
        position=specs["stem"].ops.position,
        position_resize=specs["stem"].ops.position_resize,
        block=Pair(block_forward, _by_owner),
        encoder=whole.encoder,
        image_tower=whole.image_tower,
        naflex_tower=whole.naflex_tower,
        text_tower=whole.text_tower,
    )


def _tagged(pair: Pair) -> Pair:
    """The same, with a cache that remembers whose it is."""

    def forward(*given: Any) -> Any:
        out, cache = pair.forward(*given)
        return out, (pair, cache)

    return Pair(forward, _by_owner)


def _by_owner(d_out: Array, cache: tuple[Pair, Any], *settings: Any) -> Any:
    pair, inner = cache
    return pair.backward(d_out, inner, *settings)
