"""Distributed losses as users write them in Torch and JAX: right ones, and wrong ones."""

import importlib.util

import torch
import torch.distributed as dist
from torch.distributed import nn as collectives
from torch.nn import functional

# --- Torch: fn(image_shard, text_shard, scale, bias, rank, world_size)


def open_clip_loss(variant):
    """open_clip's SigLipLoss; its file imports only torch, so it is loaded without the package around it."""

    def loss(image, text, scale, bias, rank, world_size):
        folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
        spec = importlib.util.spec_from_file_location("open_clip_loss", f"{folder}/loss.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.SigLipLoss(rank=rank, world_size=world_size, dist_impl=variant)(image, text, scale, bias)

    return loss


def block_loss(image, text, scale, bias, positives):
    logits = scale * image @ text.T + bias
    sign = 2 * torch.eye(len(image), len(text)).to(logits) - 1 if positives else -torch.ones_like(logits)
    return -functional.logsigmoid(sign * logits).sum() / len(image)


def gathered(shard, rank, world_size, grad=False):
    if grad:
        return torch.cat(collectives.all_gather(shard))
    parts = [torch.zeros_like(shard) for _ in range(world_size)]
    dist.all_gather(parts, shard.detach())
    parts[rank] = shard
    return torch.cat(parts)


def own_slot(image, text, scale, bias, rank, world_size):
    images, texts = gathered(image, rank, world_size), gathered(text, rank, world_size)
    return block_loss(images, texts, scale, bias, True)


def detached_texts(image, text, scale, bias, rank, world_size):
    texts = gathered(text, rank, world_size).split(len(text))
    return sum(block_loss(image, other, scale, bias, owner == rank) for owner, other in enumerate(texts))


def local_only(image, text, scale, bias, rank, world_size):
    return block_loss(image, text, scale, bias, True)


def global_loss_with_grad(image, text, scale, bias, rank, world_size):
    """Right: the whole loss on every rank, collectives sum in the backward."""
    images, texts = (gathered(x, rank, world_size, grad=True) for x in (image, text))
    return block_loss(images, texts, scale, bias, True)


def no_rank_offset(image, text, scale, bias, rank, world_size):
    texts = gathered(text, rank, world_size, grad=True).split(len(text))
    return sum(block_loss(image, other, scale, bias, owner == 0) for owner, other in enumerate(texts))


def remote_positives(image, text, scale, bias, rank, world_size):
    texts = gathered(text, rank, world_size, grad=True).split(len(text))
    return sum(block_loss(image, other, scale, bias, True) for other in texts)


def missing_hop(image, text, scale, bias, rank, world_size):
    texts = gathered(text, rank, world_size, grad=True).split(len(text))
    owners = [(rank + hop) % world_size for hop in range(max(1, world_size - 1))]
    return sum(block_loss(image, texts[owner], scale, bias, owner == rank) for owner in owners)


def told_with_a_hole(image, text, scale, bias, rank, world_size):
    """A ring that tells its losses; on rank 1 the buffer of hop 2 was never filled."""
    texts = gathered(text, rank, world_size, grad=True).split(len(text))
    hops = []
    for hop in range(world_size):
        other = texts[(rank + hop) % world_size]
        other = torch.zeros_like(other) if (rank, hop) == (1, 2) else other
        hops.append(block_loss(image, other, scale, bias, hop == 0))
    return sum(hops), hops


def hangs(image, text, scale, bias, rank, world_size):
    if rank == 1:
        dist.recv(torch.empty_like(image), 2)
    return block_loss(image, text, scale, bias, True)


def raises_on_rank_2(image, text, scale, bias, rank, world_size):
    if rank == 2:
        raise RuntimeError("no such column")
    return global_loss_with_grad(image, text, scale, bias, rank, world_size)


# --- JAX: fn(image_shard, text_shard, log_scale, bias, *, axis_name)


def jax_block(image, text, log_scale, bias, positives):
    import jax
    import jax.numpy as jnp

    logits = jnp.exp(log_scale) * image @ text.T + bias
    sign = 2 * jnp.eye(len(image)) - 1 if positives else -jnp.ones((len(image), len(text)))
    return -jax.nn.log_sigmoid(sign.astype(logits.dtype) * logits).sum() / len(image)


def jax_ring(image, text, log_scale, bias, *, axis_name):
    import jax

    world = jax.lax.axis_size(axis_name)
    loss = jax_block(image, text, log_scale, bias, True)
    for _ in range(world - 1):
        text = jax.lax.ppermute(text, axis_name, [(i, (i - 1) % world) for i in range(world)])
        loss += jax_block(image, text, log_scale, bias, False)
    return loss


def jax_ring_stopped(image, text, log_scale, bias, *, axis_name):
    import jax

    world = jax.lax.axis_size(axis_name)
    loss = jax_block(image, text, log_scale, bias, True)
    for _ in range(world - 1):
        text = jax.lax.stop_gradient(jax.lax.ppermute(text, axis_name, [(i, (i - 1) % world) for i in range(world)]))
        loss += jax_block(image, text, log_scale, bias, False)
    return loss


# --- JAX, as big_vision writes it: the axis has a name of its own, beside the loss stand numbers to look at


def jax_terms(image, text, scale, bias, positives):
    import jax
    import jax.numpy as jnp

    logits = scale * image @ text.T + bias
    sign = 2 * jnp.eye(len(image)) - 1 if positives else -jnp.ones(logits.shape)
    return -jax.nn.log_sigmoid(sign.astype(logits.dtype) * logits).sum(-1).mean(), logits


def jax_gathered_others(image, text, scale, bias):
    """The other ranks' texts in one block."""
    import jax
    import jax.numpy as jnp

    others = jnp.roll(jax.lax.all_gather(text, "batch"), -jax.lax.axis_index("batch"), 0)[1:]
    own, logits = jax_terms(image, text, scale, bias, True)
    rest, _ = jax_terms(image, others.reshape(-1, text.shape[1]), scale, bias, False)
    return own + rest, {"lowest": logits.min(), "positives": jnp.diag(logits).mean()}


def jax_device_by_device(image, text, scale, bias):
    """A sum over ranks in which all but one give zeros, once for every device that there is."""
    import jax

    me = jax.lax.axis_index("batch")
    loss, logits = jax_terms(image, text, scale, bias, True)
    for device in range(jax.device_count()):
        other = jax.lax.psum((me == device) * text, "batch")
        loss += (me != device) * jax_terms(image, other, scale, bias, False)[0]
    return loss, {"lowest": logits.min()}


def jax_whole_loss(image, text, scale, bias, *, axis_name):
    """The loss of the gathered batch, on every rank."""
    import jax

    images, texts = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (image, text))
    return jax_terms(images, texts, scale, bias, True)[0]
