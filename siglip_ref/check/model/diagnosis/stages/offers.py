"""What is tried at a stage beside the edits of its formulas: blocks put together otherwise, other weights, other
inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, pairwise, permutations, product
from typing import Any

import numpy as np

from siglip_ref.architecture.one_tower import sides_of
from siglip_ref.check.model.diagnosis.stages.attentions import of_attention
from siglip_ref.check.model.diagnosis.stages.hypotheses import Whole, changed_weights, other_weights
from siglip_ref.check.model.diagnosis.stages.inputs import of_images, of_kernels, of_texts
from siglip_ref.check.model.diagnosis.stages.mixed import of_batches, of_lengths, of_norms, of_pools
from siglip_ref.check.model.diagnosis.stages.rewired import of_sources, pool_rewirings, rewirings
from siglip_ref.check.model.diagnosis.stages.stage_search import Stage
from siglip_ref.check.model.placed import stages_of
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import stage_of
from siglip_ref.mistakes.change import shortened
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.model.text import seen_tokens
from siglip_ref.ops.elementary import Array, subtree

_ATTENTION = ("attn/q", "attn/k", "attn/v", "attn/out")

_PARTS = {"+attn": ("norm1", *_ATTENTION), "+mlp": ("norm2", "mlp/in", "mlp/out")}


_DEEP = 4  # blocks of which every sequence is tried


def wholes_of(stage: Stage) -> list[Whole]:
    """Changes of the whole stage."""
    half = stage.name.rpartition("/")[2]
    found = list[Whole]()
    if half in _PARTS and not stage.cfg.naflex:
        found += rewirings("" if stage.whole else half)
        found += _weights(stage, half)
    if stage.name == "image/pool":
        found += pool_rewirings()
    if half == "+attn" or stage.name == "image/pool":
        found += of_attention(stage)
    if half == "+attn" and not stage.cfg.naflex:
        found += _other_keys(stage)
    found += _few_bits(stage)
    found += of_norms(stage)
    found += of_batches(stage)
    if any(name.endswith("/pool") for name in stage.covered):
        found += of_pools(stage)
    if half == "embed":
        found += of_lengths(stage)
    found += of_sources(stage.covered, getattr(stage.cfg, stage.tower).depth)
    hidden = [name for name in stage.covered[:-1] if name.endswith("/+mlp")]
    if len(hidden) > 1 or (hidden and half == "+mlp"):
        found += _orders(stage)
    if half == "stem" and stage.tower == "image" and not stage.cfg.naflex:
        found += [*of_images(stage), *of_kernels(stage)]
    if half == "stem" and stage.tower == "text":
        found += of_texts()
    return found


def _few_bits(stage: Stage) -> Iterator[Whole]:
    """Weights that are kept in fewer bits: each alone, all kernels, all."""
    names = [name for name in stage.ground.probe.params if "/" in name and stage_of(name) in stage.covered]
    kernels = [name for name in names if name.endswith("kernel")]
    sets = {", ".join(some): some for some in ([name] for name in names)}
    sets |= {f"all kernels of {stage.name}": kernels, f"all weights of {stage.name}": names}
    for (whose, some), (form, change) in product(sets.items(), _FORMATS):
        if some:
            yield changed_weights(f"{whose} rounded to {form}", "weights as they are", some, change)


def _to_int8(x: Array, axis: Any) -> Array:
    step = np.abs(x).max(axis, keepdims=True) / 127
    return np.round(x / step) * step


_FORMATS: tuple[tuple[str, Callable[[Array], Array]], ...] = (
    *((form, partial(shortened, form=form)) for form in ("bfloat16", "float16", "tf32")),
    ("int8, one step for each output", lambda x: _to_int8(x, 0 if x.ndim > 1 else None)),
    ("int8, one step for all", lambda x: _to_int8(x, None)),
)


def _weights(stage: Stage, half: str) -> Iterator[Whole]:
    """Of another part of the block, of another block, of the other tower: wherever shapes allow it."""
    params, block = stage.ground.probe.params, stage.name.rpartition("/")[0]
    for order in permutations(_ATTENTION) if half == "+attn" else ():
        pairs = [(own, other) for own, other in zip(_ATTENTION, order, strict=True) if own != other]
        for leaves in (("kernel", "bias"), ("kernel",), ("bias",)) if pairs else ():
            names = {f"{block}/{own}/{leaf}": f"{block}/{other}/{leaf}" for own, other in pairs for leaf in leaves}
            what = " and ".join(leaves) if len(leaves) < 2 else "weights"
            told = ", ".join(f"{own} has the {what} of {other}" for own, other in pairs)
            yield from _if_it_fits(told, names, params)
    parts, kinds = _PARTS[half], ("image", "text")
    for count in range(2, 5) if half == "+attn" else ():
        for chosen in combinations(_ATTENTION, count):
            names = {f"{block}/{part}/kernel": f"{block}/{part}/kernel" for part in chosen}
            yield other_weights(f"the kernels of {', '.join(chosen)} are transposed", names, turned=True)
    norm, other_norm = ("norm1", "norm2") if half == "+attn" else ("norm2", "norm1")
    names = {f"{block}/{norm}/{leaf}": f"{block}/{other_norm}/{leaf}" for leaf in ("gamma", "beta")}
    yield from _if_it_fits(f"{norm} has the weights of {other_norm}", names, params)
    depth = {"image": stage.cfg.image.depth, "text": stage.cfg.text.depth}
    others = [f"{tower}/block{i:02d}" for tower in kinds if tower in sides_of(stage.cfg) for i in range(depth[tower])]
    for other, count in product(others, range(len(parts), 0, -1)):
        for chosen in combinations(parts, count) if other != block else ():
            names = {
                n: other + n.removeprefix(block) for n in params if n.startswith(tuple(f"{block}/{p}/" for p in chosen))
            }
            which = "all weights" if count == len(parts) else f"the weights {', '.join(chosen)}"
            yield from _if_it_fits(f"{which} of this half of the block are those of {other}", names, params)


def _other_keys(stage: Stage) -> Iterator[Whole]:
    """Keys and values of what comes into another block."""
    tower, block, _ = stage.name.split("/")
    stages = stages_of(stage.cfg, tower)
    before = {one.split("/")[1]: last for last, one in pairwise(stages) if one.endswith("/+attn")}
    c, of_image = stage.conventions, tower == "image"
    eps, heads = (c.image_norm_eps if of_image else c.text_norm_eps), getattr(stage.cfg, tower).heads
    for other, theirs, weights in product(before, (True, False), ("", "k/", "v/", "k/ v/")):

        def value(shown: Mapping[str, Array], probe: Probe, other: str = other, theirs: bool = theirs,
                  weights: str = weights) -> Array:  # fmt: skip
            own, of_other = (subtree(probe.params, f"{tower}/{one}") for one in (block, other))
            taken = {n: w for n, w in of_other.items() if n.startswith(tuple(f"attn/{one}" for one in weights.split()))}

            def normed(x: Array, of: Mapping[str, Array]) -> Array:
                return SPECIFICATION.layer_norm.forward(x, of["norm1/gamma"], of["norm1/beta"], eps)[0]

            query, key = normed(shown[before[block]], own), normed(shown[before[other]], of_other if theirs else own)
            seen = None if of_image else seen_tokens(probe.tokens, None, c)
            attended = SPECIFICATION.attention.forward(query, key, subtree({**own, **taken}, "attn"), heads, seen)[0]
            return np.asarray(shown[before[block]] + attended)

        if other != block and {before[block], before[other]} <= stage.ground.shown.keys():
            norm = "normed there" if theirs else "normed by its own norm"
            whose = f", by the weights of {' and '.join(weights.replace('/', '').split())} there" if weights else ""
            yield Whole(f"keys and values are of the tokens that come into {tower}/{other}, {norm}{whose}",
                        "keys and values of its own tokens, by its own weights", value=value)  # fmt: skip


def _if_it_fits(told: str, names: Mapping[str, str], params: Mapping[str, Array]) -> Iterator[Whole]:
    if all(other in params and params[own].shape == params[other].shape for own, other in names.items()):
        yield other_weights(told, names, was="each with its own weights")


def _orders(stage: Stage) -> Iterator[Whole]:
    """Blocks in another order, one in the place of another, or left out, where none of them is shown."""
    tower, params = stage.tower, stage.ground.probe.params
    depth = stage.cfg.image.depth if tower == "image" else stage.cfg.text.depth
    own = list(range(depth))
    orders: list[Sequence[int]] = [list(reversed(own)), [0] * depth, [depth - 1] * depth, own[1:] + own[:1],
                                   own[-1:] + own[:-1]]  # fmt: skip
    orders += [[k if i == j else i for i in own] for j, k in product(own, own) if j != k]
    orders += [[{j: k, k: j}.get(i, i) for i in own] for j, k in combinations(own, 2)]
    if depth <= _DEEP:
        orders += list(product(own, repeat=depth))
    for order in {tuple(order): None for order in orders if list(order) != own}:
        names = {
            name: name.replace(f"block{i:02d}", f"block{k:02d}", 1)
            for i, k in enumerate(order)
            for name in params
            if name.startswith(f"{tower}/block{i:02d}/") and i != k
        }
        told = "reversed" if list(order) == own[::-1] else ", ".join(map(str, order))
        yield other_weights(f"blocks run in the order {told}", names, was=f"the order {', '.join(map(str, own))}")
