"""Losses over ranks: 12 wrong ones, 2 right ones. For sr.check_ranks."""

import jax
import jax.numpy as jnp
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812


def _block(image, text, log_scale, bias, positives=True):
    """The pairs of one block, summed, over the images of this rank; the diagonal is positive, or nothing is."""
    logits = log_scale.exp() * image @ text.T + bias
    labels = torch.zeros_like(logits)
    if positives:
        labels.fill_diagonal_(1)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def _exchange(tensor, to_rank, from_rank):
    got = torch.zeros_like(tensor)
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


class _ShiftOneWay(_Shift):
    @staticmethod
    def backward(ctx, grad):
        return _exchange(grad, *ctx.ranks), None, None


class _Gather(torch.autograd.Function):
    """The shards of all ranks, one after another; the gradient of each is summed over ranks."""

    @staticmethod
    def forward(ctx, tensor, rank, world_size):
        ctx.rank, ctx.size = rank, len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def reduce(grad):
        grad = grad.clone().contiguous()
        dist.all_reduce(grad)
        return grad

    @classmethod
    def _mine(cls, ctx, grad):
        return cls.reduce(grad)[ctx.rank * ctx.size : (ctx.rank + 1) * ctx.size]

    @staticmethod
    def backward(ctx, grad):
        return _Gather._mine(ctx, grad), None, None


class _GatherMean(_Gather):
    @staticmethod
    def backward(ctx, grad):
        return _Gather._mine(ctx, grad) / dist.get_world_size(), None, None


class _CopyToRanks(torch.autograd.Function):
    """Megatron's copy to a parallel region: identity forward, sum over ranks backward."""

    @staticmethod
    def forward(ctx, log_scale, bias):
        return log_scale.clone(), bias.clone()

    @staticmethod
    def backward(ctx, d_log_scale, d_bias):
        return _Gather.reduce(d_log_scale), _Gather.reduce(d_bias)


# ---------------------------------------------------------------- torch


def strided_labels(image, text, log_scale, bias, rank, world_size):
    """The owner of a sample as DistributedSampler deals them out, not as all_gather stacks them."""
    texts = _Gather.apply(text, rank, world_size)
    logits = log_scale.exp() * image @ texts.T + bias
    positions = torch.arange(len(image), device=image.device) * world_size + rank
    labels = F.one_hot(positions, len(texts)).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def both_ways_no_remainder(image, text, log_scale, bias, rank, world_size):
    """Both directions at once, world_size // 2 hops each."""
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    loss = _block(image, text, log_scale, bias)
    from_left = from_right = text
    for _ in range(world_size // 2):
        from_left = _Shift.apply(from_left, right, left)
        from_right = _Shift.apply(from_right, left, right)
        loss = loss + _block(image, from_left, log_scale, bias, False) + _block(image, from_right, log_scale, bias, False)
    return loss


def backward_not_reversed(image, text, log_scale, bias, rank, world_size):
    """The backward of the exchange sends gradients onward instead of back."""
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    loss = _block(image, text, log_scale, bias)
    for _ in range(world_size - 1):
        text = _ShiftOneWay.apply(text, right, left)
        loss = loss + _block(image, text, log_scale, bias, False)
    return loss


def gather_backward_mean(image, text, log_scale, bias, rank, world_size):
    """The gathered texts' gradient is averaged over ranks, like all other gradients."""
    texts = _GatherMean.apply(text, rank, world_size)
    logits = log_scale.exp() * image @ texts.T + bias
    labels = torch.zeros_like(logits)
    labels[:, rank * len(image) : (rank + 1) * len(image)].fill_diagonal_(1)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def scalars_summed_too(image, text, log_scale, bias, rank, world_size):
    """Scale and bias enter a parallel region, which sums their gradients; the wrapper averages them again."""
    log_scale, bias = _CopyToRanks.apply(log_scale, bias)
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    loss = _block(image, text, log_scale, bias)
    for _ in range(world_size - 1):
        text = _Shift.apply(text, right, left)
        loss = loss + _block(image, text, log_scale, bias, False)
    return loss


def both_sides_constant(image, text, log_scale, bias, rank, world_size):
    """Images against all texts and texts against all images, half each; the gathered ones carry no gradient."""
    with torch.no_grad():
        images = [torch.empty_like(image) for _ in range(world_size)]
        texts = [torch.empty_like(text) for _ in range(world_size)]
        dist.all_gather(images, image.contiguous())
        dist.all_gather(texts, text.contiguous())
    images[rank], texts[rank] = image, text
    images, texts = torch.cat(images), torch.cat(texts)
    labels = torch.zeros(len(image), len(texts), dtype=image.dtype, device=image.device)
    labels[:, rank * len(image) : (rank + 1) * len(image)].fill_diagonal_(1)
    scale = log_scale.exp()
    by_image = F.binary_cross_entropy_with_logits(scale * image @ texts.T + bias, labels, reduction="sum")
    by_text = F.binary_cross_entropy_with_logits(scale * text @ images.T + bias, labels, reduction="sum")
    return (by_image + by_text) / (2 * len(image))


def within_a_node(image, text, log_scale, bias, rank, world_size, per_node=2):
    """Negatives of the ranks of the same node only: two ranks a node."""
    first = rank - rank % per_node
    texts = _Gather.apply(text, rank, world_size).split(len(text))[first : first + per_node]
    loss = 0
    for k, part in enumerate(texts, start=first):
        loss = loss + _block(image, part, log_scale, bias, k == rank)
    return loss


def own_texts_sent_again(image, text, log_scale, bias, rank, world_size):
    """Every hop sends this rank's own texts, not those that came in."""
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    loss = _block(image, text, log_scale, bias)
    for _ in range(world_size - 1):
        received = _Shift.apply(text, right, left)
        loss = loss + _block(image, received, log_scale, bias, False)
    return loss


class _ShiftOpenEnd(torch.autograd.Function):
    """As on a Cartesian grid that is not periodic: beyond its ends there is no rank, and the buffer stays zero."""

    @staticmethod
    def _move(tensor, step, rank, world_size):
        got, moves = torch.zeros_like(tensor), []
        if 0 <= rank + step < world_size:
            moves.append(dist.P2POp(dist.isend, tensor.contiguous(), rank + step))
        if 0 <= rank - step < world_size:
            moves.append(dist.P2POp(dist.irecv, got, rank - step))
        for request in dist.batch_isend_irecv(moves) if moves else ():
            request.wait()
        return got

    @staticmethod
    def forward(ctx, tensor, rank, world_size):
        ctx.where = rank, world_size
        return _ShiftOpenEnd._move(tensor, 1, rank, world_size)

    @staticmethod
    def backward(ctx, grad):
        return _ShiftOpenEnd._move(grad, -1, *ctx.where), None, None


def open_ended_line(image, text, log_scale, bias, rank, world_size):
    loss = _block(image, text, log_scale, bias)
    for _ in range(world_size - 1):
        text = _ShiftOpenEnd.apply(text, rank, world_size)
        loss = loss + _block(image, text, log_scale, bias, False)
    return loss


# ---------------------------------------------------------------- JAX


def jax_rolled_the_other_way(image, text, log_scale, bias, axis_name):
    """Own texts to the front of the gathered ones; the roll has the wrong sign."""
    rank, n = jax.lax.axis_index(axis_name), len(image)
    texts = jax.lax.all_gather(text, axis_name, tiled=True)
    texts = jnp.roll(texts, rank * n, axis=0)
    logits = jnp.exp(log_scale) * image @ texts.T + bias
    signs = 2 * jnp.eye(n, len(texts), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / n


def jax_sources_from_one(image, text, log_scale, bias, axis_name):
    """Own block first, then one source rank after another, masked by its index; the loop was one over hops."""
    rank, n = jax.lax.axis_index(axis_name), len(image)
    texts = jax.lax.all_gather(text, axis_name)
    own = jnp.exp(log_scale) * image @ text.T + bias
    loss = -jax.nn.log_sigmoid((2 * jnp.eye(n, dtype=own.dtype) - 1) * own).sum()
    for source in range(1, len(texts)):
        logits = jnp.exp(log_scale) * image @ texts[source].T + bias
        loss = loss + jnp.where(source == rank, 0.0, jax.nn.softplus(logits).sum())
    return loss / n


def jax_remote_not_normalised(image, text, log_scale, bias, axis_name):
    """Raw rows in; own texts are normalised for the own block, but the raw ones are sent round."""

    def unit(rows):
        return rows / (jnp.linalg.norm(rows, axis=-1, keepdims=True) + 1e-8)

    size = jax.lax.axis_size(axis_name)
    n, image, travelling = len(image), unit(image), text
    logits = jnp.exp(log_scale) * image @ unit(text).T + bias
    loss = -jax.nn.log_sigmoid((2 * jnp.eye(n, dtype=logits.dtype) - 1) * logits).sum()
    for _ in range(size - 1):
        travelling = jax.lax.ppermute(travelling, axis_name, [(k, (k - 1) % size) for k in range(size)])
        logits = jnp.exp(log_scale) * image @ travelling.T + bias
        loss = loss + jax.nn.softplus(logits).sum()
    return loss / n


# ---------------------------------------------------------------- right


def images_travel(image, text, log_scale, bias, rank, world_size):
    """Texts stay and images are gathered: a rank's part are its columns."""
    images = _Gather.apply(image, rank, world_size)
    logits = log_scale.exp() * text @ images.T + bias
    own = torch.arange(len(text), device=text.device) + rank * len(text)
    negatives = logits.scatter(1, own[:, None], float("-inf"))
    positive = logits.gather(1, own[:, None])
    return (F.softplus(-positive).sum() + F.softplus(negatives).sum()) / len(text)


def jax_from_afar(image, text, log_scale, bias, axis_name):
    """No ring: every block comes straight from its owner, the farthest first; the own one comes last."""
    size, n = jax.lax.axis_size(axis_name), len(image)
    scaled = image * jnp.exp(log_scale)
    rows = jnp.zeros(n, image.dtype)
    for hop in reversed(range(size)):
        part = jax.lax.ppermute(text, axis_name, [(k, (k + hop) % size) for k in range(size)]) if hop else text
        logits = jnp.einsum("td,id->ti", part, scaled) + bias
        match = jnp.eye(n, dtype=bool) & (hop == 0)
        rows = rows + jnp.where(match, jnp.logaddexp(0, -logits), jnp.logaddexp(logits, 0)).sum(0)
    return rows.mean()


def _wrong(fn, truth, *same, framework="torch", **given):
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


# b pairs a rank, W ranks, B = b W; every rank returns its part divided by b, gradients are averaged over ranks
PROGRAMS = {
    "labels strided": _wrong(
        strided_labels,
        "the positive of image i of rank r is the text at place i W + r of the gathered batch, that is text (i W + r) "
        "mod b of rank floor((i W + r) / b), instead of the one at r b + i; all other pairs are negatives",
        "labels assume interleaved ranks; the gathered batch is rank after rank",
    ),
    "both ways, no remainder": _wrong(
        both_ways_no_remainder,
        "for even W the block of the opposite rank (r + W/2) is counted twice, as negatives; right for odd W",
        "the last hop of the bidirectional exchange counts the same texts from both sides when W is even",
    ),
    "backward not reversed": _wrong(
        backward_not_reversed,
        "value, d image, d log_scale and d bias are right; the gradient that rank r finds for the texts of rank r - k "
        "(met after k hops) is delivered to rank r + k, to which it does not belong, instead of to rank r - k; right for W = 2",
        "gradients of the texts travel onward instead of back",
    ),
    "gather backward averages": _wrong(
        gather_backward_mean,
        "everything is right but d text, which is divided by W (averaged over ranks once too often)",
        "the backward of all_gather takes the mean instead of the sum",
    ),
    "scale and bias summed too": _wrong(
        scalars_summed_too,
        "value and gradients of embeddings are right; d log_scale and d bias are W times too large",
        "gradients of log_scale and bias are summed over ranks inside, then averaged: the sum stays",
    ),
    "both sides, gathered constant": _wrong(
        both_sides_constant,
        "value (mean over ranks), d log_scale and d bias are right; in d image and d text, pairs of two different ranks "
        "count half, own blocks in full",
        "gathered embeddings are detached, and each rank sees a remote pair from one side only, with weight 1/2",
    ),
    "within a node": _wrong(
        within_a_node,
        "images of rank r meet the texts of ranks 2 floor(r/2) and 2 floor(r/2) + 1 only; negatives of other nodes are "
        "missing; divisor b; right for W = 2",
        "negatives only within groups of two neighbouring ranks",
    ),
    "own texts sent again": _wrong(
        own_texts_sent_again,
        "own block right; the block of the left neighbour, rank r - 1, is counted W - 1 times and no other remote block "
        "is met; right for W = 2",
        "at every hop a rank sends its own texts instead of those it received",
    ),
    "open-ended line": _wrong(
        open_ended_line,
        "rank r meets the texts of ranks 0 to r only (those of r + 1 to W - 1 are missing); in place of each missing "
        "text there is a zero row, a negative with logit = bias",
        "the ring is not closed: rank 0 receives nothing and counts zeros, which travel on",
    ),
    "rolled the other way": _wrong(
        jax_rolled_the_other_way,
        "the positive of image i of rank r is text i of rank -r mod W; own pairs of other ranks than 0 (and W/2) are "
        "negatives",
        "own texts are not at the front: the roll has the wrong sign",
        framework="jax",
    ),
    "sources from one": _wrong(
        jax_sources_from_one,
        "the texts of rank 0 are never negatives for the images of other ranks; everything else is right",
        "the blocks of images of ranks 1 to W - 1 with the texts of rank 0 are missing",
        framework="jax",
    ),
    "remote texts not normalised": _wrong(
        jax_remote_not_normalised,
        "raw rows are given; the own block uses normalised texts, blocks of other ranks use texts that are not "
        "normalised (images are): their similarity is multiplied by the length of the text",
        "normalisation is missing on texts that arrive from other ranks",
        framework="jax",
        embeddings="raw",
    ),
    "right: images travel": _wrong(images_travel, "SigLIP's own"),
    "right: straight from the owner": _wrong(jax_from_afar, "SigLIP's own", framework="jax"),
}
