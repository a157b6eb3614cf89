"""The whole model, forward and backward, with mistakes made in places: a tower, one block, half a block, the loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np

from siglip_ref.check.mistakes import Mistake, Reference, reference
from siglip_ref.check.model_probe import Probe
from siglip_ref.conventions import Conventions
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.tree import prefixed, subtree
from siglip_ref.sizes import Config

LOSS = "loss"  # the stage from the embeddings to the loss
_STAGE_OF = {"patch_embed": "stem", "token_embed": "stem", "map_head": "pool", "pool": "pool", "linear": "head"}


@dataclass(frozen=True)
class Placed:
    """A mistake, and the stages (names of the activations that they lead to) in which it is made; spoils: those of them
    that are wrong by themselves through it, where that is known."""

    mistake: Mistake
    stages: frozenset[str]
    spoils: frozenset[str] = frozenset()


def stages_of(cfg: Config, tower: str) -> tuple[str, ...]:
    """The stages of one tower, in forward order."""
    depth = cfg.image.depth if tower == "image" else cfg.text.depth
    blocks = [f"block{i:02d}/{half}" for i in range(depth) for half in ("+attn", "+mlp")]
    head = ["head"] if tower == "text" and cfg.text_head else []
    return tuple(f"{tower}/{name}" for name in ("stem", *blocks, "norm", "pool", *head, "embed"))


def with_mistakes(
    made: Sequence[Placed], probe: Probe, cfg: Config, conventions: Conventions
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Loss, activations and gradients, as `siglip_ref.towers.model` gives them, with these mistakes.

    Raises
    ------
    ValueError : two mistakes at one place change the same line
    """
    params, embedded, ways_back, activations = probe.params, [], [], dict[str, Array]()
    for tower, inputs in (("image", probe.images), ("text", probe.tokens)):
        specs = {name.partition("/")[2]: _spec(made, name) for name in stages_of(cfg, tower)}
        whole = reference(
            tuple(edit for p in made if any(s.startswith(tower) for s in p.stages) for edit in p.mistake.edits)
        )
        ops = _dispatching(specs)
        forward = whole.image.image_tower_forward if tower == "image" else whole.text.text_tower_forward
        pooled, cache, named = forward(inputs, subtree(params, tower), cfg, conventions, ops)
        norm = specs["embed"].ops
        embed, norm_cache = norm.normalize_forward(pooled, conventions.embed_norm, conventions.embed_norm_eps)
        embedded.append(embed)
        activations |= prefixed(tower, named | {"embed": embed})
        back = whole.image.image_tower_backward if tower == "image" else whole.text.text_tower_backward
        ways_back.append((tower, norm.normalize_backward, norm_cache, back, cache, ops))
    activations["logits"] = np.exp(params["log_scale"]) * (embedded[0] @ embedded[1].T) + params["bias"]
    result = _spec(made, LOSS).loss.sigmoid_loss(*embedded, params["log_scale"], params["bias"])
    grads: dict[str, Array] = {"log_scale": result.d_log_scale, "bias": result.d_bias}
    d_embeds = (result.d_image_embed, result.d_text_embed)
    for d_embed, (tower, normalize_backward, norm_cache, back, cache, ops) in zip(d_embeds, ways_back, strict=True):
        of_tower = back(normalize_backward(d_embed, norm_cache), cache, ops)
        grads |= prefixed(tower, of_tower[1] if tower == "image" else of_tower[0])
    return result.loss, activations, {name: grads[name] for name in params}


def _spec(made: Sequence[Placed], *stages: str) -> Reference:
    return reference(tuple(edit for p in made if p.stages.intersection(stages) for edit in p.mistake.edits))


def _dispatching(specs: Mapping[str, Reference]) -> ModuleType:
    """Operations that know which stage they are in; a cache remembers whose it is, so the way back is its own."""
    numbers = count()
    plain = reference()

    def block_forward(x: Array, weights: Any, heads: int, gelu: Any, eps: float, mask: Any, _: ModuleType) -> Any:
        number = next(numbers)
        first, second = (specs[f"block{number:02d}/{half}"] for half in ("+attn", "+mlp"))
        norms = iter((first, second))
        ops = _copy(plain)
        vars(ops).update(
            layer_norm_forward=lambda *given: _tagged(next(norms), "layer_norm")(*given),
            attention_forward=_tagged(first, "attention"),
            mlp_forward=_tagged(second, "mlp"),
        )
        changed = first if second is plain else second  # only its own edits change how a block is put together
        out, after, cache = changed.encoder.block_forward(x, weights, heads, gelu, eps, mask, ops)
        return out, after, (changed, cache)

    def block_backward(d_out: Array, cache: tuple[Reference, Any], ops: ModuleType) -> Any:
        spec, inner = cache
        return spec.encoder.block_backward(d_out, inner, ops)

    ops = _copy(plain)
    for name, stage in _STAGE_OF.items():
        if stage in specs:
            setattr(ops, f"{name}_forward", _tagged(specs[stage], name))
    stem = specs["stem"].ops
    vars(ops).update(
        layer_norm_forward=_tagged(specs["norm"], "layer_norm"),  # the only one outside of blocks
        position_forward=stem.position_forward,
        position_backward=stem.position_backward,
        block_forward=block_forward,
        block_backward=block_backward,
    )
    return ops


def _copy(plain: Reference) -> ModuleType:
    """The operations, each way back asking the cache whose it is."""
    ops = ModuleType("siglip_ref.ops, by stage")
    vars(ops).update({name: getattr(plain.ops, name) for name in plain.ops.__all__})
    for name in (*_STAGE_OF, "layer_norm", "attention", "mlp"):
        setattr(ops, f"{name}_backward", _by_owner(name))
    return ops


def _tagged(spec: Reference, name: str) -> Callable[..., Any]:
    def forward(*given: Any) -> Any:
        out, cache = getattr(spec.ops, f"{name}_forward")(*given)
        return out, (spec, cache)

    return forward


def _by_owner(name: str) -> Callable[..., Any]:
    def backward(d_out: Array, cache: tuple[Reference, Any], *settings: Any) -> Any:
        spec, inner = cache
        return getattr(spec.ops, f"{name}_backward")(d_out, inner, *settings)

    return backward
