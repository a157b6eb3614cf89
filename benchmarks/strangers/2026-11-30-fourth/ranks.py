"""Losses whose pairs are spread over ranks, most of them wrong, each with its truth.

In the truths: W ranks; rank r owns the images x_i and texts y_i of its b pairs; B = W b; softplus(u) = log(1 + e^u);
l_ij = exp(log_scale) x_i . y_j + bias; z_ij = 1 for a pair that belongs together, else -1; G_ij = dL/dl_ij. "Block
(r, k)": the images of rank r with the texts of rank k. Torch and JAX: each rank returns its local part, divided by b,
and gradients are averaged over ranks afterwards. NumPy: the global loss and the final gradients.
"""

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch.distributed.nn.functional import all_gather as gather_with_grad

from mpi.comm import ThreadComm

# ---------------------------------------------------------------------------------------------------------- torch


def swap(tensor, to, source, tag=0):
    """Send to one rank while receiving from another."""
    tensor = tensor.contiguous()
    received = torch.empty_like(tensor)
    waiting = [dist.isend(tensor, to, tag=tag), dist.irecv(received, source, tag=tag)]
    for work in waiting:
        work.wait()
    return received


class Exchange(torch.autograd.Function):
    """A message to a neighbour; its gradient goes the way back. `wire` is the dtype in which it travels."""

    @staticmethod
    def forward(ctx, tensor, to, source, wire=None):
        ctx.to, ctx.source = to, source
        if wire is None:
            return swap(tensor, to, source)
        return swap(tensor.to(wire), to, source).to(tensor.dtype)

    @staticmethod
    def backward(ctx, grad):
        return swap(grad, ctx.source, ctx.to), None, None, None


def logits_of(x, y, log_scale, bias):
    return log_scale.exp() * (x @ y.T) + bias


def own_block(x, y, log_scale, bias):
    signs = 2 * torch.eye(len(x), dtype=x.dtype, device=x.device) - 1
    return -F.logsigmoid(signs * logits_of(x, y, log_scale, bias)).sum()


def negatives(x, y, log_scale, bias):
    return F.softplus(logits_of(x, y, log_scale, bias)).sum()


def both_ways(image_shard, text_shard, log_scale, bias, rank, world_size):
    """Half the hops: texts go round the ring in both directions at once."""
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    total = own_block(image_shard, text_shard, log_scale, bias)
    going_right, going_left = text_shard, text_shard.detach()
    for _ in range(world_size // 2):
        prefetched = swap(going_left, left, right, tag=7)
        going_right, going_left = Exchange.apply(going_right, right, left), prefetched
        total = total + negatives(image_shard, going_right, log_scale, bias)
        total = total + negatives(image_shard, going_left, log_scale, bias)
    return total / len(image_shard)


def stacked_gather(image_shard, text_shard, log_scale, bias, rank, world_size):
    b, d = text_shard.shape
    texts = torch.stack(gather_with_grad(text_shard), dim=1).reshape(-1, d)
    logits = logits_of(image_shard, texts, log_scale, bias)
    labels = -torch.ones_like(logits)
    rows = torch.arange(b, device=logits.device)
    labels[rows, rank * b + rows] = 1
    return -F.logsigmoid(labels * logits).sum() / b


def half_precision_wire(image_shard, text_shard, log_scale, bias, rank, world_size):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    total, texts = own_block(image_shard, text_shard, log_scale, bias), text_shard
    for _ in range(world_size - 1):
        texts = Exchange.apply(texts, right, left, torch.bfloat16)
        total = total + negatives(image_shard, texts, log_scale, bias)
    return total / len(image_shard)


def padded_gather(image_shard, text_shard, log_scale, bias, rank, world_size):
    """Shards may differ in length: every rank pads its texts to the longest one."""
    b = len(image_shard)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size)]
    dist.all_gather(lengths, torch.tensor([b]))
    longest, pairs = int(max(lengths)), int(sum(lengths))
    texts = torch.cat(gather_with_grad(F.pad(text_shard, (0, 0, 0, longest - b))))
    logits = logits_of(image_shard, texts, log_scale, bias)
    target = torch.zeros_like(logits)
    rows = torch.arange(b)
    target[rows, rank * longest + rows] = 1
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return loss * world_size / pairs


RANKS_PER_NODE = 2


def within_the_node(image_shard, text_shard, log_scale, bias, rank, world_size):
    """Negatives from the other rank of the node, over its fast link."""
    first = rank - rank % RANKS_PER_NODE
    total = own_block(image_shard, text_shard, log_scale, bias)
    for other in range(first, min(first + RANKS_PER_NODE, world_size)):
        if other != rank:
            total = total + negatives(image_shard, Exchange.apply(text_shard, other, other), log_scale, bias)
    global_batch = len(image_shard) * world_size
    return total / global_batch


class FusedRing(torch.autograd.Function):
    """One trip round the ring: the texts travel, and their gradients travel with them."""

    @staticmethod
    def forward(ctx, image, text, log_scale, bias, rank, world_size):
        b, scale = len(image), log_scale.exp()
        eye = torch.eye(b, dtype=image.dtype)
        loss, d_scale, d_bias = (torch.zeros((), dtype=image.dtype) for _ in range(3))
        d_image, y, d_y = torch.zeros_like(image), text, torch.zeros_like(text)
        right, left = (rank + 1) % world_size, (rank - 1) % world_size
        for hop in range(world_size):
            if hop:
                y, d_y = swap(y, right, left, tag=1), swap(d_y, right, left, tag=2)
            logits = scale * (image @ y.T) + bias
            match = eye if hop == 0 else torch.zeros_like(eye)
            loss = loss + F.softplus((1 - 2 * match) * logits).sum() / b
            g = (torch.sigmoid(logits) - match) / b
            d_image = d_image + scale * (g @ y)
            d_y = d_y + scale * (g.T @ image)
            d_scale = d_scale + (g * logits).sum()
            d_bias = d_bias + g.sum()
        ctx.save_for_backward(d_image, d_y, d_scale.reshape(log_scale.shape), d_bias.reshape(bias.shape))
        return loss

    @staticmethod
    def backward(ctx, grad):
        return *(grad * part for part in ctx.saved_tensors), None, None


def fused_ring(image_shard, text_shard, log_scale, bias, rank, world_size):
    return FusedRing.apply(image_shard, text_shard, log_scale, bias, rank, world_size)


class FrugalRing(torch.autograd.Function):
    """No logits are kept: the backward pass computes them again from the embeddings that arrived."""

    @staticmethod
    def forward(ctx, image, text, log_scale, bias, rank, world_size):
        arrived = torch.empty_like(text)
        right, left = (rank + 1) % world_size, (rank - 1) % world_size
        loss, visitors, sending = own_block(image, text, log_scale, bias), [], text.contiguous()
        for _ in range(world_size - 1):
            out, into = dist.isend(sending, right), dist.irecv(arrived, left)
            into.wait()
            out.wait()
            loss = loss + negatives(image, arrived, log_scale, bias)
            visitors.append(arrived)
            sending = arrived.clone()
        ctx.save_for_backward(image, text, log_scale, bias)
        ctx.visitors, ctx.rank, ctx.world_size = visitors, rank, world_size
        return loss / len(image)

    @staticmethod
    def backward(ctx, grad):
        image, text, log_scale, bias = ctx.saved_tensors
        rank, world_size, scale, b = ctx.rank, ctx.world_size, log_scale.exp(), len(image)
        d_image, d_log_scale, d_bias = torch.zeros_like(image), torch.zeros_like(log_scale), torch.zeros_like(bias)
        for hop, y in enumerate([text, *ctx.visitors]):
            similarity = image @ y.T
            g = torch.sigmoid(scale * similarity + bias)
            if hop == 0:
                g = g - torch.eye(b, dtype=g.dtype)
            g = grad * g / b
            d_image = d_image + scale * (g @ y)
            d_log_scale = d_log_scale + scale * (g * similarity).sum()
            d_bias = d_bias + g.sum()
            d_y = scale * (g.T @ image)
            if hop == 0:
                d_text = d_y
            else:
                d_text = d_text + swap(d_y, (rank - hop) % world_size, (rank + hop) % world_size, tag=hop)
        return d_image, d_text, d_log_scale, d_bias, None, None


def frugal_ring(image_shard, text_shard, log_scale, bias, rank, world_size):
    return FrugalRing.apply(image_shard, text_shard, log_scale, bias, rank, world_size)


def chunk_by_chunk(image_shard, text_shard, log_scale, bias, rank, world_size):
    b = len(image_shard)
    matched = torch.eye(b, dtype=torch.bool, device=image_shard.device)
    total = 0
    for k, chunk in enumerate(gather_with_grad(text_shard)):
        logits = logits_of(image_shard, chunk, log_scale, bias)
        total = total - F.logsigmoid(-logits[~matched]).sum()
        if k == rank:
            total = total - F.logsigmoid(logits[matched]).sum()
    return total / b


def padded_rows(rows, world_size):
    """All ranks' rows, without gradients; shards may differ in length."""
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size)]
    dist.all_gather(lengths, torch.tensor([len(rows)]))
    lengths = [int(n) for n in lengths]
    sent = F.pad(rows.detach(), (0, 0, 0, max(lengths) - len(rows))).contiguous()
    slots = [torch.empty_like(sent) for _ in lengths]
    dist.all_gather(slots, sent)
    return torch.cat([slot[:n] for slot, n in zip(slots, lengths, strict=True)]), lengths


class RowsAndColumns(torch.autograd.Function):
    """No gradient is ever sent: each rank computes its rows for its images, and its columns for its texts."""

    @staticmethod
    def forward(ctx, image, text, log_scale, bias, rank, world_size):
        texts, lengths = padded_rows(text, world_size)
        images, _ = padded_rows(image, world_size)
        ctx.save_for_backward(image, text, log_scale, bias, images, texts)
        ctx.start, ctx.each = sum(lengths[:rank]), sum(lengths) / world_size
        logits = log_scale.exp() * (image @ texts.T) + bias
        own = torch.arange(len(image))
        signed = logits.clone()
        signed[own, ctx.start + own] *= -1
        return (signed.clamp(min=0) + torch.log1p(torch.exp(-signed.abs()))).sum() / ctx.each

    @staticmethod
    def backward(ctx, grad):
        image, text, log_scale, bias, images, texts = ctx.saved_tensors
        scale, own = log_scale.exp(), torch.arange(len(image))
        similarity = image @ texts.T
        rows = torch.sigmoid(scale * similarity + bias)
        columns = torch.sigmoid(scale * (text @ images.T) + bias)
        for g in (rows, columns):
            g[own, ctx.start + own] -= 1
            g *= grad / ctx.each
        d_log_scale = (scale * (rows * similarity).sum()).reshape(log_scale.shape)
        d_bias = rows.sum().reshape(bias.shape)
        return scale * (rows @ texts), scale * (columns @ images), d_log_scale, d_bias, None, None


def rows_and_columns(image_shard, text_shard, log_scale, bias, rank, world_size):
    return RowsAndColumns.apply(image_shard, text_shard, log_scale, bias, rank, world_size)


# ------------------------------------------------------------------------------------------------------------ jax


def rolled_gather(image_shard, text_shard, log_scale, bias, axis_name="ranks"):
    """All texts, rolled so that our own stand first."""
    import jax
    import jax.numpy as jnp

    b, d = text_shard.shape
    texts = jax.lax.all_gather(text_shard, axis_name)
    texts = jnp.roll(texts, jax.lax.axis_index(axis_name), axis=0).reshape(-1, d)
    logits = jnp.exp(log_scale) * image_shard @ texts.T + bias
    labels = 2 * jnp.eye(b, len(texts), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(labels * logits).sum() / b


def permuted_chain(image_shard, text_shard, log_scale, bias, axis_name="ranks"):
    import jax
    import jax.numpy as jnp

    world = jax.lax.axis_size(axis_name)
    hop = [(i, i + 1) for i in range(world - 1)]
    b = len(image_shard)
    scale = jnp.exp(log_scale)
    signs = 2 * jnp.eye(b, dtype=image_shard.dtype) - 1
    total = -jax.nn.log_sigmoid(signs * (scale * image_shard @ text_shard.T + bias)).sum()
    texts = text_shard
    for _ in range(world - 1):
        texts = jax.lax.ppermute(texts, axis_name, hop)
        total += jax.nn.softplus(scale * image_shard @ texts.T + bias).sum()
    return total / b


def strides(image_shard, text_shard, log_scale, bias, axis_name="ranks"):
    """The bias is one more feature; the texts of the rank k further on come in one message each."""
    import jax
    import jax.numpy as jnp

    world = jax.lax.axis_size(axis_name)
    b = len(image_shard)
    ones = jnp.ones_like(image_shard[:, :1])
    images = jnp.concatenate([jnp.exp(log_scale) * image_shard, ones], axis=1)
    own = jnp.concatenate([text_shard, bias * ones], axis=1)
    diagonal = (images * own).sum(1)
    total = jnp.logaddexp(0, -diagonal).sum()
    total += jnp.where(jnp.eye(b, dtype=bool), 0, jnp.logaddexp(0, images @ own.T)).sum()
    for k in range(1, world):
        other = jax.lax.ppermute(text_shard, axis_name, [((i + k) % world, i) for i in range(world)])
        total += jnp.logaddexp(0, images @ jnp.concatenate([other, bias * ones], axis=1).T).sum()
    return total / b


# ---------------------------------------------------------------------------------------------------------- numpy


def block(x, y, log_scale, bias, matched):
    """Sums over one block of pairs: the loss and its four gradients."""
    scale = x.dtype.type(np.exp(log_scale).item())
    similarity = x @ y.T
    logits = scale * similarity + bias
    match = np.eye(len(x), len(y), dtype=logits.dtype) * matched
    loss = np.logaddexp(0, (1 - 2 * match) * logits).sum()
    g = 1 / (1 + np.exp(-logits)) - match
    return loss, scale * (g @ y), scale * (g.T @ x), scale * (g * similarity).sum(), g.sum()


def shift_right(comm, rows):
    received = np.empty_like(rows)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    comm.Sendrecv(np.ascontiguousarray(rows), right, 0, received, left, 0)
    return received


def summed(comm, values):
    values = np.ascontiguousarray(values)
    total = np.empty_like(values)
    comm.Allreduce(values, total)
    return total


def table_of_owners(image_shard, text_shard, log_scale, bias, comm):
    """Every contribution to a text's gradient is entered at its owner; one Allreduce at the end."""
    table = np.zeros((comm.size, *text_shard.shape), text_shard.dtype)
    d_image, scalars, texts = np.zeros_like(image_shard), np.zeros(3), text_shard
    for hop in range(comm.size):
        if hop:
            texts = shift_right(comm, texts)
        owner = (comm.rank + hop) % comm.size
        loss, part, table[owner], d_log_scale, d_bias = block(image_shard, texts, log_scale, bias, hop == 0)
        d_image += part
        scalars += np.array([float(loss), float(d_log_scale), float(d_bias)])
    pairs = comm.size * len(image_shard)
    loss, d_log_scale, d_bias = summed(comm, scalars) / pairs
    return loss, d_image / pairs, summed(comm, table)[comm.rank] / pairs, d_log_scale, d_bias


def packed_scalars(image_shard, text_shard, log_scale, bias, comm):
    """Texts and their gradients go all the way round; the three sums share one message."""
    d_image, d_texts, texts = np.zeros_like(image_shard), np.zeros_like(text_shard), text_shard
    packed = np.zeros(3)
    for hop in range(comm.size):
        loss, part, part_text, d_log_scale, d_bias = block(image_shard, texts, log_scale, bias, hop == 0)
        d_image, d_texts = d_image + part, d_texts + part_text
        packed += np.array([float(loss), float(d_bias), float(d_log_scale)])
        texts, d_texts = shift_right(comm, texts), shift_right(comm, d_texts)
    b = len(image_shard)
    loss, d_log_scale, d_bias = summed(comm, packed) / (comm.size * b)
    return loss, d_image / b, d_texts / b, d_log_scale, d_bias


THREADS = {"ranks": ThreadComm.run, "reduce": "none", "value": "global"}

PROGRAMS = {
    "both directions of the ring": {
        "fn": both_ways,
        "framework": "torch",
        "given": {},
        "truth": "two mistakes. (1) For even W the block of the opposite rank, (r, r + W/2), is counted twice in "
        "value and gradients (W = 2: the only remote block twice); for odd W every block once. (2) d_text lacks what "
        "arrives by the texts that went left: d_y of rank k gets the contributions of the images of ranks k, k + 1, "
        "..., k + floor(W/2) (each once), and none by the copies that went to k - 1, ..., k - floor(W/2). Value, "
        "d_image, d_log_scale and d_bias are right for odd W",
        "same": [
            "the opposite rank's negatives are counted twice when the number of ranks is even; and the texts received "
            "from the right-hand neighbour carry no gradient",
            "the last two-way hop is made although a one-way hop was left; one direction is detached",
        ],
    },
    "stacked gather": {
        "fn": stacked_gather,
        "framework": "torch",
        "given": {},
        "truth": "the gathered texts are interleaved by rank (position p holds text p // W of rank p % W), but the "
        "positive of image i of rank r is put at position r b + i, so it is text (r b + i) // W of rank (r b + i) % W; "
        "all other B - 1 texts are negatives. The gradients are those of this loss",
        "same": [
            "the positives are at the wrong texts: image p of the global batch is paired with text (p % W) b + p // W",
            "the order of gathered texts is sample-major, the labels are rank-major",
        ],
    },
    "half precision wire": {
        "fn": half_precision_wire,
        "framework": "torch",
        "given": {},
        "truth": "the texts received from other ranks are rounded to bfloat16; a rank's own texts are not. Gradients "
        "are those at the rounded texts, the rounding taken as the identity, and travel unrounded. Nothing else",
        "same": ["remote texts have bfloat16 precision", "texts are sent in bfloat16"],
    },
    "padded gather": {
        "fn": padded_gather,
        "framework": "torch",
        "given": {"unequal": True},
        "truth": "right with equal shards. With unequal ones every image has W max_r b_r - B further negatives, texts "
        "of zeros with the logit bias: the loss is 1/B (sum softplus(-z l) + B (W max_r b_r - B) softplus(bias)). "
        "d_bias has (W max_r b_r - B) sigmoid(bias) more; d_image, d_text and d_log_scale are right",
        "same": [
            "padding rows count as negatives",
            "only with unequal shards: the value and d_bias are too large by the padded texts",
        ],
    },
    "within the node": {
        "fn": within_the_node,
        "framework": "torch",
        "given": {},
        "truth": "two mistakes. (1) Images meet only texts of their own group of two ranks {2m, 2m + 1} (with odd W the "
        "last rank is alone): blocks between groups are missing. (2) Each rank divides by B = W b instead of b, so "
        "that, averaged over ranks, value and all four gradients are 1/W of that loss's",
        "same": [
            "negatives only within pairs of ranks, and divided by W once too often",
            "negatives within the node only; the gradients are meant to be summed over ranks, not averaged",
        ],
    },
    "fused ring": {
        "fn": fused_ring,
        "framework": "torch",
        "given": {},
        "truth": "two mistakes. (1) d_text is at the wrong owner: rank r returns the (right) gradient of the texts of "
        "rank (r + 1) % W. (2) d_log_scale is sum G l in place of sum G (l - bias): it is too large by bias times "
        "d_bias. Value, d_image, d_bias are right",
        "same": [
            "the texts' gradients make one hop too few and stop one rank short of home; d_log_scale includes the bias",
            "d_log_scale = right + bias * d_bias; d_text is shifted by one rank",
        ],
    },
    "frugal ring": {
        "fn": frugal_ring,
        "framework": "torch",
        "given": {},
        "truth": "the value is right, and with W = 2 everything. For W >= 3 the backward pass computes every remote "
        "block of rank r with the texts that arrived last, those of rank (r + 1) % W: d_image, d_log_scale and d_bias "
        "are those of block (r, r) + (W - 1) block (r, r + 1), and d_text of rank k is that of block (k, k) plus, for "
        "every other rank r, scale G'^T x_r with the G' of block (r, r + 1) instead of block (r, k)",
        "same": [
            "the receive buffer is overwritten before the backward pass: all remote blocks are recomputed with the "
            "last visitor's texts",
            "gradients of a stale buffer; value right",
        ],
    },
    "chunk by chunk": {
        "fn": chunk_by_chunk,
        "framework": "torch",
        "given": {},
        "truth": "image i of rank r does not meet text i of any other rank k: the diagonals of the blocks between "
        "different ranks are left out of value and gradients. Own block right; the divisor is right",
        "same": [
            "the diagonal of every remote block is masked out",
            "b (W - 1) negatives per rank are missing, those with the same local index",
        ],
    },
    "rolled gather": {
        "fn": rolled_gather,
        "framework": "jax",
        "given": {},
        "truth": "the positive of image i of rank r is text i of rank (-r) % W; all other texts, its own too where that "
        "is another rank, are negatives. Right on rank 0, with W even on rank W/2, and so everywhere with W = 2. The "
        "gradients are those of this loss",
        "same": [
            "texts are rolled in the wrong direction, so the positives are at rank W - r",
            "the ranks' order is mirrored: positives of rank r are at rank -r mod W",
        ],
    },
    "permuted chain": {
        "fn": permuted_chain,
        "framework": "jax",
        "given": {},
        "truth": "the ring is open: nothing goes from the last rank to rank 0. Rank r meets the texts of ranks 0 ... r "
        "only; in place of the texts of ranks r + 1 ... W - 1 it has texts of zeros, whose logit is bias: it adds "
        "(W - 1 - r) b^2 softplus(bias). The gradients are those of this loss",
        "same": [
            "ranks meet the texts of lower ranks only; each missing text counts as a zero vector",
            "ppermute without wrap-around",
        ],
    },
    "table of owners": {
        "fn": table_of_owners,
        "framework": "numpy",
        "given": dict(THREADS),
        "truth": "value, d_image, d_log_scale, d_bias are right, with W = 2 d_text too. For W >= 3, what the images of "
        "rank r contribute to the texts of rank k is added to d_text of rank (2 r - k) % W",
        "same": [
            "contributions of other ranks' images to d_text go to the wrong owner: the rank r + h instead of r - h",
            "d_text: the owner is computed for the other direction of travel",
        ],
    },
    "packed scalars": {
        "fn": packed_scalars,
        "framework": "numpy",
        "given": dict(THREADS),
        "truth": "two mistakes. (1) d_log_scale and d_bias are exchanged. (2) d_image and d_text are divided by b "
        "instead of B: W times too large. The value is right",
        "same": [
            "the gradients of log_scale and bias are swapped; the embeddings' gradients are W times the final ones",
            "embedding gradients as for a later mean over ranks, which is not made",
        ],
    },
    "right: rows and columns": {
        "fn": rows_and_columns,
        "framework": "torch",
        "given": {},
        "truth": "SigLIP's own",
        "same": [],
    },
    "right: strides": {
        "fn": strides,
        "framework": "jax",
        "given": {},
        "truth": "SigLIP's own",
        "same": [],
    },
}
