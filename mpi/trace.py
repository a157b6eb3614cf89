"""A run as a list of events: what tests assert, what the command prints, what Perfetto and the teaching page show."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpi.comm import Communicator
from mpi.observe import Event

if TYPE_CHECKING:
    from mpi.batch import Job, Outcome

FORMAT = "siglip-ring-trace/1"
TOY = 64  # pairs up to which a trace holds the batch itself, so that its reader can compute every number again

# the schema is a file, so that other programs can read it
SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "trace.schema.json").read_text())


class Trace:
    """A listener that keeps what happened. The tiles of one block, computed in a row, become one event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, phase: str, event: Event) -> None:
        if phase != "end":
            return
        last = self.events[-1] if self.events else None
        if last and last.kind == event.kind == "block" and last.chunk == event.chunk:
            last.pairs += event.pairs
            last.loss += event.loss
            last.end = event.end
        else:
            self.events.append(event)


def collect(comm: Communicator, events: Sequence[Event]) -> list[Event]:
    """All ranks' events on every rank, ordered by time, which starts at 0."""
    kinds, whats = ["send", "recv", "block", "sum"], ["", "chunk", "gradient"]
    mine = np.array(
        [[kinds.index(e.kind), whats.index(e.what), *list(asdict(e).values())[3:]] for e in events], np.float64
    ).reshape(len(events), 10)
    counts = np.zeros(comm.size, np.int64)
    comm.Allreduce(np.where(np.arange(comm.size) == comm.rank, len(events), 0), counts)
    table, rows = np.zeros((counts.sum(), 11)), np.zeros((counts.sum(), 11))
    first = counts[: comm.rank].sum()
    rows[first : first + len(events)] = np.column_stack([np.full(len(events), comm.rank), mine])
    comm.Allreduce(rows, table)
    zero = table[:, 9].min(initial=np.inf)
    events = []
    for rank, kind, what, *whole, loss, start, end in table[np.argsort(table[:, 9], kind="stable")].tolist():
        times = (round(start - zero, 7), round(end - zero, 7))
        values: list[Any] = [int(rank), kinds[int(kind)], whats[int(what)], *map(int, whole), loss, *times]
        events.append(Event(*values))
    return events


def as_json(events: Sequence[Event], scheme: str, dtype: str, sizes: Sequence[int], width: int, loss: float) -> Any:
    """The compact form that `SCHEMA` describes."""
    head = {"format": FORMAT, "scheme": scheme, "dtype": dtype, "sizes": list(sizes), "width": width, "loss": loss}
    columns, rows = [field.name for field in fields(Event)], [list(asdict(event).values()) for event in events]
    return head | {"columns": columns, "events": rows}


def as_perfetto(events: Sequence[Event]) -> dict[str, Any]:
    """For ui.perfetto.dev or chrome://tracing: a lane a rank for blocks, another for messages, arrows between them."""
    lanes = {"block": 0, "sum": 0, "send": 1, "recv": 2}
    names = ["computes", "sends", "receives"]
    out: list[dict[str, Any]] = []
    for rank in sorted({event.rank for event in events}):
        out.append({"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}})
        for lane, name in enumerate(names):
            out.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": lane, "args": {"name": name}})
    flow: Counter[tuple[Any, ...]] = Counter()
    for event in events:
        place = {"pid": event.rank, "tid": lanes[event.kind]}
        title = {"block": f"block ({event.rank}, {event.chunk})", "sum": "sum over ranks"}.get(
            event.kind, f"{event.kind} {event.what} {event.chunk}"
        )
        start, length = event.start * 1e6, max((event.end - event.start) * 1e6, 0.001)
        details = {"hop": event.hop, "bytes": event.bytes, "pairs": event.pairs, "loss": event.loss}
        span = {"ph": "X", "name": title, "cat": event.what or event.kind, "ts": start, "dur": length, "args": details}
        out.append(span | place)
        if event.kind in ("send", "recv"):
            ends = (event.rank, event.peer) if event.kind == "send" else (event.peer, event.rank)
            key = (*ends, event.what, event.chunk)
            flow[event.kind, *key] += 1
            arrow = f"{key} {flow[event.kind, *key]}"
            point = {"ph": "s", "ts": start} if event.kind == "send" else {"ph": "f", "bp": "e", "ts": start + length}
            out.append({"name": event.what, "cat": "message", "id": arrow, **point, **place})
    return {"traceEvents": out, "displayTimeUnit": "ms"}


def write(folder: Path, job: "Job", outcome: "Outcome") -> int:
    """Write the three files, say whether the trace is whole, return the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    document = as_json(outcome.events, job.scheme, job.dtype, outcome.sizes, job.dim, outcome.loss)
    document |= _numbers(job, outcome) if job.pairs <= TOY else {}
    (folder / "trace.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    (folder / "trace.schema.json").write_text(json.dumps(SCHEMA, indent=1) + "\n")
    (folder / "perfetto.json").write_text(json.dumps(as_perfetto(outcome.events)) + "\n")
    wrong = faults(outcome.events, outcome.sizes)
    print(f"{len(outcome.events)} events of {len(outcome.sizes)} ranks in {folder}; loss {outcome.loss:.12g}")
    print("\n".join(wrong) or "every ordered pair of chunks met once, every gradient came home", flush=True)
    return 1 if wrong else 0


def _numbers(job: "Job", outcome: "Outcome") -> dict[str, Any]:
    from mpi.batch import bias_of, make_batch

    images, texts = make_batch(job, job.pairs)
    batch = {"images": images.tolist(), "texts": texts.tolist(), "log_scale": job.log_scale, "bias": bias_of(job)}
    return {"numbers": batch | {"d_log_scale": outcome.d_log_scale, "d_bias": outcome.d_bias}}


def faults(events: Sequence[Event], sizes: Sequence[int]) -> list[str]:
    """What is wrong with a trace; an empty list if nothing is.

    Every ordered pair of chunks met exactly once, every message sent was received, every gradient came home.
    """
    wrong = []
    world = len(sizes)
    met: Counter[tuple[int, int]] = Counter()
    for event in events:
        if event.kind == "block":
            met[event.rank, event.chunk] += event.pairs
    for rank in range(world):
        for chunk in range(world):
            if met[rank, chunk] != sizes[rank] * sizes[chunk]:
                wrong.append(f"block ({rank}, {chunk}): {met[rank, chunk]} pairs, not {sizes[rank] * sizes[chunk]}")
    sent = Counter((e.rank, e.peer, e.what, e.chunk, e.bytes) for e in events if e.kind == "send")
    came = Counter((e.peer, e.rank, e.what, e.chunk, e.bytes) for e in events if e.kind == "recv")
    for source, dest, what, chunk, size in (sent - came) + (came - sent):
        wrong.append(f"{what} {chunk} from {source} to {dest}, {size} bytes: sent and received do not agree")
    home = {e.chunk for e in events if e.kind == "recv" and e.what == "gradient" and e.rank == e.chunk}
    if sent:
        wrong += [f"the gradient of chunk {chunk} never came home" for chunk in range(world) if chunk not in home]
    return wrong
