"""Wrong (and two right) sigmoid losses over ranks, written on 2026-11-30 by somebody who has not read the checker."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

# ---------------------------------------------------------------- torch


def _pairs(image, text, log_scale, bias, negative_only=False):
    """open_clip's `_loss`: positives on the diagonal, or none."""
    logits = log_scale.exp() * image @ text.T + bias
    labels = -torch.ones(image.shape[0], text.shape[0], dtype=logits.dtype, device=logits.device)
    if not negative_only:
        labels = 2 * torch.eye(image.shape[0], text.shape[0], dtype=logits.dtype, device=logits.device) + labels
    return -F.logsigmoid(labels * logits).sum() / image.shape[0]


class _Gather(torch.autograd.Function):
    """Everybody's rows; the gradients of all ranks come back summed."""

    @staticmethod
    def forward(ctx, rows, rank, world_size):
        ctx.rank, ctx.size = rank, rows.shape[0]
        parts = [torch.zeros_like(rows) for _ in range(world_size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad[ctx.rank * ctx.size : (ctx.rank + 1) * ctx.size], None, None


def _exchange(rows, to_rank, from_rank):
    received = torch.empty_like(rows)
    send = dist.P2POp(dist.isend, rows.detach().contiguous(), to_rank)
    receive = dist.P2POp(dist.irecv, received, from_rank)
    for request in dist.batch_isend_irecv([send, receive]):
        request.wait()
    return received


class _Neighbour(torch.autograd.Function):
    """Send right, receive from the left; gradients go the other way."""

    @staticmethod
    def forward(ctx, rows, left, right):
        ctx.left, ctx.right = left, right
        return _exchange(rows, right, left)

    @staticmethod
    def backward(ctx, grad):
        return _exchange(grad, ctx.left, ctx.right), None, None


class _NeighbourOneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, left, right):
        return _exchange(rows, right, left)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


def no_exchange(image, text, log_scale, bias, rank, world_size):
    """Single-GPU code under DDP."""
    logits = image @ text.T * log_scale.exp() + bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def gather_without_grad(image, text, log_scale, bias, rank, world_size):
    with torch.no_grad():
        parts = [torch.zeros_like(text) for _ in range(world_size)]
        dist.all_gather(parts, text.contiguous())
    parts[rank] = text  # so that own texts have their gradient
    texts = torch.cat(parts)
    logits = log_scale.exp() * image @ texts.T + bias
    own = torch.arange(len(image)) + rank * len(image)
    labels = -torch.ones_like(logits)
    labels[torch.arange(len(image)), own] = 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


def clip_template_everything_gathered(image, text, log_scale, bias, rank, world_size):
    """open_clip's gather_features with its defaults (local_loss=False, gather_with_grad=False), sigmoid put in."""
    images = [torch.zeros_like(image) for _ in range(world_size)]
    texts = [torch.zeros_like(text) for _ in range(world_size)]
    dist.all_gather(images, image.detach().contiguous())
    dist.all_gather(texts, text.detach().contiguous())
    images[rank], texts[rank] = image, text
    return _pairs(torch.cat(images), torch.cat(texts), log_scale, bias)


def labels_without_offset(image, text, log_scale, bias, rank, world_size):
    texts = _Gather.apply(text, rank, world_size)
    logits = log_scale.exp() * image @ texts.T + bias
    labels = 2 * torch.eye(len(image), len(texts), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


def sends_its_own_again(image, text, log_scale, bias, rank, world_size):
    """Ring of W - 1 hops; what was received is used, but not passed on."""
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _pairs(image, text, log_scale, bias)
    for _ in range(world_size - 1):
        received = _Neighbour.apply(text, left, right)
        loss = loss + _pairs(image, received, log_scale, bias, negative_only=True)
    return loss


def positives_in_every_block(image, text, log_scale, bias, rank, world_size):
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _pairs(image, text, log_scale, bias)
    travelling = text
    for _ in range(world_size - 1):
        travelling = _Neighbour.apply(travelling, left, right)
        loss = loss + _pairs(image, travelling, log_scale, bias)
    return loss


def global_batch_as_divisor(image, text, log_scale, bias, rank, world_size):
    """1/B as in the paper, on every rank; DDP takes the mean besides."""
    texts = _Gather.apply(text, rank, world_size)
    logits = log_scale.exp() * image @ texts.T + bias
    rows = torch.arange(len(image))
    signs = -torch.ones_like(logits)
    signs[rows, rows + rank * len(image)] = 1
    return F.softplus(-signs * logits).sum() / len(texts)


def mean_by_all_reduce(image, text, log_scale, bias, rank, world_size):
    """The loss is averaged over ranks in place; torch.distributed.all_reduce is not seen by autograd."""
    texts = _Gather.apply(text, rank, world_size)
    logits = log_scale.exp() * image @ texts.T + bias
    rows = torch.arange(len(image))
    signs = -torch.ones_like(logits)
    signs[rows, rows + rank * len(image)] = 1
    loss = F.softplus(-signs * logits).sum() / len(image)
    dist.all_reduce(loss)
    return loss / world_size


def gradient_stays_where_it_is(image, text, log_scale, bias, rank, world_size):
    """The exchange's backward hands the gradient on without sending it back."""
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _pairs(image, text, log_scale, bias)
    travelling = text
    for _ in range(world_size - 1):
        travelling = _NeighbourOneWay.apply(travelling, left, right)
        loss = loss + _pairs(image, travelling, log_scale, bias, negative_only=True)
    return loss


def right_both_neighbours(image, text, log_scale, bias, rank, world_size):
    """Texts go both ways at once; with an even number of ranks the last hop is one-way."""
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _pairs(image, text, log_scale, bias)
    from_left = from_right = text
    for _ in range((world_size - 1) // 2):
        from_left = _Neighbour.apply(from_left, left, right)
        from_right = _Neighbour.apply(from_right, right, left)
        for some in (from_right, from_left):
            loss = loss + _pairs(image, some, log_scale, bias, negative_only=True)
    if (world_size - 1) % 2:
        loss = loss + _pairs(image, _Neighbour.apply(from_left, left, right), log_scale, bias, negative_only=True)
    return loss


def right_rows_are_texts(image, text, log_scale, bias, rank, world_size):
    """The images travel: own texts with everybody's images, as transformers' logits_per_text."""
    images = _Gather.apply(image, rank, world_size)
    logits = text @ images.T * log_scale.exp() + bias
    labels = F.one_hot(torch.arange(len(text)) + rank * len(text), len(images)).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(text)


# ---------------------------------------------------------------- JAX


def jax_one_hop_too_many(image, text, log_scale, bias, axis_name):
    """W hops instead of W - 1: the last brings the own texts home, and they are taken for negatives."""
    size = jax.lax.psum(1, axis_name)
    b = image.shape[0]
    ring = [(i, (i - 1) % size) for i in range(size)]
    logits = jnp.exp(log_scale) * image @ text.T + bias
    loss = -jax.nn.log_sigmoid((2 * jnp.eye(b, dtype=logits.dtype) - 1) * logits).sum()
    for _ in range(size):
        text = jax.lax.ppermute(text, axis_name, ring)
        logits = jnp.exp(log_scale) * image @ text.T + bias
        loss = loss - jax.nn.log_sigmoid(-logits).sum()
    return loss / b


# ---------------------------------------------------------------- NumPy


def _block(image, text, scale, bias, own, divisor):
    """Loss of a block and the gradient of its logits."""
    similarity = image @ text.T
    logits = scale * similarity + bias
    z = (2 * np.eye(len(image), len(text), dtype=logits.dtype) if own else 0) - np.ones_like(logits)
    g = -z * np.exp(-np.logaddexp(0, z * logits)) / divisor
    return np.logaddexp(0, -z * logits).sum() / divisor, g, similarity


def _ring(image, text, log_scale, bias, comm, home):
    """Texts and their gradients travel together to the left; the gradients have one more hop, if `home`."""
    size, b = comm.size, len(image)
    left, right = (comm.rank - 1) % size, (comm.rank + 1) % size
    scale = np.exp(np.asarray(log_scale, image.dtype))
    bias = np.asarray(bias, image.dtype)
    d_image = np.zeros_like(image)
    numbers = np.zeros(3, image.dtype)
    d_text = np.zeros_like(text)
    for hop in range(size):
        value, g, similarity = _block(image, text, scale, bias, hop == 0, b * size)
        numbers += np.array([value, scale * (g * similarity).sum(), g.sum()], image.dtype)
        d_image += scale * (g @ text)
        d_text = d_text + scale * (g.T @ image)
        if hop < size - 1:
            text, d_text = _move(text, comm, left, right), _move(d_text, comm, left, right)
    return numbers, d_image, _move(d_text, comm, left, right) if home else d_text


def _move(rows, comm, left, right):
    if left == comm.rank:
        return rows
    received = np.empty_like(rows)
    comm.Sendrecv(np.ascontiguousarray(rows), left, 0, received, right, 0)
    return received


def numpy_not_home(image, text, log_scale, bias, comm):
    numbers, d_image, d_text = _ring(image, text, log_scale, bias, comm, home=False)
    total = np.empty_like(numbers)
    comm.Allreduce(numbers, total)
    return total[0], d_image, d_text, total[1], total[2]


def numpy_numbers_stay_local(image, text, log_scale, bias, comm):
    numbers, d_image, d_text = _ring(image, text, log_scale, bias, comm, home=True)
    value = np.empty_like(numbers[:1])
    comm.Allreduce(numbers[:1].copy(), value)
    return value[0], d_image, d_text, numbers[1], numbers[2]


# ---------------------------------------------------------------- truths


def _wrong(fn, truth, *same, framework="torch", **given):
    given = {"scale": "log", "embeddings": "unit"} | given
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


_right = _wrong

# W ranks of b pairs, B = W b. Right, where gradients are averaged afterwards (reduce="mean", as default): rank r returns
# 1/b sum over its b images and all B texts, and d text_r is the sum over ranks of what their losses give to it.
PROGRAMS = {
    "no exchange": _wrong(
        no_exchange,
        "each rank sees its own b x b block only: 1/b sum_{i, j in r} softplus(-z l); the B - b negatives of other "
        "ranks are missing for every image (and every text); positives and own negatives are right",
        "no communication: local batch loss, texts of the other ranks are never met",
        "only the diagonal blocks; all blocks r != q are missing (W = 4: 12 of 16 blocks)",
    ),
    "gather without grad": _wrong(
        gather_without_grad,
        "value, d image, d log_scale, d bias are right; d text_r has only what the own images of rank r give to it, "
        "the gradients from the images of the other W - 1 ranks are missing",
        "gathered texts have no gradient, apart from the own ones",
        "d text lacks the contributions of the negatives on other ranks",
        "d text is that of the diagonal block only",
    ),
    "CLIP's template, everything gathered": _wrong(
        clip_template_everything_gathered,
        "every rank computes the full B x B loss, 1/B sum: value (global), d log_scale and d bias are right; "
        "d image and d text, own rows only and from one rank only, are 1/W of right after the mean over ranks "
        "(W = 4: 0.25)",
        "embedding gradients are too small by the factor W, those of scale and bias right",
        "all_gather without gradient: each rank's rows get dL/dx once instead of W times, then DDP divides by W",
        "d image and d text of both towers are divided by the number of ranks",
        value="global",
    ),
    "labels without offset": _wrong(
        labels_without_offset,
        "on rank r image k has the text in column k of the gathered ones, that is text k of rank 0, as positive, "
        "instead of column r b + k; its own text is a negative. Rank 0 is right, all others are wrong "
        "(d bias is right all the same)",
        "positives are not shifted by rank * b",
        "the diagonal of the b x B block is at column 0 on every rank: all ranks' images are matched with the texts of "
        "rank 0",
        "own block has no positives on ranks > 0; block (r, 0) has positives that are negatives",
    ),
    "sends its own again": _wrong(
        sends_its_own_again,
        "in all W - 1 hops the left neighbour's (r - 1) texts arrive: their negatives count W - 1 times, those of the "
        "other ranks (not r, not r - 1) never; the own block is right. Right for W = 2; W = 4: block r - 1 three "
        "times, r - 2 and r - 3 missing",
        "the ring does not pass on what it has received",
        "rank r meets the texts of r - 1 in every hop",
        "W - 2 of the blocks of each rank are missing, one is counted W - 1 times",
    ),
    "positives in every block": _wrong(
        positives_in_every_block,
        "all W blocks of a rank have z = +1 on their diagonals: image k of r and text k of every other rank q count "
        "as a positive pair, too: B positives right and B (W - 1) negatives turned into positives",
        "negative_only is missing for the received texts",
        "labels of the blocks of other ranks: eye instead of all -1",
        "the diagonals of the off-diagonal blocks have the wrong sign",
    ),
    "global batch as divisor": _wrong(
        global_batch_as_divisor,
        "each rank divides its part by B = W b instead of b, and gradients (and values) are averaged over ranks: "
        "the value and all four gradients are 1/W of right (W = 4: 0.25)",
        "divided by the global batch although the mean over ranks follows; right if they were summed",
        "everything is too small by the factor W (world size)",
        "divisor is W times too large",
    ),
    "mean by all_reduce": _wrong(
        mean_by_all_reduce,
        "value (global) is right; all four gradients are 1/W of right: the all_reduce of the loss is not differentiated "
        "and only the division by W is (W = 4: 0.25), then the gradients are averaged besides",
        "gradients are divided by the number of ranks twice, the value once",
        "all gradients too small by W, the value right",
        value="global",
    ),
    "gradient stays where it is": _wrong(
        gradient_stays_where_it_is,
        "value, d image, d log_scale, d bias are right; row k of d text_r is t sum over all ranks q and own images i in "
        "r of G_{i, (q, k)} x_i: the gradients that rank r has computed for everybody's texts are all added to its own "
        "texts, and what other ranks have computed for its texts does not come",
        "backward of the exchange is the identity, gradients of received texts are not sent back",
        "d text: gradients of the other ranks' texts end at the wrong rank; only the own block's part is right",
    ),
    "jax: one hop too many": _wrong(
        jax_one_hop_too_many,
        "right loss plus 1/b sum over the own b x b block of softplus(l): the texts make W hops, after the last the "
        "own ones are back, and all b * b pairs of the own block, with the b positive ones, count once more, as "
        "negatives; own negatives twice, own positives once as positive and once as negative",
        "the own block is counted twice, the second time as negatives only",
        "ring with W instead of W - 1 hops",
        "blocks q != r are right; block r is met a second time without positives",
        framework="jax",
    ),
    "numpy: not home": _wrong(
        numpy_not_home,
        "value, d image, d log_scale, d bias are right; d text is complete, but lies at the wrong rank: rank r returns "
        "the right d text of rank r - 1 (mod W) (its texts travelled to the left, W - 1 hops; the last hop home is "
        "missing)",
        "d text is shifted by one rank",
        "gradients of the texts are one hop short of home",
        "the texts' gradient is that of the neighbour's texts",
        framework="numpy",
        reduce="none",
        value="global",
    ),
    "numpy: numbers stay local": _wrong(
        numpy_numbers_stay_local,
        "value, d image, d text are right; d log_scale and d bias of each rank are its own part only (its images with "
        "all texts, divided by B), not summed over ranks: the ranks' sum is right, about 1/W each",
        "Allreduce is missing for the gradients of scale and bias",
        "d log_scale and d bias differ between ranks and lack the other ranks' contributions",
        framework="numpy",
        reduce="none",
        value="global",
    ),
    "right: both neighbours": _right(right_both_neighbours, "SigLIP's own"),
    "right: rows are texts": _right(
        right_rows_are_texts,
        "SigLIP's own",
        "each rank returns the part of its texts instead of its images, their mean over ranks and all gradients are "
        "right",
    ),
}
