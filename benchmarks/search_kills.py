"""20,000 pictures, an index killed ten times at random: the same bytes as one that was not; a second run reads none.

Generated pictures in nested folders, 1 % of them cut short; a small model trained on drawn shapes. Measured: are
the two indexes equal byte for byte, how many pictures a second run opens, and how far the resident memory moves between
the first shard and the end.

    python benchmarks/search_kills.py [--pictures 20000] [--kills 10] [--steps 600]
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from search_common import command, photos, trained, write


def start(words):
    """The command, running."""
    command_line = [sys.executable, "-m", "siglip_ref", *words]
    return subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def resident(pid):
    """Bytes that a process holds in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def content(place):
    """Every byte."""
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def whole_run(words, out):
    """Seconds, and the memory seen every half second once a shard is saved."""
    begin, process, seen = time.perf_counter(), start(words), []
    while process.poll() is None:
        time.sleep(0.5)
        if any((out / "index.work").glob("*.npy")):
            seen.append(resident(process.pid))
    return time.perf_counter() - begin, [size for size in seen if size]


def opened(words, place):
    """Pictures that a run opens, as strace sees it."""
    log = place / "opened.txt"
    traced = ["strace", "-f", "-e", "trace=openat,open", "-o", str(log), sys.executable, "-m", "siglip_ref", *words]
    subprocess.run(traced, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return sum("/photos/" in line and ('.jpg"' in line or '.png"' in line) for line in log.read_text().splitlines())


def read_bytes(words):
    """Bytes that a run asks for in calls of the system, pictures and all, by the kernel's own count (rchar)."""
    process = start(words)
    seen = 0
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError):
            seen = int(Path(f"/proc/{process.pid}/io").read_text().split()[1])
        time.sleep(0.02)
    return seen


def main():
    """Make, run whole, kill, compare."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pictures", type=int, default=20_000)
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, rng = Path(folder), random.Random(given.seed)
        model = trained(place / "run", given.steps)
        pictures = photos(place / "photos", given.pictures)
        words = ["index", str(pictures), "--model", str(model), "--out"]
        seconds, memory = whole_run([*words, str(place / "whole")], place / "whole")
        killed, saved = 0, []
        for _ in range(given.kills):
            process = start([*words, str(place / "killed")])
            time.sleep(rng.uniform(2.0, max(4.0, 0.6 * seconds)))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            saved.append(len(list((place / "killed").glob("index.work/*.npy"))))
        command([*words, str(place / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        same = content(place / "whole") == content(place / "killed")
        if subprocess.run(["which", "strace"], capture_output=True).returncode == 0:
            again = {"pictures opened by a second run": opened([*words, str(place / "whole")], place)}
        else:
            again = {"bytes read by a second run": read_bytes([*words, str(place / "whole")])}
        size = sum(file.stat().st_size for file in pictures.rglob("*") if file.is_file())
        found = {
            "pictures": given.pictures,
            "bytes of all pictures": size,
            "seconds, uninterrupted": round(seconds, 1),
            "images per second": round(given.pictures / seconds, 1),
            "killed": killed,
            "shards saved at each kill": saved,
            "equal byte for byte": same,
            "resident MB from the first shard to the end": [round(min(memory) / 2**20), round(max(memory) / 2**20)],
            "resident MB, spread": round((max(memory) - min(memory)) / 2**20, 1),
        }
        write("search_kills", found | again)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
