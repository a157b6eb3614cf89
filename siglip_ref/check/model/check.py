"""check_model: another project's model on probe weights, every value and every gradient beside the reference's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from siglip_ref.architecture.conventions import Conventions, preset
from siglip_ref.architecture.one_tower import UpTo
from siglip_ref.check.call.frameworks import dtype_name
from siglip_ref.check.engine.check import check
from siglip_ref.check.model.adapters import Adapter, Dtype
from siglip_ref.check.model.adapters.find import adapter_for
from siglip_ref.check.model.adapters.find import load_target as load_target
from siglip_ref.check.model.subject import ModelSubject
from siglip_ref.errors import UsageError
from siglip_ref.report.data import Report


@np.errstate(all="ignore")  # what overflows in the reference is a result
def check_model(
    model: object,
    dtype: object = "float32",
    weights: str = "probe",
    *,
    conventions: Conventions | str | None = None,
    batch: int = 4,
    up_to: UpTo | None = None,
    device: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Is this model SigLIP, in every activation, in its loss, and in the gradient of every parameter?

    A tower alone has no loss: its gradients are those of a fixed random linear function of what it gives.

    Parameters
    ----------
    model : a SigLIP model of transformers (NaFlex too) or open_clip, one tower of such a model or of timm, or an
        `Adapter`; it is left exactly as it was. A string names one: see `siglip_ref.check.model.adapters.find`
    dtype : "float64", "float32", "bfloat16" or "float16": what the model computes in, whatever its weights are kept in
    weights : "probe" (deterministic weights on which mistakes show) or "own" (the model's, rounded once to dtype)
    conventions : what it shall follow, or the name of a preset; None: what its own configuration says, if some released
        SigLIP says so too
    batch : pairs, at least 2
    up_to : where a tower alone ends: "pooled", "last" (the last hidden state) or "last-but-one" (the output of the
        block before the last); None: pooled where it pools as SigLIP does, else its last hidden state
    device : where a Torch model computes, "cpu", "cuda", ...; None: where it is. It stays where it is
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
    kind = cast(Dtype, dtype_name(dtype, "dtype"))
    if weights not in ("probe", "own") or batch < 2:
        raise UsageError(
            expected='weights "probe" or "own"; batch at least 2',
            got=f"weights {weights!r}, batch {batch}",
            cause="",
            repair='sr.check_model(model, dtype="float32", weights="probe")',
        )
    say = progress or (lambda line: None)
    if isinstance(model, str) and ("/" not in model or ":" in model or Path(model).is_dir()):  # else a hub's name
        say(f"loading {model}")
        model = load_target(model)
    adapter = _on(device, adapter_for(model, up_to))
    follows = preset(conventions) if isinstance(conventions, str) else conventions
    chosen = follows or adapter.config.conventions
    return check(ModelSubject(adapter, kind, weights == "own", chosen, follows is not None, batch, say))


def _on(device: str | None, adapter: Any) -> Adapter:
    """The model on a device; an Adapter of one's own chooses its device itself."""
    if device is None:
        return cast(Adapter, adapter)
    if not hasattr(adapter, "device"):
        raise UsageError(
            expected="device for a Torch model",
            got=f"device={str(device)!r} and {adapter.name}",
            cause="where an Adapter computes is said in its run",
            repair="leave device out",
        )
    from siglip_ref.check.call.in_torch import require_device

    require_device(str(device))
    return cast(Adapter, replace(adapter, device=str(device)))
