"""How good a model is on what was held out: zero-shot accuracy where there are classes, else retrieval."""

from collections.abc import Mapping

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.training.classify import calibrating_scale
from siglip_ref.training.data.batches import Seen, Tokenize
from siglip_ref.training.data.captioned import STILL, Data, none_readable
from siglip_ref.training.gradient import SIDES
from siglip_ref.training.locked import still
from siglip_ref.use.search.classifier import logits_of

PIECE = 64  # pictures computed at once
MOST = 2000  # of the held-out pictures


def evaluate(
    params: Mapping[str, Array],
    data: Data,
    see: Seen,
    tokenize: Tokenize,
    cfg: Config,
    ops: Ops,
    side: str,
    text_side: str = "text",
) -> dict[str, float]:
    """Shares between 0 and 1, by name.

    "zero-shot accuracy": a picture's nearest class caption is its class's. "recall@1 of images" (and @5): a caption's
    nearest pictures hold one with this very caption; "of texts": the other way round. "accuracy": of a classifier.
    side, text_side : names in `siglip_ref.training.gradient.SIDES`, for what `see` and `tokenize` give
    """
    part = data.test
    image_embed, numbers = held_out(params, data, see, cfg, ops, side)
    if "head/kernel" in params:
        labels = np.array(part.labels)[numbers]
        return {"accuracy": float((logits_of(params, image_embed).argmax(1) == labels).mean())}
    if data.classes:
        prompts = [data.prompt.format(name) for name in data.classes]
        text_embed = embed_texts(params, prompts, tokenize, cfg, ops, text_side)
        labels = np.array(part.labels)[numbers]
        return {"zero-shot accuracy": float(((image_embed @ text_embed.T).argmax(1) == labels).mean())}
    captions = [part.caption(number, np.array(STILL)) for number in numbers]
    return recall(image_embed, embed_texts(params, captions, tokenize, cfg, ops, text_side), captions)


def held_out(
    params: Mapping[str, Array], data: Data, see: Seen, cfg: Config, ops: Ops, side: str
) -> tuple[Array, list[int]]:
    """Unit vectors of the held-out pictures that can be read, and their numbers."""
    images, numbers = [], []
    most = min(data.test.count, MOST)
    for start in range(0, most, PIECE):
        seen, found = still(data.test, see, start, min(start + PIECE, most))
        if found:
            images.append(SIDES[side][1](params, seen.astype(params["bias"].dtype), cfg, ops))
            numbers += found
    if not images:
        raise none_readable("held-out images", most, data.test.names(0))
    return np.concatenate(images), numbers


def held_out_scale(params: Mapping[str, Array], data: Data, see: Seen, cfg: Config, ops: Ops, side: str) -> float:
    """The factor that calibrates a classifier, on the held-out pictures."""
    image_embed, numbers = held_out(params, data, see, cfg, ops, side)
    assert data.test.labels is not None
    return calibrating_scale(logits_of(params, image_embed), np.array(data.test.labels)[numbers])


def embed_texts(
    params: Mapping[str, Array], texts: list[str], tokenize: Tokenize, cfg: Config, ops: Ops, side: str = "text"
) -> Array:
    """Unit vectors of texts."""
    pieces = [texts[start : start + PIECE] for start in range(0, len(texts), PIECE)]
    return np.concatenate([SIDES[side][1](params, tokenize(piece), cfg, ops) for piece in pieces])


def recall(image_embed: Array, text_embed: Array, captions: list[str]) -> dict[str, float]:
    """Recall at 1 and 5 in both directions; row i of both belong together, and so do rows of one caption."""
    _, kind = np.unique(captions, return_inverse=True)
    similarity = text_embed @ image_embed.T
    found: dict[str, float] = {}
    for what, table in (("images", similarity), ("texts", similarity.T)):
        best = np.argsort(-table, axis=1, kind="stable")[:, :5]
        right = kind[best] == kind[:, None]
        found |= {f"recall@1 of {what}": float(right[:, 0].mean()), f"recall@5 of {what}": float(right.any(1).mean())}
    return found
