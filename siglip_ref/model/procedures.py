"""What surrounds the loss, as specification in one process: ranks, accumulation, several steps.

No message is sent here: every rank's share is computed in turn. The `mpi` package does the same with messages, and is
judged by this; so are the golden vectors and the catalogue of mistakes.
"""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.model.loss import LossAndGrads, sigmoid_loss
from siglip_ref.model.optim import State
from siglip_ref.model.specification import chosen
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops

Blocks = dict[tuple[int, int], LossAndGrads]
Operations = Ops | ModuleType


def distributed_loss(
    image_shards: Sequence[Array],
    text_shards: Sequence[Array],
    log_scale: Array,
    bias: Array,
    ops: Operations | None = None,
) -> tuple[list[LossAndGrads], Blocks]:
    """The loss of all ranks' pairs together: what every rank holds in the end.

    Parameters
    ----------
    image_shards, text_shards : one array (b, D) a rank; b may differ from rank to rank
    log_scale, bias : 0-d arrays, the same on all ranks
    ops : the operations: `siglip_ref.ops`, the specification (default), or a twin

    Returns
    -------
    shares : one LossAndGrads a rank, all divided by the number of images of all ranks. loss is the rank's share (the
        shares sum up to the loss), d_image_embed and d_text_embed belong to the rank's own rows, d_log_scale and d_bias
        are complete on every rank
    blocks : by (rank of the images, rank of the texts) each block's own terms, not yet divided

    Source: arXiv 2303.15343, figure 1: images stay, at hop s rank r holds the texts of rank r + s.
    """
    block = chosen(ops).pair_block
    ranks = len(image_shards)
    pairs = sum(len(x) for x in image_shards)
    blocks: Blocks = {}
    loss, d_log_scale, d_bias = [0] * ranks, [0] * ranks, [0] * ranks
    d_image, d_text = [0 * x for x in image_shards], [0 * y for y in text_shards]
    for hop in range(ranks):
        for rank in range(ranks):
            owner = (rank + hop) % ranks
            x, y = image_shards[rank], text_shards[owner]
            match = np.eye(len(x), len(y), dtype=bool) if hop == 0 else np.zeros((len(x), len(y)), bool)
            part = blocks[rank, owner] = block(x, y, log_scale, bias, match)
            loss[rank] = loss[rank] + part.loss
            d_image[rank] = d_image[rank] + part.d_image_embed
            d_text[owner] = d_text[owner] + part.d_text_embed
            d_log_scale[rank] = d_log_scale[rank] + part.d_log_scale
            d_bias[rank] = d_bias[rank] + part.d_bias
    # everything global that remains is one small sum over ranks
    of_scale, of_bias = [sum(d_log_scale)] * ranks, [sum(d_bias)] * ranks
    shares = []
    for rank in range(ranks):
        share = (loss[rank], d_image[rank], d_text[rank], of_scale[rank], of_bias[rank])
        shares.append(LossAndGrads(*(x / pairs for x in share)))
    return shares, blocks


def accumulate(
    images: Sequence[Array], texts: Sequence[Array], log_scale: Array, bias: Array, ops: Operations | None = None
) -> LossAndGrads:
    """Plain gradient accumulation: the mean over micro-batches, each with its own negatives only.

    Parameters
    ----------
    images, texts : one array (b, D) a micro-batch, all of one size
    """
    count = len(images)
    parts = [sigmoid_loss(x, y, log_scale, bias, ops=ops) for x, y in zip(images, texts, strict=True)]
    return LossAndGrads(
        loss=sum(p.loss for p in parts) / count,
        d_image_embed=np.concatenate([p.d_image_embed / count for p in parts]),
        d_text_embed=np.concatenate([p.d_text_embed / count for p in parts]),
        d_log_scale=sum(p.d_log_scale for p in parts) / count,
        d_bias=sum(p.d_bias for p in parts) / count,
    )


def accumulate_cached(
    images: Sequence[Array], texts: Sequence[Array], log_scale: Array, bias: Array, ops: Operations | None = None
) -> LossAndGrads:
    """Accumulation over kept embeddings (GradCache): the large batch's own gradient, one micro-batch at a time.

    Every pass computes the whole loss and differentiates by one micro-batch's embeddings, so what all passes share,
    scale and bias, is counted once per pass and must be divided.
    """
    count, first = len(images), 0
    loss, d_log_scale, d_bias = 0, 0, 0
    d_image, d_text = [], []
    for micro in images:
        whole = sigmoid_loss(np.concatenate(images), np.concatenate(texts), log_scale, bias, ops=ops)
        rows = slice(first, first + len(micro))
        first = first + len(micro)
        d_image.append(whole.d_image_embed[rows])
        d_text.append(whole.d_text_embed[rows])
        loss, d_log_scale = loss + whole.loss / count, d_log_scale + whole.d_log_scale / count
        d_bias = d_bias + whole.d_bias / count
    return LossAndGrads(loss, np.concatenate(d_image), np.concatenate(d_text), d_log_scale, d_bias)


def several_steps(
    params: Mapping[str, Array],
    gradients: Callable[[int, Mapping[str, Array]], Mapping[str, Array]],
    steps: int,
    step: Callable[..., tuple[Params, State]],
    rule: Any,
    schedule: Callable[[int], Array],
) -> tuple[Mapping[str, Array], State]:
    """Optimise: each step's gradients are taken at the parameters that the last step left.

    Parameters
    ----------
    gradients : of step k at these parameters
    step, rule : `adamw_step` or `big_vision_step`, and its settings
    schedule : the factor of step k
    """
    state = State()
    for k in range(steps):
        grads = gradients(k, params)
        params, state = step(params, grads, state, rule, schedule(k))
    return params, state
