"""The folder of a training: it says so, has one training at a time, and knows the data it was begun with."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from siglip_ref.errors import few
from siglip_ref.process.atomic import write_atomically
from siglip_ref.process.outputs import require_free, require_name
from siglip_ref.process.owner import one_owner
from siglip_ref.process.tables import as_csv, read_csv
from siglip_ref.training.data.captioned import Item
from siglip_ref.use.walk import FORMAT, MANIFEST, is_training

LOCK, PICTURES = "training.lock", "pictures.csv"


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
    harm = "two trainings in one folder would destroy each other's checkpoints"
    with one_owner(out, LOCK, "training", harm, say):
        (out / "checkpoints").mkdir(exist_ok=True)
        yield


def write_manifest(out: Path, about: dict[str, Any], items: Sequence[Item]) -> None:
    """Say whose folder it is, and which pictures its training was begun with."""
    write_atomically(out / MANIFEST, (json.dumps({"format": FORMAT} | about, indent=1, sort_keys=True) + "\n").encode())
    if items:
        write_atomically(out / PICTURES, as_csv(Item._fields, items))


def changes(out: Path, now: Sequence[Item]) -> str:
    """In words: how the data differ from those that `write_manifest` recorded."""
    try:
        rows = list(read_csv(out / PICTURES, Item._fields))
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
    return f"{len(names)} {'picture' if len(names) == 1 else 'pictures'} {what}: {few(sorted(names), 3)}"
