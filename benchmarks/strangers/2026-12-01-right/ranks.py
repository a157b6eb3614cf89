"""Right losses over ranks, as people really write them. For sr.check_ranks. Written on 2026-11-30 by a stranger."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F  # noqa: N812

# ---------------------------------------------------------------- torch


def gather_with_own_slot(image, text, log_scale, bias, rank, world_size):
    """all_gather passes no gradients, so the own slot gets the own tensor back; gradients are of the whole loss."""

    def gather(x):
        parts = [torch.zeros_like(x) for _ in range(world_size)]
        dist.all_gather(parts, x.detach().contiguous())
        parts[rank] = x
        return torch.cat(parts)

    images, texts = gather(image), gather(text)
    logits = log_scale.exp() * images @ texts.T + bias
    z = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(z * logits).sum() / len(logits)


def gather_with_gradient(image, text, log_scale, bias, rank, world_size):
    """Own images against the texts of all, gathered with gradients; labels at an offset."""
    texts = torch.cat(dist_nn.all_gather(text), dim=0)
    logits = image @ texts.T * log_scale.exp() + bias
    b = image.shape[0]
    labels = torch.zeros_like(logits)
    labels[torch.arange(b), rank * b + torch.arange(b)] = 1
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1).mean()


def _block(image, text, log_scale, bias, negative_only=False):
    logits = log_scale.exp() * image @ text.T + bias
    labels = -torch.ones_like(logits)
    if not negative_only:
        labels = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) + labels
    return -F.logsigmoid(labels * logits).sum() / image.shape[0]


def _shift(tensor, to_rank, from_rank):
    got = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    send = dist.P2POp(dist.isend, tensor.contiguous(), to_rank)
    receive = dist.P2POp(dist.irecv, got, from_rank)
    for request in dist.batch_isend_irecv([send, receive]):
        request.wait()
    return got


class Neighbour(torch.autograd.Function):
    @staticmethod
    def forward(ctx, to_rank, from_rank, tensor):
        ctx.to_rank, ctx.from_rank = to_rank, from_rank
        return _shift(tensor, to_rank, from_rank)

    @staticmethod
    def backward(ctx, grad):
        return None, None, _shift(grad, ctx.from_rank, ctx.to_rank)


def ring(image, text, log_scale, bias, rank, world_size):
    """Texts go to the right, one neighbour at a time; own block first."""
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _block(image, text, log_scale, bias)
    for _ in range(world_size - 1):
        text = Neighbour.apply(right, left, text)
        loss = loss + _block(image, text, log_scale, bias, negative_only=True)
    return loss


class Both(torch.autograd.Function):
    """To the right and to the left at once."""

    @staticmethod
    def forward(ctx, left, right, to_left, to_right):
        ctx.left, ctx.right = left, right
        return Both.exchange(left, right, to_left, to_right)

    @staticmethod
    def exchange(left, right, to_left, to_right):
        from_right, from_left = torch.empty_like(to_left), torch.empty_like(to_right)
        if left == right:  # two ranks: the order of messages between them must be the same
            requests = [dist.isend(to_left.contiguous(), left, tag=1), dist.isend(to_right.contiguous(), right, tag=2)]
            requests += [dist.irecv(from_right, right, tag=1), dist.irecv(from_left, left, tag=2)]
        else:
            requests = [dist.isend(to_left.contiguous(), left), dist.isend(to_right.contiguous(), right)]
            requests += [dist.irecv(from_right, right), dist.irecv(from_left, left)]
        for request in requests:
            request.wait()
        return from_right, from_left

    @staticmethod
    def backward(ctx, d_from_right, d_from_left):
        back_left, back_right = d_from_left, d_from_right
        from_right, from_left = Both.exchange(ctx.left, ctx.right, back_left, back_right)
        return None, None, from_left, from_right


def both_directions(image, text, log_scale, bias, rank, world_size):
    """open_clip's bidir: two blocks a round, a last hop to the right alone."""
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _block(image, text, log_scale, bias)
    rounds, remainder = divmod(world_size - 1, 2)
    to_left = to_right = text
    for _ in range(rounds):
        to_left, to_right = Both.apply(left, right, to_left, to_right)
        for other in (to_left, to_right):
            loss = loss + _block(image, other, log_scale, bias, negative_only=True)
    if remainder:
        other = Neighbour.apply(right, left, to_right)
        loss = loss + _block(image, other, log_scale, bias, negative_only=True)
    return loss


class GatherScatter(torch.autograd.Function):
    """One buffer with the texts of all; the backward pass is a reduce-scatter."""

    @staticmethod
    def forward(ctx, text):
        text = text.contiguous()
        whole = text.new_empty(dist.get_world_size() * text.shape[0], *text.shape[1:])
        dist.all_gather_into_tensor(whole, text)
        return whole

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        own = grad.new_empty(grad.shape[0] // dist.get_world_size(), *grad.shape[1:])
        try:
            dist.reduce_scatter_tensor(own, grad, op=dist.ReduceOp.SUM)
        except RuntimeError:  # a backend without it
            dist.all_reduce(grad)
            own.copy_(grad.chunk(dist.get_world_size())[dist.get_rank()])
        return own


def gather_and_reduce_scatter(image, text, log_scale, bias, rank, world_size):
    """Texts of all in chunks of a rank each, own chunk with positives."""
    texts = GatherScatter.apply(text)
    parts = texts.chunk(world_size)
    return sum(_block(image, part, log_scale, bias, negative_only=k != rank) for k, part in enumerate(parts))


class Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, source):
        ctx.source = source
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.broadcast(tensor, source)
        return tensor

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.reduce(grad, ctx.source, op=dist.ReduceOp.SUM)
        return (grad if dist.get_rank() == ctx.source else torch.zeros_like(grad)), None


def broadcast_loop(image, text, log_scale, bias, rank, world_size):
    """Each rank's texts in turn to everybody; the gradient is reduced to whose they are."""
    total = image.new_zeros(())
    for source in range(world_size):
        there = Broadcast.apply(text, source)
        logits = image @ there.T * log_scale.exp() + bias
        z = -torch.ones_like(logits)
        if source == rank:
            z.fill_diagonal_(1)
        total = total - F.logsigmoid(z * logits).sum()
    return total / image.shape[0]


def global_divisor(image, text, log_scale, bias, rank, world_size):
    """Parts of the whole loss: each rank divides by the global batch, gradients are to be summed. Any sizes."""
    sizes = [torch.zeros((), dtype=torch.long) for _ in range(world_size)]
    dist.all_gather(sizes, torch.tensor(len(text)))
    sizes = [int(size) for size in sizes]
    padded = F.pad(text, (0, 0, 0, max(sizes) - len(text)))
    texts = torch.cat([part[:size] for part, size in zip(dist_nn.all_gather(padded), sizes, strict=True)])
    logits = log_scale.exp() * image @ texts.T + bias
    own = sum(sizes[:rank]) + torch.arange(len(image))
    z = torch.where(own[:, None] == torch.arange(len(texts)), 1.0, -1.0).to(logits.dtype)
    return -F.logsigmoid(z * logits).sum() / sum(sizes)


# ---------------------------------------------------------------- JAX


def jax_all_gather(image, text, log_scale, bias, axis_name):
    texts = jax.lax.all_gather(text, axis_name, axis=0, tiled=True)
    logits = jnp.exp(log_scale) * image @ texts.T + bias
    b = image.shape[0]
    own = jax.lax.axis_index(axis_name) * b + jnp.arange(b)
    z = 2 * jax.nn.one_hot(own, texts.shape[0], dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum(axis=1).mean()


def jax_ring(image, text, log_scale, bias, axis_name):
    """ppermute in a Python loop, blocks under jax.checkpoint."""
    size = jax.lax.axis_size(axis_name) if hasattr(jax.lax, "axis_size") else jax.lax.psum(1, axis_name)
    order = [(k, (k - 1) % size) for k in range(size)]

    @functools.partial(jax.checkpoint, static_argnums=2)
    def block(x, y, positive):
        logits = x @ y.T * jnp.exp(log_scale) + bias
        z = (2 * jnp.eye(len(x), dtype=x.dtype) if positive else 0) - jnp.ones_like(logits)
        return jax.nn.softplus(-z * logits).sum()

    total = block(image, text, True)
    for _ in range(size - 1):
        text = jax.lax.ppermute(text, axis_name, order)
        total += block(image, text, False)
    return total / image.shape[0]


# ---------------------------------------------------------------- NumPy


def numpy_ring(image, text, log_scale, bias, comm):
    """Texts and their gradients travel together by Sendrecv; after W hops both are at home. Then numbers are summed."""
    b, size, rank = len(image), comm.size, comm.rank
    total = b * size
    t, shift = np.exp(np.asarray(log_scale, image.dtype)), np.asarray(bias, image.dtype)
    d_image = np.zeros_like(image)
    there = np.stack([text, np.zeros_like(text)])
    sums = np.zeros(3)
    for hop in range(size):
        sim = image @ there[0].T
        logits = t * sim + shift
        z = -np.ones_like(logits)
        if hop == 0:
            np.fill_diagonal(z, 1)
        g = -z * np.exp(-np.logaddexp(0, z * logits)) / total
        d_image += t * (g @ there[0])
        there[1] += t * (g.T @ image)
        sums += np.logaddexp(0, -z * logits).sum() / total, (g * sim).sum() * t.item(), g.sum()
        got = np.empty_like(there)
        comm.Sendrecv(np.ascontiguousarray(there), (rank - 1) % size, 7, got, (rank + 1) % size, 7)
        there = got
    whole = np.empty_like(sums)
    comm.Allreduce(sums, whole)
    return (
        image.dtype.type(whole[0]),
        d_image,
        there[1],
        np.full(np.shape(log_scale), whole[1], np.asarray(log_scale).dtype),
        np.full(np.shape(bias), whole[2], np.asarray(bias).dtype),
    )


# ---------------------------------------------------------------- the programs


def _right(fn, same, framework="torch", **given):
    return {"fn": fn, "framework": framework, "given": given, "truth": "SigLIP's own", "same": [same]}


PROGRAMS = {
    "right: own slot": _right(
        gather_with_own_slot,
        "all_gather without gradients of both, own slot put back, whole B x B loss on each rank; gradients are final",
        reduce="none",
        value="global",
    ),
    "right: gather with gradient": _right(gather_with_gradient, "torch.distributed.nn all_gather of texts, BCE, / b"),
    "right: ring of P2P": _right(ring, "autograd.Function with batch_isend_irecv, W - 1 hops to the right, / b"),
    "right: both directions": _right(both_directions, "open_clip's bidir, exchange with both neighbours at once"),
    "right: reduce-scatter": _right(
        gather_and_reduce_scatter, "all_gather_into_tensor, backward reduce_scatter_tensor; chunks of a rank each"
    ),
    "right: broadcasts": _right(broadcast_loop, "W broadcasts, backward is a reduce (sum) to the source"),
    "right: global divisor": _right(
        global_divisor, "divided by the global batch, parts are summed; ranks of different sizes", reduce="sum", unequal=True
    ),
    "right: JAX all_gather": _right(jax_all_gather, "tiled all_gather of texts, one_hot labels at an offset", "jax"),
    "right: JAX ring": _right(jax_ring, "ppermute to lower ranks in a Python loop, jax.checkpoint of blocks", "jax"),
    "right: NumPy Sendrecv": _right(
        numpy_ring,
        "texts and their gradients travel W hops, numbers summed by Allreduce: all is final",
        "numpy",
        reduce="none",
        value="global",
    ),
}
