"""A short program that shows the fault again, beside the arrays of the worst input: the same for every check."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from siglip_ref.report.compare import Row
from siglip_ref.report.data import Report

# what may have computed: by the module's name, the package's
_PACKAGES = {"torch": "torch", "jax": "jax", "transformers": "transformers", "open_clip": "open_clip_torch"}
_PROGRAM = '''"""{title}
{verdict}. Worst: {name}{at}.

{versions}
"""

import numpy as np
import siglip_ref as sr

case = np.load("case.npz")
print("inputs:", {{name: case[name].shape for name in case.files if name.startswith("input/")}})
for name in case.files:
    if name.startswith("expected/"):
        got, expected = case[name.replace("expected/", "got/")], case[name]
        print(f"{{name[9:]:12}} error {{np.abs(got - expected).max() / np.abs(expected).max():.1e}}")

# The whole check again; give what was checked where it could not be named.
{again}
'''


def program_of(report: Report, worst: Row, again: str) -> str:
    """A program beside case.npz. again : lines that make the whole check once more."""
    return _PROGRAM.format(
        title=report.title,
        verdict=report.verdict,
        name=worst.name,
        at=f" at {worst.probe}" if worst.probe else "",
        versions="\n".join(_versions()),
        again=again,
    )


def _versions() -> list[str]:
    lines = [f"python {platform.python_version()} on {platform.platform()}"]
    for package in ("siglip-ref", "numpy", *(name for module, name in _PACKAGES.items() if module in sys.modules)):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return lines
