"""Run a set of strangers' programs once: python benchmarks/strangers/run.py 2026-11-29-losses [--again]

See README.md beside it for the rule. Figures of a first run are never overwritten.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import siglip_ref as sr

HERE = Path(__file__).parent
DTYPES = ("float32", "float64")
Answer = dict[str, Any]  # program, dtype, verdict, computes, findings, truth, same, seconds


def programs(folder: Path) -> dict[str, dict[str, Any]]:
    """Of every Python file of a set, what its PROGRAMS say; or its `check`, whose truth stands in truth.json."""
    found: dict[str, dict[str, Any]] = {}
    sys.path.insert(0, str(folder))  # some share a module
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # processes that check_ranks starts import them, too
    written = folder / "truth.json"
    truths = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    for file in sorted(folder.glob("*.py")):
        module = importlib.import_module(file.stem)
        found |= {name: {"file": file.stem, **one} for name, one in getattr(module, "PROGRAMS", {}).items()}
        if file.stem in truths:
            truth = truths[file.stem]
            found[file.stem] = {"check": module.check, "truth": truth["wrong"], "same": truth["accepted"]}
    return found


def report_of(one: dict[str, Any], dtype: str) -> Any:
    """What the check says that a program asks for: `check` is a function, "model" or "step", or its file tells."""
    given, check = one.get("given", {}), one.get("check")
    if callable(check):
        return check(**given)
    if check == "model":
        return sr.check_model(one["fn"](), **given)
    if check == "step":
        return sr.check_step(**one["fn"](), **given)
    if one["file"] == "ranks":
        return sr.check_ranks(one["fn"], framework=one["framework"], **given)
    return sr.check_loss(one["fn"], one.get("framework"), dtype, explain=True, **given)


def answers(known: dict[str, dict[str, Any]]) -> Iterator[Answer]:
    """What the checker says of each program, in each dtype."""
    for name, one in known.items():
        for dtype in DTYPES if "check" not in one and one["file"] != "ranks" else ("as written",):
            start = time.process_time()
            try:
                report = report_of(one, dtype)
                told = {
                    "verdict": report.verdict,
                    "computes": report.computes,
                    "findings": [[finding.id, finding.evidence, finding.repair] for finding in report.findings],
                }
            except Exception as error:  # what raises is an answer, too, and ends nothing
                verdict = "REFUSED" if isinstance(error, sr.UsageError) else "RAISED"
                told = {"verdict": verdict, "computes": [], "findings": [[verdict.lower(), str(error), ""]]}
            seconds = round(time.process_time() - start, 2)
            truth = {"truth": one["truth"], "same": one.get("same", [])}
            print(f"{name} ({dtype}): {told['verdict']}, {seconds} s", *told["computes"], sep="\n  ", flush=True)
            yield {"program": name, "dtype": dtype, **told, **truth, "seconds": seconds}


def main(arguments: list[str]) -> int:
    """Write first-run.json, or later.json."""
    names = [argument for argument in arguments if not argument.startswith("--")]
    if len(names) != 1 or not (HERE / names[0]).is_dir():
        print(__doc__)
        return 2
    again = "--again" in arguments
    place = HERE / names[0] / ("later.json" if again else "first-run.json")
    if place.exists() and not again:
        print(f"{place} is there: a first run happens once. --again writes later.json")
        return 2
    found = list(answers(programs(HERE / names[0])))
    place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    certain = sum(any(line.startswith("your loss: ") for line in one["computes"]) for one in found)
    flagged = sum(one["verdict"] != "PASS" for one in found)
    print(f"{len(found)} checks: {flagged} flagged, {certain} told for certain; grade them in grades.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
