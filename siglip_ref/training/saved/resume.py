"""What a training goes on from: the newest whole checkpoint, of the same training, the same on all ranks."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.training.data.inputs import Inputs
from siglip_ref.training.parallel import Parallel
from siglip_ref.training.saved.folder import changes, write_manifest
from siglip_ref.training.saved.store import Saved, newest
from siglip_ref.training.settings import Settings


def origin(settings: Settings, inputs: Inputs) -> dict[str, Any]:
    """All that must be the same when a training goes on: settings, pictures and captions, weights it started from."""
    return {"settings": settings.as_dict(), "data": inputs.data.digest, "weights": inputs.weights}


def find(settings: Settings, inputs: Inputs, out: Path, parallel: Parallel, say: Callable[[str], None]) -> Saved | None:
    """The checkpoint to go on from; None for a new training, whose folder is then marked as its own.

    Raises
    ------
    UsageError : it belongs to another training, or the ranks do not start from the same; the same on all of them
    """
    parallel.sum(np.zeros(1))  # nobody reads the folder before rank 0 has it for this training
    saved, broken = newest(out / "checkpoints")
    for words in broken:
        say(f"passed over {words}")
    now = origin(settings, inputs)
    try:
        _require_same_start(saved, now, parallel)
        if saved is not None:
            _require_same_training(saved, now, inputs, out)
    except UsageError as error:
        error.on_every_rank = True
        raise
    for note in inputs.notes:
        say(f"note: {note}")
    if saved is None:
        if parallel.rank == 0:
            write_manifest(out, now, inputs.data.items)
        return None
    if saved.about["ranks"] != parallel.size:
        say(
            f"trained on {saved.about['ranks']} ranks until here, now on {parallel.size}: "
            "the same up to rounding, not bit for bit"
        )
    say(f"going on from step {saved.step}")
    return saved


def _require_same_start(saved: Saved | None, now: dict[str, Any], parallel: Parallel) -> None:
    """Every rank must go on from the same step, with the same settings, data and weights."""
    marks = np.zeros((parallel.size, 1 + len(now)))
    words = [zlib.crc32(json.dumps(part, sort_keys=True).encode()) for part in now.values()]
    marks[parallel.rank] = [saved.step if saved else 0, *words]
    marks = parallel.sum(marks.reshape(-1)).reshape(marks.shape)
    different = np.argwhere(marks != marks[0])
    if not len(different):
        return
    rank, column = different[0]
    steps = f"rank 0 from step {marks[0, 0]:.0f}, rank {rank} from step {marks[rank, 0]:.0f}"
    got, cause, repair = [
        (steps, "they do not see the same folder", "--out must be one folder that all ranks see"),
        (f"other settings on rank {rank} than on rank 0", "the ranks got different options", "give all the same"),
        (
            f"other pictures or captions on rank {rank}",
            "its copy of the data is not rank 0's",
            "give all the same data",
        ),
        (f"other weights on rank {rank}", "--init leads elsewhere there", "give all ranks the same checkpoint"),
    ][column]
    raise UsageError("ranks that start from the same", got, cause, repair)


def _require_same_training(saved: Saved, now: dict[str, Any], inputs: Inputs, out: Path) -> None:
    then, new = saved.about["settings"], now["settings"]
    then = Settings().as_dict() | then  # settings that came later had their default
    different = [f"{name} {then[name]!r}, not {new[name]!r}" for name in new if then[name] != new[name]]
    if different:
        raise UsageError(
            expected=f"the settings of the training in {out}, which goes on from step {saved.step}",
            got="another: " + ", ".join(different),
            cause="this folder belongs to another training",
            repair="give another --out, or the same settings",
        )
    if saved.about.get("data") != now["data"]:
        raise UsageError(
            expected=f"the pictures and captions that the training in {out} was begun with",
            got=changes(out, inputs.data.items),
            cause="the data have changed since; its batches could not be the same any more",
            repair="put them back as they were, or begin anew with another --out",
        )
    if saved.about.get("weights") != now["weights"]:
        raise UsageError(
            expected=f"the weights that the training in {out} began with",
            got=f"other weights in {new['init']}",
            cause="the checkpoint behind --init has changed since",
            repair="put it back, or begin anew with another --out",
        )
