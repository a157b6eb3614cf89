"""Rings broken on purpose: each is mpi/ and one edited line. What goes wrong is run, and judged by the checker."""

# ruff: noqa: N802 - methods have the names that MPI gave them

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import siglip_ref as sr
from mpi.batch import Job, bias_of, make_batch
from mpi.comm import Array, Communicator, Request, ThreadComm, Wrapper
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.report.data import Report

MPI = Path(__file__).parent.parent / "mpi"
WORLD, PAIRS, WIDTH = 4, 8, 3


@dataclass(frozen=True)
class Break:
    """One change of the ring.

    told : what is done; brief : the same for the handout, where the catalogue has no words for it
    named : what the checker must call it; reduce : what is done to gradients after it; here : what its repair leaves
    open, for it judges numbers and does not see this ring.
    """

    name: str
    title: str
    told: str
    file: str
    old: str
    new: str
    named: str
    scheme: str = "blocking"
    reduce: str = "none"
    here: str = ""
    brief: str = ""


BREAKS = (
    Break(
        "forget",
        "Forget hop W - 1",
        "Hop W - 1 computes nothing. The images of every rank never meet the texts of one other rank.",
        "mpi/ring.py",
        "        answer = visit((rank + hop) % world, held)",
        "        answer = visit((rank + hop) % world, held) if hop < world - 1 else np.zeros_like(held)",
        "ring-hop-missing",
    ),
    Break(
        "reuse",
        "Forget the last exchange of texts",
        "At hop W - 1 the texts of hop W - 2 are still in the buffer, and are used again as if they were new.",
        "mpi/ring.py",
        "        held = move(CHUNK, held, chunks, hop)",
        "        held = move(CHUNK, held, chunks, hop) if hop < max(2, world - 1) else held",
        "ring-hop-repeated",
    ),
    Break(
        "early",
        "Do not wait for the message",
        "At hop 1 the block is computed before the message has arrived: the buffer holds zeros.",
        "mpi/ring.py",
        "        answer = visit((rank + hop) % world, held)",
        "        answer = visit((rank + hop) % world, held if hop > 1 else np.zeros_like(held))",
        "ring-received-buffer-zero",
    ),
    Break(
        "twice",
        "Count the own block twice",
        "The block of the own texts is computed at home, and again as if they were another rank's, without matches.",
        "mpi/ring.py",
        "    at_home = visit(rank, held)",
        "    at_home = visit(rank, held) + visit(rank + world, held)",
        "ring-own-block-double-counted",
    ),
    Break(
        "average",
        "Divide by W",
        "The embeddings' gradients are divided by W, although each is complete at its owner. The checker reads "
        "the factor off, 1/W, and says by what to multiply.",
        "mpi/loss.py",
        "    return LossAndGrads(loss, home.d_image_embed / sum(sizes), d_text_embed / sum(sizes), d_log_scale, "
        "d_bias)",
        "    d_image_embed, d_text_embed = home.d_image_embed / comm.size, d_text_embed / comm.size\n"
        "    return LossAndGrads(loss, d_image_embed / sum(sizes), d_text_embed / sum(sizes), d_log_scale, d_bias)",
        "derived",
        here="do not divide. Each gradient that comes home is complete.",
    ),
    Break(
        "astray",
        "Forget the move home",
        "After hop W - 1 no gradient is sent. Every rank adds the gradient of its left neighbour's texts to its own.",
        "mpi/ring.py",
        "    return combine(at_home, move(ANSWER, travelling, answers, world))",
        "    return combine(at_home, travelling)",
        "text-grad-to-wrong-rank",
    ),
    Break(
        "positives",
        "Matches in every block",
        "The diagonal of every block counts as matches, also where the texts are another rank's.",
        "mpi/loss.py",
        "                if owner == self.rank:  # only at home do an image and a text of one number belong together",
        "                if True:",
        "remote-diagonal-as-positive",
    ),
    Break(
        "local",
        "Divide by b",
        "The sums are divided by one rank's images instead of all: loss and gradients are W times too large. "
        "(The catalogue's ring-local-b2 is another one: there each block is divided by b, and the sum by B as well.)",
        "mpi/loss.py",
        "    loss, d_log_scale, d_bias = (totals.reshape(-1, 3).sum(0) / sum(sizes)).astype(image_embed.dtype)\n"
        "    return LossAndGrads(loss, home.d_image_embed / sum(sizes), d_text_embed / sum(sizes), d_log_scale, "
        "d_bias)",
        "    loss, d_log_scale, d_bias = (totals.reshape(-1, 3).sum(0) / len(image_embed)).astype(image_embed.dtype)\n"
        "    d_image_embed, d_text_embed = home.d_image_embed / len(image_embed), d_text_embed / len(image_embed)\n"
        "    return LossAndGrads(loss, d_image_embed, d_text_embed, d_log_scale, d_bias)",
        "derived",
        brief="loss and gradients are W times too large",
    ),
    Break(
        "race",
        "Receive into the buffer in use",
        "The overlapped ring with one buffer, not two: the next texts overwrite those that the block still needs. "
        "This run has a network faster than any block; on a slower one the damage differs from run to run.",
        "mpi/schemes.py",
        "        coming = buffers[hop % 2][: sizes[owner]]",
        "        coming = buffers[0][: sizes[owner]]",
        "ring-hop-repeated",
        scheme="overlapped",
        here="hop % 2 is the repair: one buffer is filled while the other is read. The checker sees numbers, not "
        "buffers: one chunk was used twice and another never, as if an exchange of texts were missing.",
    ),
    Break(
        "ddp",
        "Forget W under DDP",
        "Towers in DDP need W times the embeddings' gradients, as DDP divides by W. Here they get them as they are.",
        "your program, in Torch",
        "    return W * d_image_embed, W * d_text_embed, d_log_scale, d_bias",
        "    return d_image_embed, d_text_embed, d_log_scale, d_bias",
        "convention",
        reduce="mean",
        here="this is no harmless convention. DDP divides by W, so the gradients of the towers' parameters are W times "
        "too small, 4 times here; those of log_scale and bias are right. Multiply the embeddings' gradients by W.",
        brief="it divides by W, so multiply the embeddings' gradients by W",
    ),
)


def broken_modules(broken: Break) -> ModuleType:
    """`mpi.loss` of a private copy of the ring in which the line is changed."""
    sources = {name: (MPI / f"{name}.py").read_text(encoding="utf-8") for name in ("ring", "schemes", "loss")}
    part = Path(broken.file).stem
    if sources[part].count(broken.old + "\n") != 1:
        raise ValueError(f"{broken.file} has not exactly one line {broken.old.strip()!r}")
    sources[part] = sources[part].replace(broken.old + "\n", broken.new + "\n")
    for name, source in sources.items():
        for other in sources:
            source = source.replace(f"from mpi.{other} import", f"from broken_{broken.name}_{other} import")
        module = sys.modules[f"broken_{broken.name}_{name}"] = ModuleType(f"broken_{broken.name}_{name}")
        exec(compile(source, broken.file, "exec"), module.__dict__)
    return sys.modules[f"broken_{broken.name}_loss"]


class Fast(Wrapper):
    """A network faster than any block: a message is there as soon as both sides have asked for it."""

    def __init__(self, comm: Communicator) -> None:
        super().__init__(comm)
        self.coming: list[Request] = []

    def Irecv(self, buf: Array, source: int, tag: int) -> Request:
        self.coming.append(self.comm.Irecv(buf, source, tag))
        return self.coming[-1]

    def Isend(self, buf: Array, dest: int, tag: int) -> Request:
        sent = self.comm.Isend(buf, dest, tag)
        while self.coming:
            self.coming.pop(0).Wait()
        return sent


def run_toy(module: ModuleType, scheme: str = "blocking") -> tuple[list[LossAndGrads], list[list[Any]]]:
    """All ranks' results, and every block: rank, hop, whose texts it should be, whose it was, loss.

    Whose it was: -1 for nobody's, -2 for texts of several ranks.
    """
    job = Job(PAIRS, WIDTH, scheme)
    images, texts = make_batch(job, PAIRS)
    chunks = np.split(texts, WORLD)
    meetings: list[list[Any]] = []

    class Watched(module.Home):  # type: ignore[name-defined, misc]
        def tiles(self, owner: int, text_embed: Array, d_text_embed: Array) -> Iterator[None]:
            tiles, loss, whose, row = super().tiles(owner, text_embed, d_text_embed), 0.0, set(), 0
            while True:
                before = float(self.sums[0])
                if next(tiles, tiles) is tiles:
                    break
                loss += float(self.sums[0]) - before
                here = slice(row, row + self.tile)
                row = (row + self.tile) % len(text_embed)
                rows = text_embed[here]
                whose.add(next((c for c, chunk in enumerate(chunks) if np.array_equal(chunk[here], rows)), -1))
                yield
            met = whose.pop() if len(whose) == 1 else -2
            meetings.append([self.rank, (owner - self.rank) % WORLD, owner % WORLD, met, loss])

    home, module.Home = module.Home, Watched
    try:
        shards = np.split(images, WORLD)
        ranks = ThreadComm.run(
            WORLD,
            lambda comm: module.ring_sigmoid_loss(
                Fast(comm), shards[comm.rank], chunks[comm.rank], job.log_scale, bias_of(job), scheme=scheme
            ),
        )
    finally:
        module.Home = home
    return ranks, sorted(meetings)


def harm(right: list[LossAndGrads], wrong: list[LossAndGrads]) -> dict[str, Any]:
    """How far each result is off at each owner: [error, factor].

    error = max|a-b| / max|b|, b the right tensor of all ranks; factor: by which it was multiplied, 0 if more happened.
    """
    out: dict[str, Any] = {"loss": float(wrong[0].loss), "right loss": float(right[0].loss)}
    for name in ("d_image_embed", "d_text_embed", "d_log_scale", "d_bias"):
        scale = max(float(np.abs(getattr(rank, name)).max()) for rank in right)
        out[name] = []
        for rank, (good, bad) in enumerate(zip(right, wrong, strict=True)):
            a, b = np.ravel(getattr(bad, name)), np.ravel(getattr(good, name))
            factor = float(a @ b / (b @ b))
            if a.size > 1:
                alike = np.abs(a - factor * b).max() <= 1e-12 * scale
            else:  # any number is a multiple of another: it says something where the embeddings' gradients have it, too
                alike = math.isclose(factor, out["d_image_embed"][rank][1], rel_tol=1e-12)
            out[name].append([float(np.abs(a - b).max()) / scale, factor if alike else 0.0])
    return out


def judged(module: ModuleType, broken: Break) -> Report:
    """What the checker says of it."""

    def my_ring(image_embed: Array, text_embed: Array, log_scale: Array, bias: Array, comm: ThreadComm) -> LossAndGrads:
        result: LossAndGrads = module.ring_sigmoid_loss(
            Fast(comm), image_embed, text_embed, log_scale, bias, scheme=broken.scheme
        )
        return result

    return sr.check_ranks(
        my_ring, framework="numpy", reduce=broken.reduce, value="global", scale="log", embeddings="unit",
        dtype="float64", ranks=ThreadComm.run,
    )  # fmt: skip


def in_ddp(results: list[LossAndGrads]) -> list[LossAndGrads]:
    """What the towers must be given if gradients of parameters are averaged over ranks."""
    return [
        r._replace(d_image_embed=len(results) * r.d_image_embed, d_text_embed=len(results) * r.d_text_embed)
        for r in results
    ]


def all_breaks() -> list[dict[str, Any]]:
    """For the page: each break with its change, what it did to the toy, and the checker's own words."""
    from mpi import loss

    right, _ = run_toy(loss)

    out = []
    for broken in BREAKS:
        module = loss if broken.reduce == "mean" else broken_modules(broken)
        ranks, meetings = run_toy(module, broken.scheme)
        report = judged(module, broken)
        named = [finding.id for finding in report.findings]
        if broken.named not in named:
            raise AssertionError(f"the checker calls {broken.title!r} {named}, not {broken.named}")
        finding = report.findings[named.index(broken.named)]
        if "suspicion" in finding.evidence:
            raise AssertionError(f"the checker is not certain of {broken.title!r}: {finding.evidence}")
        mistake = CATALOGUE.get(broken.named)
        out.append(
            {
                "name": broken.name,
                "title": broken.title,
                "told": broken.told,
                "file": broken.file,
                "old": "\n".join(line.strip() for line in broken.old.splitlines()),
                "new": "\n".join(line.strip() for line in broken.new.splitlines()),
                "asked": f'check_ranks(ring, reduce="{broken.reduce}") says:',
                "meetings": meetings,
                "harm": harm(in_ddp(right) if broken.reduce == "mean" else right, ranks),
                "verdict": report.verdict,
                "diagnosis": finding.id,
                "evidence": finding.evidence,
                "repair": finding.repair,
                "here": broken.here,
                "seen": mistake.seen if mistake else "",
                "rows": [[row.name, row.verdict, row.error, row.tolerance, row.ratio] for row in report.rows],
            }
        )
    return out
