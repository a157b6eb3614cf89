"""Wrong sigmoid losses over ranks, and two right ones, for sr.check_ranks. Written on 2026-12-01 by a stranger.

In the truths: W ranks of b pairs, B = W b, x_r and y_r the rows of rank r, block (r, s) the logits of x_r and y_s;
G = d(right loss)/d(logits). Right: 1/B of the sum over all B*B pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn as dist_nn
import torch.nn.functional as F  # noqa: N812

# ---------------------------------------------------------------- torch


def _loss(image_features, text_features, logit_scale, logit_bias, negative_only=False):
    logits = logit_scale.exp() * image_features @ text_features.T + logit_bias
    labels = -torch.ones_like(logits)
    if not negative_only:
        labels = 2 * torch.eye(logits.shape[0], device=logits.device, dtype=logits.dtype) + labels
    return -F.logsigmoid(labels * logits).sum() / image_features.shape[0]


def data_parallel_only(image_features, text_features, logit_scale, logit_bias, rank, world_size):
    """The loss of one process; DDP does the rest."""
    return _loss(image_features, text_features, logit_scale, logit_bias)


def gather_texts(image_features, text_features, logit_scale, logit_bias, rank, world_size):
    all_texts = [torch.zeros_like(text_features) for _ in range(world_size)]
    dist.all_gather(all_texts, text_features.contiguous())
    all_texts[rank] = text_features
    loss = 0.0
    for k, texts in enumerate(all_texts):
        loss = loss + _loss(image_features, texts, logit_scale, logit_bias, negative_only=k != rank)
    return loss


def gather_both(image_features, text_features, logit_scale, logit_bias, rank, world_size):
    """Every rank has the whole matrix."""

    def gather(features):
        with torch.no_grad():
            parts = [torch.empty_like(features) for _ in range(world_size)]
            dist.all_gather(parts, features.contiguous())
        parts[rank] = features
        return torch.cat(parts, dim=0)

    return _loss(gather(image_features), gather(text_features), logit_scale, logit_bias)


def _exchange(to_rank, from_rank, tensor):
    received = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
    ops = [dist.P2POp(dist.isend, tensor.contiguous(), to_rank), dist.P2POp(dist.irecv, received, from_rank)]
    for request in dist.batch_isend_irecv(ops):
        request.wait()
    return received


class NeighbourExchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, from_rank, to_rank, tensor):
        ctx.from_rank, ctx.to_rank = from_rank, to_rank
        return _exchange(to_rank, from_rank, tensor)

    @staticmethod
    def backward(ctx, grad_output):
        return None, None, _exchange(ctx.from_rank, ctx.to_rank, grad_output)


class OneWayExchange(torch.autograd.Function):
    """Passes a tensor on; its gradient is passed on, too."""

    @staticmethod
    def forward(ctx, from_rank, to_rank, tensor):
        ctx.from_rank, ctx.to_rank = from_rank, to_rank
        return _exchange(to_rank, from_rank, tensor)

    @staticmethod
    def backward(ctx, grad_output):
        return None, None, _exchange(ctx.to_rank, ctx.from_rank, grad_output)


def ring_of_positives(image_features, text_features, logit_scale, logit_bias, rank, world_size):
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _loss(image_features, text_features, logit_scale, logit_bias)
    texts = text_features
    for _ in range(world_size - 1):
        texts = NeighbourExchange.apply(left, right, texts)
        loss = loss + _loss(image_features, texts, logit_scale, logit_bias)
    return loss


def ring_of_own(image_features, text_features, logit_scale, logit_bias, rank, world_size):
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _loss(image_features, text_features, logit_scale, logit_bias)
    for _ in range(world_size - 1):
        from_left = NeighbourExchange.apply(left, right, text_features)
        loss = loss + _loss(image_features, from_left, logit_scale, logit_bias, negative_only=True)
    return loss


def ring_one_way(image_features, text_features, logit_scale, logit_bias, rank, world_size):
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _loss(image_features, text_features, logit_scale, logit_bias)
    for _ in range(world_size - 1):
        text_features = OneWayExchange.apply(left, right, text_features)
        loss = loss + _loss(image_features, text_features, logit_scale, logit_bias, negative_only=True)
    return loss


def ring_both_ways(image_features, text_features, logit_scale, logit_bias, rank, world_size):
    """Half as many rounds, two neighbours each."""
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _loss(image_features, text_features, logit_scale, logit_bias)
    to_right = to_left = text_features
    for _ in range(world_size // 2):
        to_right = NeighbourExchange.apply(left, right, to_right)
        to_left = NeighbourExchange.apply(right, left, to_left)
        for texts in (to_right, to_left):
            loss = loss + _loss(image_features, texts, logit_scale, logit_bias, negative_only=True)
    return loss


def plain_all_gather(image_features, text_features, logit_scale, logit_bias, rank, world_size):
    """Own images against the texts of all."""
    gathered = [torch.empty_like(text_features) for _ in range(world_size)]
    dist.all_gather(gathered, text_features.detach().contiguous())
    all_texts = torch.cat(gathered)
    logits = logit_scale.exp() * image_features @ all_texts.T + logit_bias
    b = image_features.shape[0]
    labels = -torch.ones_like(logits)
    labels[torch.arange(b), rank * b + torch.arange(b)] = 1
    return -F.logsigmoid(labels * logits).sum(dim=-1).mean()


# ---------------------------------------------------------------- JAX


def jax_eye(zimg, ztxt, t, b, axis_name):
    ztxt = jax.lax.all_gather(ztxt, axis_name, tiled=True)
    logits = zimg @ ztxt.T * jnp.exp(t) + b
    m1_diag1 = 2 * jnp.eye(*logits.shape, dtype=logits.dtype) - 1
    return -jnp.sum(jax.nn.log_sigmoid(m1_diag1 * logits), axis=-1).mean()


def jax_global_divisor(zimg, ztxt, t, b, axis_name):
    all_txt = jax.lax.all_gather(ztxt, axis_name, tiled=True)
    n = zimg.shape[0]
    own = jax.lax.axis_index(axis_name) * n + jnp.arange(n)
    labels = 2 * jax.nn.one_hot(own, all_txt.shape[0], dtype=zimg.dtype) - 1
    logits = jnp.exp(t) * zimg @ all_txt.T + b
    return -jax.nn.log_sigmoid(labels * logits).sum() / all_txt.shape[0]


def _axis_size(axis_name):
    return jax.lax.axis_size(axis_name) if hasattr(jax.lax, "axis_size") else jax.lax.psum(1, axis_name)


def jax_ring(zimg, ztxt, t, b, axis_name):
    """Own pairs, then the negatives of the others as they come by."""
    size = _axis_size(axis_name)
    perm = [(i, (i + 1) % size) for i in range(size)]
    scale = jnp.exp(t)

    def negatives(texts):
        return jax.nn.softplus(scale * zimg @ texts.T + b).sum()

    own = scale * zimg @ ztxt.T + b
    loss = -jax.nn.log_sigmoid((2 * jnp.eye(len(zimg), dtype=own.dtype) - 1) * own).sum()
    texts = ztxt
    for _ in range(size - 1):
        loss = loss + negatives(texts)
        texts = jax.lax.ppermute(texts, axis_name, perm)
    return loss / zimg.shape[0]


# ---------------------------------------------------------------- NumPy


def numpy_ring(image, text, log_scale, bias, comm):
    """Texts and what their gradients have gathered go round together."""
    b, size, rank = len(image), comm.size, comm.rank
    right, left = (rank + 1) % size, (rank - 1) % size
    t = np.exp(np.asarray(log_scale, image.dtype))
    shift = np.asarray(bias, image.dtype)
    d_image = np.zeros_like(image)
    texts, d_texts = text.copy(), np.zeros_like(text)
    numbers = np.zeros(3)
    for hop in range(size):
        sim = image @ texts.T
        logits = t * sim + shift
        z = -np.ones_like(logits)
        if hop == 0:
            np.fill_diagonal(z, 1)
        g = -z * np.exp(-np.logaddexp(0, z * logits)) / (b * size)
        numbers += [np.logaddexp(0, -z * logits).sum() / (b * size), float(t) * (g * sim).sum(), g.sum()]
        d_image += t * (g @ texts)
        d_texts += t * (g.T @ image)
        if hop < size - 1:
            package, got = np.stack([texts, d_texts]), np.empty((2, *text.shape), text.dtype)
            comm.Sendrecv(package, right, hop, got, left, hop)
            texts, d_texts = got
    total = np.empty_like(numbers)
    comm.Allreduce(numbers, total)
    return (
        image.dtype.type(total[0]),
        d_image,
        d_texts,
        np.full(np.shape(log_scale), total[1], np.asarray(log_scale).dtype),
        np.full(np.shape(bias), total[2], np.asarray(bias).dtype),
    )


# ---------------------------------------------------------------- right ones


def right_whole_matrix(image_features, text_features, logit_scale, logit_bias, rank, world_size):
    """Both gathered with gradients: each rank has the whole loss, DDP's mean is right."""
    images = torch.cat(dist_nn.all_gather(image_features), dim=0)
    texts = torch.cat(dist_nn.all_gather(text_features), dim=0)
    return _loss(images, texts, logit_scale, logit_bias)


def right_jax_scan(zimg, ztxt, t, b, axis_name):
    """All hops in a scan; the first is at home."""
    size = _axis_size(axis_name)
    perm = [(i, (i + 1) % size) for i in range(size)]
    eye = jnp.eye(zimg.shape[0], dtype=bool)

    def hop(texts, k):
        logits = jnp.exp(t) * zimg @ texts.T + b
        part = jax.nn.softplus(jnp.where(eye & (k == 0), -logits, logits)).sum()
        return jax.lax.ppermute(texts, axis_name, perm), part

    _, parts = jax.lax.scan(hop, ztxt, jnp.arange(size))
    return parts.sum() / zimg.shape[0]


# ---------------------------------------------------------------- the programs


def _one(fn, truth, *same, framework="torch", **given):
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "data parallel only": _one(
        data_parallel_only,
        "each rank's own block alone: mean_r of 1/b sum over block (r, r); pairs of different ranks are missing",
        "nothing is exchanged; negatives of other ranks are missing",
        "the loss of the local batch, averaged over ranks",
    ),
    "gather with own slot": _one(
        gather_texts,
        "the value and the image, scale and bias gradients are right; the text gradient is that of block (r, r) alone: what "
        "the images of other ranks give to it is missing",
        "all_gather passes no gradient; the text's gradient comes from its own rank's images only",
        "text_r gets t G_rr.T x_r in place of t sum_s G_sr.T x_s",
    ),
    "gather both, averaged": _one(
        gather_both,
        "every rank has the whole (right) loss; gathered parts of other ranks carry no gradient, so each embedding gets its "
        "gradient once, and the mean over ranks makes it 1/W; scale and bias are right",
        "image and text gradients are 1/W of the right ones; value, scale and bias are right",
        "gathered without gradient while gradients are averaged over ranks",
        "the embeddings' gradients would be right if they were summed, not averaged",
        value="global",
    ),
    "ring: positives everywhere": _one(
        ring_of_positives,
        "every block has z = 1 on its diagonal, not only block (r, r): pair i of rank r with text i of each other rank is "
        "treated as a positive",
        "negative_only is not passed on for blocks that come from other ranks",
        "positives where i mod b = j mod b, W of them in each row",
    ),
    "ring: own texts again": _one(
        ring_of_own,
        "at every hop the own texts are sent: rank r meets the texts of rank r - 1 W - 1 times, those of the others never",
        "the received texts are not passed on; block (r, r - 1) counts W - 1 times, blocks (r, s), s not r or r - 1, are missing",
        "right for W = 2, and for one rank",
    ),
    "ring: gradient one way": _one(
        ring_one_way,
        "the value and the image, scale and bias gradients are right; the backward exchange goes the same way as the forward "
        "one (to the right), so what block (r + k, r) gives to the text of rank r arrives at rank r + 2 k",
        "the backward pass of the exchange is not reversed; text gradients arrive at wrong ranks",
        "text_r gets t sum_k G_(r-k, r-2k).T x_(r-k), k = 0 .. W - 1; own block's part is right",
        "right for W = 2",
    ),
    "ring: both ways": _one(
        ring_both_ways,
        "W // 2 rounds with two blocks each: for even W the block of the opposite rank, r + W/2, counts twice; for odd W it "
        "is right",
        "the last round of an even number of ranks lacks its special case; block (r, r + W/2) is met twice",
        "for W = 2 the other rank's block counts twice",
        "one block of negatives too many (W + 1 blocks in place of W)",
    ),
    "plain all_gather": _one(
        plain_all_gather,
        "the value and the image, scale and bias gradients are right; the text gradient is missing (0) on every rank",
        "all_gather passes no gradient; texts get none at all",
        "the text's gradient is lost in the gather",
    ),
    "JAX: eye of own rows": _one(
        jax_eye,
        "positives of rank r are the texts of rank 0: z = 1 at (i, i) of block (r, 0) in place of block (r, r)",
        "labels lack the offset axis_index * b; rank 0 is right, on other ranks own pairs are negatives",
        "images of every rank are matched with the texts of rank 0",
        framework="jax",
    ),
    "JAX: global divisor": _one(
        jax_global_divisor,
        "each rank divides by B = W b, and ranks are averaged: value and all gradients are 1/W of the right ones",
        "divided by the global batch in place of the local one, although the mean is taken",
        "would be right if ranks were summed",
        framework="jax",
    ),
    "JAX: ring, late": _one(
        jax_ring,
        "the block is taken before the texts move: own block (r, r) counts once more, all of it as negatives, and block "
        "(r, r + 1), of the last texts to come (from rank r - (W - 1)), is never met",
        "off by one hop: negatives of ranks r, r - 1, ..., r - (W - 2) in place of r - 1, ..., r - (W - 1)",
        "own texts are counted as negatives, too (their positives as well); the next rank's (r + 1) texts are missing",
        "for W = 2 the other rank is never met",
        framework="jax",
    ),
    "NumPy: ring, one hop short": _one(
        numpy_ring,
        "texts and their gradients travel W - 1 hops, one short of home: rank r returns the (complete, right) text gradient "
        "of rank r + 1 as its own; the value and other gradients are right",
        "text gradients end up at a neighbour: d_text of rank r + 1 (mod W) at rank r",
        "the last exchange is missing",
        framework="numpy",
        reduce="none",
        value="global",
    ),
    "fine: whole matrix": _one(
        right_whole_matrix,
        "SigLIP's own",
        "both gathered with gradients, the whole loss on each rank, gradients averaged",
        value="global",
    ),
    "fine: scan": _one(right_jax_scan, "SigLIP's own", "W hops of ppermute in lax.scan, positives at hop 0", framework="jax"),
}
