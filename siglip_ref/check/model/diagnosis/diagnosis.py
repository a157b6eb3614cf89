"""Why a model check failed: another convention, a setting that gives itself away, or the place where it begins."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import PRESETS, Conventions
from siglip_ref.architecture.one_tower import OneTower
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Adapter, Hint, Run
from siglip_ref.check.model.diagnosis.findings import and_more, findings_of, of_roundings
from siglip_ref.check.model.diagnosis.last_stage import LAST, explain_last_stage
from siglip_ref.check.model.diagnosis.mistakes import find_mistakes
from siglip_ref.check.model.diagnosis.range import told_apart
from siglip_ref.check.model.diagnosis.search import Found
from siglip_ref.check.model.judge import Judge, make_judge
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.reference import reference
from siglip_ref.check.model.scales import Judged, judged_at
from siglip_ref.check.model.tower import shown, tower_of
from siglip_ref.mistakes import find
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.report.compare import compare
from siglip_ref.report.data import Finding
from siglip_ref.report.verdict import Verdict, verdict_of

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
# what every block shows, not only what comes after all of them
_IN_BLOCKS = ("image_gelu", "image_norm_eps", "text_gelu", "text_norm_eps", "text_mask")


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
        field = next(iter(changes))
        if other == chosen or not _touches(field, cfg):
            continue
        if field in _IN_BLOCKS and max(cfg.image.depth, cfg.text.depth) > 1:
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


def _touches(field: str, cfg: Config) -> bool:
    """Whether a field of the conventions says something of this model: of a tower alone, of what it has."""
    if not isinstance(cfg, OneTower):
        return True
    return field.startswith(f"{cfg.side}_") and (field != "text_pooling" or cfg.up_to == "pooled")


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
        way = tower_of(SPECIFICATION, cfg, tower)
        return shown(prefixed(tower, way.forward(probe.given, weights, cfg, other)[2]), cfg)
    values = dict(right)
    if field == "text_pooling":
        values["text/pool"] = SPECIFICATION.pool.forward(right["text/norm"], probe.tokens, other.text_pooling)[0]
        if cfg.text_head:
            head = weights["head/kernel"], weights["head/bias"]
            values["text/head"] = SPECIFICATION.linear.forward(values["text/pool"], *head)[0]
    elif tower == "text":
        way = tower_of(SPECIFICATION, cfg, tower)
        return shown(prefixed(tower, way.forward(probe.tokens, weights, cfg, other)[2]), cfg)
    if isinstance(cfg, OneTower):
        return values
    pooled = {"image/embed": "image/pool", "text/embed": "text/head" if cfg.text_head else "text/pool"}
    kind, eps = other.embed_norm, other.embed_norm_eps
    return values | {name: SPECIFICATION.normalize.forward(values[last], kind, eps)[0] for name, last in pooled.items()}


def _fits(got: Mapping[str, Array], values: Mapping[str, Array], judge: Judge, tower: str) -> bool:
    """All activations of one tower that the model shows agree, and it shows some."""
    names = [name for name in values if name in got and name.startswith(tower)]
    return bool(names) and all(compare(name, got[name], values[name], judge.of_value[name]).right for name in names)


def explain(
    judged: Judged, others: list[Other], probe: Probe, cfg: Config, chosen: Conventions
) -> tuple[Verdict, list[Finding]]:
    """Another convention under which all is right, else the mistakes that were made, else where it begins."""
    judge, run = judged.judge, judged.runs[0]
    changes: dict[str, Any] = {}
    for tower in ("image", "text"):
        if not _fits(run.activations, judge.exact.activations, judge, tower):
            changes |= next((other.changes for other in others if other.fits[tower]), {})
    if not changes:
        return "FAIL", _mistakes(judged, probe, cfg, chosen)
    other = replace(chosen, **changes)
    exact = reference(probe, cfg, other, np.float64)
    judge_of_other = make_judge(exact, probe, cfg, other, judge.dtype, judge.coarsest)  # with noise of its own
    again = judged_at(judged.runs, judged.scales, judge_of_other, cfg, other)
    under_other = verdict_of(again.details)
    if under_other == "PASS":
        return "OTHER CONVENTION", [declare(other, changes, "every value and every gradient is right then", chosen)]
    found = find_mistakes(run, judge, probe, cfg, chosen)
    if found.whole or under_other == "NOT JUDGED":
        return "FAIL", _mistakes(judged, probe, cfg, chosen, found)
    evidence = "its activations are right then, but not all gradients"
    return "FAIL", [declare(other, changes, evidence, chosen), *_mistakes(again, probe, cfg, other)]


def _mistakes(
    judged: Judged, probe: Probe, cfg: Config, conventions: Conventions, found: Found | None = None
) -> list[Finding]:
    """What is found at the model's own scale, and what its last stage shows at others beside that."""
    run, findings = judged.runs[0], list[Finding]()
    rows = [row for row in judged.details if not row.probe]
    if any(row.verdict == "FAIL" for row in rows):
        found = found or find_mistakes(run, judged.judge, probe, cfg, conventions)
        rounded = (
            told_apart(found.rounded, run.activations, judged.moved.activations) if judged.moved else found.rounded
        )
        findings = of_roundings(list(rounded.values()), run, rows)
        if found.made or found.unexplained or not findings:
            findings += findings_of(found, rows, run)
    if findings:  # a step of float16 in a tower spoils the run on shifted weights, and nothing in the last stage
        judged = judged.with_the_same_embeddings
    if all(row.verdict != "FAIL" for row in judged.details if row.probe):
        return findings
    last = explain_last_stage(judged, cfg, conventions)
    if last:  # it knows more of what else would be called unknown
        findings = [one for one in findings if one.id != "unknown" or one.tensor not in LAST]
    named = {one.id for one in findings if one.id != "unknown"}
    return findings + [one for one in last if one.id not in named]


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
        Finding(id, hints[0].place, "", hints[0].evidence + and_more(len(hints) - 1), repair)
        for (id, repair), hints in grouped.items()
    ]


def not_finite(params: Mapping[str, Array], run: Run) -> list[Finding]:
    """The model's own weights that hold a NaN or an infinity."""
    bad = [name for name, value in params.items() if not np.isfinite(value).all()]
    if not bad:
        return []
    evidence = f"{run.names.get(bad[0], bad[0])} holds NaN or infinity{and_more(len(bad) - 1)}"
    return [Finding("unknown", bad[0], "", evidence, "look at where these weights come from: training, or conversion")]


def declare(
    conventions: Conventions, changes: Mapping[str, object], evidence: str, instead: Conventions | None = None
) -> Finding:
    """What to add if the other convention is meant, and what to change if it is not.

    Parameters
    ----------
    instead : what was declared; None: what the preset of this name has
    """
    stated = ", ".join(f"{field}={value!r}" for field, value in changes.items())
    argument = f'conventions=sr.preset("{conventions.name}", {_differences(conventions)})'
    due = ", ".join(f"{field}={getattr(instead or _usual(conventions), field)!r}" for field in changes)
    repair = f"if that is meant, add {argument}; if it is not, the model is to compute {due}"
    return Finding("convention", "", "", f"{stated}: {evidence}", repair)


def _usual(conventions: Conventions) -> Conventions:
    return PRESETS.get(conventions.name, PRESETS["big_vision"])


def _differences(conventions: Conventions) -> str:
    usual = _usual(conventions)
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
