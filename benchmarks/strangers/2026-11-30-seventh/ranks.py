"""Losses over ranks: 12 wrong ones, 2 right ones. For sr.check_ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

from mpi.comm import ThreadComm


def _block(image, text, log_scale, bias, positives=True):
    """The pairs of one block, summed, over the images of this rank; the diagonal is positive, or nothing is."""
    logits = log_scale.exp() * image @ text.T + bias
    labels = torch.zeros_like(logits)
    if positives:
        labels.fill_diagonal_(1)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def _exchange(tensor, to_rank, from_rank):
    got = torch.zeros_like(tensor)
    if to_rank == dist.get_rank():
        return got.copy_(tensor)
    moves = [dist.P2POp(dist.isend, tensor.contiguous(), to_rank), dist.P2POp(dist.irecv, got, from_rank)]
    for request in dist.batch_isend_irecv(moves):
        request.wait()
    return got


class _Shift(torch.autograd.Function):
    """Sends to one rank and receives from another; the gradient goes the way back."""

    @staticmethod
    def forward(ctx, tensor, to_rank, from_rank):
        ctx.ranks = to_rank, from_rank
        return _exchange(tensor, to_rank, from_rank)

    @staticmethod
    def backward(ctx, grad):
        to_rank, from_rank = ctx.ranks
        return _exchange(grad, from_rank, to_rank), None, None


class _Gather(torch.autograd.Function):
    """The shards of all ranks, of any sizes, one after another; the gradient of each is `times` its sum over ranks."""

    @staticmethod
    def forward(ctx, tensor, rank, sizes, times):
        ctx.start, ctx.size, ctx.times = sum(sizes[:rank]), sizes[rank], times
        padded = tensor.new_zeros(max(sizes), tensor.shape[1])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone().contiguous()
        dist.all_reduce(grad)
        return grad[ctx.start : ctx.start + ctx.size] * ctx.times, None, None, None


def _gathered(text, rank, world_size, times=1):
    return _Gather.apply(text, rank, [len(text)] * world_size, times)


# ---------------------------------------------------------------- torch


class _Broadcast(torch.autograd.Function):
    """The texts of one rank, on all ranks."""

    @staticmethod
    def forward(ctx, text, source):
        got = text.clone().contiguous()
        dist.broadcast(got, source)
        return got

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone().contiguous()
        dist.all_reduce(grad)
        return grad, None


def broadcast_in_turn(image, text, log_scale, bias, rank, world_size):
    """Every rank shows its texts in turn. The gradient of a broadcast belongs to its source alone."""
    loss = 0
    for source in range(world_size):
        loss = loss + _block(image, _Broadcast.apply(text, source), log_scale, bias, source == rank)
    return loss


def own_size_as_divisor(image, text, log_scale, bias, rank, world_size):
    """Shards of unequal sizes, gathered with padding that is cut off again; each rank takes the mean of its own."""
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(world_size)]
    dist.all_gather(sizes, torch.tensor([len(image)]))
    sizes = [int(size) for size in sizes]
    texts = _Gather.apply(text, rank, sizes, 1)
    logits = log_scale.exp() * image @ texts.T + bias
    labels = torch.zeros_like(logits)
    labels[torch.arange(len(image)), sum(sizes[:rank]) + torch.arange(len(image))] = 1
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


class _FusedRing(torch.autograd.Function):
    """Keeps the gradients of the logits, hop by hop, and which texts they belong to."""

    @staticmethod
    def forward(ctx, image, text, log_scale, bias, rank, world_size):
        n, scale = len(image), log_scale.exp()
        onwards, back = (rank + 1) % world_size, (rank - 1) % world_size
        current, received = text.contiguous(), torch.empty_like(text)
        value = d_log_scale = d_bias = 0
        ctx.blocks = []
        for hop in range(world_size):
            if hop:
                received.copy_(_exchange(current, onwards, back))
                current = received
            logits = scale * image @ current.T + bias
            labels = torch.zeros_like(logits)
            if hop == 0:
                labels.fill_diagonal_(1)
            grad = (torch.sigmoid(logits) - labels) / n
            value = value + F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / n
            d_log_scale = d_log_scale + (grad * (logits - bias)).sum()
            d_bias = d_bias + grad.sum()
            ctx.blocks.append((grad, current))
        ctx.rest = image, scale, d_log_scale, d_bias, onwards, back
        ctx.like = log_scale, bias
        return value

    @staticmethod
    def backward(ctx, upstream):
        image, scale, d_log_scale, d_bias, onwards, back = ctx.rest
        d_image = sum(scale * grad @ text for grad, text in ctx.blocks)
        d_text = torch.zeros_like(image)
        for hop, (grad, _) in reversed(list(enumerate(ctx.blocks))):
            d_text = d_text + scale * grad.T @ image
            if hop:
                d_text = _exchange(d_text, back, onwards)
        scalars = ((upstream * one).to(of.dtype).reshape(of.shape) for one, of in zip((d_log_scale, d_bias), ctx.like, strict=True))
        return upstream * d_image, upstream * d_text, *scalars, None, None


def one_receive_buffer(image, text, log_scale, bias, rank, world_size):
    """One buffer receives the texts of every hop; the backward pass finds in it those of the last."""
    return _FusedRing.apply(image, text, log_scale, bias, rank, world_size)


def cut_out_by_local_rank(image, text, log_scale, bias, rank, world_size, per_node=2):
    """The own block is cut out of the gathered texts; LOCAL_RANK says where, on nodes of two."""
    b, local_rank = len(text), rank % per_node
    texts = _gathered(text, rank, world_size)
    others = torch.cat([texts[: local_rank * b], texts[(local_rank + 1) * b :]])
    return _block(image, text, log_scale, bias) + _block(image, others, log_scale, bias, positives=False)


def own_block_positives_only(image, text, log_scale, bias, rank, world_size):
    """Positives are at home, negatives come from the neighbours."""
    logits = log_scale.exp() * (image * text).sum(-1) + bias
    loss = -F.logsigmoid(logits).mean()
    onwards, back = (rank + 1) % world_size, (rank - 1) % world_size
    for _ in range(world_size - 1):
        text = _Shift.apply(text, onwards, back)
        loss = loss + _block(image, text, log_scale, bias, positives=False)
    return loss


def local_divisor_summed(image, text, log_scale, bias, rank, world_size):
    """Divided by the pairs of the rank, for gradients that are summed over ranks."""
    texts = _gathered(text, rank, world_size)
    logits = log_scale.exp() * image @ texts.T + bias
    labels = torch.zeros_like(logits)
    labels[:, rank * len(image) : (rank + 1) * len(image)].fill_diagonal_(1)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def gather_backward_times_world(image, text, log_scale, bias, rank, world_size):
    """The gradient of the gather is summed and multiplied by the world size, against the mean of DDP."""
    texts = _gathered(text, rank, world_size, times=world_size)
    logits = log_scale.exp() * image @ texts.T + bias
    labels = torch.zeros_like(logits)
    labels[:, rank * len(image) : (rank + 1) * len(image)].fill_diagonal_(1)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def moved_by_hop(image, text, log_scale, bias, rank, world_size):
    """Hop k moves the texts by k ranks; but what it moves has been moved before."""
    loss = _block(image, text, log_scale, bias)
    for hop in range(1, world_size):
        text = _Shift.apply(text, (rank + hop) % world_size, (rank - hop) % world_size)
        loss = loss + _block(image, text, log_scale, bias, positives=False)
    return loss


# ---------------------------------------------------------------- JAX


def _jax_block(image, text, log_scale, bias, positives=True):
    logits = jnp.exp(log_scale) * image @ text.T + bias
    losses = jax.nn.softplus(logits)
    return (losses.sum() - (jnp.trace(logits) if positives else 0)) / len(image)


def jax_doubling(image, text, log_scale, bias, axis_name):
    """Recursive doubling, in log2(W) exchanges; but nobody keeps what came before."""
    size = jax.lax.psum(1, axis_name)
    loss = _jax_block(image, text, log_scale, bias)
    step = 1
    while step < size:
        text = jax.lax.ppermute(text, axis_name, [(i, (i + step) % size) for i in range(size)])
        loss = loss + _jax_block(image, text, log_scale, bias, positives=False)
        step *= 2
    return loss


def jax_each_pair_of_ranks_once(image, text, log_scale, bias, axis_name):
    """One rank's texts at a time, by a masked psum; only later ranks' are counted, to meet each pair of ranks once."""
    size, rank = jax.lax.psum(1, axis_name), jax.lax.axis_index(axis_name)
    loss = _jax_block(image, text, log_scale, bias)
    for k in range(size):
        theirs = jax.lax.psum(jnp.where(rank == k, text, 0), axis_name)
        loss = loss + (k > rank) * _jax_block(image, theirs, log_scale, bias, positives=False)
    return loss


def right_jax_features_dealt_out(image, text, log_scale, bias, axis_name):
    """Each rank multiplies its slice of the features of everybody; the products are scattered to the images' ranks."""
    size, rank = jax.lax.psum(1, axis_name), jax.lax.axis_index(axis_name)
    b, d = image.shape

    def slices(rows):
        rows = jnp.pad(rows, ((0, 0), (0, -d % size))).reshape(b, size, -1)
        return jax.lax.all_to_all(rows, axis_name, split_axis=1, concat_axis=0, tiled=True).reshape(size * b, -1)

    products = jax.lax.psum_scatter(slices(image) @ slices(text).T, axis_name, scatter_dimension=0, tiled=True)
    logits = jnp.exp(log_scale) * products + bias
    own = jnp.arange(size * b) == rank * b + jnp.arange(b)[:, None]
    return jnp.where(own, jax.nn.softplus(-logits), jax.nn.softplus(logits)).sum() / b


# ---------------------------------------------------------------- NumPy


def _numpy_block(image, text, scale, bias, positives, divisor):
    """Value, gradient of the logits, and the share of the two numbers' gradients."""
    logits = scale * (image @ text.T) + bias
    labels = np.eye(len(image), len(text), dtype=logits.dtype) * positives
    value = (np.logaddexp(0, logits) - labels * logits).sum() / divisor
    grad = (np.exp(-np.logaddexp(0, -logits)) - labels) / divisor
    return value, grad, (grad * (logits - bias)).sum(), grad.sum()


def _numpy_numbers(log_scale, bias, like):
    return np.exp(np.asarray(log_scale, like.dtype)), np.asarray(bias, like.dtype)


def numpy_own_slot_empty(image, text, log_scale, bias, comm):
    """Each block's text gradient goes to its owner, who keeps a slot for every rank and adds them up at the end."""
    n, (scale, bias) = len(image), _numpy_numbers(log_scale, bias, image)
    texts = np.ascontiguousarray(text)
    slots = np.zeros((comm.size, *texts.shape), texts.dtype)
    value, grad, d_log_scale, d_bias = _numpy_block(image, texts, scale, bias, True, n)
    d_image = scale * grad @ texts
    for hop in range(1, comm.size):
        to, source = (comm.rank + hop) % comm.size, (comm.rank - hop) % comm.size
        theirs = np.empty_like(texts)
        comm.Sendrecv(texts, to, 2 * hop, theirs, source, 2 * hop)
        more, grad, more_scale, more_bias = _numpy_block(image, theirs, scale, bias, False, n)
        value, d_log_scale, d_bias = value + more, d_log_scale + more_scale, d_bias + more_bias
        d_image += scale * grad @ theirs
        d_theirs = np.ascontiguousarray(scale * grad.T @ image)
        comm.Sendrecv(d_theirs, source, 2 * hop + 1, slots[to], to, 2 * hop + 1)
    return value, d_image, slots.sum(0), d_log_scale, d_bias


def numpy_scale_in_travelling_sum(image, text, log_scale, bias, comm):
    """The texts' gradient travels behind them and is scaled where something is added to it."""
    n, (scale, bias) = len(image), _numpy_numbers(log_scale, bias, image)
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    current, travelling = np.array(text, order="C"), np.zeros(text.shape, text.dtype)
    value = d_log_scale = d_bias = 0
    d_image = np.zeros_like(image)
    for hop in range(comm.size):
        more, grad, more_scale, more_bias = _numpy_block(image, current, scale, bias, hop == 0, n)
        value, d_log_scale, d_bias = value + more, d_log_scale + more_scale, d_bias + more_bias
        d_image += scale * grad @ current
        travelling = scale * (travelling + grad.T @ image)
        for rows in (current, travelling):
            got = np.empty_like(rows)
            comm.Sendrecv(np.ascontiguousarray(rows), to, hop, got, source, hop)
            rows[:] = got
    return value, d_image, travelling, d_log_scale, d_bias


# ---------------------------------------------------------------- right, torch


class _FinalGradients(torch.autograd.Function):
    """All gradients, of the whole loss, in the forward pass; nothing is left to be reduced."""

    @staticmethod
    def forward(ctx, image, text, log_scale, bias, rank, world_size):
        b, scale = len(image), log_scale.exp()
        parts = [torch.empty_like(text) for _ in range(world_size)]
        dist.all_gather(parts, text.contiguous())
        texts = torch.cat(parts)
        logits = scale * image @ texts.T + bias
        labels = torch.zeros_like(logits)
        labels[:, rank * b : (rank + 1) * b].fill_diagonal_(1)
        grad = (torch.sigmoid(logits) - labels) / (b * world_size)
        value = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / (b * world_size)
        d_texts = (scale * grad.T @ image).contiguous()
        numbers = torch.stack([value, (grad * (logits - bias)).sum(), grad.sum()])
        dist.all_reduce(d_texts)
        dist.all_reduce(numbers)
        ctx.grads = (
            scale * grad @ texts,
            d_texts[rank * b : (rank + 1) * b],
            numbers[1].to(log_scale.dtype).reshape(log_scale.shape),
            numbers[2].to(bias.dtype).reshape(bias.shape),
        )
        return numbers[0].clone()

    @staticmethod
    def backward(ctx, upstream):
        return *((upstream * grad).to(grad.dtype) for grad in ctx.grads), None, None


def right_final_gradients(image, text, log_scale, bias, rank, world_size):
    return _FinalGradients.apply(image, text, log_scale, bias, rank, world_size)


# ---------------------------------------------------------------- truths


def _wrong(fn, truth, *same, framework="torch", **given):
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


_right = _wrong

PROGRAMS = {
    "broadcast in turn": _wrong(
        broadcast_in_turn,
        "value, d image, d log_scale, d bias are right; d text of every rank is the sum of what all ranks' texts should "
        "get: row k of every rank's d text is the sum over ranks q of the right d text row k of q",
        "the backward of the broadcast gives the gradient to every rank instead of to the source only",
        "d text is the same on all ranks: each gets its own and all other ranks' gradients",
        "d text_r is too large by the text gradients of the other ranks",
    ),
    "own size as divisor": _wrong(
        own_size_as_divisor,
        "rank r divides by its own number of pairs b_r, and the ranks are averaged: 1/W sum_r 1/b_r (all pairs of the "
        "images of r) instead of 1/B sum_r (...), B = sum b_r; a right rank divides by B / W. Right where all shards "
        "are of one size; wrong with unequal ones only",
        "each image of rank r weighs B / (W b_r): mean of the ranks' means",
        "images on small shards weigh too much, on large ones too little",
        "the divisor is the own shard's size, not the mean size B / W",
        unequal=True,
    ),
    "one receive buffer": _wrong(
        one_receive_buffer,
        "value, d text, d log_scale, d bias are right; d image takes for every remote block the texts that were received "
        "last, those of rank r + 1: t (G_0 y_r + sum_{k>=1} G_k y_{r+1}), G_k the logits' gradient of the block with "
        "rank r - k. Right for W <= 2",
        "in the backward pass all remote blocks see the texts of the last hop, because the receive buffer is reused",
        "only d image is wrong, from three ranks on; its share of the own block and of the last hop's is right",
    ),
    "cut out by local rank": _wrong(
        cut_out_by_local_rank,
        "rank r leaves out block r mod 2 instead of block r: ranks r >= 2 count their own texts a second time, all as "
        "negatives (their positives, too), and never meet the texts of rank r mod 2. Ranks 0 and 1 are right, so W = 2 is",
        "ranks 2, 3, ...: own block twice, once as negatives only; the block of rank r mod 2 is missing",
        "the block that is cut out is that of the local rank, nodes of 2",
    ),
    "own block positives only": _wrong(
        own_block_positives_only,
        "the negatives within the own block are missing: 1/b [sum_i softplus(-l_ii) + all pairs with the other ranks' "
        "texts, as negatives]",
        "own block: only the diagonal counts, its b (b - 1) negatives do not",
        "no negatives from the own rank",
    ),
    "local divisor, summed": _wrong(
        local_divisor_summed,
        "the checker is told that gradients are summed (reduce='sum'); the loss is divided by b = B / W instead of B: "
        "value (summed) and all four gradients are W times too large",
        "a factor W everywhere: it would be right for reduce='mean'",
        "divided by the pairs of the rank instead of by those of all ranks",
        reduce="sum",
    ),
    "gather backward times the world size": _wrong(
        gather_backward_times_world,
        "value, d image, d log_scale, d bias are right; d text is W times too large",
        "the gather's backward sums over ranks and multiplies by W",
        "text gradients too large by the number of ranks",
    ),
    "moved by the hop": _wrong(
        moved_by_hop,
        "after hop k the texts are those of rank r - k (k + 1) / 2 mod W instead of r - k. W = 3: r - 1, then r - 3 = r: "
        "the own texts are counted again, all as negatives, and those of r - 2 (= r + 1) never. Right for W = 1, 2, 4, "
        "8, ... (triangular numbers are then a permutation)",
        "cumulative offsets 1, 3, 6, ...: with three ranks the own block comes twice (second time as negatives) and the "
        "block of rank r + 1 is missing",
        "texts that have moved already are moved by k instead of 1",
        world_size=3,
    ),
    "doubling keeps nothing": _wrong(
        jax_doubling,
        "the blocks met are the own and r - 1, r - 3, r - 7, ..., one for each step 1, 2, 4, ... below W: with W = 4 "
        "own, r - 1, r - 3 = r + 1; the texts of r - 2 are missing (as negatives). With W = 3: own, r - 1, and the own "
        "block again, as negatives. Right for W = 2",
        "only ceil(log2 W) remote blocks instead of W - 1; of 4 ranks that of r + 2 is missing",
        "recursive doubling that replaces the texts instead of collecting them",
        framework="jax",
    ),
    "each pair of ranks once": _wrong(
        jax_each_pair_of_ranks_once,
        "images of rank r meet the texts of ranks k >= r only: own block (right) and k > r as negatives; pairs of images "
        "of r with texts of k < r are missing. W (W - 1) / 2 of W (W - 1) remote blocks",
        "only the upper triangle of blocks counts, once: half of the remote blocks are missing",
        "the last rank has no remote negatives, rank 0 has all",
        framework="jax",
    ),
    "own slot empty": _wrong(
        numpy_own_slot_empty,
        "value, d image, d log_scale, d bias are right; d text lacks the share of the own block, t G_own^T x (with it all "
        "pull of the positives): only that of the other ranks' images is there",
        "the own rank's images give no gradient to the texts",
        "d text is the sum over the other ranks' images only",
        framework="numpy",
        ranks=ThreadComm.run,
    ),
    "scale in the travelling sum": _wrong(
        numpy_scale_in_travelling_sum,
        "value, d image, d log_scale, d bias are right; d text of rank q = sum_k t^(W - k) G^T x of the block met at "
        "hop k (k = 0 own, then the images of rank q + k): the travelling sum is multiplied by t = exp(log_scale) at "
        "every hop instead of what is added; only the last hop's share (k = W - 1) has t^1",
        "d text: own share too large by t^(W - 1), that of rank q + k by t^(W - 1 - k)",
        "the scale is applied again at every hop to the gradient that is carried along",
        framework="numpy",
        ranks=ThreadComm.run,
    ),
    "right: features dealt out": _right(right_jax_features_dealt_out, "SigLIP's own", framework="jax"),
    "right: final gradients": _right(right_final_gradients, "SigLIP's own", reduce="none", value="global"),
}
