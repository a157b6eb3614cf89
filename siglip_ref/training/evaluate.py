"""How good a model is on what was held out: zero-shot accuracy where there are classes, else retrieval."""

from collections.abc import Mapping

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.training.batches import Seen
from siglip_ref.training.classify import logits_of
from siglip_ref.training.data.captioned import STILL, Data
from siglip_ref.training.gradient import SIDES
from siglip_ref.training.locked import still
from siglip_ref.use.inference import text_embeddings
from siglip_ref.use.tokenizer import Tokenizer

PIECE = 64  # pictures computed at once
MOST = 2000  # of the held-out pictures


def evaluate(
    params: Mapping[str, Array], data: Data, see: Seen, tokenizer: Tokenizer, cfg: Config, ops: Ops, side: str
) -> dict[str, float]:
    """Shares between 0 and 1, by name.

    "zero-shot accuracy": a picture's nearest class caption is its class's. "recall@1 of images" (and @5): a caption's
    nearest pictures hold one with this very caption; "of texts": the other way round. "accuracy": of a classifier.
    side : a name in `siglip_ref.training.gradient.SIDES`, what `see` gives
    """
    part = data.test
    images, numbers = [], []
    for start in range(0, min(part.count, MOST), PIECE):
        seen, found = still(part, see, start, min(start + PIECE, MOST))
        if found:
            images.append(SIDES[side][1](params, seen.astype(params["bias"].dtype), cfg, ops))
            numbers += found
    image_embed = np.concatenate(images)
    if "head/kernel" in params:
        labels = np.array(part.labels)[numbers]
        return {"accuracy": float((logits_of(params, image_embed).argmax(1) == labels).mean())}
    if data.classes:
        text_embed = embed_texts(params, [data.prompt.format(name) for name in data.classes], tokenizer, cfg, ops)
        labels = np.array(part.labels)[numbers]
        return {"zero-shot accuracy": float(((image_embed @ text_embed.T).argmax(1) == labels).mean())}
    captions = [part.caption(number, np.array(STILL)) for number in numbers]
    return recall(image_embed, embed_texts(params, captions, tokenizer, cfg, ops), captions)


def embed_texts(params: Mapping[str, Array], texts: list[str], tokenizer: Tokenizer, cfg: Config, ops: Ops) -> Array:
    """Unit vectors of texts."""
    pieces = [texts[start : start + PIECE] for start in range(0, len(texts), PIECE)]
    return np.concatenate([text_embeddings(params, tokenizer(piece), cfg, ops) for piece in pieces])


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
