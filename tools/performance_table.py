"""Write the tables of speed, growth and first checks into README and docs, from benchmarks/results; misses included.

`python tools/performance_table.py` rewrites what stands between the markers; `--check` only says whether it is current.
"""

import json
import sys
from collections.abc import Collection, Sequence
from math import log
from pathlib import Path

from siglip_ref.cli.speed import Result, read

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("performance", "checking-a-loss")))
END = "<!-- end -->"

WORDS = {
    "loss-4096": "loss and all gradients, batch 4,096, D = 768",
    "loss-16384": "the same, batch 16,384",
    "image-1": "B/16-256, one image forward",
    "image-8": "B/16-256, 8 images forward",
    "image-32": "B/16-256, 32 images forward",
    "text-1": "B/16-256, one text forward",
    "text-8": "B/16-256, 8 texts forward",
    "gradients-8": "B/16-256, loss and all gradients, batch 8",
    "step-tiny": "tiny, a training step, batch 8",
    "step-mu": "mu/16, a training step, batch 8",
    "step-mu-256": "mu/16, a training step, batch 256",
    "step-s": "S/16-256, a training step, batch 16",
    "step-b": "B/16-256, a training step, batch 8",
}
RIVALS = {
    "torch": "Torch eager",
    "torch.compile": "torch.compile",
    "jax.jit": "jax.jit",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
# What was aimed at: at least so many times faster; "product": at least this share of NumPy's matrix product's rate;
# "memory": at most this share of Torch's peak.
LOSS = {"torch": 1.9, "torch.compile": 1.5, "jax.jit": 1.3, "product": 0.85}
FORWARD = {"torch": 1.15, "onnxruntime": 1.0, "openvino": 1.0, "product": 0.85}
STEP = {"torch": 4.0, "jax.jit": 1.5}
AIMS: dict[str, dict[str, float]] = {
    "loss-4096": LOSS,
    "loss-16384": LOSS,
    "image-1": {"torch": 1.15, "onnxruntime": 0.9, "openvino": 0.9, "product": 0.85},
    "text-1": {"torch": 1.15, "onnxruntime": 0.9, "openvino": 0.9, "product": 0.85},
    **dict.fromkeys(("image-8", "image-32", "text-8"), FORWARD),
    "gradients-8": {"torch": 1.0, "memory": 0.8},
    "step-s": {"torch": 1.1, "memory": 0.8},
    "step-b": {"torch": 1.1, "memory": 0.8},
    "step-tiny": STEP,
    "step-mu": STEP,
    "step-mu-256": {"torch": 2.0},
}


def cell(value: float | None, aim: float | None, unit: str = "", at_most: bool = False) -> str:
    """A figure, with what was aimed at where it was missed."""
    if value is None:
        return "-"
    met = aim is None or (value <= aim if at_most else value >= aim)
    return f"{value:.2f}{unit}" + ("" if met else f" (**missed**: {aim:g}{unit})")


def row(result: Result, rivals: Sequence[str]) -> str:
    """One case."""
    aims, ours = AIMS[result.case], result.entries["fast"]
    there = {name: entry for name, entry in result.entries.items() if not entry.failed}
    ratios = [cell(result.ratio(name) if name in there else None, aims.get(name), "x") for name in rivals]
    share = cell(result.of_product("fast"), aims.get("product"))
    memory = cell(ours.peak / there["torch"].peak if "torch" in there else None, aims.get("memory"), at_most=True)
    return f"| {WORDS[result.case]} | {ours.median * 1e3:,.1f} ms | {' | '.join(ratios)} | {share} | {memory} |"


def table(chosen: Collection[str] = tuple(WORDS), held: str = "") -> str:
    """The cases that were measured, of these; held: to which kernels, as the files' names end."""
    places = [RESULTS / f"{name}{held}.json" for name in ("loss_speed", "model_speed")]
    found = {result.case: result for place in places for result in read(place)}
    rivals = [name for name in RIVALS if any(name in found[case].entries for case in chosen if case in found)]
    machine = json.loads(places[-1].read_text())["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in VERSIONS if name in machine)
    rates = list(found.values())[-1].products
    product = ", ".join(f"{2 * 3072**3 / entry.median / 1e9:,.0f} GFLOP/s in {name}" for name, entry in rates.items())
    slower = rates["torch"].median / rates["numpy"].median if "torch" in rates else 1.0
    beside = (
        f" Torch's product is {slower:.2f} times slower than NumPy's there; where most of the time is products, that"
        " alone can explain a speed-up over Torch of this size."
        if slower > 1.05
        else f" Torch's product is {1 / slower:.2f} times as fast as NumPy's there."
    )
    return "\n".join([
        f"| float32, {machine['threads']} threads | time | "
        + " | ".join(f"speed-up over {RIVALS[name]}" for name in rivals)
        + " | share of the peak rate | memory, relative to Torch |",
        "|---" * (len(rivals) + 4) + "|",
        *[row(found[case], rivals) for case in chosen if case in found],
        "",
        f"Medians of at least 7 rounds in one run, every contestant in its own process, on {machine['cpu']} with"
        f" {machine['cores']} cores; {versions}. Above 1x siglip-ref is faster. A share of 1 is the"
        f" rate of NumPy's product of two 3072 x 3072 matrices, about the highest rate of cores that BLAS knows."
        f" That product runs at {product}.{beside}"
        f" The last column compares peak memory. mu/16 and tiny are very small models.",
    ])  # fmt: skip


VERSIONS = ("numpy", "numba", "torch", "jax", "transformers", "onnxruntime", "openvino")
SHORT = ("loss-4096", "gradients-8", "step-mu-256")  # for the README
AXES = {"B": "batch B", "N": "tokens N", "C": "width C", "depth": "depth"}


def growth() -> str:
    """Fitted exponents of time: of the loss against B, of a tower against each axis."""
    lines = ["| time of | against | from .. to | exponent | between the last two |", "|---|---|---|---:|---:|"]
    loss = json.loads((RESULTS / "loss_growth.json").read_text())
    ends = loss["rows"][0], loss["rows"][-1]
    last = log(ends[1]["seconds"] / loss["rows"][-2]["seconds"]) / log(ends[1]["pairs"] / loss["rows"][-2]["pairs"])
    span = f"{ends[0]['pairs']:,} .. {ends[1]['pairs']:,}"
    lines.append(f"| loss and gradients | pairs B | {span} | {loss['exponent']:.2f} | {last:.2f} |")
    towers = json.loads((RESULTS / "model_growth.json").read_text())
    for axis, found in towers["axes"].items():
        span = f"{found['values'][0]:,} .. {found['values'][-1]:,}"
        lines.append(f"| tower, both ways | {AXES[axis]} | {span} | {found['exponent']:.2f} | {found['last']:.2f} |")
    base = ", ".join(f"{name} {value}" for name, value in towers["base"].items())
    return "\n".join([*lines, "", f"The tower is a text tower in float32; {base} where it is not the axis."])


def first_check() -> str:
    """CPU seconds of the first check of a process, beyond its imports."""
    found = json.loads((RESULTS / "first_check.json").read_text())
    aims = {name: 1.5 for name in found["seconds"] if name.startswith("torch")}
    aims |= {name: 3.0 for name in found["seconds"] if name.startswith("check_model")}
    lines = ["| first check of a process | CPU beyond the imports |", "|---|---:|"]
    for name, spent in found["seconds"].items():
        lines.append(f"| {name} | {cell(spent, aims.get(name), ' s', at_most=True)} |")
    machine = found["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("numpy", "torch", "jax", "transformers"))
    return "\n".join(
        [*lines, "", f"One thread, medians of fresh processes, on {machine['cpu']}; {versions}. JAX compiles."]
    )


TABLES = {
    "performance": table,
    "performance avx2": lambda: table(held="_avx2"),
    "performance in short": lambda: table(SHORT),
    "growth": growth,
    "first check": first_check,
}


def renewed(text: str) -> str:
    """The page with its tables written anew; a table whose figures are not there stays."""
    for name, make in TABLES.items():
        begin = f"<!-- {name} -->"
        before, marker, rest = text.partition(begin)
        try:
            if marker:
                text = f"{before}{begin}\n{make()}\n{END}{rest.partition(END)[2]}"
        except FileNotFoundError as missing:
            print(f"{name}: not measured yet, no {missing.filename}")
    return text


def main() -> int:
    """Write the pages, or look at them."""
    stale = [page for page in PAGES if renewed(page.read_text()) != page.read_text()]
    if "--check" not in sys.argv:
        for page in stale:
            page.write_text(renewed(page.read_text()))
    print("stale: " + ", ".join(page.name for page in stale) if stale else "current")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
