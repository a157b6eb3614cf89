"""Which name each mistake of the catalogue is given when it is written in torch: docs/generated/diagnosis.md.

python benchmarks/diagnosis.py [losses] [ranks] [models] [steps] [uncatalogued]

Every part is measured by itself and kept in benchmarks/results/diagnosis-PART.json; the page is made of what is there.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import diagnosis_mistakes as torch_code
import uncatalogued

import siglip_ref as sr
from siglip_ref.check.call.frameworks import Setting
from siglip_ref.check.engine.expected.expected import CONVENTIONS
from siglip_ref.check.ranks.check import calls_of
from siglip_ref.check.ranks.judge import judge_ranks
from siglip_ref.check.ranks.observed import Observed
from siglip_ref.check.ranks.processes import run_processes
from siglip_ref.check.ranks.world import Task
from siglip_ref.mistakes import executable

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "generated" / "diagnosis.md"
DTYPES = ("float64", "float32")
WORLDS = (4, 3)

# Other names that say the same: no number of a check separates them, or another convention is what was meant.
SAME = {
    "normalised-again": ("convention", 'a loss that normalises its rows is right under embeddings="raw"'),
    "features-not-normalised": ("convention", 'a loss that takes rows as they are is right under embeddings="unit"'),
    "logit-scale-not-exp": ("convention", 'it is right under scale="linear"'),
    "quickgelu-vs-gelu": ("convention", 'it is right under text_gelu="quick"'),
    "causal-mask-wrong": ("convention", 'it is right under text_mask="causal"'),
    "eos-pooling-argmax": ("convention", 'it is right under text_pooling="argmax"'),
    "pool-first-token": ("convention", 'it is right under text_pooling="first"'),
    "log-one-plus-exp": ("log-of-sigmoid", "infinite at the same points"),
    "log-of-sigmoid": ("log-one-plus-exp", "infinite at the same points"),
    "one-side-not-normalised": ("features-not-normalised", "said to be made in one tower"),
}
# Of the catalogue, what no check of a loss, of ranks, of a model or of a step looks at.
ELSEWHERE = {
    "pixel-grad-order": "no check asks for the gradient of the images",
    "embed-norm-eps": "one part in 1e8 of embeddings of length 1; the three guards of a division are conventions",
    "accum-changes-negatives": "a batch that is cut into micro-batches is seen by check_step alone",
}
Result = dict[str, Any]  # mistake, dtype, names (best first), tensor (where the first one begins), seconds


class InTurn:
    """Many losses in one group of processes: each of them answers `each` calls, one after the other."""

    def __init__(self, losses: list[Callable[..., Any]], each: int) -> None:
        self.losses, self.each, self.calls = losses, each, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.losses[(self.calls - 1) // self.each](*arguments)


def losses() -> Iterator[Result]:
    for embeddings, known in (("unit", torch_code.LOSSES), ("raw", torch_code.RAW_LOSSES)):
        for name, fn in known.items():
            for dtype in DTYPES:
                yield timed(name, dtype, partial(sr.check_loss, fn, "torch", dtype, scale="log", embeddings=embeddings))


def ranks() -> Iterator[Result]:
    yield from over_ranks(torch_code.RANKS, torch_code.UNEQUAL, torch_code.FINAL)


def over_ranks(known: dict[str, Any], unequal: set[str], final: set[str]) -> Iterator[Result]:
    """Every loss on real processes of two world sizes; those that want the same calls share the processes."""
    for module in (sys.modules["__main__"], torch_code, uncatalogued):
        cloudpickle.register_pickle_by_value(module)
    for names, uneven in (([n for n in known if n not in unequal], False), ([n for n in known if n in unequal], True)):
        for dtype in DTYPES if names else ():
            setting, seen = Setting(dtype, dtype, "cpu", False), {name: [] for name in names}
            for world in WORLDS:
                splits, probes = calls_of(world, uneven, ["log"], setting)
                fn = InTurn([known[name] for name in names], len(splits))
                task = Task(fn, None, setting, splits * len(names), world, "gloo", 300.0)
                ran = run_processes("siglip_ref.check.ranks.torch", task, world)
                if ran.stop:
                    raise RuntimeError(ran.stop.evidence)
                for place, of_ranks in enumerate(ran.outcomes):
                    name, call = names[place // len(splits)], place % len(splits)
                    seen[name].append(Observed(probes[call][1], splits[call], of_ranks))
            for name in names:
                way = ("none", "global") if name in final else ("mean", "local")
                judge = partial(judge_ranks, known[name], "torch", setting, {"log": seen[name]}, [CONVENTIONS[0]])
                yield timed(name, dtype, partial(judge, *way, WORLDS))


def models() -> Iterator[Result]:
    from diagnosis_models import MODELS
    from models import hugging_face

    for name, make in MODELS.items():
        for dtype in DTYPES:
            model = hugging_face()
            make(model)
            yield timed(name, dtype, partial(sr.check_model, model, dtype))


def steps() -> Iterator[Result]:
    sys.path.insert(0, str(ROOT / "tests" / "interop"))
    from step_mistakes import MISTAKES, RULE

    for name, make in MISTAKES.items():
        for dtype in DTYPES:
            arguments = make(dtype)
            yield timed(
                name, dtype, partial(sr.check_step, **{"rule": RULE, "model": arguments["step_fn"].model} | arguments)
            )


def strangers() -> Iterator[Result]:
    """Mistakes in no catalogue."""
    for name, (fn, _) in uncatalogued.LOSSES.items():
        for dtype in DTYPES:
            yield timed(name, dtype, partial(sr.check_loss, fn, "torch", dtype, scale="log", embeddings="unit"))
    yield from over_ranks({name: fn for name, (fn, _) in uncatalogued.RANKS.items()}, set(), set())


PARTS = {"losses": losses, "ranks": ranks, "models": models, "steps": steps, "uncatalogued": strangers}


def timed(name: str, dtype: str, check: Callable[[], Any]) -> Result:
    start = time.perf_counter()
    report = check()
    told = [f for f in report.findings if f.id != "layernorm-eps" or name == "layernorm-eps"]
    names = ["passed"] if report.passed else list(dict.fromkeys(finding.id for finding in told))
    begins = (told[0].tensor if told else "") or (report.first_divergent.name if report.first_divergent else "")
    words = told[0].evidence if told else ""
    result = {"mistake": name, "dtype": dtype, "names": names, "tensor": begins, "words": words}
    print(name, dtype, names, f"{time.perf_counter() - start:.1f} s", flush=True)
    return result


def place(result: Result) -> int:
    """At which rank the mistake was named; a large number if it was not."""
    right = {result["mistake"], *SAME.get(result["mistake"], ())[:1]}
    return next((rank for rank, name in enumerate(result["names"], 1) if name in right), 99)


def flagged(result: Result) -> bool:
    return bool(result["names"] != ["passed"])


def share(results: list[Result], right: Callable[[Result], bool]) -> str:
    return f"{sum(map(right, results)) / len(results):.1%}" if results else "-"


HEAD = """# What mistakes are called

Made by `python benchmarks/diagnosis.py`. Each mistake of the catalogue was written in torch: as a loss, as a loss on
real processes (gloo, 4 and 3 ranks), as a change of a transformers `SiglipModel`, as a training step. A report names
what it finds, best first. The results are kept in `benchmarks/results/diagnosis-*.json`, and are older than the checks
of today. These also [work out what a loss computes](../how-the-report-knows.md): where they can, they answer "derived"
with the formula, not "unknown" as below. Label smoothing is such a loss.

| written as | checks | flagged | named first | among the first three |
|---|---:|---:|---:|---:|
"""


def page(found: dict[str, list[Result]]) -> str:
    """Shares, then every mistake with the names that it was given."""
    known = {part: results for part, results in found.items() if part != "uncatalogued"}
    total = {f"together, {dtype}": [r for rs in known.values() for r in rs if r["dtype"] == dtype] for dtype in DTYPES}
    lines = [HEAD.rstrip("\n")]
    for part, results in (known | total).items():
        shares = [share(results, right) for right in (flagged, lambda r: place(r) == 1, lambda r: place(r) <= 3)]
        lines.append(f"| {part} | {len(results)} | {' | '.join(shares)} |")
    written = {result["mistake"] for results in known.values() for result in results}
    looked_at = ("one vector", "several steps", "across ranks")
    wanted = {m.id for m in executable(*looked_at)} - ELSEWHERE.keys()
    lines += [
        "",
        f"{len(wanted & written)} of {len(wanted)} mistakes of the reference's loss, towers, ranks and steps are here;",
    ]
    lines += ["those of SigLIP 2's recipe and of CLIP's softmax loss are not."]
    lines += [f"Not written: {', '.join(sorted(wanted - written))}."] if wanted - written else []
    lines += ["", "What no such check looks at:", "", *(f"- {name}: {why}" for name, why in ELSEWHERE.items())]
    lines += ["", "Names that say the same:", ""]
    lines += [f"- {name} as {other}: {why}" for name, (other, why) in SAME.items()]
    lines += ["", "## Mistakes in no catalogue", "", *strangers_table(found.get("uncatalogued", []))]
    for part, results in known.items():
        lines += ["", f"## {part}", "", "| mistake | float64 | float32 |", "|---|---|---|"]
        by_name: dict[str, dict[str, str]] = {}
        for r in results:
            cell = ", ".join(r["names"]) + ("" if place(r) == 1 else " **(not first)**")
            by_name.setdefault(r["mistake"], {})[r["dtype"]] = cell
        for name, cells in by_name.items():
            lines.append(f"| {name} | " + " | ".join(cells.get(dtype, "-") for dtype in DTYPES) + " |")
    return "\n".join(lines) + "\n"


def strangers_table(results: list[Result]) -> list[str]:
    """An honest answer is "unknown", at the tensor where the mistake was made."""
    wanted = uncatalogued.LOSSES | uncatalogued.RANKS
    unknown = share(results, lambda r: r["names"] == ["unknown"])
    placed = share(results, lambda r: r["tensor"] in wanted[r["mistake"]][1])
    lines = [
        f"{len(wanted)} of them are in `benchmarks/uncatalogued.py`. Flagged: {share(results, flagged)}; answered",
        f'"unknown": {unknown}; said to begin where they were made: {placed}. Their author knew the diagnosis,',
        "and they were written last. Ten more, of models, are in `tests/interop/test_model_mistakes.py`.",
        "",
        "| mistake | dtype | answer | begins at | what is said of it |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        words = r["words"].replace("|", "\\|").removeprefix("no mistake of the catalogue explains it; ")
        lines.append(f"| {r['mistake']} | {r['dtype']} | {', '.join(r['names'])} | {r['tensor']} | {words} |")
    return lines


def main(parts: list[str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    for part in parts:
        file = RESULTS / f"diagnosis-{part}.json"
        file.write_text(json.dumps(list(PARTS[part]()), indent=1) + "\n", encoding="utf-8")
    files = {part: RESULTS / f"diagnosis-{part}.json" for part in PARTS}
    found = {part: json.loads(file.read_text(encoding="utf-8")) for part, file in files.items() if file.exists()}
    PAGE.write_text(page(found), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8").split("## ")[0])


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
