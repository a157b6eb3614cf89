"""A short program that shows the fault again, beside the arrays of the worst input: the same for every check."""

import platform
import sys
from pathlib import Path

from siglip_ref.process.machine import version
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Report

# what may have computed: by the module's name, the package's
_PACKAGES = {"torch": "torch", "jax": "jax", "transformers": "transformers", "open_clip": "open_clip_torch"}
_PROGRAM = Path(__file__).with_name("program.txt")


def program_of(report: Report, worst: Row, again: str) -> str:
    """A program beside case.npz. again : lines that make the whole check once more."""
    return _PROGRAM.read_text(encoding="utf-8").format(
        title=report.title,
        verdict=report.verdict,
        name=worst.name,
        at=f" at {worst.probe}" if worst.probe else "",
        versions="\n".join(_versions()),
        again=again,
    )


def _versions() -> list[str]:
    packages = ("siglip-ref", "numpy", *(name for module, name in _PACKAGES.items() if module in sys.modules))
    found = [f"{package} {number}" for package in packages if (number := version(package))]
    return [f"python {platform.python_version()} on {platform.platform()}", *found]
