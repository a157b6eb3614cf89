"""What a vector asks for: each task takes a vector's inputs and settings, and returns every number that it publishes.

A task runs on any `Reference` (the specification, or one with a mistake) and in any arithmetic.
"""

from collections.abc import Callable, Mapping
from typing import Any

from siglip_ref.architecture.sizes import config_of
from siglip_ref.mistakes.change import Reference
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.vectors import tasks_siglip2
from siglip_ref.vectors.tasks_siglip2 import OPERATIONS as RECIPE

Arrays = dict[str, Array]
Settings = Mapping[str, Any]

# operation: its arrays, its settings, the gradients its backward returns; "w" stands for all arrays below w/
OPERATIONS = {
    "layer_norm": ("x gamma beta", "eps", "d_x d_gamma d_beta"),
    "linear": ("x kernel bias", "", "d_x d_kernel d_bias"),
    "gelu": ("x", "form", "d_x"),
    "softmax": ("x", "", "d_x"),
    "normalize": ("x", "kind eps", "d_x"),
    "pool": ("x tokens", "kind", "d_x"),
    "patch_embed": ("images kernel bias", "patch", "d_images d_kernel d_bias"),
    "token_embed": ("tokens table", "", "d_table"),
    "attention": ("x_query x_key w", "heads", "d_x_query d_x_key d_w"),
    "mlp": ("x w", "gelu", "d_x d_w"),
    "map_head": ("x w", "heads gelu eps", "d_x d_w"),
}


def operation(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """One operation forward, and backward from `d_out`. An attention's `mask` is optional."""
    arrays, settings, gradients = (words.split() for words in (OPERATIONS | RECIPE)[s["op"]])
    ops = ref.ops if s["op"] in OPERATIONS else tasks_siglip2.recipe_of(ref)
    given = [subtree(a, "w") if name == "w" else a[name] for name in arrays] + [s[name] for name in settings]
    if "mask" in a:
        given.append(a["mask"])
    pair = getattr(ops, s["op"])
    out, cache = pair.forward(*given)
    computed = pair.backward(a["d_out"], cache)
    computed = computed if isinstance(computed, tuple) else (computed,)
    return _flat({"out": out} | dict(zip(gradients, computed, strict=True)))


def position(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """Positions added to tokens."""
    out, cache = ref.ops.position.forward(a["x"], a["table"])
    d_x, d_table = ref.ops.position.backward(a["d_out"], cache)
    return {"out": out, "d_x": d_x, "d_table": d_table}


def pair_block(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """One rectangular block of pairs; `match` says which belong together."""
    got = ref.ops.pair_block(a["image_embed"], a["text_embed"], a["log_scale"], a["bias"], a["match"])
    return dict(got._asdict())


def sigmoid_loss(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """The whole loss and its gradients."""
    got = ref.loss.sigmoid_loss(a["image_embed"], a["text_embed"], a["log_scale"], a["bias"], ops=ref.ops)
    return dict(got._asdict())


def encoder_block(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """Norm, attention, norm, MLP, with both residuals."""
    weights, mask = subtree(a, "w"), a.get("mask")
    out, after, cache = ref.ops.block.forward(a["x"], weights, s["heads"], s["gelu"], s["eps"], mask)
    d_x, d_after, d_w = ref.ops.block.backward(a["d_out"], cache)
    return _flat({"out": out, "after_attention": after, "d_x": d_x, "d_after_attention": d_after, "d_w": d_w})


def image_tower(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """From pixels to a vector, not yet of unit length, and back from `d_out`."""
    cfg = config_of(s["config"], s["conventions"])
    out, cache, named = ref.ops.image_tower.forward(a["images"], subtree(a, "image"), cfg, cfg.conventions)
    d, d_named = ref.ops.image_tower.backward(a["d_out"], cache)
    d_images, *_ = ref.ops.patch_embed.backward(d_named["stem"], cache.patch)
    return _flat({"out": out, "image": named, "d_images": d_images, "d": {"image": d}, "@image": d_named})


def text_tower(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """From tokens to a vector, not yet of unit length, and back from `d_out`."""
    cfg = config_of(s["config"], s["conventions"])
    out, cache, named = ref.ops.text_tower.forward(a["tokens"], subtree(a, "text"), cfg, cfg.conventions)
    d, d_named = ref.ops.text_tower.backward(a["d_out"], cache)
    return _flat({"out": out, "text": named, "d": {"text": d}, "@text": d_named})


def model(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """Embeddings, logits, loss, and the gradient of every parameter, of the pixels and of every activation."""
    cfg, params = config_of(s["config"], s["conventions"]), subtree(a, "params")
    out = ref.model.forward(params, a["images"], a["tokens"], cfg, ops=ref.ops, activations=True)
    wrt = ("params", "images", "activations")
    loss, grads = ref.model.loss_and_grads(params, a["images"], a["tokens"], cfg, ops=ref.ops, wrt=wrt)
    named = {name: grads.pop(name) for name in list(grads) if name.startswith("@")}
    pixels = grads.pop("images")
    return dict(out.activations) | _flat({"loss": loss, "d": grads, "d_images": pixels}) | named


def ranks(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """The loss over ranks: each rank's share and gradients, and each block's own terms."""
    images, texts = _numbered(a, "image_embed/rank"), _numbered(a, "text_embed/rank")
    shares, blocks = ref.procedures.distributed_loss(images, texts, a["log_scale"], a["bias"], ops=ref.ops)
    out = {f"rank{rank}": share._asdict() for rank, share in enumerate(shares)}
    return _flat(out | {f"block{r}-{c}": part._asdict() for (r, c), part in sorted(blocks.items())})


def accumulation(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """Micro-batches: plain, each with its own negatives, or cached, as one large batch."""
    run = ref.procedures.accumulate_cached if s["cached"] else ref.procedures.accumulate
    micro = _numbered(a, "image_embed/micro"), _numbered(a, "text_embed/micro")
    got = run(*micro, a["log_scale"], a["bias"], ops=ref.ops)
    return dict(got._asdict())


def optimiser(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """Several steps with given gradients: the parameters after each."""
    out: Arrays = {}
    for count in range(1, s["steps"] + 1):
        params = _steps(ref, subtree(a, "params"), lambda k, _: subtree(a, f"grads{k}"), s, count)
        out |= prefixed(f"step{count}", params)
    return out


def training(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """Several steps of a model: the loss before each, and the parameters in the end."""
    cfg, losses = config_of(s["config"], s["conventions"]), {}

    def gradients(k: int, params: Mapping[str, Array]) -> Mapping[str, Array]:
        losses[f"loss{k}"], grads = ref.model.loss_and_grads(params, a[f"images{k}"], a[f"tokens{k}"], cfg, ops=ref.ops)
        return dict(grads)

    return prefixed("params", _steps(ref, subtree(a, "params"), gradients, s, s["steps"])) | losses


TASKS: dict[str, Callable[[Reference, Arrays, Settings], Arrays]] = {
    task.__name__: task
    for task in (
        operation,
        position,
        pair_block,
        sigmoid_loss,
        encoder_block,
        image_tower,
        text_tower,
        model,
        ranks,
        accumulation,
        optimiser,
        training,
        tasks_siglip2.captions,
        tasks_siglip2.objective,
        tasks_siglip2.recipe_steps,
        tasks_siglip2.curation,
    )
}


def _steps(
    ref: Reference,
    params: Arrays,
    gradients: Callable[[int, Mapping[str, Array]], Mapping[str, Array]],
    s: Settings,
    count: int,
) -> Arrays:
    frozen = s["frozen"]  # beginnings or endings of names
    make, step = {
        "adamw": (ref.optim.AdamW, ref.ops.adamw_step),
        "big_vision": (ref.optim.BigVision, ref.optim.big_vision_step),
    }[s["optimiser"]]
    rule = make(**s["rule"], frozen=lambda name: name.startswith(tuple(frozen)) or name.endswith(tuple(frozen)))
    like = next(iter(params.values()))

    def schedule(k: int) -> Array:
        return ref.optim.cosine(k, s["total"], s["warmup"], like)

    return dict(ref.procedures.several_steps(params, gradients, count, step, rule, schedule)[0])


def _numbered(a: Arrays, beginning: str) -> list[Array]:
    """beginning0, beginning1, ... in their order."""
    return [a[f"{beginning}{i}"] for i in range(sum(name.startswith(beginning) for name in a))]


def _flat(tree: Mapping[str, Any]) -> Arrays:
    """Nested dicts as one flat dict of paths."""
    out: Arrays = {}
    for name, value in tree.items():
        out |= prefixed(name, _flat(value)) if isinstance(value, Mapping) else {name: value}
    return out
