"""What the speed benchmarks share: measure cases, write figures as JSON, table and plot beside this file.

Cases that are not measured this time (`--case` chooses) keep their earlier figures, if they are of this processor.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from siglip_ref.cli.speed import CONTESTANTS, Result, bench, machine, read, table, write

RESULTS = Path(__file__).parent / "results"
# What holds each contestant to AVX2 on a processor with AVX-512: OpenBLAS, Numba, Torch with its two libraries, XLA,
# which leaves products to YNNPACK unless told not to, whose kernels are the processor's whatever XLA may use.
AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "NUMBA_CPU_NAME": "haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type=",
}
HELD = ("fast", "torch", "torch.compile", "jax.jit")


def measure(name: str, cases: Sequence[str]) -> None:
    """Run the cases and write results/NAME.json, .md and .svg."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--case", action="append", choices=cases)
    options.add_argument("--contestant", action="append", choices=CONTESTANTS)
    options.add_argument("--avx2", action="store_true", help="hold to AVX2 who can be held; results/NAME_avx2.json")
    chosen = options.parse_args()
    if chosen.avx2:
        os.environ |= AVX2
        name, chosen.contestant = f"{name}_avx2", chosen.contestant or HELD
    RESULTS.mkdir(exist_ok=True)
    place = RESULTS / f"{name}.json"
    new = bench(chosen.case or cases, chosen.contestant, chosen.threads, chosen.repeats)
    known = {result.case: result for result in [*(read(place) if of_this_processor(place) else []), *new]}
    results = [known[case] for case in cases if case in known]
    write(place, results, chosen.threads)
    facts = ", ".join(f"{key} {value}" for key, value in machine(chosen.threads).items())
    text = f"{table(results)}\n\n{facts}\n"
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.svg").write_text(plot(results))
    print(text)


def of_this_processor(place: Path) -> bool:
    """Whether there are earlier figures, and of the processor at hand: one table is of one machine."""
    return place.exists() and json.loads(place.read_text())["machine"]["cpu"] == machine(1)["cpu"]


def plot(results: Sequence[Result]) -> str:
    """Bars of how many times faster `fast` is than each rival; the line marks 1."""
    rows = [
        (f"{r.case} / {name}", r.ratio(name))
        for r in results
        for name, entry in r.entries.items()
        if name != "fast" and not entry.failed
    ]
    unit, height = 420 / max([ratio for _, ratio in rows] + [1.0]), 22
    bars = "".join(
        f'<text x="190" y="{y + 15}" text-anchor="end">{label}</text>'
        f'<rect x="200" y="{y + 3}" width="{ratio * unit:.1f}" height="16" fill="#4a7ab5"/>'
        f'<text x="{206 + ratio * unit:.1f}" y="{y + 15}">{ratio:.2f}x</text>'
        for y, (label, ratio) in zip(range(0, height * len(rows), height), rows, strict=True)
    )
    end, one = height * len(rows), 200 + unit
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{end + 4}" font-family="sans-serif" '
        f'font-size="12">{bars}<line x1="{one:.1f}" x2="{one:.1f}" y1="0" y2="{end}" stroke="black"/></svg>\n'
    )
