"""What a scheme costs: messages and numbers sent, exactly; time and memory, by a model fitted on the machine at hand.

Time of one rank = messages * alpha + bytes * beta + pairs * (per_pair + 6 D * per_flop), less what is hidden.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mpi.comm import Array, Communicator, ThreadComm
from mpi.loss import ring_sigmoid_loss
from mpi.softmax import ring_softmax_loss
from siglip_ref.errors import UsageError

SCHEMES = ("blocking", "overlapped", "bidirectional", "autograd-like", "allgather", "masked-allreduce", "softmax ring")


class Traffic(NamedTuple):
    """What one rank sends in one loss, without the agreement before it and the sum of three numbers after it."""

    messages: int
    numbers: int  # in these messages: bytes / itemsize
    sums: int  # collective sums, and
    sum_numbers: int  # the numbers put into them


def traffic(scheme: str, sizes: Sequence[int], rank: int, dim: int) -> Traffic:
    """Exact counts for unequal shards; with b pairs on each of W ranks the rings send 2 (W-1) messages of b * D."""
    world, pairs, mine = len(sizes), sum(sizes), sizes[rank]
    before, after = sizes[rank - 1], sizes[(rank + 1) % world]
    steps = world - 1
    gradients = pairs - mine  # every gradient but the own leaves once
    if scheme in ("blocking", "overlapped", "autograd-like"):
        return Traffic(2 * steps, (pairs - before + gradients) * dim, 0, 0)  # the chunk before the own one ends here
    if scheme == "bidirectional":
        first, second = sum((n + 1) // 2 for n in sizes) - (before + 1) // 2, sum(n // 2 for n in sizes) - after // 2
        return Traffic(4 * steps, (first + second + gradients) * dim, 0, 0)
    if scheme == "allgather":
        return Traffic(2 * steps, (steps * mine + gradients) * dim, 0, 0)
    if scheme == "masked-allreduce":
        return Traffic(0, 0, 2 * world, 2 * pairs * dim)
    if scheme == "softmax ring":  # the second time a chunk takes its column's log-sum-exp along
        return Traffic(4 * steps, (pairs - before) * (2 * dim + 1) + gradients * (dim + 1), 0, 0)
    raise ValueError(scheme)


class Kept(NamedTuple):
    """Bytes that an autograd ring keeps until its backward pass: W - 1 chunks, and of W blocks logits and matches."""

    texts: float
    logits: float
    matches: float  # a byte a pair: whether it is one


def kept(world: int, b: float, dim: int, itemsize: int) -> Kept:
    """For b pairs on each of W ranks."""
    return Kept((world - 1) * b * dim * itemsize, world * b * b * itemsize, world * b * b)


def memory(scheme: str, pairs: int, world: int, dim: int, tile: int, itemsize: int) -> int:
    """Numbers that a rank holds at the peak beside its two shards: embeddings and gradients, and blocks of pairs."""
    b = pairs / world
    side = min(b, tile)
    block = 5 * side * side + 5 * side * dim  # logits, their gradient, temporaries; the block's gradients
    if scheme == "autograd-like":  # and temporaries of whole blocks
        return math.ceil(sum(kept(world, b, dim, itemsize)) / itemsize + 3 * b * dim + 6 * b * b)
    if scheme == "allgather":  # every chunk and every gradient
        return math.ceil((2 * pairs + 2 * b) * dim + block)
    if scheme == "softmax ring":
        return math.ceil(10 * b * dim + 4.5 * b * b)
    chunks = {"blocking": 8, "overlapped": 9, "bidirectional": 5, "masked-allreduce": 6}[scheme]
    return math.ceil((chunks if world > 1 else 2) * b * dim + block)


class Machine(NamedTuple):
    """Seconds for a message, a byte, a pair of either loss, an addition or multiplication of a matrix product.

    hidden : how much of the shorter one, of computing and sending, the overlapped ring hides behind the other
    both : the time that bytes take in two directions at once, as a share of that of one after the other
    """

    alpha: float
    beta: float
    per_pair: float
    per_softmax_pair: float
    per_flop: float
    hidden: float = 1.0
    both: float = 0.5


def fit(comm: Communicator, dtype: str, tile: int) -> Machine:
    """Measure this machine, all ranks at once, so that shared cores and memory are in the numbers."""
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    small, large, largest = 8, 1 << 18, 1 << 21  # a link may let a little pass at once, and the rest at its rate

    def message(size: int) -> Callable[[], object]:
        out, back = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        return lambda: comm.Sendrecv(out, left, 0, back, right, 0)

    alpha, some, more = (_typical(comm, message(size), 15) for size in (small, large, largest))
    beta = (more - some) / (largest - large)

    alone = ThreadComm.alone()

    def whole(dim: int) -> float:
        """A pair's share of a loss without messages, all its arrays and tiles in it."""
        x = np.full((4 * tile, dim), dim**-0.5, dtype)
        return _typical(comm, lambda: ring_sigmoid_loss(alone, x, x, 0.0, 0.0, tile=tile), 9) / (4 * tile) ** 2

    x = np.full((2 * tile, 16), 0.25, dtype)
    softmax = _typical(comm, lambda: ring_softmax_loss(alone, x, x, 0.0, [2 * tile]), 9) / (2 * tile) ** 2
    narrow, wide = whole(16), whole(512)
    per_flop = max(wide - narrow, 0.0) / (6 * (512 - 16))
    per_pair, softmax_pair = narrow - 6 * 16 * per_flop, softmax - 8 * 16 * per_flop
    machine = Machine(max(alpha, 0.0), max(beta, 0.0), max(per_pair, 0.0), max(softmax_pair, 0.0), per_flop)
    side = min(tile, 128)
    return _with_overlap(comm, machine, np.full((4 * side, 512), 512**-0.5, dtype), side)


def _with_overlap(comm: Communicator, machine: Machine, x: Array, tile: int) -> Machine:
    """What sending beside computing, and in two directions at once, saves here: a link may be shared, or a core."""

    def loss(scheme: str) -> Callable[[], object]:
        return lambda: ring_sigmoid_loss(comm, x, x, 0.0, 0.0, scheme=scheme, tile=tile)

    one, over, two = (_typical(comm, loss(scheme), 9) for scheme in ("blocking", "overlapped", "bidirectional"))
    sent = traffic("blocking", [len(x)] * comm.size, 0, x.shape[1])
    wait, carrying = _on_the_way(machine, sent, x.itemsize)
    talk = min(max(wait + carrying, 0.01 * one), 0.95 * one)
    compute = one - talk
    hidden = (one - over) / min(compute, talk)
    both = (two - compute - wait) / max(carrying, 0.01 * one)
    return machine._replace(hidden=float(np.clip(hidden, 0, 1)), both=float(np.clip(both, 0.5, 2)))


def _on_the_way(machine: Machine, sent: Traffic, itemsize: int) -> tuple[float, float]:
    """Seconds for which messages are waited for, and for which their bytes are carried, one after the other."""
    return sent.messages * machine.alpha, sent.numbers * itemsize * machine.beta


def seconds(machine: Machine, scheme: str, pairs: int, world: int, dim: int, itemsize: int) -> float:
    """Predicted time of one loss with all gradients, on equal shards."""
    per_pair = machine.per_pair + 6 * dim * machine.per_flop  # the logits, and two products backward
    if scheme == "softmax ring":
        per_pair = machine.per_softmax_pair + 8 * dim * machine.per_flop  # the logits twice
    compute = pairs / world * pairs * per_pair
    sent = traffic(scheme, [pairs // world] * world, 0, dim)
    wait, carrying = _on_the_way(machine, sent, itemsize)
    if scheme == "bidirectional":  # its messages leave in pairs
        return compute + wait / 2 + carrying * machine.both
    if scheme == "overlapped":
        return compute + wait + carrying - machine.hidden * min(compute, wait + carrying)
    if scheme == "masked-allreduce":  # of the usual algorithm: W-1 steps to add up, W-1 to spread the result
        steps = 2 * (world - 1)
        one = steps * machine.alpha + steps / world * (pairs // world) * dim * itemsize * machine.beta
        return compute + sent.sums * one
    return compute + wait + carrying


def predictions(machine: Machine, dim: int, dtype: str, tile: int) -> str:
    """One table: the paper's batch sizes on 4 to 4,096 ranks."""
    itemsize = np.dtype(dtype).itemsize
    lines = [
        f"predicted for D = {dim}, {dtype}, tile {tile}; one loss with gradients, per rank; memory beside its shards",
        f"{'pairs':>9} {'ranks':>5}  {'scheme':<16} {'seconds':>10} {'messages':>9} {'MB sent':>10} {'MB peak':>10}",
    ]
    for pairs in (32_768, 131_072, 1_048_576):
        for world in (4, 64, 512, 4096):
            for scheme in SCHEMES:
                sent = traffic(scheme, [pairs // world] * world, 0, dim)
                count = sent.messages or sent.sums
                megabytes = (sent.numbers or sent.sum_numbers) * itemsize / 1e6
                held = memory(scheme, pairs, world, dim, tile, itemsize) * itemsize / 1e6
                took = seconds(machine, scheme, pairs, world, dim, itemsize)
                lines.append(
                    f"{pairs:>9,} {world:>5}  {scheme:<16} {took:>10.3f} {count:>9,} {megabytes:>10,.1f} {held:>10,.1f}"
                )
    lines.append("masked-allreduce: the numbers put into its sums; an MPI library sends up to twice as many for them")
    return "\n".join(lines)


def measured_against_predicted(
    comm: Communicator, machine: Machine, pairs: int, dim: int, dtype: str, tile: int
) -> str:
    """Every scheme, run and predicted."""
    b = pairs // comm.size
    rng = np.random.default_rng(comm.rank)
    x, y = (rng.normal(size=(b, dim)).astype(dtype) / math.sqrt(dim) for _ in range(2))
    lines = [
        f"{comm.size} ranks, {b * comm.size:,} pairs, D = {dim}, {dtype}",
        f"{'scheme':<16} {'measured s':>11} {'predicted s':>12} {'ratio':>6}",
    ]

    def run(scheme: str) -> Callable[[], object]:
        if scheme == "softmax ring":
            return lambda: ring_softmax_loss(comm, x, y, 1.0, [b] * comm.size)
        return lambda: ring_sigmoid_loss(comm, x, y, 1.0, -5.0, scheme=scheme, tile=tile)

    for scheme in SCHEMES:
        took = _typical(comm, run(scheme), 3)
        model = seconds(machine, scheme, b * comm.size, comm.size, dim, np.dtype(dtype).itemsize)
        lines.append(f"{scheme:<16} {took:>11.4f} {model:>12.4f} {took / model:>6.2f}")
    return "\n".join(lines)


def report(comm: Communicator, pairs: int, dim: int, dtype: str, tile: int) -> str:
    """What `siglip-ring loss --predict` prints."""
    if comm.size < 2:
        raise UsageError("two ranks or more", "one", "nothing is sent", "mpiexec -n 2 siglip-ring loss --predict")
    machine = fit(comm, dtype, min(tile, 512))
    fitted = (
        f"fitted here: a message {machine.alpha * 1e6:.1f} us, {1e-9 / max(machine.beta, 1e-15):.2f} GB/s, "
        f"a pair {machine.per_pair * 1e9:.2f} ns, matrix products {1e-9 / max(machine.per_flop, 1e-15):.0f} Gflop/s"
    )
    checked = measured_against_predicted(comm, machine, pairs, dim, dtype, tile)
    return "\n\n".join([fitted, checked, predictions(machine, dim, dtype, tile)])


def _typical(comm: Communicator, action: Callable[[], object], repeats: int) -> float:
    """Median time of an action that all ranks start together; the mean over the ranks."""
    token, times = np.zeros(1), []
    for _ in range(repeats + 1):
        comm.Allreduce(token, np.empty_like(token))
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    total = np.zeros(1)
    comm.Allreduce(np.array([float(np.median(times[1:]))]), total)
    return float(total[0]) / comm.size
