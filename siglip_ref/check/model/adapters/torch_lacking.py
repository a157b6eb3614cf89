"""Why a live torch model has not the parameters that its configuration promises: tied, taken out, adapters, no bias."""

from collections.abc import Iterable, Sequence

from torch import nn

from siglip_ref.checkpoint.tables.mismatch import ADAPTERS
from siglip_ref.errors import UsageError, few

_SCALARS = {"logit_bias": "-10.0", "logit_scale": "2.3026"}  # SigLIP's values at the start


def require_all(model: nn.Module, wanted: Iterable[str], ignored: Iterable[str], size: str) -> None:
    """Nothing if every parameter that is wanted is one of the model's own; else a UsageError that says why it is not.

    Parameters
    ----------
    wanted : names of parameters; ignored : those that take no part
    size : of the model, in words
    """
    found, wanted = dict(model.named_parameters()), list(dict.fromkeys(wanted))
    missing = [name for name in wanted if name not in found]
    left = [name for name in found if name not in {*wanted, *ignored}]
    if missing:
        cause, repair = _why(model, missing, left)
        if cause:
            raise UsageError(
                f"the parameters of {size}", f"missing: {few(missing)}; left over: {few(left)}", cause, repair
            )


def _why(model: nn.Module, missing: Sequence[str], left: Sequence[str]) -> tuple[str, str]:
    """Cause and repair; empty where the names alone must say it."""
    if any(mark in name for name in left for mark in ADAPTERS):
        return "adapters (LoRA) that are not merged into the weights", "model = model.merge_and_unload(), then check it"
    tied = _tied(model, missing)
    if tied:
        name, owner = tied[0]
        more = f", and {len(tied) - 1} more" if len(tied) > 1 else ""
        place, _, kind = name.rpartition(".")
        own = f"nn.Parameter(model.get_parameter({owner!r}).detach().clone())"
        return (
            f"tied weights: {name} and {owner} are one tensor{more}; SigLIP ties none",
            f"give each its own: model.get_submodule({place!r}).{kind} = {own}",
        )
    if left:
        return "", ""
    of_loss = [name for name in missing if name in _SCALARS]
    if of_loss == list(missing):
        fills = "; ".join(f"model.{name} = nn.Parameter(torch.tensor({_SCALARS[name]}))" for name in of_loss)
        return (
            f"the model has no {' and no '.join(of_loss)}: CLIP has no bias, and some losses keep both themselves",
            fills,
        )
    parts = dict.fromkeys(name.rpartition(".")[0] for name in missing)
    gone = [part for part in parts if not _has_parameters(model, part)]
    if gone:
        module = _module(model, gone[0])
        instead = f"{type(module).__name__} stands in its place" if module is not None else "nothing has this name"
        return f"the model has no {few(gone)}: {instead}", f"put {gone[0]} back: SigLIP has it"
    if all(name.endswith("bias") for name in missing):
        return f"{few(list(parts))} has no bias (bias=False, or None)", "make it with bias=True; zeros change nothing"
    return f"{few(missing)} is no parameter of the model: a buffer, a plain tensor, or taken out", (
        "register it as an nn.Parameter"
    )


def _tied(model: nn.Module, missing: Sequence[str]) -> list[tuple[str, str]]:
    """Missing names that the model has as another name of one of its parameters, each with the name that counts."""
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    return [(name, owners[id(every[name])]) for name in missing if name in every]


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _has_parameters(model: nn.Module, name: str) -> bool:
    module = _module(model, name)
    return module is not None and any(True for _ in module.parameters())
