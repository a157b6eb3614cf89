"""A rank that needs no framework, as a program: what it does is the task's function, called with the rank itself."""

import pickle
import sys
from pathlib import Path

from siglip_ref.check.ranks.child import Child
from siglip_ref.check.ranks.stop import tell

if __name__ == "__main__":
    one = Child(Path(sys.argv[1]), int(sys.argv[2]))
    try:
        pickle.loads((one.folder / "task").read_bytes()).fn(one)
    except Exception as cause:
        tell(one.folder / f"error-{one.number}", cause)
        raise
