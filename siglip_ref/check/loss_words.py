"""What a report on a loss says beside its table: conventions, simple suspicions, blind spots, what to do next."""

from collections.abc import Sequence

import numpy as np

from siglip_ref.check.compare import Row
from siglip_ref.check.frameworks import Setting
from siglip_ref.check.report import Finding, Report
from siglip_ref.check.truth import Convention

_SCALE = {"log": "the function exponentiates log_scale", "linear": "the function is given the scale itself"}
_EMBEDDINGS = {"unit": "the function is given unit rows", "raw": "the function normalises its rows"}
_NORM = {"none": "x / |x|", "additive": "x / (|x| + 1e-8)", "clamp": "x / max(|x|, 1e-12)"}


def conventions_in_words(convention: Convention, declared: Sequence[Convention]) -> dict[str, str]:
    """What the loss was judged by; "found" where it was tried and not declared."""
    found_scale = len({c.scale for c in declared}) > 1
    found_embeddings = len({c.embeddings for c in declared}) > 1
    raw = f", as {_NORM[convention.norm]}" if convention.embeddings == "raw" else ""
    return {
        f'scale="{convention.scale}"': _SCALE[convention.scale] + _found(found_scale),
        f'embeddings="{convention.embeddings}"': _EMBEDDINGS[convention.embeddings] + raw + _found(found_embeddings),
        "loss": "sum over all pairs of -log sigmoid(+-logits), divided by B",
        "logits": "scale * image_embed @ text_embed.T + bias",
    }


def convention_finding(observed: Convention, declared: Convention) -> Finding:
    """Right, but not under what was declared."""
    changed = [name for name in ("scale", "embeddings") if getattr(observed, name) != getattr(declared, name)]
    said = ", ".join(f'{name}="{getattr(declared, name)}"' for name in changed)
    fits = ", ".join(f'{name}="{getattr(observed, name)}"' for name in changed)
    meaning = [_SCALE[observed.scale]] * ("scale" in changed) + [_EMBEDDINGS[observed.embeddings]] * (
        "embeddings" in changed
    )
    return Finding(
        "convention",
        "",
        "",
        f"declared was {said}; everything is right under {fits}: " + ", and ".join(meaning),
        f"if that is meant, declare it: check_loss(fn, {fits})",
    )


def hints(details: Sequence[Row]) -> list[Finding]:
    """Suspicions that need no catalogue: a gradient that never arrives, a constant factor, a value that is none."""
    wrong = [row for row in details if row.verdict == "FAIL" and "," not in row.name]
    findings = []
    for name in dict.fromkeys(row.name for row in wrong):
        rows = [row for row in wrong if row.name == name]
        named = f"d {name}" if rows[0].kind == "gradient" else name
        ratios = np.array([row.ratio for row in rows])
        aligned = [abs(row.cosine - 1) < 1e-3 for row in rows]
        silent = [row.probe for row in rows if "NaN or infinite" in row.note]
        if all("no gradient arrives" in row.note for row in rows):
            evidence, repair = f"{named} never arrives", "look for detach(), no_grad, .data, .item() or a cast to NumPy"
        elif silent and len(silent) == len(rows):
            evidence = f"{named} is not finite at {', '.join(silent[:3])}; the reference is"
            repair = "-logsigmoid(x) as softplus(-x) = max(-x, 0) + log1p(exp(-|x|)) neither overflows nor takes log(0)"
        elif len(rows) > 1 and all(aligned) and np.ptp(ratios) <= 1e-2 * abs(ratios[0]) and abs(ratios[0] - 1) > 1e-3:
            evidence, repair = f"{named} is {ratios.mean():.4g} times the right one at {len(rows)} probes", ""
            repair = "look for a factor: 1/B, 1/world_size, the scale, accumulation steps"
        else:
            continue
        findings.append(Finding("unknown", name, rows[0].rows, evidence, repair))
    return findings


def blind_spots(details: Sequence[Row], setting: Setting) -> list[str]:
    """The smallest deviation that some probe would have shown, and what a loss in one process cannot show."""
    best: dict[str, float] = {}
    for row in details:
        if row.verdict in ("pass", "FAIL") and row.tolerance > 0:
            best[row.name] = min(best.get(row.name, np.inf), row.tolerance)
    lines = ["mistakes between processes: this was one process"]
    if best:
        finest = ", ".join(f"{name} {number:.0e}" for name, number in best.items())
        lines.insert(0, f"deviations below these, in {setting.dtype}, relative to a tensor's maximum: {finest}")
    return lines


def next_steps(report: Report, calls: int, convention: Convention) -> list[str]:
    """What to do with this report."""
    argument = f'scale="{convention.scale}", embeddings="{convention.embeddings}"'
    out_of_range = sum(row.verdict == "out of range" for row in report.details)
    lines = [f"{len(report.details)} comparisons in {calls} calls; the table shows each tensor at its worst"]
    if out_of_range:
        lines.append(f"{out_of_range} of them out of range: there even correct rounding overflows, or drowns the value")
    if report.passed:
        lines.append(f"next: keep it as a test: siglip_ref.check_loss(fn, {argument}).raise_if_failed()")
    else:
        lines.append('next: report.save_case("case") writes the worst probe and a program that shows the fault')
    return lines


def _found(tried: bool) -> str:
    return " (found by trying; write it down to declare it)" if tried else " (declared)"
