"""Right losses over ranks on a machine that is busy with other things: none may fail, and a real deadlock is named.

    python benchmarks/ranks_busy.py [--busy 8] [--times 20]

Beside the checks so many processes compute without a pause. Every loss is checked at W = 2, 3 and 4 once (each check
tries a second number of ranks too), the one that sends in both directions at W = 3 so many times more.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import siglip_ref as sr

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "interop"))
import distributed_losses as losses

VARIANTS = ("bidir", "shift", "reduce", "gather")
WORLDS = (2, 3, 4)

Check = tuple[str, Callable[..., Any], int, dict[str, Any]]


def right(times: int) -> Iterator[Check]:
    """Name, loss, ranks, and how it is to be called."""
    for world in WORLDS:
        for variant in VARIANTS:
            yield f"open_clip {variant}", losses.open_clip_loss(variant), world, {"framework": "torch"}
        yield "a gather", losses.global_loss_with_grad, world, {"framework": "torch", "value": "global"}
        own_axis = {"framework": "jax", "axis_name": "batch"}
        yield "big_vision's form, gathered", losses.jax_gathered_others, world, own_axis
        yield "big_vision's form, device by device", losses.jax_device_by_device, world, own_axis
        yield "big_vision's form, whole", losses.jax_whole_loss, world, {"framework": "jax", "value": "global"}
    for _ in range(times):
        yield "open_clip bidir", losses.open_clip_loss("bidir"), 3, {"framework": "torch"}


def spin() -> None:
    """Until it is ended, or its parent is."""
    parent = os.getppid()
    while os.getppid() == parent:
        pass


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without a pause."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=spin, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=8, help="processes beside")
    parser.add_argument("--times", type=int, default=20, help="of the loss that sends in both directions, at W = 3")
    arguments = parser.parse_args()
    counts: dict[str, int] = {}
    with busy(arguments.busy):
        for name, fn, world, how in right(arguments.times):
            begun = time.monotonic()
            report = sr.check_distributed_loss(fn, world, **how)
            counts[report.verdict] = counts.get(report.verdict, 0) + 1
            print(f"{report.verdict:<10} W={world} {time.monotonic() - begun:4.0f} s  {name}", flush=True)
            if not report.passed:
                print(report, flush=True)
        begun = time.monotonic()
        hung = sr.check_distributed_loss(losses.hangs, 3, "torch")
        named = [finding.id for finding in hung.findings] == ["p2p-order-deadlock"]
        print(f"{'named' if named else 'NOT NAMED'} W=3 {time.monotonic() - begun:4.0f} s  a real deadlock", flush=True)
    print(", ".join(f"{verdict}: {count}" for verdict, count in counts.items()))
    return 0 if named and "FAIL" not in counts else 1


if __name__ == "__main__":
    sys.exit(main())
