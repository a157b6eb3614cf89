"""Rings broken on purpose: each is mpi/ and one edited line. What goes wrong is run, and judged by the checker."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import siglip_ref as sr
from mpi.batch import Job, bias_of, make_batch
from mpi.comm import Array, ThreadComm
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.report.data import Report

MPI = Path(__file__).parent.parent / "mpi"
WORLD, PAIRS, WIDTH = 4, 8, 3


@dataclass(frozen=True)
class Break:
    """One line of the ring, changed. `named` is what the checker must call it."""

    name: str
    title: str
    told: str
    file: str
    old: str
    new: str
    named: str


BREAKS = (
    Break(
        "forget",
        "Forget the last block",
        "The loop ends one hop early. Every rank never meets one other rank's texts.",
        "ring.py",
        "        answer = visit((rank + hop) % world, held)",
        "        answer = visit((rank + hop) % world, held) if hop < world - 1 else np.zeros_like(held)",
        "ring-hop-missing",
    ),
    Break(
        "reuse",
        "Forget the last exchange",
        "At the last hop the texts of the hop before still lie in the buffer, and are met again as if they were new.",
        "ring.py",
        "        held = move(CHUNK, held, chunks, hop)",
        "        held = move(CHUNK, held, chunks, hop) if hop < max(2, world - 1) else held",
        "ring-hop-repeated",
    ),
    Break(
        "early",
        "Do not wait for the message",
        "At hop 1 the block is computed before the message has arrived: the buffer holds zeros.",
        "ring.py",
        "        answer = visit((rank + hop) % world, held)",
        "        answer = visit((rank + hop) % world, held if hop > 1 else np.zeros_like(held))",
        "ring-received-buffer-zero",
    ),
    Break(
        "twice",
        "Count the diagonal twice",
        "The own texts are met at home, and once more as if they were a stranger's, without their matches.",
        "ring.py",
        "    at_home = visit(rank, held)",
        "    at_home = visit(rank, held) + visit(rank + world, held)",
        "ring-own-block-double-counted",
    ),
    Break(
        "average",
        "Divide by W",
        "The embeddings' gradients are divided by W, although each is complete at its owner. The numbers are "
        "those of a gather without gradient, and by that name the checker knows them.",
        "loss.py",
        "    return LossAndGrads(loss, home.d_image_embed / sum(sizes), d_text_embed / sum(sizes), d_log_scale, "
        "d_bias)",
        "    d_image_embed, d_text_embed = home.d_image_embed / comm.size, d_text_embed / comm.size\n"
        "    return LossAndGrads(loss, d_image_embed / sum(sizes), d_text_embed / sum(sizes), d_log_scale, d_bias)",
        "gather-own-slot-one-over-w",
    ),
    Break(
        "astray",
        "Stop one move before home",
        "The last message is not sent. Every rank keeps the gradient of its neighbour's texts for its own.",
        "ring.py",
        "    return combine(at_home, move(ANSWER, travelling, answers, world))",
        "    return combine(at_home, travelling)",
        "text-grad-to-wrong-rank",
    ),
)


def broken_modules(broken: Break) -> ModuleType:
    """`mpi.loss` of a private copy of the ring in which the line is changed."""
    sources = {name: (MPI / f"{name}.py").read_text(encoding="utf-8") for name in ("ring", "schemes", "loss")}
    part = broken.file.removesuffix(".py")
    if sources[part].count(broken.old + "\n") != 1:
        raise ValueError(f"{broken.file} has not exactly one line {broken.old.strip()!r}")
    sources[part] = sources[part].replace(broken.old + "\n", broken.new + "\n")
    for name, source in sources.items():
        for other in sources:
            source = source.replace(f"from mpi.{other} import", f"from broken_{broken.name}_{other} import")
        module = sys.modules[f"broken_{broken.name}_{name}"] = ModuleType(f"broken_{broken.name}_{name}")
        exec(compile(source, broken.file, "exec"), module.__dict__)
    return sys.modules[f"broken_{broken.name}_loss"]


def run_toy(module: ModuleType) -> tuple[list[LossAndGrads], list[list[Any]]]:
    """All ranks' results, and every meeting: rank, whose texts it should be, whose it was (-1: nobody's), loss."""
    job = Job(PAIRS, WIDTH, "blocking")
    images, texts = make_batch(job, PAIRS)
    chunks = np.split(texts, WORLD)
    meetings: list[list[Any]] = []

    class Watched(module.Home):  # type: ignore[name-defined, misc]
        def visit(self, owner: int, text_embed: Array) -> Array:
            before = float(self.sums[0])
            answer = super().visit(owner, text_embed)
            actual = next((c for c, rows in enumerate(chunks) if np.array_equal(rows, text_embed)), -1)
            meetings.append([self.rank, owner % WORLD, actual, float(self.sums[0]) - before])
            return answer

    home, module.Home = module.Home, Watched
    try:
        shards = np.split(images, WORLD)
        ranks = ThreadComm.run(
            WORLD,
            lambda comm: module.ring_sigmoid_loss(
                comm, shards[comm.rank], chunks[comm.rank], job.log_scale, bias_of(job)
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
        for good, bad in zip(right, wrong, strict=True):
            a, b = np.ravel(getattr(bad, name)), np.ravel(getattr(good, name))
            factor = float(a @ b / (b @ b))
            alike = a.size > 1 and np.abs(a - factor * b).max() <= 1e-12 * scale
            out[name].append([float(np.abs(a - b).max()) / scale, factor if alike else 0.0])
    return out


def judged(module: ModuleType) -> Report:
    """What the checker says of it."""

    def my_ring(image_embed: Array, text_embed: Array, log_scale: Array, bias: Array, comm: ThreadComm) -> LossAndGrads:
        result: LossAndGrads = module.ring_sigmoid_loss(comm, image_embed, text_embed, log_scale, bias)
        return result

    return sr.check_distributed_loss(
        my_ring, framework="numpy", reduce="none", value="global", scale="log", embeddings="unit", dtype="float64",
        ranks=ThreadComm.run,
    )  # fmt: skip


def all_breaks() -> list[dict[str, Any]]:
    """For the page: each break with its diff, what it did to the toy, and the checker's own words."""
    from mpi import loss

    right, _ = run_toy(loss)

    out = []
    for broken in BREAKS:
        module = broken_modules(broken)
        ranks, meetings = run_toy(module)
        report = judged(module)
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
                "file": f"mpi/{broken.file}",
                "old": broken.old.strip(),
                "new": "\n".join(line.strip() for line in broken.new.splitlines()),
                "meetings": meetings,
                "harm": harm(right, ranks),
                "verdict": report.verdict,
                "diagnosis": finding.id,
                "evidence": finding.evidence,
                "repair": finding.repair,
                "seen": mistake.seen if mistake else "",
                "rows": [[row.name, row.verdict, row.error, row.tolerance, row.ratio] for row in report.rows],
            }
        )
    return out
