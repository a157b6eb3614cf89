"""Search over 1,000,000 unit rows of 768 numbers: the exact top 20, beside one NumPy product over the same rows.

    python benchmarks/search_rows.py [--rows 1000000] [--rounds 7]

Warm: the rows are in the page cache, and both take turns. Cold: the file's pages are given back to the system first.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from search_common import write

from siglip_ref.use.search.query import best, similarities_of

DIM, PIECE = 768, 20_000


def rows_file(file, rows):
    """A .npy of unit rows."""
    rng = np.random.default_rng(0)
    with open(file, "wb") as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, DIM)}
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, rows, PIECE):
            part = rng.standard_normal((min(PIECE, rows - start), DIM), np.float32)
            out.write((part / np.linalg.norm(part, axis=1, keepdims=True)).tobytes())


def drop(file):
    """Give the file's pages back."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def timed(work):
    """Seconds, and what came of it."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def in_turns(file, unit, rounds):
    """Seconds of one product, of a search, and whether the search is right."""
    vectors = np.load(file, mmap_mode="r")
    product, search = [], []
    for _ in range(rounds + 1):  # the first warms up
        seconds, similarities = timed(lambda: vectors @ unit)
        product.append(seconds)
        seconds, found = timed(lambda: best(similarities_of(vectors, unit), 20))
        search.append(seconds)
    return product, search, found.tolist() == np.argsort(-similarities, kind="stable")[:20].tolist()


def main():
    """Make the rows, take turns, check, write."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--folder", type=Path, help="where 3 GB have room; default: the temporary folder")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        file = Path(folder) / "vectors.npy"
        rows_file(file, given.rows)
        unit = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
        unit /= np.linalg.norm(unit)
        product, search, right = in_turns(file, unit, given.rounds)
        drop(file)
        cold, _ = timed(lambda: best(similarities_of(np.load(file, mmap_mode="r"), unit), 20))
        size = file.stat().st_size
    one, ours = statistics.median(product[1:]), statistics.median(search[1:])
    write(
        "search_rows",
        {
            "rows": given.rows,
            "one product, seconds": round(one, 3),
            "search with top 20, seconds": round(ours, 3),
            "ratio": round(ours / one, 3),
            "exactly the largest": right,
            "cold, seconds": round(cold, 2),
            "cold, MB/s": round(size / 1e6 / cold),
        },
    )


if __name__ == "__main__":
    main()
