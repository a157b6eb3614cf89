"""What a report on a loss says beside its table: conventions, simple suspicions, blind spots, what to do next."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from siglip_ref.check.call.frameworks import Setting
from siglip_ref.check.engine.expected.convention import LossKind, Objective
from siglip_ref.check.engine.expected.expected import Convention
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Finding, Report

if TYPE_CHECKING:
    from siglip_ref.check.loss.subject import ComparedLoss

_SCALE = {"log": "the function exponentiates log_scale", "linear": "the function is given the scale itself"}
_EMBEDDINGS = {"unit": "the function is given unit rows", "raw": "the function normalises its rows"}
_THRESHOLD = (
    "errors of 1e-9 and less, and only where logits exceed 20: Torch's softplus returns its input there; "
    "float32 does not see it"
)
_STABLE = {
    "sigmoid": "-logsigmoid(x) is max(-x, 0) + log1p(exp(-|x|)): that neither overflows nor takes log(0)",
    "softmax": "log(sum(exp(l))) is m + log(sum(exp(l - m))), with m = max(l): that neither overflows nor takes log(0)",
}
_FOUND = " (found; write it down to declare it)"
_NORM = {"none": "x / |x|", "additive": "x / (|x| + 1e-8)", "clamp": "x / max(|x|, 1e-12)"}


def conventions_in_words(convention: Convention, declared: Sequence[Convention]) -> dict[str, str]:
    """What the loss was judged by; "found" where it was tried and not declared."""
    how = {name: " (declared)" if name in _declared(declared) else _FOUND for name in ("scale", "embeddings")}
    raw = f"; judged as {_NORM[convention.norm]}" if convention.embeddings == "raw" else ""
    return {
        f'scale="{convention.scale}"': _SCALE[convention.scale] + how["scale"],
        f'embeddings="{convention.embeddings}"': _EMBEDDINGS[convention.embeddings] + raw + how["embeddings"],
    } | _objective_in_words(convention.objective)


def _objective_in_words(objective: Objective) -> dict[str, str]:
    """What the loss is, and its logits."""
    logits = "scale * image_embed @ text_embed.T"
    if objective.kind == "softmax":
        loss = "mean over all pairs of half the cross-entropies of its row and of its column of logits (declared)"
        return {'loss="softmax"': loss, "logits": logits}
    by = "B" if objective.reduction == "batch" else "B * B (declared)"
    said = {"loss": f"sum over all pairs of -log sigmoid(+-logits), divided by {by}"}
    said |= {"logits": logits + " + bias" * objective.bias + ", no bias (declared)" * (not objective.bias)}
    if objective.labelled:
        said["pairs"] = f"{declared_as(replace(objective, bias=True, reduction='batch'))[2:]} (declared)"
    return said


def declared_as(objective: Objective) -> str:
    """The arguments that declare it, to follow others."""
    if objective.kind == "softmax":
        return ', loss="softmax"'
    parts = ['reduction="mean"'] if objective.reduction == "mean" else []
    parts += [] if objective.bias else ["bias=None"]
    parts += [] if objective.positives == "own" else [f'positives="{objective.positives}"']
    parts += [] if objective.weights is None else [f"weights={objective.weights!r}".replace("'", '"')]
    parts += [f"label_smoothing={objective.smoothing:g}"] if objective.smoothing else []
    parts += [f"captions_per_image={objective.per_image}"] if objective.per_image > 1 else []
    return "".join(f", {part}" for part in parts)


def objective_finding(observed: Objective, declared: Objective) -> Finding:
    """Right, but not what was declared."""
    fits = f'loss="{observed.kind}"'
    said = "check_loss(fn)" if declared.kind == observed.kind else f"check_loss(fn, {fits})"
    evidence = f"declared was {declared_as(declared)[2:]}, but everything is right as {fits}, and nothing else"
    return Finding("convention", "", "", evidence, f"if that is meant, declare it: {said}")


def not_asked(setting: Setting, objective: Objective) -> list[str]:
    """Gradients that were not compared, and why."""
    unseen = {"bias": "softmax does not see it"} if objective.kind == "softmax" else {}
    unseen |= {"bias": "none, as declared"} if not objective.bias and objective.kind == "sigmoid" else {}
    return [f"d {name}: {unseen.get(name, 'frozen, as declared')}" for name in setting.frozen]


def convention_finding(observed: Convention, declared: Sequence[Convention]) -> Finding:
    """Right, but not under what was declared."""
    meant = _declared(declared)
    seen = {"scale": observed.scale, "embeddings": observed.embeddings}
    changed = {name: value for name, value in meant.items() if seen[name] != value}
    said = ", ".join(f'{name}="{value}"' for name, value in changed.items())
    fits = ", ".join(f'{name}="{seen[name]}"' for name in changed)
    meaning = " and ".join(({"scale": _SCALE, "embeddings": _EMBEDDINGS}[name])[seen[name]] for name in changed)
    evidence = f"declared was {said}, but everything is right under {fits}: {meaning}"
    return Finding("convention", "", "", evidence, f"if that is meant, declare it: check_loss(fn, {fits})")


def _declared(allowed: Sequence[Convention]) -> dict[str, str]:
    """What the caller fixed: fields with one allowed value."""
    values = {name: {getattr(c, name) for c in allowed} for name in ("scale", "embeddings")}
    return {name: options.pop() for name, options in values.items() if len(options) == 1}


def hints(compared: "ComparedLoss") -> list[Finding]:
    """Suspicions that need no catalogue, one for all the tensors of smaller batches that show the same."""
    wrong = [row for row in compared.wrong if row.probe not in compared.large]
    steep = {label for label, one in compared.plain.items() if one.probe.steep}
    in_float64 = compared.setting.dtype == "float64"
    # sigmoid and softplus differ from 1 and the identity by exp(-20) = 2e-9 there
    kind = compared.convention.objective.kind
    if kind == "sigmoid" and wrong and in_float64 and all(row.error < 1e-8 and row.probe in steep for row in wrong):
        return [Finding("softplus-threshold", "", "", _THRESHOLD, "F.softplus(x, threshold=50), or -F.logsigmoid(-x)")]
    tensors: dict[tuple[str, str, str], list[str]] = {}
    for name in dict.fromkeys(row.name for row in wrong):
        rows = [row for row in wrong if row.name == name]
        hint = _hint(rows, steep, kind)
        if hint:
            tensors.setdefault(hint, []).append(name if rows[0].kind == "value" else f"d {name}")
    return [Finding(id, names[0], "", f"{', '.join(names)}: {said}", how) for (id, said, how), names in tensors.items()]


def _hint(rows: Sequence[Row], steep: set[str], kind: LossKind) -> tuple[str, str, str] | None:
    """Id, evidence and repair, from all the wrong rows of one tensor."""
    finite = [row for row in rows if row.trouble != "not finite"]
    if any(row.trouble == "modified" for row in rows):
        return (
            "inputs-modified",
            "the call writes into its inputs",
            "work on a copy; use no in-place operation on inputs",
        )
    if not finite:
        seen = ", ".join(row.probe for row in rows[:3])
        # finite wherever logits are moderate: the formula is right, its evaluation is not
        name = "log-of-sigmoid" if kind == "sigmoid" and all(row.probe in steep for row in rows) else "unknown"
        return name, f"NaN or infinite at {seen}, where the reference is finite", _STABLE[kind]
    return None


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


def next_steps(report: Report, compared: "ComparedLoss") -> list[str]:
    """What was done, and what to do with this report."""
    called, convention = compared.called, compared.convention
    counted = {row.probe for row in report.details if row.right or row.verdict == "FAIL"}
    pairs = max((one.probe.shape[0] for label, one in called.items() if label in counted), default=0)
    argument = f'scale="{convention.scale}", embeddings="{convention.embeddings}"{declared_as(convention.objective)}'
    out_of_range = sum(row.verdict == "out of range" for row in report.details)
    lines = [f"{len(report.details)} comparisons in {len(called)} calls; the table shows each tensor at its worst"]
    lines[0] += f"; judged at up to {pairs:,} pairs" if pairs else ""
    if out_of_range:
        lines.append(f"{out_of_range} of them out of range: there even correct rounding overflows, or drowns the value")
    if report.verdict in ("PASS", "OTHER CONVENTION"):
        lines.append(f"next: keep it as a test: siglip_ref.check_loss(fn, {argument}).raise_if_failed()")
    else:
        lines.append('next: report.save_case("case") writes the worst probe and a program that shows the fault')
    return lines
