"""The whole objective: four losses with their weights, and every gradient; where none flows it is exactly zero."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array, number, prefixed, subtree
from siglip_ref.siglip2.captions import Target
from siglip_ref.siglip2.choices import Choices, Distillation
from siglip_ref.siglip2.record import Recipe
from siglip_ref.siglip2.teacher import Teacher

Arrays = dict[str, Array]
Stage = Literal["start", "distilled", "resolutions", "naflex", "curated"]

MASK_WEIGHT = 0.25  # of the mask loss beside the local loss
SIZE_WEIGHT = {"B": 0.25, "L": 0.5, "So400m": 1.0, "g-opt": 0.5}  # of both beside the other two


class Weights(NamedTuple):
    """Of the four losses. One of weight 0 is not computed, and what only it trains has gradient zero."""

    sigmoid: float
    captions: float
    local: float
    mask: float


class Batch(NamedTuple):
    """What one step sees; every random decision is in it.

    images : (B, height, width, 3); tokens : (B, N)
    tasks : caption, referring expression, grounded caption
    crops : (B, R, smaller, smaller, 3), other cuts of the same images, for the student
    whole : (B, height, width, 3), one more, for the teacher
    masked : bool (B, N), which patches of that one the student does not see
    student_whole : what the student sees there, None: the same
    """

    images: Array
    tokens: Array
    tasks: Sequence[Target]
    crops: Array | None = None
    whole: Array | None = None
    masked: Array | None = None
    student_whole: Array | None = None


class Objective(NamedTuple):
    """loss; terms: each loss by itself, without weight; grads: by parameter, and by what `wrt` names; said: by head,
    sum and number of the teacher's rows, for the centre."""

    loss: Array
    terms: Mapping[str, Array]
    grads: Mapping[str, Array]
    said: Mapping[str, tuple[Array, int]]


def weights_of(size: str, stage: Stage) -> Weights:
    """The published weights of the losses.

    Parameters
    ----------
    size : of the image tower
    stage : "start" 0 to 80 %, "distilled" 80 to 95 %, "resolutions" 95 to 100 %, one run each; "naflex" from 90 % of
        the plain run; "curated" after it, of the two smallest models

    Source: arXiv 2502.14786, sections 2.2 to 2.5.

    Examples
    --------
    >>> weights_of("L", "distilled")
    Weights(sigmoid=1.0, captions=1.0, local=0.5, mask=0.125)
    """
    if stage == "curated":
        return Weights(1.0, 0.0, 0.0, 0.0)
    own = SIZE_WEIGHT[size] if stage in ("distilled", "resolutions") else 0.0
    return Weights(1.0, 1.0, own, own * MASK_WEIGHT)


def objective(
    params: Mapping[str, Array], batch: Batch, teacher: Teacher | None, cfg: Config, choices: Choices,
    weights: Weights, wrt: Sequence[str] = (), *, ops: Recipe,
) -> Objective:  # fmt: skip
    """loss = sigmoid + captions + local + mask, each times its weight.

    Parameters
    ----------
    params : dict, name -> array, see `siglip_ref.siglip2.params.shapes`
    batch : crops, whole and masked only where local and mask have a weight
    teacher : None where they have none
    cfg, choices, weights : the model, what is not published, see `weights_of`
    wrt : besides the parameters: "images", "crops", "student_whole"

    Source: arXiv 2502.14786, section 2.

    Examples
    --------
    See `siglip_ref.siglip2`.
    """
    found = _of_images(params, batch, cfg, choices, weights, ops) if weights.sigmoid or weights.captions else []
    if weights.local or weights.mask:
        if teacher is None:
            raise UsageError(
                expected="a teacher, where the local or the mask loss has a weight",
                got="None",
                cause=f"the weights are {weights}",
                repair="siglip_ref.siglip2.params.born(params, choices), when these losses begin",
            )
        found += _of_views(params, batch, teacher, cfg, choices, weights, ops)
    loss = sum(getattr(weights, part.name) * part.loss for part in found)
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    grads |= {name: np.zeros_like(_seen(batch) if name == "student_whole" else getattr(batch, name)) for name in wrt}
    for part in found:
        for name, value in part.grads.items():
            if name in grads:
                grads[name] = grads[name] + value
    said = {part.name: part.said for part in found if part.said}
    return Objective(loss, {part.name: part.loss for part in found}, grads, said)


class _Term(NamedTuple):
    """A loss by itself; its part of the gradients, weight included."""

    name: str
    loss: Array
    grads: Mapping[str, Array]
    said: Any = None


def _of_images(
    params: Mapping[str, Array], batch: Batch, cfg: Config, choices: Choices, weights: Weights, ops: Recipe
) -> list[_Term]:
    """Sigmoid and caption loss: both read the tokens of the images themselves."""
    found, d_tokens = [], 0
    tokens, view_cache = ops.view.forward(batch.images, subtree(params, "image"), cfg, cfg.conventions)
    if weights.sigmoid:
        loss, d_read, d = _sigmoid(params, tokens, batch.tokens, cfg, weights.sigmoid, ops)
        found.append(_Term("sigmoid", loss, d))
        d_tokens = d_tokens + d_read
    if weights.captions:
        loss, d = 0, {}
        for target, share in zip(batch.tasks, choices.captioning.tasks, strict=True):
            own, cache = ops.caption_loss.forward(target, tokens, subtree(params, "decoder"), choices.captioning)
            d_read, d_task = ops.caption_loss.backward(weights.captions * share * number(1, own), cache)
            loss, d_tokens = loss + share * own, d_tokens + d_read
            d = {name: d.get(name, 0) + value for name, value in d_task.items()}
        found.append(_Term("captions", loss, prefixed("decoder", d)))
    # tokens = view(images): what both losses say to them, at once
    d_images, d_view, _ = ops.view.backward(d_tokens, view_cache)
    found[0] = found[0]._replace(grads={**found[0].grads, **prefixed("image", d_view), "images": d_images})
    return found


def _sigmoid(
    params: Mapping[str, Array], tokens: Array, texts: Array, cfg: Config, weight: float, ops: Recipe
) -> tuple[Array, Array, Arrays]:
    """The loss, the gradient of the image's tokens, and by name those of pooling, text tower, scale and bias."""
    conventions = cfg.conventions
    pooled, pool_cache = _pool(tokens, params, cfg, ops)
    text, text_cache, _ = ops.text_tower.forward(texts, subtree(params, "text"), cfg, conventions, None)
    kind, eps = conventions.embed_norm, conventions.embed_norm_eps
    image_embed, image_norm = ops.normalize.forward(pooled, kind, eps)
    text_embed, text_norm = ops.normalize.forward(text, kind, eps)
    pairs = ops.sigmoid_loss(image_embed, text_embed, params["log_scale"], params["bias"])
    # pairs = loss(image_embed, text_embed), of unit length
    d_pooled = ops.normalize.backward(weight * pairs.d_image_embed, image_norm)
    d_text, _ = ops.text_tower.backward(ops.normalize.backward(weight * pairs.d_text_embed, text_norm), text_cache)
    # pooled = map_head(tokens)
    d_tokens, d_pool = ops.map_head.backward(d_pooled, pool_cache)
    d = prefixed("image/pool", d_pool) | prefixed("text", d_text)
    return pairs.loss, d_tokens, d | {"log_scale": weight * pairs.d_log_scale, "bias": weight * pairs.d_bias}


def _of_views(
    params: Mapping[str, Array], batch: Batch, teacher: Teacher, cfg: Config, choices: Choices, weights: Weights,
    ops: Recipe,
) -> list[_Term]:  # fmt: skip
    """Local and mask loss; the teacher sees the whole view once for both, and nothing of it has a gradient."""
    tokens, _ = ops.view.forward(batch.whole, subtree(teacher.params, "image"), cfg, cfg.conventions)
    found = []
    if weights.local:
        pooled, _ = _pool(tokens, teacher.params, cfg, ops)
        found.append(_local(params, batch.crops, pooled, teacher, cfg, choices.local, weights.local, ops))
    if weights.mask:
        found.append(_mask(params, batch, tokens, teacher, cfg, choices, weights.mask, ops))
    return found


def _local(
    params: Mapping[str, Array], crops: Any, seen: Array, teacher: Teacher, cfg: Config, own: Distillation,
    weight: float, ops: Recipe,
) -> _Term:  # fmt: skip
    """loss = mean over images and crops of cross_entropy(head(pool(view(crop))), the teacher's of the whole)."""
    count, views = crops.shape[:2]
    said, _ = ops.head.forward(seen, subtree(teacher.params, "local"), own.gelu, own.eps)  # (B, K)
    target = _distribution(said, teacher.centres["local"], own, ops)
    tokens, view_cache = ops.view.forward(
        crops.reshape(-1, *crops.shape[2:]), subtree(params, "image"), cfg, cfg.conventions
    )
    pooled, pool_cache = _pool(tokens, params, cfg, ops)
    scores, head_cache = ops.head.forward(pooled, subtree(params, "local"), own.gelu, own.eps)
    scores = scores.reshape(count, views, -1)  # an image's views stand together
    entropies, entropy_cache = ops.cross_entropy.forward(scores, target[:, None], own.student_temperature)
    loss, average_cache = ops.average.forward(entropies, np.ones((count, views), bool), "example")

    # loss = average of cross_entropy(scores, target)
    d_scores = ops.cross_entropy.backward(ops.average.backward(weight * number(1, loss), average_cache), entropy_cache)
    # scores = head(pooled)
    d_pooled, d_head = ops.head.backward(d_scores.reshape(count * views, -1), head_cache)
    # pooled = map_head(tokens), tokens = view(crops)
    d_tokens, d_pool = ops.map_head.backward(d_pooled, pool_cache)
    d_crops, d_view, _ = ops.view.backward(d_tokens, view_cache)
    d = prefixed("image", d_view | prefixed("pool", d_pool)) | prefixed("local", d_head)
    return _Term("local", loss, d | {"crops": d_crops.reshape(crops.shape)}, (said.sum(0), count))


def _mask(
    params: Mapping[str, Array], batch: Batch, seen: Array, teacher: Teacher, cfg: Config, choices: Choices,
    weight: float, ops: Recipe,
) -> _Term:  # fmt: skip
    """loss = mean over images, in each over its hidden patches, of cross_entropy(head(view(hidden)), what the teacher,
    who sees them, says there)."""
    own, name, masked = choices.mask, "local" if choices.shared_head else "mask", np.asarray(batch.masked)
    said, _ = ops.head.forward(seen, subtree(teacher.params, name), own.gelu, own.eps)  # (B, N, K)
    judged = np.ones_like(masked) if choices.patch_centre == "all" else masked
    rows = said[judged]
    # the distribution of each patch that is judged, at its place; that of the others is not looked at
    place = np.maximum(judged.cumsum() - 1, 0).reshape(masked.shape)
    target = _distribution(rows, teacher.centres["mask"], own, ops)[place]
    view = (subtree(params, "image"), cfg, cfg.conventions, params["mask/token"], masked)
    tokens, view_cache = ops.view.forward(_seen(batch), *view)
    scores, head_cache = ops.head.forward(tokens, subtree(params, name), own.gelu, own.eps)
    entropies, entropy_cache = ops.cross_entropy.forward(scores, target, own.student_temperature)
    loss, average_cache = ops.average.forward(entropies, masked, "example")

    # loss = average of cross_entropy(scores, target) over the hidden patches
    d_scores = ops.cross_entropy.backward(ops.average.backward(weight * number(1, loss), average_cache), entropy_cache)
    # scores = head(tokens), tokens = view(hidden)
    d_tokens, d_head = ops.head.backward(d_scores, head_cache)
    d_whole, d_view, d_token = ops.view.backward(d_tokens, view_cache)
    d = prefixed("image", d_view) | prefixed(name, d_head) | {"mask/token": d_token, "student_whole": d_whole}
    return _Term("mask", loss, d, (rows.sum(0), len(rows)))


def _seen(batch: Batch) -> Array:
    """The view that the student is to complete."""
    return batch.whole if batch.student_whole is None else batch.student_whole


def _pool(tokens: Array, params: Mapping[str, Array], cfg: Config, ops: Recipe) -> Any:
    conventions, own = cfg.conventions, subtree(params, "image/pool")
    return ops.map_head.forward(tokens, own, cfg.image.heads, conventions.image_gelu, conventions.image_norm_eps)


def _distribution(rows: Array, centre: Array, own: Distillation, ops: Recipe) -> Array:
    """What the teacher says, (rows, K), by its normaliser."""
    if own.normaliser == "sinkhorn":
        return ops.sinkhorn(rows, own.teacher_temperature, own.rounds)
    return ops.centred(rows, centre, own.teacher_temperature)
