"""Which run of a model is right: the allowed error of every value and gradient, and one row for each."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from siglip_ref.check.adapters import Dtype, Run
from siglip_ref.check.compare import Kind, Row, compare, not_checked, out_of_range
from siglip_ref.check.model_probe import Probe
from siglip_ref.check.model_reference import KEY_BIAS, Reference, amplification, model_tolerance, reference
from siglip_ref.conventions import Conventions
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.sizes import Config

LARGEST_NUMBER = {"float64": 1.8e308, "float32": 3.4e38, "bfloat16": 3.39e38, "float16": 65504.0}
SMALLEST_NORMAL = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}


@dataclass(frozen=True)
class Judge:
    """What a run is compared with: the reference, the allowed error of each value and gradient, in units of `dtype`."""

    exact: Reference
    of_value: Mapping[str, float]
    of_grad: Mapping[str, float]
    dtype: Dtype


def make_judge(
    exact: Reference, probe: Probe, cfg: Config, conventions: Conventions, dtype: Dtype, coarsest: Dtype
) -> Judge:
    """The allowed errors: see `model_tolerance`. What stands before the first coarse step is judged in dtype."""
    rounded = reference(probe, cfg, conventions, np.float32)
    values = amplification(exact.activations | {"loss": exact.loss}, rounded.activations | {"loss": rounded.loss})
    grads = amplification(exact.grads, rounded.grads)
    of_value = {
        name: model_tolerance(factor, dtype if name.endswith("/stem") else coarsest) for name, factor in values.items()
    }
    # what a key bias shows is the rounding of one softmax, not of the network before it
    grads |= dict.fromkeys(exact.key_terms, 1.0)
    return Judge(exact, of_value, {name: model_tolerance(factor, coarsest) for name, factor in grads.items()}, dtype)


def judged_rows(run: Run, judge: Judge) -> list[Row]:
    exact, rows = judge.exact, []
    require_names(run, exact)
    values = run.activations | {"loss": np.reshape(run.loss, ()) if np.size(run.loss) == 1 else run.loss}
    for name, expected in (exact.activations | {"loss": exact.loss}).items():
        kind: Kind = "value" if name == "loss" else "activation"
        if name in values:
            rows.append(_row(name, values[name], expected, judge.of_value[name], kind, None, judge.dtype, run))
        else:
            rows.append(not_checked(name, kind, "the model does not show it"))
    for name, expected in exact.grads.items():
        scale = exact.key_terms[name] if name.endswith(KEY_BIAS) else None
        rows.append(_row(name, run.grads[name], expected, judge.of_grad[name], "gradient", scale, judge.dtype, run))
    return rows


def _row(
    name: str, got: Array, expected: Array, tolerance: float, kind: Kind, scale: float | None, dtype: Dtype, run: Run
) -> Row:
    """One tensor; where the right numbers do not fit the format, it says so instead of judging."""
    top = float(np.max(np.abs(expected))) if scale is None else scale
    if 0 < top < SMALLEST_NORMAL[dtype] or LARGEST_NUMBER[dtype] < top < np.inf:
        return out_of_range(name, kind, f"the right numbers reach {top:.1e}, beyond {dtype}")
    return compare(name, got, expected, tolerance, kind=kind, zero_scale=scale, note=run.names.get(name, ""))


def require_names(run: Run, exact: Reference) -> None:
    """Every gradient is there, and every activation is one that the reference knows; else the Adapter is wrong."""
    missing = sorted(exact.grads.keys() - run.grads.keys())
    unknown = sorted((run.grads.keys() - exact.grads.keys()) | (run.activations.keys() - exact.activations.keys()))
    if missing or unknown:
        raise UsageError(
            expected="a Run with the gradient of every parameter, and activations named as the reference names them",
            got=f"no gradient of: {', '.join(missing[:4]) or 'none'}; unknown: {', '.join(unknown[:4]) or 'none'}",
            cause="a name left out or misspelt in the Adapter",
            repair="siglip_ref.params.shapes(cfg) lists parameters, sr.forward(..., activations=True) activations",
        )
