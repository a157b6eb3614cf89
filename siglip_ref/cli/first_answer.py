"""The first answer of a new installation: a few pictures are computed with plain NumPy, and kernels compile beside.

Compiling takes longer than the specification needs for about ten pictures. So a command that is asked for no more, and
finds no kernels on disk, computes with the specification; a child at the lowest priority compiles meanwhile, and ends
with the command. What it finished is there for the next one.

python -m siglip_ref.cli.first_answer image-float32 text-float32     the child
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from siglip_ref.architecture.params import init
from siglip_ref.architecture.sizes import config
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.use.inference import best_ops, image_embeddings, text_embeddings
from siglip_ref.use.zeroshot import Model

IMAGES, TEXTS = 10, 40  # so many take the specification no longer than compiling takes
NOTE = "computed with plain NumPy, so that the first answer need not wait; kernels are compiled beside, for the next"


@contextmanager
def quick(model: Model, images: int, texts: int = 0) -> Iterator[tuple[Model, tuple[str, ...]]]:
    """The model, computing with what answers sooner; and what is to be said of it.

    Parameters
    ----------
    images, texts : how many are to be embedded; 0: nothing of this tower
    """
    if not model.ops.compiled or model.config.naflex:
        yield model, ()
        return
    from siglip_ref.fast.machine.ready import is_ready, mark_ready

    dtype = next(iter(model.params.values())).dtype
    jobs = [f"{side}-{dtype}" for side, number in (("image", images), ("text", texts)) if number]
    missing = [job for job in jobs if not is_ready(job)]
    if not missing or images > IMAGES or texts > TEXTS:
        yield model, ()
        for job in missing:
            mark_ready(job)
        return
    command = [sys.executable, "-m", __name__, *missing]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield replace(model, ops=SPECIFICATION), (NOTE,)
    finally:
        child.kill()
        child.communicate()


def compile_for(job: str) -> None:
    """Compute one embedding of a small model: the kernels are those of every model."""
    from siglip_ref.fast.machine.ready import mark_ready

    side, _, dtype = job.partition("-")
    cfg = config("mu/16")
    params = init(cfg, dtype=np.dtype(dtype))
    if side == "image":
        image_embeddings(params, np.zeros((1, *cfg.image_size, 3), dtype), cfg, best_ops())
    else:
        text_embeddings(params, np.ones((1, cfg.text_length), np.int64), cfg, best_ops())
    mark_ready(job)


def main(jobs: list[str]) -> None:
    """The child: it ends when the command that started it does, however that ends."""
    if hasattr(os, "nice"):
        os.nice(19)
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    for job in jobs:
        compile_for(job)


def _end_with_the_command() -> None:
    sys.stdin.read()  # until the other end of the pipe is closed
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
