"""Why ranks stopped before they had brought everything back, in words: who failed, who waits, who was merely slow."""

import json
import re
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from siglip_ref.check.ranks.pulse import LATE, STILL, Pulse, put
from siglip_ref.check.ranks.world import Stop
from siglip_ref.errors import UsageError

_FIELDS = ("expected", "got", "cause", "repair")
_GAVE_UP = re.compile(r"time[sd]?[ _-]?out|rendezvous.*(stuck|terminat)", re.IGNORECASE)
_FOREIGN = re.compile(r"site-packages|<frozen|[/\\]siglip_ref[/\\]check[/\\]")  # no place in the user's code
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # no function does that to itself
_MOST = 3  # different things that ranks are said to do


@dataclass(frozen=True)
class Died:
    """text: of the error, or of how the process ended; usage: the four parts of a UsageError; code: of the process, if
    it ended without a word; when: in ns, if it was told (0: without a word, so the others only noticed)."""

    text: str
    usage: dict[str, str] | None = None
    code: int | None = None
    when: float = 0.0


@dataclass(frozen=True)
class State:
    """What is known of a rank when it is over. stage: what it had last begun; returned: from the function there."""

    rank: int
    stage: str
    returned: bool
    pulse: Pulse | None
    died: Died | None


def tell(path: Path, error: BaseException) -> None:
    """By a rank, of what ended it, for `told`."""
    usage = dict(zip(_FIELDS, map(str, error.args), strict=True)) if isinstance(error, UsageError) else None
    put(path, json.dumps({"text": in_a_line(error), "usage": usage}))


def told(path: Path) -> Died:
    return Died(**json.loads(path.read_text(encoding="utf-8")), when=path.stat().st_mtime_ns)


def in_a_line(error: BaseException) -> str:
    """Type, first line, and where in the user's code."""
    lines = str(error).strip().splitlines() or [""]
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not re.search(r"site-packages|<frozen", f.filename)
    ]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line or '?'})" if frames else ""
    return f"{type(error).__name__}: {lines[0][:300]}{where}"


def ended(code: int, log: str) -> str:
    """How a process ended that told nothing. log: what it printed; a crash leaves its stack there, innermost first."""
    how = f"ended with exit code {code}"
    if code < 0:
        try:
            how = f"ended by {signal.Signals(-code).name}"
        except ValueError:  # a signal without a name
            how = f"ended by signal {-code}"
    frames = [frame for frame in re.findall(r'File "(.*)", line (\d+) in', log) if not _FOREIGN.search(frame[0])]
    if frames:
        return f"{how} ({Path(frames[0][0]).name}:{frames[0][1]})"
    return how + "".join(f": {line[:300]}" for line in log.strip().splitlines()[-1:])


# --- one of them failed


def failed(states: Sequence[State]) -> Stop:
    """The one that failed first tells the cause; the others only noticed.

    Raises
    ------
    UsageError : if that is what it said
    """
    first = min((state for state in states if state.died), key=lambda state: state.died.when if state.died else 0.0)
    died = first.died
    assert died is not None  # chosen so
    if died.usage:
        raise UsageError(**died.usage)
    if died.code is not None and -died.code in _FROM_OUTSIDE:
        name = signal.Signals(-died.code).name
        evidence = f"rank {first.rank} was ended from outside, by {name}, at {first.stage}"
        return Stop(
            "time", first.rank, evidence, "run it again; SIGKILL is what a system sends that has no memory left"
        )
    if _GAVE_UP.search(died.text):
        evidence = f"rank {first.rank} gave up waiting at {first.stage}: {died.text}"
        return Stop("time", first.rank, evidence, "a longer timeout= where the function, or setup=, makes its groups")
    evidence = f"rank {first.rank} failed at {first.stage}: {died.text}"
    return Stop("failed", first.rank, evidence, "make that call alone, with that rank's shard")


# --- they wait for each other


def deadlock(states: Sequence[State]) -> Stop:
    """All that have not returned wait in calls of torch.distributed, and nothing moves."""
    waiting = [state for state in states if not state.returned]
    calls = [state.pulse.call if state.pulse else "" for state in waiting]
    said = _grouped([s for s in states if s.returned], lambda s: "has returned", lambda s: "have returned")
    said += _grouped(waiting, lambda s: f"waits in {_call(s)}", lambda s: f"wait in {_call(s)}")
    stages = list(dict.fromkeys(state.stage for state in waiting or states))
    evidence = f"{', '.join(said)}; none of them computes, and nothing has moved for {STILL:g} s, at {stages[0]}"
    if len(waiting) < len(states):
        repair = "every rank must make the same calls: those that wait make one that the others do not"
    elif all(call.startswith("send") for call in calls):
        repair = "every rank sends before it receives: isend and irecv, or let every second rank receive first"
    else:
        repair = "what one rank receives another must send; collectives must come in the same order on every rank"
    return Stop("deadlock", (waiting or list(states))[0].rank, evidence, repair)


def _call(state: State) -> str:
    pulse = state.pulse
    return f"{pulse.call} ({pulse.place})" if pulse and pulse.place else pulse.call if pulse else "?"


# --- they took too long


def too_late(states: Sequence[State], limit: float) -> Stop:
    """They may be slow, or never end: who was where."""
    left = [state for state in states if not state.returned] or list(states)
    said = _grouped([s for s in states if s.returned], lambda s: "had returned", lambda s: "had returned")
    said += _grouped(left, _doing, lambda s: _doing(s).replace("was ", "were ", 1))
    evidence = f"after {limit:g} s, counted from when all had joined, at {left[0].stage}: {', '.join(said)}"
    return Stop("time", left[0].rank, evidence, f"limit={2 * limit:g}, if they are only slow here")


def not_joined(states: Sequence[State], waited: float) -> Stop:
    """Not even the function was called."""
    said = _grouped(states, lambda s: f"was at {s.stage}", lambda s: f"were at {s.stage}")
    evidence = f"after {waited:g} s not all ranks were ready: {', '.join(said)}"
    return Stop("time", states[0].rank, evidence, f"limit={2 * waited:g}, if imports or setup= are only slow here")


def _doing(state: State) -> str:
    pulse = state.pulse
    if pulse is None:
        return f"was at {state.stage}"
    silent = time.time() - pulse.when
    if silent > LATE:
        return f"gave no sign for {silent:.0f} s"
    return f"waited in {_call(state)}" if pulse.call else f"was at {pulse.place or state.stage}"


def _grouped(states: Sequence[State], one: Callable[[State], str], several: Callable[[State], str]) -> list[str]:
    """Ranks that do the same, together; of many different things the first."""
    by_word: dict[str, list[State]] = {}
    for state in states:
        by_word.setdefault(several(state), []).append(state)
    said: list[str] = []
    for word, ranks in by_word.items():
        who = ", ".join(str(state.rank) for state in ranks)
        said.append(f"ranks {who} {word}" if len(ranks) > 1 else f"rank {who} {one(ranks[0])}")
    return said[:_MOST] + ([f"and {len(said) - _MOST} more"] if len(said) > _MOST else [])
