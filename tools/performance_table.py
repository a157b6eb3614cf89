"""Write the table of speed into README and docs/performance.md, from benchmarks/results; misses included.

`python tools/performance_table.py` rewrites what stands between the markers; `--check` only says whether it is current.
"""

import json
import sys
from pathlib import Path

from siglip_ref.bench import Result, read

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
BEGIN, END = "<!-- performance -->", "<!-- end -->"

WORDS = {
    "loss-4096": "loss and all gradients, 4,096 pairs, D = 768",
    "loss-16384": "the same, 16,384 pairs",
    "image-1": "B/16-256, one image forward",
    "image-8": "B/16-256, 8 images forward",
    "text-8": "B/16-256, 8 texts forward",
    "gradients-8": "B/16-256, loss and all gradients of 8 pairs",
    "step-tiny": "tiny, a training step of 8 pairs",
    "step-mu": "mu/16, a training step of 8 pairs",
}
RIVALS = {"torch": "Torch eager", "torch.compile": "torch.compile", "jax.jit": "jax.jit"}
# What was aimed at: at least so many times faster; "product": at least this share of NumPy's matrix product's rate;
# "memory": at most this share of Torch's peak.
LOSS = {"torch": 1.9, "torch.compile": 1.5, "jax.jit": 1.3, "product": 0.85}
STEP = {"torch": 4.0, "jax.jit": 1.5}
AIMS: dict[str, dict[str, float]] = {
    "loss-4096": LOSS,
    "loss-16384": LOSS,
    "image-1": {"torch": 1.2},
    "image-8": {"torch": 1.1},
    "text-8": {"torch": 1.05},
    "gradients-8": {"torch": 1.0, "memory": 0.8},
    "step-tiny": STEP,
    "step-mu": STEP,
}


def cell(value: float | None, aim: float | None, unit: str = "", at_most: bool = False) -> str:
    """A figure, with what was aimed at where it was missed."""
    if value is None:
        return "-"
    met = aim is None or (value <= aim if at_most else value >= aim)
    return f"{value:.2f}{unit}" + ("" if met else f" (**missed**: {aim:g}{unit})")


def row(result: Result) -> str:
    """One case."""
    aims, ours = AIMS[result.case], result.entries["fast"]
    there = {name: entry for name, entry in result.entries.items() if not entry.failed}
    rivals = [cell(result.ratio(name) if name in there else None, aims.get(name), "x") for name in RIVALS]
    share = cell(result.of_product("fast"), aims.get("product"))
    memory = cell(ours.peak / there["torch"].peak if "torch" in there else None, aims.get("memory"), at_most=True)
    return f"| {WORDS[result.case]} | {ours.median * 1e3:,.1f} ms | {' | '.join(rivals)} | {share} | {memory} |"


def table() -> str:
    """All cases that were measured."""
    found = {r.case: r for name in ("loss_speed", "model_speed") for r in read(RESULTS / f"{name}.json")}
    machine = json.loads((RESULTS / "model_speed.json").read_text())["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("numpy", "numba", "torch", "jax", "transformers"))
    rates = found["image-8"].products
    product = ", ".join(f"{name} {2 * 3072**3 / entry.median / 1e9:,.0f}" for name, entry in rates.items())
    return "\n".join([
        f"| float32, {machine['threads']} threads | time | " + " | ".join(f"{name} / ours" for name in RIVALS.values())
        + " | of the product's rate | peak memory, of Torch's |",
        "|---|---|---|---|---|---|---|",
        *[row(found[case]) for case in WORDS if case in found],
        "",
        f"Medians of at least 7 rounds in one run, every contestant in its own process, on {machine['cpu']} with"
        f" {machine['cores']} cores; {versions}. Matrix product of 3072 x 3072 numbers, GFLOP/s: {product}.",
    ])  # fmt: skip


def main() -> int:
    """Write the pages, or look at them."""
    stale = []
    for page in PAGES:
        text = page.read_text()
        before, _, rest = text.partition(BEGIN)
        if not rest:
            continue
        after = rest.partition(END)[2]
        new = f"{before}{BEGIN}\n{table()}\n{END}{after}"
        if new != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new)
    print("written: " + ", ".join(stale) if stale else "current")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
