"""What a rank is doing while it is watched: a thread beside the user's function writes it down twice a second.

Where the function stands is read off its stack, so that torch.distributed stays what it is: wrappers around its
functions would be other objects than those that a module imported before, and torch.compile would break on them. Only
`Work.wait` is wrapped, for a wait in C++ has no frame by which to know it.
"""

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

EVERY = 0.5  # seconds between two pulses
LATE = 2.0  # seconds after which a pulse says nothing of now: the rank is starved, stopped, or holds Python's lock
STILL = 10.0  # seconds in one call, without computing, after which a rank is taken to wait for another one
IDLE = 0.01  # share of a processor that waiting costs: measured 0.003, gloo's thread and this one
SLACK = 0.05  # seconds of it that a short look may find more

_COLLECTIVE = "torch.distributed"
_WRAPPERS = ("torch.distributed.c10d_logger", __name__)  # around every call; they are not its name
_PEERS = ("dst", "src", "group_dst", "group_src")


@dataclass(frozen=True)
class Pulse:
    """What a rank did at a time. call: of torch.distributed in which it is ("recv from 2"; "": in none); place: the
    user's line; still: for how many seconds it has been in this one call without computing."""

    when: float
    call: str
    place: str
    still: float


class Heart(threading.Thread):
    """Writes pulses of the thread that starts it, and ends the process when the one that watches is gone."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True, name="siglip-ref pulse")
        self.path, self.thread = path, threading.get_ident()
        self.waits = 0  # entered so far: a second wait at the same line is another one
        self.parent = os.getppid()
        self._begun: tuple[object, float, float] = (None, 0.0, 0.0)  # the call, since when, processor time by then
        self._last = 0.0

    def run(self) -> None:
        while os.getppid() == self.parent:
            put(self.path, json.dumps(asdict(self.beat())))
            time.sleep(EVERY)
        os._exit(1)

    def beat(self) -> Pulse:
        """The pulse of now."""
        call, place = standing(sys._current_frames().get(self.thread))
        now, used = time.monotonic(), time.process_time()
        mark, since, before = self._begun
        late, self._last = now - self._last > LATE, now
        if not call or late or mark != (call, place, self.waits) or used - before > SLACK + IDLE * (now - since):
            since, before = now, used
        self._begun = (call, place, self.waits), since, before
        return Pulse(time.time(), call, place, now - since)


def standing(frame: FrameType | None) -> tuple[str, str]:
    """The call of torch.distributed in which a thread is, if it is in one, and the innermost line that is not Torch's.

    Frames of Torch count as far as they are innermost: what a wrapper of Torch's calls back is the user's own.
    """
    inside: list[FrameType] = []
    while frame is not None:
        home = str(frame.f_globals.get("__name__", ""))
        if home != __name__ and home.split(".")[0] != "torch":
            break
        if home.startswith(_COLLECTIVE) or home == __name__:
            inside.append(frame)
        frame = frame.f_back
    place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else ""
    return (_name(inside) if inside else ""), place


def _name(frames: Sequence[FrameType]) -> str:
    """Of the outermost function that is no mere wrapper: recv, not the wait in it; with whom, where it says so."""
    named = [frame for frame in frames if frame.f_globals.get("__name__") not in _WRAPPERS]
    own = [frame for frame in named if frame.f_globals.get("__name__") == "torch.distributed.distributed_c10d"]
    if not named:
        return "wait"
    frame = (own or named)[-1]
    peers = {name: frame.f_locals.get(name) for name in _PEERS}
    said = [f" {'to' if 'dst' in name else 'from'} rank {peer}" for name, peer in peers.items() if type(peer) is int]
    return frame.f_code.co_name + "".join(said[:1])


def counting(heart: Heart, wait: Callable[..., Any]) -> Callable[..., Any]:
    """`Work.wait`, and it is seen that a rank is in it."""

    @functools.wraps(wait)
    def waited(*arguments: Any, **keywords: Any) -> Any:
        heart.waits += 1
        return wait(*arguments, **keywords)

    return waited


def put(path: Path, text: str) -> None:
    """Write a file that others read at any time: it is whole, or not there."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def last_pulse(path: Path) -> Pulse | None:
    try:
        return Pulse(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def wait_for_ever(returned: Sequence[bool], pulses: Sequence[Pulse | None], now: float) -> bool:
    """Whether all that have not returned wait, in one call each, for what nobody will send.

    Every one must have been in one call of torch.distributed for STILL seconds, and neither computing nor starved: a
    rank that is merely slow is none of that, and those that wait for it do not wait for ever, as it is among them.
    """
    left = [pulse for pulse, back in zip(pulses, returned, strict=True) if not back]
    return bool(left) and all(
        pulse is not None and now - pulse.when <= LATE and bool(pulse.call) and pulse.still >= STILL for pulse in left
    )
