"""check_model: another project's model on probe weights, every value and every gradient beside the reference's."""

import platform
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from importlib import metadata
from typing import cast

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.check.call.answers import answered
from siglip_ref.check.diagnosis.coverage import in_the_catalogue
from siglip_ref.check.model.adapters import Adapter, Dtype, Run
from siglip_ref.check.model.adapters.find import adapter_for
from siglip_ref.check.model.adapters.find import load_target as load_target
from siglip_ref.check.model.diagnosis.diagnosis import (
    blind,
    declare,
    explain,
    hints,
    not_finite,
    other_conventions,
    unsteady,
    unusual,
)
from siglip_ref.check.model.judge import make_judge
from siglip_ref.check.model.probe import Probe, model_probe
from siglip_ref.check.model.reference import UNIT_ROUNDOFF, reference
from siglip_ref.check.model.scales import Judged, Scale, judged_at, one_each, run_at, scales_of
from siglip_ref.check.model.sight import model_sight
from siglip_ref.check.model.unread import explain_unread, not_read
from siglip_ref.errors import UsageError
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.process.isolated import random_states
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Case, Finding, Report
from siglip_ref.report.verdict import Judgement, judgement


@np.errstate(all="ignore")  # what overflows in the reference is a result
def check_model(
    model: object,
    dtype: str = "float32",
    weights: str = "probe",
    *,
    conventions: Conventions | None = None,
    batch: int = 4,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Is this model SigLIP, in every activation, in its loss, and in the gradient of every parameter?

    Parameters
    ----------
    model : a transformers SiglipModel, an open_clip SigLIP model, or an `Adapter`; it is left exactly as it was
    dtype : "float64", "float32", "bfloat16" or "float16": what the model computes in, whatever its weights are kept in
    weights : "probe" (deterministic weights on which mistakes show) or "own" (the model's, rounded once to dtype)
    conventions : what it shall follow; None: what its own configuration says, if some released SigLIP says so too
    batch : pairs, at least 2
    progress : called with a line before each long step

    Returns
    -------
    Report; its rows are the activations in forward order, the loss, then the gradients in network order

    Raises
    ------
    UsageError : a model of an unknown kind, parameters that do not fit its configuration

    Examples
    --------
    >>> report = sr.check_model(SiglipModel(config), dtype="float64")  # doctest: +SKIP
    >>> report.verdict  # doctest: +SKIP
    'PASS'
    """
    kind = _require_options(dtype, weights, batch)
    say = progress or (lambda line: None)
    adapter = adapter_for(model)
    cfg = adapter.config
    chosen = conventions or cfg.conventions
    probe = model_probe(cfg, batch, kind, adapter.parameters(kind) if weights == "own" else None)
    say("the reference in float64")
    exact = reference(probe, cfg, chosen, np.float64)
    coarsest = _coarsest(adapter, kind)
    scales = scales_of(exact, probe, kind, coarsest)
    say(f"the model in {kind}, at {len(scales)} scales and biases")
    runs = _runs(adapter, probe, scales, kind)
    run = runs[0]
    say("the noise of rounding")
    judge = make_judge(exact, probe, cfg, chosen, kind, coarsest)
    found_at = judged_at(runs, scales, judge, cfg, chosen)
    details = found_at.details
    rows = one_each(details)
    say("other conventions")
    others = list(other_conventions(run, judge, probe, cfg, chosen))
    # with its own weights a model is judged at its own scale; on probe weights any probe will do
    judged = judgement(details, at="" if weights == "own" else None)
    broken, unread = not_finite(probe.params, run), not_read(run)
    judged = Judgement("FAIL") if broken or unread else judged
    verdict, found = judged.verdict, list[Finding]()
    if any(row.verdict == "FAIL" for row in details) and not broken:
        say("what explains it")
        with other_random_numbers():
            found = unsteady(run, _runs(adapter, probe, scales[:1], kind)[0])
        if not found:
            explained, found = explain(found_at, others, probe, cfg, chosen)
            verdict = "FAIL" if unread else explained
        if unread:
            found, unread = explain_unread(found, run, judge, probe, cfg, chosen)
    elif verdict == "PASS" and conventions is None and (strange := unusual(chosen)):
        verdict = "OTHER CONVENTION"
        found = [declare(chosen, strange, "the model's configuration says so, and it computes what it says")]
    say("what this check would have seen")
    in_range = [row.name for row in rows if row.right or row.verdict == "FAIL"]
    seen = model_sight(in_range, found_at, probe, cfg, chosen, coarsest, weights == "own")
    return Report(
        title=f"{adapter.name}; {kind}; {weights} weights; {batch} pairs",
        verdict=verdict,
        rows=rows,
        findings=hints(adapter) + broken + unread + found,
        conventions=_stated(chosen, adapter, kind),
        not_checked=run.not_checked + _rims(rows),
        blind=blind(others, chosen) + _unseen(seen.blind),
        notes=_notes(run, rows, scales, weights),
        details=details,
        case=_case(found_at, rows, probe, adapter.name, kind, weights, batch),
        sight=seen,
        unjudged=judged.unjudged,
    )


def _runs(adapter: Adapter, probe: Probe, scales: Sequence[Scale], dtype: Dtype) -> list[Run]:
    """What the model gives at each scale."""
    expected = f"a model that runs forward and backward in {dtype}"
    return answered(expected, lambda: run_at(adapter, probe, scales, dtype))


@contextmanager
def other_random_numbers() -> Iterator[None]:
    """Python, NumPy and Torch, where it is loaded, draw other numbers than they would have; afterwards as before."""
    torch = sys.modules.get("torch")
    with random_states(), torch.random.fork_rng() if torch else nullcontext():
        random.seed(20)
        np.random.seed(20)
        if torch:
            torch.manual_seed(20)
        yield


def _coarsest(adapter: Adapter, dtype: Dtype) -> Dtype:
    forced: Dtype = getattr(adapter, "coarsest", "float64")
    return max(dtype, forced, key=UNIT_ROUNDOFF.__getitem__)


def _stated(chosen: Conventions, adapter: Adapter, dtype: Dtype) -> dict[str, str]:
    stated = {f.name: str(getattr(chosen, f.name)) for f in fields(chosen)}
    if _coarsest(adapter, dtype) != dtype:
        forced = _coarsest(adapter, dtype)
        stated["attention softmax"] = f"{forced}, in a model of {dtype}: behind it, errors of {forced} are allowed"
    return stated


def _unseen(ids: Sequence[str]) -> list[str]:
    """With the catalogue's words; those of a loss need rows of their own, which a model's embeddings are not."""
    files = ("ops/sigmoid_loss.py", "ops/pair_block.py")
    of_loss = [id for id in ids if all(edit.file in files for edit in CATALOGUE[id].edits)]
    lines = in_the_catalogue([id for id in ids if id not in of_loss])
    return lines + [f"{line}; check_loss on your loss sees this" for line in in_the_catalogue(of_loss)]


def _notes(run: Run, rows: list[Row], scales: Sequence[Scale], weights: str) -> list[str]:
    notes = list(run.notes)
    if weights == "own":
        notes.append(
            "the reference took its weights from this very model: a wrong conversion (queries and keys exchanged, a "
            "patch kernel transposed) is on both sides, and this check cannot see it"
        )
    if len(scales) > 1:
        others = "; ".join(scale.label for scale in scales[1:])
        notes.append(f"logits, loss and the gradients next to the embeddings were judged at these, too: {others}")
    if any(row.verdict == "zero by structure" for row in rows):
        notes.append(
            "gradients of key biases are zero by structure (softmax does not see a shift common to all keys): what any "
            "program prints there is rounding, judged against the sum of the absolute values of its terms"
        )
    return notes


def _rims(rows: list[Row]) -> list[str]:
    beyond = [row for row in rows if row.verdict == "out of range"]
    return [f"{row.name}{f' at {row.probe}' if row.probe else ''}: {row.note}" for row in beyond]


def _case(
    found_at: Judged, rows: list[Row], probe: Probe, name: str, dtype: Dtype, weights: str, batch: int
) -> Case | None:
    """The inputs, and the tensor that is furthest off beside what it should be."""
    judged = [row for row in rows if row.verdict in ("pass", "FAIL")]
    if not judged:
        return None
    row = max(judged, key=lambda row: row.excess)
    labels = [scale.label for scale in found_at.scales]
    place = labels.index(row.probe) if row.probe else 0
    run, exact = found_at.runs[place], found_at.judges[place].exact
    got = run.grads if row.kind == "gradient" else run.activations | {"loss": run.loss}
    expected = exact.grads if row.kind == "gradient" else exact.activations | {"loss": exact.loss}
    arrays = {"input/images": probe.images, "input/tokens": probe.tokens}
    arrays |= {f"got/{row.name}": got[row.name], f"expected/{row.name}": expected[row.name]}
    versions = [f"Python {platform.python_version()}"]
    for package in ("siglip-ref", "numpy", "torch", "jax", "transformers", "open_clip_torch", "timm"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    where = f" at {row.probe}" if row.probe else ""
    program = (
        f"# {name}: {row.name} deviates most{where}. Seen with {', '.join(versions)}.\n"
        "# case.npz holds the inputs; the probe weights are the same on every machine.\n"
        "import siglip_ref as sr\n\nmodel = ...  # the model that was checked\n"
        f"sr.check_model(model, dtype={dtype!r}, weights={weights!r}, batch={batch}).raise_if_failed()\n"
    )
    return Case(arrays, program)


def _require_options(dtype: str, weights: str, batch: int) -> Dtype:
    if dtype not in UNIT_ROUNDOFF or weights not in ("probe", "own") or batch < 2:
        raise UsageError(
            expected=f'dtype one of {", ".join(UNIT_ROUNDOFF)}; weights "probe" or "own"; batch at least 2',
            got=f"dtype {dtype!r}, weights {weights!r}, batch {batch}",
            cause="" if isinstance(dtype, str) else "a dtype itself, where its name is wanted",
            repair='sr.check_model(model, dtype="float32", weights="probe")',
        )
    return cast(Dtype, dtype)
