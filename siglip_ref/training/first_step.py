"""Before a first training kernels compile in two processes: those of the towers' forwards here, the rest in a child.

python -m siglip_ref.training.first_step     the child: it is given a pickled `Settings`, and ends when its input does
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from siglip_ref.training.data.inputs import Inputs
from siglip_ref.training.parallel import Alone, Parallel
from siglip_ref.training.settings import Settings
from siglip_ref.training.task import prepare

# The child computes nothing with these, so it need not compile them.
FORWARDS = ("all_images", "all_texts", "some_images", "some_texts")
FEW = 1 << 21  # numbers of a model whose step, which the child computes without a meaning, costs nothing to speak of


@contextmanager
def compiled_beside(
    settings: Settings, inputs: Inputs, parallel: Parallel, compiled: bool
) -> Iterator[Callable[[], None]]:
    """Yields what to call before the first step: it waits for the child."""
    plain = settings.recipe == "siglip" and not settings.init and settings.loss != "labels"
    small = sum(value.size for value in inputs.params.values()) <= FEW
    if not compiled or not plain or not small or parallel.size > 1:
        yield lambda: None
        return
    from numba import get_num_threads

    from siglip_ref.fast.machine.ready import can_keep, is_ready, mark_ready

    tower, batch = inputs.cfg.image, inputs.batch
    job = f"train-{tower.width}-{tower.depth}-{batch}-{settings.dtype}-{get_num_threads()}"
    if is_ready(job) or not can_keep():
        yield lambda: None
        return
    child = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert child.stdin
    with suppress(BrokenPipeError):  # a child that could not start: all is compiled here
        child.stdin.write(pickle.dumps(settings))
        child.stdin.flush()

    def wait() -> None:
        child.wait()
        mark_ready(job)

    try:
        yield wait
    finally:
        child.kill()
        child.communicate()


def _nothing(*_: Any) -> None:
    """In the place of a kernel; what it would have written stays as it is."""


def compile_rest(settings: Settings) -> None:
    """The first step, but for the forwards: its numbers mean nothing, its kernels are those of the training."""
    from siglip_ref.fast import towers
    from siglip_ref.model.optim import State
    from siglip_ref.training.data.inputs import read_inputs

    for name in FORWARDS:
        setattr(towers, name, _nothing)
    task = prepare(settings, read_inputs(settings, 1), Alone(), Path(), lambda said: None)
    _, grads = task.gradient(task.params, 0)
    task.step(task.params, {name: grads[name] for name in task.learnt}, State(), 0)


def main() -> None:
    """The child."""
    settings = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_training, daemon=True).start()
    compile_rest(settings)
    os._exit(0)


def _end_with_the_training() -> None:
    sys.stdin.buffer.read()  # until the other end of the pipe is closed
    os._exit(0)


if __name__ == "__main__":
    main()
