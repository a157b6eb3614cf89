"""Which run of a model is right: the allowed error of every value and gradient, and one row for each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.check.model.adapters import Dtype, Run
from siglip_ref.check.model.noise import allowed, model_noise
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.reference import KEY_BIAS, Reference
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Kind, Row, compare, not_checked, out_of_range


@dataclass(frozen=True)
class Judge:
    """What a run is compared with: the reference, the noise of each value and gradient and the error allowed in it (in
    the tensor's unit), what leaves the range of `dtype`; coarsest: what some step inside is forced to; measured: on
    this very model, or by the law of large ones."""

    exact: Reference
    noise: Mapping[str, float]
    of_value: Mapping[str, float]
    of_grad: Mapping[str, float]
    overflows: frozenset[str]
    dtype: Dtype
    coarsest: Dtype
    measured: bool


def make_judge(
    exact: Reference, probe: Probe, cfg: Config, conventions: Conventions, dtype: Dtype, coarsest: Dtype
) -> Judge:
    """The allowed errors: see `model_noise`. What stands before the first coarse step is judged in dtype."""
    found = model_noise(probe, cfg, conventions, exact, coarsest)
    noise = dict(found.relative)
    if coarsest != dtype:
        fine = model_noise(probe, cfg, conventions, exact, dtype).relative
        noise |= {name: level for name, level in fine.items() if name.endswith("/stem") and not cfg.naflex}
    of_value = {name: allowed(noise[name]) for name in (*exact.activations, "loss")}
    of_grad = {name: allowed(noise[name]) for name in exact.grads}
    return Judge(exact, noise, of_value, of_grad, found.overflows, dtype, coarsest, found.measured)


def judged_rows(run: Run, judge: Judge) -> list[Row]:
    """One row for each activation in forward order, the loss, and each gradient in network order."""
    require_names(run, judge.exact)
    return rows_of(run, judge)


def rows_of(run: Run, judge: Judge, probe: str = "") -> list[Row]:
    """The same for what the judge knows of, whatever else the run holds; probe: the inputs, if not the usual ones."""
    exact, rows = judge.exact, []
    values = run.activations | {"loss": np.reshape(run.loss, ()) if np.size(run.loss) == 1 else run.loss}
    for name, expected in (exact.activations | of_loss(exact)).items():
        kind: Kind = "value" if name == "loss" else "activation"
        if name in values:
            rows.append(_row(name, values[name], expected, kind, judge, run))
        else:
            rows.append(not_checked(name, kind, "the model does not show it"))
    rows += [_row(name, run.grads[name], expected, "gradient", judge, run) for name, expected in exact.grads.items()]
    return [replace(row, probe=probe) for row in rows]


def of_loss(exact: Reference) -> dict[str, Array]:
    """The loss by its name; nothing for a tower alone, whose objective is no part of it."""
    return {"loss": exact.loss} if "log_scale" in exact.grads else {}


def _row(name: str, got: Array, expected: Array, kind: Kind, judge: Judge, run: Run) -> Row:
    """One tensor; where the right numbers do not fit the format, or rounding drowns them, it says so."""
    form, note = FORMATS[judge.dtype], run.names.get(name, "")
    scale = judge.exact.key_terms[name] if name.endswith(KEY_BIAS) else None
    top = float(np.max(np.abs(expected))) if scale is None else scale
    tolerance, noise = judge.of_grad[name] if kind == "gradient" else judge.of_value[name], judge.noise[name]
    row = compare(name, got, expected, tolerance, kind=kind, zero_scale=scale, note=note, noise=noise)
    if row.trouble in ("no numbers", "shape"):
        return row
    if not top <= form.largest:  # also where the reference itself leaves float64
        return out_of_range(name, kind, f"the right numbers reach {top:.1e}, beyond {judge.dtype}")
    if row.verdict == "FAIL" and name in judge.overflows:
        return out_of_range(name, kind, f"overflows in {judge.dtype} even with correct rounding")
    if 0 < top < 2.0**form.lowest and row.trouble != "not finite":
        reason = f"the right numbers reach {top:.1e}, beyond {judge.dtype}"
        return out_of_range(name, kind, reason, trouble="underflows")
    if row.right and tolerance >= 1:
        reason = f"a correct program's rounding reaches {noise:.0%} of it in {judge.dtype}"
        return out_of_range(name, kind, reason, trouble="drowned")
    return row


def require_names(run: Run, exact: Reference) -> None:
    """Every gradient is there, and every activation is one that the reference knows; else the Adapter is wrong."""
    missing = sorted(exact.grads.keys() - run.grads.keys())
    unknown = sorted((run.grads.keys() - exact.grads.keys()) | (run.activations.keys() - exact.activations.keys()))
    if missing or unknown:
        raise UsageError(
            expected="a Run with the gradient of every parameter, and activations named as the reference names them",
            got=f"no gradient of: {', '.join(missing[:4]) or 'none'}; unknown: {', '.join(unknown[:4]) or 'none'}",
            cause="",
            repair="siglip_ref.architecture.params.shapes(cfg) lists parameters, "
            "sr.forward(..., activations=True) activations",
        )
