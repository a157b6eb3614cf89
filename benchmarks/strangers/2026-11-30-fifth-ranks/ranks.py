"""Programs over ranks; most of them are wrong. W ranks, b pairs of one rank, B pairs of all ranks.

Notation of the truths: x images, y texts, l = exp(log_scale) x.y + bias, softplus(-z l) with z = 1 for a match and -1
for any other pair; "own block": a rank's images with its own texts; "remote blocks": with the texts of other ranks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from jax import lax

from mpi.comm import ThreadComm

# ---------------------------------------------------------------------------------------------- torch: what moves


def swap(outgoing, to, origin, tag=0):
    """Send a tensor to one rank, receive one of the same shape from another."""
    incoming = torch.empty_like(outgoing)
    sending = dist.isend(outgoing.contiguous(), to, tag=tag)
    dist.recv(incoming, origin, tag=tag)
    sending.wait()
    return incoming


class Shift(torch.autograd.Function):
    """One hop of a ring; the gradient goes back the way the tensor came."""

    @staticmethod
    def forward(ctx, rows, to, origin):
        ctx.way = to, origin
        return swap(rows, to, origin)

    @staticmethod
    def backward(ctx, grad):
        to, origin = ctx.way
        return swap(grad, origin, to), None, None


class ShiftBothWays(torch.autograd.Function):
    """A hop to the left and one to the right at once."""

    @staticmethod
    def forward(ctx, for_left, for_right, left, right):
        ctx.way = left, right
        return swap(for_left, left, right, 1), swap(for_right, right, left, 2)

    @staticmethod
    def backward(ctx, grad_of_from_right, grad_of_from_left):
        left, right = ctx.way
        return swap(grad_of_from_right, right, left, 1), swap(grad_of_from_left, left, right, 2), None, None


class Gather(torch.autograd.Function):
    """Everybody's rows, in the order of the ranks; the gradients are summed at their owner."""

    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx, *grads):
        total = torch.stack(grads)
        dist.all_reduce(total)
        return total[dist.get_rank()]


class CompressedGather(torch.autograd.Function):
    """The same with half the bytes, modelled on DDP's bf16_compress_hook."""

    @staticmethod
    def forward(ctx, rows):
        ctx.kind = rows.dtype
        small = rows.to(torch.bfloat16).contiguous()
        parts = [torch.empty_like(small) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, small)
        return tuple(part.to(rows.dtype) for part in parts)

    @staticmethod
    def backward(ctx, *grads):
        small = torch.stack(grads).to(torch.bfloat16).div_(dist.get_world_size())
        dist.all_reduce(small)
        return small[dist.get_rank()].to(ctx.kind)


def logits_of(image, text, log_scale, bias):
    return log_scale.exp() * image @ text.T + bias


def own_part(image, text, log_scale, bias):
    """The sum over a block that has its matches on the diagonal."""
    logits = logits_of(image, text, log_scale, bias)
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return F.softplus(-sign * logits).sum()


def other_part(image, text, log_scale, bias):
    """The sum over a block that has none."""
    return F.softplus(logits_of(image, text, log_scale, bias)).sum()


# --------------------------------------------------------------------------------------------------- torch: wrong


def gather_own_first(image, text, log_scale, bias, rank, world_size):
    parts = list(Gather.apply(text))
    own = parts.pop(rank)
    everything = torch.cat([own, *parts])
    logits = logits_of(image, everything, log_scale, bias)
    labels = rank * len(image) + torch.arange(len(image), device=image.device)
    sign = 2 * F.one_hot(labels, len(everything)).to(logits.dtype) - 1
    return F.softplus(-sign * logits).sum() / len(image)


def both_ways_in_half_the_rounds(image, text, log_scale, bias, rank, world_size):
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    total = own_part(image, text, log_scale, bias)
    from_right = from_left = text
    for _ in range(world_size // 2):
        from_right, from_left = ShiftBothWays.apply(from_right, from_left, left, right)
        total = total + other_part(image, from_right, log_scale, bias)
        total = total + other_part(image, from_left, log_scale, bias)
    return total / len(image)


def micro_batches_on_the_ring(image, text, log_scale, bias, rank, world_size):
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    total = 0
    for x, y in zip(image.chunk(2), text.chunk(2), strict=True):
        total = total + own_part(x, y, log_scale, bias)
        for _ in range(world_size - 1):
            y = Shift.apply(y, left, right)
            total = total + other_part(x, y, log_scale, bias)
    return total / len(image)


def send_before_the_norm(image, text, log_scale, bias, rank, world_size):
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    visitor = Shift.apply(text, left, right) if world_size > 1 else None
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    total = own_part(image, text, log_scale, bias)
    for hop in range(1, world_size):
        total = total + other_part(image, visitor, log_scale, bias)
        if hop < world_size - 1:
            visitor = Shift.apply(visitor, left, right)
    return total / len(image)


def compressed_gather(image, text, log_scale, bias, rank, world_size):
    total = own_part(image, text, log_scale, bias)
    for owner, part in enumerate(CompressedGather.apply(text)):
        if owner != rank:
            total = total + other_part(image, part, log_scale, bias)
    return total / len(image)


_EARLIER = {}


def gather_of_the_step_before(image, text, log_scale, bias, rank, world_size):
    now = [torch.empty_like(text) for _ in range(world_size)]
    dist.all_gather(now, text.detach().contiguous())
    key = tuple(text.shape), text.dtype, rank, world_size
    parts = _EARLIER.get(key, now)
    _EARLIER[key] = now
    total = own_part(image, text, log_scale, bias)
    for owner, part in enumerate(parts):
        if owner != rank:
            total = total + other_part(image, part, log_scale, bias)
    return total / len(image)


def padded_to_the_longest(image, text, log_scale, bias, rank, world_size):
    longest = torch.tensor(len(text))
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    longest = int(longest)
    padded = F.pad(text, (0, 0, 0, longest - len(text)))
    total = 0
    for owner, part in enumerate(Gather.apply(padded)):
        logits = logits_of(image, part, log_scale, bias)
        sign = -torch.ones_like(logits)
        if owner == rank:
            sign.fill_diagonal_(1)
        total = total + F.softplus(-sign * logits).sum()
    return total / longest


# ----------------------------------------------------------------------------------------------------- jax: wrong


def jax_block(image, text, log_scale, bias, sign):
    return jax.nn.softplus(-sign * (jnp.exp(log_scale) * image @ text.T + bias)).sum()


def permute_without_the_wrap(image, text, log_scale, bias, axis_name="ranks"):
    world, pairs = lax.axis_size(axis_name), len(image)
    total = jax_block(image, text, log_scale, bias, 2 * jnp.eye(pairs, dtype=image.dtype) - 1)
    for _ in range(world - 1):
        text = lax.ppermute(text, axis_name, [(k, k + 1) for k in range(world - 1)])
        total = total + jax_block(image, text, log_scale, bias, -1)
    return total / pairs


def roll_by_ranks(image, text, log_scale, bias, axis_name="ranks"):
    pairs = len(image)
    everything = lax.all_gather(text, axis_name, tiled=True)
    everything = jnp.roll(everything, -lax.axis_index(axis_name), axis=0)
    total = jax_block(image, everything[:pairs], log_scale, bias, 2 * jnp.eye(pairs, dtype=image.dtype) - 1)
    return (total + jax_block(image, everything[pairs:], log_scale, bias, -1)) / pairs


def scan_all_the_way_round(image, text, log_scale, bias, axis_name="ranks"):
    world, pairs = lax.axis_size(axis_name), len(image)
    own = jax_block(image, text, log_scale, bias, 2 * jnp.eye(pairs, dtype=image.dtype) - 1)

    def hop(carry, _):
        visitor, total = carry
        visitor = lax.ppermute(visitor, axis_name, [(k, (k - 1) % world) for k in range(world)])
        return (visitor, total + jax_block(image, visitor, log_scale, bias, -1)), None

    (_, total), _ = lax.scan(hop, (lax.stop_gradient(text), own), None, length=world)
    return total / pairs


# --------------------------------------------------------------------------------------------------- numpy: wrong


def numpy_block(image, text, log_scale, bias, own):
    """Sums over a block: the loss and its gradients."""
    scale, similarity = np.exp(log_scale), image @ text.T
    sign = 2 * np.eye(len(image), len(text), dtype=image.dtype) - 1 if own else -np.ones_like(similarity)
    logits = scale * similarity + bias
    loss = np.logaddexp(0, -sign * logits).sum()
    g = -sign * (0.5 * (1 - np.tanh(sign * logits / 2)))
    return loss, scale * (g @ text), scale * (g.T @ image), scale * (g * similarity).sum(), g.sum()


def finish(comm, pairs, loss, d_image, d_text, d_log_scale, d_bias):
    """The totals over ranks, and the division by the number of all pairs."""
    mine = np.array([loss, d_log_scale, d_bias, pairs], np.float64)
    total = np.empty_like(mine)
    comm.Allreduce(mine, total)
    loss, d_log_scale, d_bias, everybody = total
    kind = d_image.dtype.type
    return (
        kind(loss / everybody),
        (d_image / everybody).astype(kind),
        (d_text / everybody).astype(kind),
        kind(d_log_scale / everybody),
        kind(d_bias / everybody),
    )


def gradient_leaves_first(image, text, log_scale, bias, comm):
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    loss, d_image, d_own, d_log_scale, d_bias = numpy_block(image, text, log_scale, bias, True)
    visitor, travelling = np.ascontiguousarray(text), np.zeros_like(text)
    for hop in range(1, comm.size):
        incoming, arriving = np.empty_like(text), np.empty_like(text)
        waiting = [comm.Irecv(incoming, right, hop), comm.Irecv(arriving, right, 1000 + hop)]
        waiting += [comm.Isend(visitor, left, hop), comm.Isend(travelling, left, 1000 + hop)]
        for request in waiting[:2]:
            request.Wait()
        found = numpy_block(image, incoming, log_scale, bias, False)
        loss, d_image = loss + found[0], d_image + found[1]
        d_log_scale, d_bias = d_log_scale + found[3], d_bias + found[4]
        for request in waiting[2:]:
            request.Wait()
        visitor = incoming
        if hop == comm.size - 1:
            travelling = np.ascontiguousarray((arriving + found[2]).astype(text.dtype))
        else:
            travelling = arriving
    if comm.size > 1:
        home = np.empty_like(text)
        comm.Sendrecv(travelling, left, 9, home, right, 9)
        d_own = d_own + home
    return finish(comm, len(image), loss, d_image, d_own, d_log_scale, d_bias)


def scaled_before_it_is_sent(image, text, log_scale, bias, comm):
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    loss, d_image, d_own, d_log_scale, d_bias = numpy_block(image, text, log_scale, bias, True)
    visitor = np.ascontiguousarray((np.exp(log_scale) * text).astype(text.dtype))
    travelling = np.zeros_like(visitor)
    for hop in range(1, comm.size):
        incoming, arriving = np.empty_like(visitor), np.empty_like(visitor)
        comm.Sendrecv(visitor, left, hop, incoming, right, hop)
        comm.Sendrecv(travelling, left, 1000 + hop, arriving, right, 1000 + hop)
        visitor = incoming
        product = image @ visitor.T
        logits = product + bias
        g = 0.5 * (1 + np.tanh(logits / 2))
        loss, d_image = loss + np.logaddexp(0, logits).sum(), d_image + g @ visitor
        d_log_scale, d_bias = d_log_scale + (g * product).sum(), d_bias + g.sum()
        travelling = np.ascontiguousarray((arriving + g.T @ image).astype(visitor.dtype))
    if comm.size > 1:
        home = np.empty_like(travelling)
        comm.Sendrecv(travelling, left, 9, home, right, 9)
        d_own = d_own + home
    return finish(comm, len(image), loss, d_image, d_own, d_log_scale, d_bias)


# ----------------------------------------------------------------------------------------------------------- right


def images_travel(image, text, log_scale, bias, rank, world_size):
    """A rank owns columns, not rows; the value is made global without touching the gradient."""
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    total = own_part(image, text, log_scale, bias)
    visitor = image
    for _ in range(world_size - 1):
        visitor = Shift.apply(visitor, right, left)
        total = total + other_part(visitor, text, log_scale, bias)
    local = total / len(text)
    everywhere = local.detach().clone()
    dist.all_reduce(everywhere)
    return local + (everywhere / world_size - local.detach())


def numbers_travel_along(image, text, log_scale, bias, axis_name="ranks"):
    """Own block last; each text carries its number, so no block is special."""
    world, pairs = lax.axis_size(axis_name), len(image)
    mine = lax.axis_index(axis_name) * pairs + jnp.arange(pairs)
    numbers, total = mine, 0.0
    for _ in range(world):
        text, numbers = (lax.ppermute(a, axis_name, [(k, (k + 1) % world) for k in range(world)]) for a in (text, numbers))
        logits = bias + (image @ text.T) * jnp.exp(log_scale)
        total = total - jax.nn.log_sigmoid(jnp.where(mine[:, None] == numbers[None, :], logits, -logits)).sum()
    return total / pairs


RING = {"ranks": ThreadComm.run, "reduce": "none", "value": "global"}

PROGRAMS = {
    "gather, own texts first": {
        "fn": gather_own_first,
        "framework": "torch",
        "given": {},
        "truth": "Every pair is met once, but the matches are misplaced: on rank 0 image i matches its own text i (right); "
        "on rank r >= 1 image i of rank r matches text i of rank r - 1, and its own text is a negative. "
        "(Gathered texts are in the order own, 0, 1, ..., labels are still rank b + i.)",
        "same": [
            "positives on all ranks but rank 0 are the texts of the rank before",
            "the labels' offset rank * b does not fit texts with the own ones first",
        ],
    },
    "bidirectional in W // 2 rounds": {
        "fn": both_ways_in_half_the_rounds,
        "framework": "torch",
        "given": {},
        "truth": "If W is even, the block with the texts of rank r + W/2 (the opposite rank; the other one if W is 2) is "
        "counted twice, in the loss and all gradients; if W is odd everything is right.",
        "same": [
            "for even numbers of ranks one remote block has weight 2",
            "the last round of the bidirectional ring goes both ways though both bring the same texts",
        ],
    },
    "micro-batches on the ring": {
        "fn": micro_batches_on_the_ring,
        "framework": "torch",
        "given": {},
        "truth": "Each shard is cut into two halves (first half larger if b is odd), and an image meets only texts of the "
        "half with the same number, of every rank; the negatives of the other half are missing, in the own block too. "
        "Divisor b, as it should be.",
        "same": [
            "pairs of an image and a text of different halves of their shards are left out",
            "negatives only within a micro-batch (two per rank)",
        ],
    },
    "texts sent before they are normalised": {
        "fn": send_before_the_norm,
        "framework": "torch",
        "given": {"embeddings": "raw"},
        "truth": "Images and own texts are normalised, but in the remote blocks the texts are raw, not normalised: "
        "l = exp(log_scale) x/|x| . y + bias there; the remote part of the text gradient is that of the raw text. "
        "The own block is right.",
        "same": ["the texts of other ranks are not normalised"],
    },
    "compressed gather": {
        "fn": compressed_gather,
        "framework": "torch",
        "given": {},
        "truth": "Two mistakes. Texts of other ranks are rounded to bfloat16 (remote blocks only; own block exact). And the "
        "text gradient that comes from other ranks' images is averaged over ranks instead of summed: its remote part is "
        "1/W of what it should be (and rounded to bfloat16); its own-block part is right.",
        "same": [
            "remote part of d_text_embed divided by W",
            "the gather's backward takes the mean, and what is sent is bfloat16",
        ],
    },
    "texts of the step before": {
        "fn": gather_of_the_step_before,
        "framework": "torch",
        "given": {},
        "truth": "Two mistakes. The texts of other ranks are those of the previous call with the same shapes (at the first "
        "call: of this call), so remote negatives are stale; and they have no gradient: d_text_embed has only the part of "
        "the own block. On a first call, loss, d_image_embed, d_log_scale and d_bias are right.",
        "same": [
            "gathered texts are detached, and one call late",
            "the function keeps state: remote texts come from a cache",
        ],
    },
    "padded to the longest shard": {
        "fn": padded_to_the_longest,
        "framework": "torch",
        "given": {"unequal": True},
        "truth": "Right with equal shards. With unequal ones two mistakes: shards of texts are padded with zero rows to the "
        "longest, and the padding counts as negatives (each image gets W bmax - B extra terms softplus(bias), which change "
        "loss and d_bias only); and the sum is divided by bmax, the size of the longest shard, instead of B / W "
        "(so the global divisor is W bmax instead of B, for the loss and all gradients).",
        "same": ["padding is not masked", "divides by W times the largest shard"],
    },
    "ppermute without the wrap": {
        "fn": permute_without_the_wrap,
        "framework": "jax",
        "given": {},
        "truth": "The ring is open: texts move from rank k to k + 1 but not from the last to the first, and who receives "
        "nothing gets zeros. Rank r meets only the texts of the ranks <= r; in place of the texts of each of the W - 1 - r "
        "higher ranks it has b zero rows, whose logits are the bias: b softplus(bias) per image and block. So texts get no "
        "gradient from images of lower ranks; zero rows add to d_bias but not to the other gradients.",
        "same": [
            "blocks with texts of higher ranks are replaced by softplus(bias)",
            "the permutation is not cyclic",
        ],
    },
    "roll by ranks, not rows": {
        "fn": roll_by_ranks,
        "framework": "jax",
        "given": {},
        "truth": "Every pair is met once, but the matches are misplaced: image i of rank r matches the text with the global "
        "number r + i (modulo B) instead of r b + i. Right on rank 0.",
        "same": [
            "gathered texts are rolled by the rank instead of rank times b",
            "on rank r the positive is r rows from the start of all texts",
        ],
    },
    "scan all the way round": {
        "fn": scan_all_the_way_round,
        "framework": "jax",
        "given": {},
        "truth": "Two mistakes. W hops instead of W - 1: the own texts come home and the own block is counted a second time "
        "with all its pairs, the matches too, as negatives. And texts that travel have no gradient (stop_gradient): "
        "d_text_embed has only the part of the own block with its matches; the images of other ranks, and the second "
        "counting of the own block, give it nothing.",
        "same": [
            "own block twice, once as negatives only; and no text gradient from other ranks",
            "one hop too many; remote texts detached",
        ],
    },
    "gradient leaves before the block is added": {
        "fn": gradient_leaves_first,
        "framework": "numpy",
        "given": RING,
        "truth": "Loss, d_image_embed, d_log_scale, d_bias right. d_text_embed of rank k has only two parts: of the own block, "
        "and of the images of rank k + 1 (the last one that its texts visit); the parts of the ranks visited at the hops "
        "1 to W - 2 are lost. Right with 2 ranks.",
        "same": ["text gradients from all visited ranks but the last are lost"],
    },
    "scaled before it is sent": {
        "fn": scaled_before_it_is_sent,
        "framework": "numpy",
        "given": RING,
        "truth": "Loss, d_image_embed, d_log_scale, d_bias right. The part of d_text_embed that comes from other ranks' images "
        "lacks the factor exp(log_scale); the part of the own block has it.",
        "same": [
            "remote part of d_text_embed is that of exp(log_scale) y instead of y",
            "remote part of d_text_embed divided by the scale",
        ],
    },
    "right: images travel, value made global": {
        "fn": images_travel,
        "framework": "torch",
        "given": {"value": "global"},
        "truth": "SigLIP's own",
        "same": [],
    },
    "right: numbers travel with the texts, own block last": {
        "fn": numbers_travel_along,
        "framework": "jax",
        "given": {},
        "truth": "SigLIP's own",
        "same": [],
    },
}
