"""How long a first training waits: from the command to its first judgement and first step, with an empty cache.

    python benchmarks/cold_start.py [--repeats 3] [--data digits] [--one-process]

Each repeat has a cache of its own. Processor seconds of this process and of the child that compiles beside it, and wall
seconds, which mean something on a quiet machine only.
"""

import argparse
import os
import subprocess
import sys
import tempfile

MARKS = ("judge", "one_step")
_PROGRAM = """
import resource, sys, time
begin = time.monotonic()
import contextlib
import siglip_ref.training.loop as loop
from siglip_ref.cli.main import main

def marked(name, function):
    def run(*given):
        function(*given)
        own, child = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        spent = [use.ru_utime + use.ru_stime for use in (own, child)]
        print("MARK", name, *spent, time.monotonic() - begin, file=sys.stderr)
    return run

for name in {marks}:
    setattr(loop, name, marked(name, getattr(loop, name)))
if {alone}:
    loop.compiled_beside = lambda *given: contextlib.nullcontext(lambda: None)
main()
"""


def seconds(data: str, alone: bool) -> dict[str, list[float]]:
    """At the first of each mark: processor seconds, those of the children that have ended, wall seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _PROGRAM.format(marks=MARKS, alone=alone), "train"]
        done = subprocess.run(
            [*command, "--data", data, "--steps", "1", "--out", f"{folder}/run"],
            capture_output=True, text=True, check=True, env=os.environ | {"NUMBA_CACHE_DIR": f"{folder}/cache"},
        )  # fmt: skip
    marks = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("MARK")]
    return {name: [float(number) for number in rest] for name, *rest in reversed(marks)}  # the first of each stays


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--data", default="digits")
    options.add_argument("--one-process", action="store_true")
    chosen = options.parse_args()
    for _ in range(chosen.repeats):
        for name, (own, child, wall) in seconds(chosen.data, chosen.one_process).items():
            print(f"{name:<10}{own:7.1f} s of CPU, {child:5.1f} in the child, {wall:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
