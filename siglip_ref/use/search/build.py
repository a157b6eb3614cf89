"""An index of a folder of photos: what is new is embedded, shard by shard; what is known is taken over.

The unit of work and of going on is a shard of `SHARD` photos in the order of their paths, so a process that is killed
loses the shard it was at, and one that was not killed makes the same bytes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.process.clock import at, duration
from siglip_ref.process.interrupt import tell
from siglip_ref.process.owner import one_owner
from siglip_ref.use.reading import Prepared, Read, batches_ahead, reader
from siglip_ref.use.refusals import require_finite, require_side
from siglip_ref.use.search import folder
from siglip_ref.use.search.identity import loaded, require_same
from siglip_ref.use.search.photos import Known, Photo, Plan, digest_of, plan, require_folder
from siglip_ref.use.zeroshot import Model, Progress

SHARD = 1000
HARM = "two that write into one index would destroy each other's work"


@dataclass(frozen=True)
class Built:
    """What was done.

    embedded : photos whose vectors are new; kept : whose were known; gone : that are no more
    unreadable : files that are no images; changed : whether the index is another one now
    """

    index: folder.Index
    embedded: int
    kept: int
    gone: int
    unreadable: list[Photo]
    changed: bool


def build(
    photos: str | Path,
    out: str | Path,
    model: str,
    *,
    prefix: str | None = None,
    preprocess: str | None = None,
    batch: int = 8,
    threads: int = 2,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> Built:
    """Make an index of all images below a folder, or bring one up to date; interrupted, it goes on where it was.

    Parameters
    ----------
    photos : the folder; out : of the index
    model, prefix, preprocess : as `siglip_ref.load` takes them
    batch : images computed together; threads : that read and decode meanwhile
    force : begin anew where an index of another model or folder is
    say : is given sentences; progress : called with (done, of how many) of the new ones
    """
    root, place = Path(photos), Path(out)
    require_folder(root)
    folder.require_own(place, force)
    old = folder.read_index(place) if folder.is_index(place) else None
    made, identity = loaded(model, prefix=prefix, preprocess=preprocess, known=old.model if old else None)
    require_side(made.sides, made.config, "image")
    if old and not force:
        require_same(identity, old.model, place)
        _require_root(root, old)
    for note in made.notes:
        say(f"note: {note}")
    made = made.prepacked()
    with one_owner(place, folder.LOCK, "index", HARM, say):
        same = old is not None and old.model["digest"] == identity["digest"]
        work = folder.Work(place, identity)
        planned = plan(root, old.known() if old and same else {}, work.done(), threads)
        _announce(planned, made, root, batch, say)
        new = _embed(planned, made, root, work, batch, threads, progress, place)
        every = [planned.kept.get(photo.path) or new[photo.path] for photo in planned.found]
        good = [known for known in every if not known.photo.reason]
        bad = [known.photo for known in every if known.photo.reason]
        changed = folder.write_index(place, root, identity, good, bad, made.config.embed)
        folder.tidy(place)
    return Built(folder.read_index(place), len(planned.todo), len(planned.kept), planned.gone, bad, changed)


def _require_root(root: Path, old: folder.Index) -> None:
    if root.absolute() != old.root and (not old.root.exists() or not root.samefile(old.root)):
        raise UsageError(
            expected=f"the folder that {old.place} is an index of: {old.root}",
            got=str(root),
            cause="an index is of one folder",
            repair="give another --out; or --force, if the photos were moved there",
        )


def _announce(planned: Plan, model: Model, root: Path, batch: int, say: Callable[[str], None]) -> None:
    """How much is to be done and, measured with the first photos, how long it will take."""
    count = len(planned.todo)
    parts = [f"{count:,} to embed"]
    parts += [f"{len(planned.kept):,} known already"] * bool(planned.kept) + [f"{planned.gone:,} gone"] * (
        planned.gone > 0
    )
    say(f"{len(planned.found):,} pictures in {root}: {', '.join(parts)}")
    if planned.blocked:
        some = ", ".join(planned.blocked[:3]) + " ..." * (len(planned.blocked) > 3)
        say(f"note: folders that cannot be entered, whose photos stay as they are: {some}")
    if count <= 2 * batch:
        return
    seconds = _seconds_each(model, [root / photo.path for photo in planned.todo[:batch]], batch) * count
    say(
        f"about {duration(seconds)}, until {at(seconds)}; computed with {model.computes_with}. "
        "It may be interrupted: the same command goes on"
    )


def _seconds_each(model: Model, files: Sequence[Path], batch: int) -> float:
    """Of one photo: whichever is slower, reading (in threads) or computing; kernels are compiled first."""
    read, start = reader(model.config, model.preprocess, small=True), time.perf_counter()
    images = [image.values for image in map(read, files) if isinstance(image, Prepared)]
    reading = time.perf_counter() - start
    if not images:
        return reading / batch
    model.embed_prepared(images, batch)
    start = time.perf_counter()
    model.embed_prepared(images, batch)
    return max(time.perf_counter() - start, reading) / batch


def _embed(
    planned: Plan,
    model: Model,
    root: Path,
    work: folder.Work,
    batch: int,
    threads: int,
    progress: Progress | None,
    place: Path,
) -> dict[str, Known]:
    """The photos that are not known, shard by shard, each saved as soon as it is whole."""
    count, saved = len(planned.todo), 0
    tell(lambda: f"{saved:,} of {count:,} new pictures are saved in {place}; the same command goes on from there")
    for start in range(0, count, SHARD):
        shard = planned.todo[start : start + SHARD]
        work.save(*_shard(shard, model, root, batch, threads, start, count, progress))
        saved = start + len(shard)
    tell(lambda: f"all {count:,} new pictures are saved in {place}; the same command goes on from there")
    return work.done() if count else {}


def _shard(
    photos: Sequence[Photo],
    model: Model,
    root: Path,
    batch: int,
    threads: int,
    before: int,
    count: int,
    progress: Progress | None,
) -> tuple[list[Photo], Array]:
    """Each photo with its digest, or the reason why it cannot be read; vectors of those that can."""
    contents: dict[Path, str] = {}
    read = _with_digest(reader(model.config, model.preprocess, small=True), contents)
    seen, vectors = [], [np.zeros((0, model.config.embed), np.float32)]
    groups, alone = batches_ahead([root / photo.path for photo in photos], read, batch, threads), _by_blas(model)
    for number, group in enumerate(groups):
        names = []
        for photo, (_, image) in zip(photos[number * batch :], group, strict=False):
            reason = f"{image.got} ({image.cause})" if isinstance(image, UsageError) else ""
            seen.append(photo._replace(sha256=contents[root / photo.path], reason=reason))
            names += [photo.path] * (not reason)
        if good := [image.values for _, image in group if isinstance(image, Prepared)]:
            some = [model.embed_prepared([one]) for one in good] if alone else [model.embed_prepared(good, batch)]
            vectors.append(np.concatenate(some).astype(np.float32, copy=False))
            require_finite(vectors[-1], names, model)
        if progress:
            progress(before + len(seen), count)
    return seen, np.concatenate(vectors)


def _by_blas(model: Model) -> bool:
    """Whether its layers are left to BLAS, which may give a row other bits where others stand before it."""
    if not model.ops.compiled:
        return True
    from siglip_ref.fast.machine.product import LEAST  # here: it needs Numba

    return model.config.image.width <= LEAST


def _with_digest(read: Read, contents: dict[Path, str]) -> Read:
    def both(file: Path) -> Prepared | UsageError:
        contents[file] = digest_of(file)
        return read(file)

    return both
