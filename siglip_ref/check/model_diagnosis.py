"""Why a model check failed: another convention, a setting that gives itself away, or the place where it begins."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from siglip_ref import ops
from siglip_ref.check.adapters import Adapter, Hint, Run
from siglip_ref.check.compare import Row, compare
from siglip_ref.check.mistakes import find
from siglip_ref.check.model_judge import Judge, judged_rows, make_judge
from siglip_ref.check.model_mistakes import Found, find_mistakes
from siglip_ref.check.model_probe import Probe
from siglip_ref.check.model_reference import reference
from siglip_ref.check.report import Finding
from siglip_ref.check.verdict import Verdict, verdict_of
from siglip_ref.conventions import PRESETS, Conventions
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.tree import prefixed, subtree
from siglip_ref.sizes import Config
from siglip_ref.towers.image import image_tower_forward
from siglip_ref.towers.text import text_tower_forward

# What else a model may follow: tried when a check fails, and used to say what a check could not have seen.
ALTERNATIVES: tuple[dict[str, Any], ...] = (
    *({"image_gelu": form} for form in ("tanh", "erf", "quick")),
    *({"image_norm_eps": eps} for eps in (1e-6, 1e-5, 1e-12)),
    *({"text_gelu": form} for form in ("tanh", "erf", "quick")),
    *({"text_norm_eps": eps} for eps in (1e-6, 1e-5, 1e-12)),
    *({"text_pooling": kind} for kind in ("last", "first", "mean", "argmax")),
    *({"text_mask": kind} for kind in ("none", "causal")),
    {"embed_norm": "additive", "embed_norm_eps": 1e-8},
    {"embed_norm": "none", "embed_norm_eps": 0.0},
)


@dataclass(frozen=True)
class Other:
    """Another convention: what it changes, whether the right model would pass under it, and for each tower whether the
    model's activations are its own."""

    changes: dict[str, Any]
    unseen: bool
    fits: dict[str, bool]


def other_conventions(run: Run, judge: Judge, probe: Probe, cfg: Config, chosen: Conventions) -> Iterator[Other]:
    """Every other single convention that gives other values on this probe."""
    precision = np.float64 if judge.dtype == "float64" else np.float32
    params = {name: np.asarray(value, precision) for name, value in probe.params.items()}
    probe = replace(probe, params=params, images=np.asarray(probe.images, precision))
    right = judge.exact.activations
    for changes in ALTERNATIVES:
        other = replace(chosen, **changes)
        if other == chosen:
            continue
        field = next(iter(changes))
        if field.endswith(("gelu", "eps", "mask")) and max(cfg.image.depth, cfg.text.depth) > 1:
            # in a deep model the first block tells nearly always: it is right, and the other convention is not
            values = _of_first_block(field, probe, cfg, other)
            shown = any(name in run.activations for name in values)
            if shown and not _fits(right, values, judge, "") and not _fits(run.activations, values, judge, ""):
                yield Other(changes, False, {"image": False, "text": False})
                continue
        values = _values_that_change(field, right, probe, cfg, other)
        if any(not np.array_equal(right[name], value) for name, value in values.items()):
            fits = {tower: _fits(run.activations, values, judge, tower) for tower in ("image", "text")}
            yield Other(changes, _fits(right, values, judge, ""), fits)


def _of_first_block(field: str, probe: Probe, cfg: Config, other: Conventions) -> dict[str, Array]:
    """The activations of one tower up to its first block."""
    first = replace(cfg, image=replace(cfg.image, depth=1), text=replace(cfg.text, depth=1))
    values = _values_that_change(field, {}, probe, first, other)
    return {name: value for name, value in values.items() if name.split("/")[1] in ("stem", "block00")}


def _values_that_change(
    field: str, right: Mapping[str, Array], probe: Probe, cfg: Config, other: Conventions
) -> dict[str, Array]:
    """The activations that a field of the conventions touches: one tower, or what follows from its last states."""
    tower = field.split("_")[0]
    weights = subtree(probe.params, tower)
    if tower == "image":
        return prefixed("image", image_tower_forward(probe.images, weights, cfg, other, ops)[2])
    values = dict(right)
    if field == "text_pooling":
        values["text/pool"] = ops.pool_forward(right["text/norm"], probe.tokens, other.text_pooling)[0]
        if cfg.text_head:
            head = weights["head/kernel"], weights["head/bias"]
            values["text/head"] = ops.linear_forward(values["text/pool"], *head)[0]
    elif tower == "text":
        return prefixed("text", text_tower_forward(probe.tokens, weights, cfg, other, ops)[2])
    pooled = {"image/embed": "image/pool", "text/embed": "text/head" if cfg.text_head else "text/pool"}
    kind, eps = other.embed_norm, other.embed_norm_eps
    return values | {name: ops.normalize_forward(values[last], kind, eps)[0] for name, last in pooled.items()}


def _fits(got: Mapping[str, Array], values: Mapping[str, Array], judge: Judge, tower: str) -> bool:
    """All activations of one tower that the model shows agree, and it shows some."""
    names = [name for name in values if name in got and name.startswith(tower)]
    return bool(names) and all(compare(name, got[name], values[name], judge.of_value[name]).right for name in names)


def explain(
    run: Run,
    judge: Judge,
    rows: list[Row],
    others: list[Other],
    probe: Probe,
    cfg: Config,
    chosen: Conventions,
) -> tuple[Verdict, list[Finding]]:
    """Another convention under which all is right, else the mistakes that were made, else where it begins."""
    changes: dict[str, Any] = {}
    for tower in ("image", "text"):
        if not _fits(run.activations, judge.exact.activations, judge, tower):
            changes |= next((other.changes for other in others if other.fits[tower]), {})
    if not changes:
        return "FAIL", _mistakes(find_mistakes(run, judge, probe, cfg, chosen), rows, run)
    other = replace(chosen, **changes)
    exact = reference(probe, cfg, other, np.float64)
    judge_of_other = make_judge(exact, probe, cfg, other, judge.dtype, judge.coarsest)  # with noise of its own
    again = judged_rows(run, judge_of_other)
    under_other = verdict_of(again)
    if under_other == "PASS":
        return "OTHER CONVENTION", [declare(other, changes, "every value and every gradient is right then")]
    found = find_mistakes(run, judge, probe, cfg, chosen)
    if found.whole or under_other == "NOT JUDGED":
        return "FAIL", _mistakes(found, rows, run)
    found = find_mistakes(run, judge_of_other, probe, cfg, other)
    evidence = "its activations are right then, but not all gradients"
    return "FAIL", [declare(other, changes, evidence), *_mistakes(found, again, run)]


def _mistakes(found: Found, rows: list[Row], run: Run) -> list[Finding]:
    """One finding for each mistake that was found; where it begins, in the first of them or by itself."""
    begins = _beginning(rows, run)
    if found.left_out:
        begins = replace(begins, evidence=f"{begins.evidence}; {found.left_out}")
    if not found.made:
        elsewhere = [name for name in found.unexplained if name != begins.tensor]
        if elsewhere:
            more = f"{', '.join(elsewhere[:3])}{_and_more(len(elsewhere) - 3)}"
            begins = replace(begins, evidence=f"{begins.evidence}; wrong by itself, too: {more}")
        elif found.unexplained:
            begins = replace(
                begins, evidence=f"{begins.evidence}; given what it makes of it, all later values are right"
            )
        return [begins]
    stages: dict[str, frozenset[str]] = {}
    mistakes = {placed.mistake.id: placed.mistake for placed in found.made}
    for placed in found.made:
        stages[placed.mistake.id] = stages.get(placed.mistake.id, frozenset()) | placed.stages
    together = "it" if len(mistakes) == 1 else f"all {len(mistakes)} of them"
    explained = f"with {together} made in the reference, every value and every gradient is the model's"
    if not found.whole:
        explained = f"{found.share:.0%} of all that deviates is explained: repair it, and check again"
    findings: list[Finding] = []
    for id, mistake in mistakes.items():
        parts = [f"{mistake.text}; made {_place(stages[id], run)}", *([] if findings else [begins.evidence]), explained]
        findings.append(
            Finding(id, begins.tensor, begins.rows if not findings else "", "; ".join(parts), mistake.repair)
        )
    if found.unexplained:
        more = (
            f"{', '.join(found.unexplained[:4])}{_and_more(len(found.unexplained) - 4)}: wrong even on the model's own"
        )
        evidence = f"{more} input to it, and no mistake of the catalogue explains it"
        findings.append(Finding("unknown", found.unexplained[0], "", evidence, "look at what is computed there"))
    return findings


def _place(stages: frozenset[str], run: Run) -> str:
    """Where a mistake was made, in words."""
    words = []
    for tower in ("image", "text"):
        parts = sorted(name for name in stages if _tower(name) == tower)
        if {f"{tower}/stem", f"{tower}/embed"} <= set(parts):
            words.append(f"in the {tower} tower")
        elif parts:
            theirs = f" ({run.names[parts[0]]})" if len(parts) == 1 and parts[0] in run.names else ""
            words.append(f"only where {', '.join(parts[:4])}{_and_more(len(parts) - 4)} is computed{theirs}")
    return " and ".join(words) if words else "in the loss"


def _beginning(rows: list[Row], run: Run) -> Finding:
    """Where the deviation begins, and between which two tensors the mistake is to be looked for."""
    wrong = [row for row in rows if row.verdict == "FAIL"]
    first = next((row for row in wrong if row.kind != "gradient"), wrong[-1])
    before = [row.name for row in rows[: rows.index(first)] if row.right and _tower(row.name) == _tower(first.name)]
    theirs = f" ({run.names[first.name]})" if first.name in run.names else ""
    if first.kind == "gradient":
        beside = _and_more(len(wrong) - 1)
        evidence = f"every value is right, but the gradient of {first.name}{theirs} is not{beside}"
        repair = "look at the backward pass: a detached tensor, a custom backward, a factor on the gradient"
    else:
        evidence = f"{first.name}{theirs} is the first value that deviates" + (
            f"; {before[-1]} is still right" if before else ""
        )
        repair = f"look at what is computed between {before[-1] if before else 'the input'} and {first.name}"
    return Finding("unknown", first.name, first.rows, evidence, repair)


def _tower(name: str) -> str:
    return name.split("/")[0]


def unsteady(run: Run, again: Run) -> list[Finding]:
    """What differs between two runs that had the same inputs, and other random numbers."""
    tensors = {name: (value, again.activations.get(name)) for name, value in run.activations.items()}
    tensors |= {name: (value, again.grads.get(name)) for name, value in run.grads.items()}
    differs = [
        name
        for name, (one, other) in tensors.items()
        if other is not None and not np.array_equal(one, other, equal_nan=True)
    ]
    if not differs:
        return []
    mistake = find("dropout-in-eval" if differs[0] in run.activations else "cached-rng-mismatch")
    theirs = f" ({run.names[differs[0]]})" if differs[0] in run.names else ""
    evidence = f"two runs on the same inputs differ, from {differs[0]}{theirs} on, when random numbers differ"
    return [Finding(mistake.id, differs[0], "", f"{mistake.text}: {evidence}", mistake.repair)]


def hints(adapter: Adapter) -> list[Finding]:
    """What the model's settings give away; the same mistake in many places is told once."""
    grouped: dict[tuple[str, str], list[Hint]] = {}
    for hint in getattr(adapter, "hints", ()):
        grouped.setdefault((hint.id, hint.repair), []).append(hint)
    return [
        Finding(id, hints[0].place, "", hints[0].evidence + _and_more(len(hints) - 1), repair)
        for (id, repair), hints in grouped.items()
    ]


def _and_more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""


def not_finite(params: Mapping[str, Array], run: Run) -> list[Finding]:
    """The model's own weights that hold a NaN or an infinity."""
    bad = [name for name, value in params.items() if not np.isfinite(value).all()]
    if not bad:
        return []
    evidence = f"{run.names.get(bad[0], bad[0])} holds NaN or infinity{_and_more(len(bad) - 1)}"
    return [Finding("unknown", bad[0], "", evidence, "look at where these weights come from: training, or conversion")]


def not_read(run: Run) -> list[Finding]:
    """Parameters that were replaced for the check, and made no difference."""
    if not run.unread:
        return []
    ours = {theirs: name for name, theirs in run.names.items()}
    first, many = run.unread[0], "this parameter" if len(run.unread) == 1 else "these parameters"
    evidence = f"{', '.join(run.unread[:4])}{_and_more(len(run.unread) - 4)}: your forward does not read {many} through"
    evidence += " the module, but the tensor itself by another name, or a copy made before; or not at all"
    repair = f"read {first} as an attribute of its module in forward; fuse or flatten weights there"
    return [Finding("unknown", ours.get(first, first), "", evidence, repair)]


def declare(conventions: Conventions, changes: Mapping[str, object], evidence: str) -> Finding:
    stated = ", ".join(f"{field}={value!r}" for field, value in changes.items())
    argument = f'conventions=sr.preset("{conventions.name}", {_differences(conventions)})'
    return Finding("convention", "", "", f"{stated}: {evidence}", f"if that is meant, add {argument}")


def _differences(conventions: Conventions) -> str:
    usual = PRESETS.get(conventions.name, PRESETS["big_vision"])
    changed = [f.name for f in fields(conventions) if getattr(conventions, f.name) != getattr(usual, f.name)]
    return ", ".join(f"{name}={getattr(conventions, name)!r}" for name in changed)


def unusual(conventions: Conventions) -> dict[str, object]:
    """Conventions that no released SigLIP has; open_clip has both forms of GELU, by model name."""
    forms = ("tanh", "erf") if conventions.name == "open_clip" else ("tanh",)
    usual = {"image_gelu": forms, "text_gelu": forms, "image_norm_eps": (1e-6,), "text_norm_eps": (1e-6,)}
    usual |= {"text_pooling": ("last",), "text_mask": ("none",)}
    found = {field: getattr(conventions, field) for field in usual}
    return {field: value for field, value in found.items() if value not in usual[field]}


def blind(others: list[Other], chosen: Conventions) -> list[str]:
    """Other conventions that would have passed on this probe at this dtype."""
    unseen = [change for other in others if other.unseen for change in list(other.changes.items())[:1]]
    return [f"{field} {to!r} instead of {getattr(chosen, field)!r}" for field, to in unseen]
