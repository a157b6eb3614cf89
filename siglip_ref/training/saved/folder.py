"""The folder of a training: it says so, has one training at a time, and knows the data it was begun with."""

import contextlib
import csv
import io
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from siglip_ref.errors import UsageError
from siglip_ref.process.atomic import lock, write_atomically
from siglip_ref.process.outputs import require_free, require_name
from siglip_ref.training.data.captioned import Item
from siglip_ref.use.walk import FORMAT, MANIFEST, is_training

LOCK, PICTURES = "training.lock", "pictures.csv"
PATIENCE = 5.0  # seconds in which a training that was just killed may end, and give the folder back
_held: set[Path] = set()  # folders that this process has locked: its own calls may nest


def require_own(out: Path, force: bool = False) -> None:
    """A folder that is new, empty, or of a training; others are refused, unless by force."""
    require_name(out)
    require_free(folders=[] if is_training(out) or _is_begun(out) else [out], force=force)


def _is_begun(out: Path) -> bool:
    """Whether nothing is there but what a training makes until it has its manifest; it was killed then."""
    if not out.is_dir() or not (out / LOCK).is_file():
        return False
    names = {path.name for path in out.iterdir() if not path.match(f"{MANIFEST}.*.part")}
    return names <= {LOCK, "checkpoints"} and not any((out / "checkpoints").glob("*"))


@contextlib.contextmanager
def one_training(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep the folder to this process for as long as the context lasts, or the process lives.

    Raises
    ------
    UsageError : another training has it, and still has it after some patience
    """
    place = out.resolve()
    if place in _held:
        yield
        return
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(
            expected="--out FOLDER that can be written to",
            got=str(error),
            cause="no right to write there, or a file of this name",
            repair="choose another folder",
        ) from error
    try:
        deadline = time.monotonic() + PATIENCE
        while (got := lock(descriptor)) is False:
            if time.monotonic() > deadline:
                raise _in_use(out, os.pread(descriptor, 1000, 0).decode(errors="replace"))
            time.sleep(0.05)
        if got is None:
            say(f"note: {out} cannot be locked on this system: start no second training there")
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{platform.node()} {os.getpid()}\n".encode(), 0)
        _held.add(place)
        yield
    finally:
        if place in _held:
            _held.discard(place)
            os.truncate(descriptor, 0)
        os.close(descriptor)


def _in_use(out: Path, holder: str) -> UsageError:
    host, _, process = holder.strip().partition(" ")
    where = f"process {process} on {host}" if process.isdecimal() else "another process"
    return UsageError(
        expected="a folder that no other training is using",
        got=f"{out} is in use by {where}",
        cause="two trainings in one folder would destroy each other's checkpoints",
        repair="wait until that one has ended, or end it; or give another --out",
    )


def write_manifest(out: Path, about: dict[str, Any], items: Sequence[Item]) -> None:
    """Say whose folder it is, and which pictures its training was begun with."""
    write_atomically(out / MANIFEST, (json.dumps({"format": FORMAT} | about, indent=1, sort_keys=True) + "\n").encode())
    if items:
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(Item._fields)
        rows.writerows(items)
        write_atomically(out / PICTURES, table.getvalue().encode("utf-8", "surrogateescape"))


def changes(out: Path, now: Sequence[Item]) -> str:
    """In words: how the data differ from those that `write_manifest` recorded."""
    try:
        with (out / PICTURES).open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
            rows = list(csv.reader(lines))[1:]
        then = [Item(name, int(size), content, captions) for name, size, content, captions in rows]
    except (OSError, ValueError):
        return f"other data: what they were, {PICTURES}, cannot be read"
    before, after = Counter(item.name for item in then), Counter(item.name for item in now)
    both = before.keys() & after.keys()
    files = ({item.name: (item.bytes, item.content) for item in items if item.name in both} for items in (then, now))
    texts = (Counter((item.name, item.captions) for item in items if item.name in both) for items in (then, now))
    (file_then, file_now), (text_then, text_now) = files, texts
    changed = [name for name in file_then if file_then[name] != file_now[name]]
    found = {
        "new": list((after - before).elements()),
        "gone": list((before - after).elements()),
        "of another size": [name for name in changed if file_then[name][0] != file_now[name][0]],
        "of the same size with other content": [name for name in changed if file_then[name][0] == file_now[name][0]],
        "captioned differently": [name for name, _ in (text_then - text_now).elements()],
    }
    words = [_some(names, what) for what, names in found.items() if names]
    return "; ".join(words) or "the same pictures in another order"


def _some(names: list[str], what: str) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" * (len(names) > 3)
    return f"{len(names)} {'picture' if len(names) == 1 else 'pictures'} {what}: {', '.join(names[:3])}{more}"
