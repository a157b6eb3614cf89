"""One thread a process, and in CI a skipped test is a failed one: what cannot run there must not look as if it had."""

import os
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from by_day import runs_by_day

# Ranks are processes and share the cores: a pool of threads in each of them would only make them wait for one another.
# Set before anything imports NumPy, and inherited by every process that a test starts.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.pop("COLUMNS", None)  # reports as wide as where nobody looks, in a process of xdist, too

QUICK = {"arithmetic", "checkpoint", "mistakes", "preprocess", "tokenizer", "vectors", "zeroshot"}


@pytest.hookimpl(tryfirst=True)  # before nightly tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test that is marked `sampled(k)` those that do not run by day are nightly.

    Rooms whose files take seconds come last: then of several processes none is long alone with a file at the end.
    """
    cases = Counter[str]()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark and not item.get_closest_marker("nightly"):
            test = item.nodeid.partition("[")[0]
            if not runs_by_day(cases[test], *mark.args, **mark.kwargs):
                item.add_marker(pytest.mark.nightly)
            cases[test] += 1
    items.sort(key=lambda item: item.path.relative_to(Path(__file__).parent).parts[0] in QUICK)


def pytest_runtest_setup() -> None:
    """Numba's pool shares its number of threads with Torch: what a test before set there does not count here."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The same for a whole module that skips itself (`importorskip` at its top)."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be skipped: {report.longrepr}"
    return report
