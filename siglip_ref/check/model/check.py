"""check_model: another project's model on probe weights, every value and every gradient beside the reference's."""

from collections.abc import Callable
from typing import cast

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import UpTo
from siglip_ref.check.engine.check import check
from siglip_ref.check.model.adapters import Dtype
from siglip_ref.check.model.adapters.find import adapter_for
from siglip_ref.check.model.adapters.find import load_target as load_target
from siglip_ref.check.model.reference import UNIT_ROUNDOFF
from siglip_ref.check.model.subject import ModelSubject
from siglip_ref.errors import UsageError
from siglip_ref.report.data import Report


@np.errstate(all="ignore")  # what overflows in the reference is a result
def check_model(
    model: object,
    dtype: str = "float32",
    weights: str = "probe",
    *,
    conventions: Conventions | None = None,
    batch: int = 4,
    up_to: UpTo | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Is this model SigLIP, in every activation, in its loss, and in the gradient of every parameter?

    A tower alone has no loss: its gradients are those of a fixed random linear function of what it gives.

    Parameters
    ----------
    model : a SigLIP model of transformers (NaFlex too) or open_clip, one tower of such a model or of timm, or an
        `Adapter`; it is left exactly as it was
    dtype : "float64", "float32", "bfloat16" or "float16": what the model computes in, whatever its weights are kept in
    weights : "probe" (deterministic weights on which mistakes show) or "own" (the model's, rounded once to dtype)
    conventions : what it shall follow; None: what its own configuration says, if some released SigLIP says so too
    batch : pairs, at least 2
    up_to : where a tower alone ends: "pooled", "last" (the last hidden state) or "last-but-one" (the output of the
        block before the last); None: pooled where it pools as SigLIP does, else its last hidden state
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
    adapter = adapter_for(model, up_to)
    chosen = conventions or adapter.config.conventions
    say = progress or (lambda line: None)
    return check(ModelSubject(adapter, kind, weights == "own", chosen, conventions is not None, batch, say))


def _require_options(dtype: str, weights: str, batch: int) -> Dtype:
    if dtype not in UNIT_ROUNDOFF or weights not in ("probe", "own") or batch < 2:
        raise UsageError(
            expected=f'dtype one of {", ".join(UNIT_ROUNDOFF)}; weights "probe" or "own"; batch at least 2',
            got=f"dtype {dtype!r}, weights {weights!r}, batch {batch}",
            cause="" if isinstance(dtype, str) else "a dtype itself, where its name is wanted",
            repair='sr.check_model(model, dtype="float32", weights="probe")',
        )
    return cast(Dtype, dtype)
