"""SigLIP in DistributedDataParallel (DDP): the ring's gradients times W, because DDP takes the mean over ranks.

python examples/ddp.py                              four processes with gloo on this machine
torchrun --nproc-per-node 4 examples/ddp.py         the same, started by Torch

Prints each gradient as a multiple of the one that a single process computes for the whole batch: 1 is right.
"""

import math
import os
import tempfile

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
from torch.nn.parallel import DistributedDataParallel

from mpi.loss import ring_sigmoid_loss

WORLD, PAIRS = 4, 8  # pairs of the whole batch


class Ranks:
    """torch.distributed with what the ring needs; the names are those of MPI."""

    def __init__(self):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def Sendrecv(self, sendbuf, dest, sendtag, recvbuf, source, recvtag):  # noqa: N802  # MPI's names
        sending = dist.isend(torch.from_numpy(np.ascontiguousarray(sendbuf)), dest, tag=sendtag)
        dist.recv(torch.from_numpy(recvbuf), source, tag=recvtag)
        sending.wait()

    def Allreduce(self, sendbuf, recvbuf):  # noqa: N802  # MPI's names
        recvbuf[...] = sendbuf
        dist.all_reduce(torch.from_numpy(recvbuf))


class RingLoss(torch.autograd.Function):
    """The loss of the global batch; the gradients of this rank's embeddings times `factor`."""

    @staticmethod
    def forward(ctx, image_embed, text_embed, log_scale, bias, factor):
        found = ring_sigmoid_loss(Ranks(), image_embed.numpy(), text_embed.numpy(), log_scale.item(), bias.item())
        ctx.factor, ctx.gradients = factor, [torch.from_numpy(np.asarray(part)) for part in found[1:]]
        return torch.tensor(found.loss.item(), dtype=image_embed.dtype)

    @staticmethod
    def backward(ctx, d_loss):
        d_image_embed, d_text_embed, d_log_scale, d_bias = (d_loss * part for part in ctx.gradients)
        # an average over ranks leaves log_scale and bias as they are: they are the same on every rank
        return ctx.factor * d_image_embed, ctx.factor * d_text_embed, d_log_scale, d_bias, None


class Model(torch.nn.Module):
    """Two towers of one layer; the loss is computed inside, so that DDP sees every parameter used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image_tower = torch.nn.Linear(12, 6, bias=False)
        self.text_tower = torch.nn.Linear(9, 6, bias=False)
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = torch.nn.Parameter(torch.tensor(-3.0))
        self.double()

    def forward(self, images, texts, loss):
        x, y = F.normalize(self.image_tower(images), dim=1), F.normalize(self.text_tower(texts), dim=1)
        return loss(x, y, self.log_scale, self.bias)


def one_process_loss(x, y, log_scale, bias):
    """The definition: the sum over all pairs, divided by the number of images."""
    sign = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return F.softplus(-sign * (log_scale.exp() * x @ y.T + bias)).sum() / len(x)


def gradients(model, batches, loss):
    """Of each parameter, over the micro-batches of one step; each loss is divided by their number."""
    model.zero_grad()
    for k, (images, texts) in enumerate(batches):
        model.require_backward_grad_sync = k == len(batches) - 1  # as DDP's no_sync(): one message at the end
        (model(images, texts, loss) / len(batches)).backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}


def multiples(found, right):
    """Each gradient as a multiple of the right one."""
    return ", ".join(
        f"{name.removesuffix('.weight')} {(found[name] * g).sum() / (g * g).sum():.4f}" for name, g in right.items()
    )


def work(rank, world, meet):
    """What one rank does; `meet` says how the ranks find one another."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    rng = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(PAIRS, width, generator=rng, dtype=torch.float64) for width in (12, 9))
    each = PAIRS // world
    mine = slice(rank * each, (rank + 1) * each)
    whole = gradients(Model(), [(images, texts)], one_process_loss)
    ddp = DistributedDataParallel(Model())

    rows = []
    for factor in (world, 1):
        found = gradients(ddp, [(images[mine], texts[mine])], lambda *batch, f=factor: RingLoss.apply(*batch, f))
        rows.append((f"times {factor}", multiples(found, whole)))
    # two micro-batches: the first pair of every rank, then the second
    halves = [(images[k::2], texts[k::2]) for k in (0, 1)]
    small = [(images[mine][k::2], texts[mine][k::2]) for k in (0, 1)]
    found = gradients(ddp, small, lambda *batch: RingLoss.apply(*batch, world))
    rows.append(("two micro-batches, against the whole batch", multiples(found, whole)))
    rows.append(
        ("two micro-batches, against their mean", multiples(found, gradients(Model(), halves, one_process_loss)))
    )
    if rank == 0:
        print("\n".join(f"{name}: {row}" for name, row in rows))
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:  # started by torchrun
        work(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://")
    else:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(work, (WORLD, f"file://{folder}/ranks"), nprocs=WORLD)
