"""The worst probe of a loss as a file, and a short program that shows the fault again."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from siglip_ref.check.call.frameworks import Outcome, Setting, describe
from siglip_ref.check.expected.expected import Convention, Truth
from siglip_ref.check.expected.probes import Probe
from siglip_ref.report.data import Case, Report

_PROGRAM = '''"""{title}
{verdict}. Worst: {worst} at {probe}.

{versions}
"""

import numpy as np
import siglip_ref

case = np.load("case.npz")
print("inputs:", {{name: case[name].shape for name in case.files if name.startswith("input/")}})
for name in case.files:
    if name.startswith("expected/"):
        got, expected = case[name.replace("expected/", "got/")], case[name]
        print(f"{{name[9:]:12}} error {{np.abs(got - expected).max() / np.abs(expected).max():.1e}}")

# The whole check again; give your own loss where it could not be named.
{load}
print(siglip_ref.check_loss(fn, "{framework}", {arguments}))
'''


def case_of(
    report: Report,
    fn: object,
    framework: str,
    setting: Setting,
    convention: Convention,
    outcomes: Mapping[str, tuple[Probe, Outcome, Truth]],
) -> Case | None:
    """The probe of the tensor that deviates most (of the nearest to it, where nothing does)."""
    rows = [row for row in report.rows if row.probe in outcomes]
    if not rows:
        return None
    worst = max(rows, key=lambda row: (row.verdict == "FAIL", row.excess if row.excess == row.excess else 0))
    probe, outcome, right = outcomes[worst.probe]
    scale = probe.scale if convention.scale == "linear" else probe.log_scale
    arrays = {
        "input/image_embed": probe.image_embed,
        "input/text_embed": probe.text_embed,
        f"input/{'scale' if convention.scale == 'linear' else 'log_scale'}": scale,
        "input/bias": probe.bias,
        "got/loss": outcome.loss,
    }
    arrays |= {f"expected/{name}": value for name, value in right.exact.items()}
    for name, value in outcome.gradients.items():
        if value is not None:
            arrays[f"got/{'scale' if (name, convention.scale) == ('log_scale', 'linear') else name}"] = value
    arrays = {
        k: v for k, v in arrays.items() if not k.startswith("expected/") or k.replace("expected", "got") in arrays
    }
    program = _PROGRAM.format(
        title=report.title,
        verdict=report.verdict,
        worst=worst.name,
        probe=worst.probe,
        versions="\n".join(_versions(framework)),
        load=_load(fn),
        framework=framework,
        arguments=_arguments(setting, convention),
    )
    return Case(arrays, program)


def _load(fn: object) -> str:
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    if module and name.isidentifier() and module != "__main__":
        return f"from {module} import {name} as fn"
    return f"fn = ...  # {describe(fn)}"


def _arguments(setting: Setting, convention: Convention) -> str:
    precision = ', precision="autocast"' if setting.autocast else ""
    return (
        f'dtype="{setting.dtype}", device="{setting.device}", scale="{convention.scale}", '
        f'embeddings="{convention.embeddings}"{precision}'
    )


def _versions(framework: str) -> list[str]:
    lines = [f"python {platform.python_version()} on {platform.platform()}"]
    for package in dict.fromkeys(("siglip-ref", "numpy", framework)):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return lines
