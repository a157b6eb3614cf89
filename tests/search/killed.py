"""Index photos in a process that is there to be killed: `slow PHOTOS OUT MODEL`, `dies PHOTOS OUT MODEL N`.

Not a fork of the tests: after compiled kernels have run, GNU OpenMP ends a forked process that uses them.
"""

import os
import signal
import sys
import time
from pathlib import Path

from siglip_ref.use.search import build as building
from siglip_ref.use.search import folder


def wait_in_each_batch():
    """Shards of 5, and an instant to hit."""
    building.SHARD, embed = 5, building.Model.embed_prepared
    building.Model.embed_prepared = lambda *given: (time.sleep(0.01), embed(*given))[1]


def die_at(kill):
    """Half a file is written, then the process is gone."""
    count, atomically, whole = iter(range(10)), folder.write_atomically, folder.written_whole

    def dies(path):
        if not path.parent.name.endswith("work") and next(count) == kill:
            path.with_name(f"{path.name}.{os.getpid()}.part").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    folder.write_atomically = lambda path, data: (dies(path), atomically(path, data))
    folder.written_whole = lambda path: (dies(path), whole(path))[1]


if __name__ == "__main__":
    how, pictures, out, model, *rest = sys.argv[1:]
    wait_in_each_batch() if how == "slow" else die_at(int(rest[0]))
    print("begins", flush=True)
    options = {"batch": 2, "threads": 1} if how == "slow" else {}
    building.build(Path(pictures), Path(out), model, **options)
