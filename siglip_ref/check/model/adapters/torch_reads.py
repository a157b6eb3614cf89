"""Which of its parameters a torch model reads through its modules: the others cannot be replaced for a check."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from siglip_ref.errors import UsageError

Given = tuple[torch.Tensor, dict[str, torch.Tensor]]  # a loss, and activations by name
_ONE_BY_ONE = 12  # parameters that no gradient reached, each tried alone


def require_numbers(model: nn.Module) -> None:
    """Weights that are there."""
    empty = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if empty:
        raise UsageError(
            expected="a model whose weights hold numbers",
            got=f"{empty} on the device meta",
            cause='made under torch.device("meta"), or its weights are loaded later',
            repair='model.to_empty(device="cpu"), then load the weights; for weights="probe" any numbers will do',
        )


@contextmanager
def in_the_graph(model: nn.Module) -> Iterator[dict[int, str]]:
    """While all parameters of the user's own require a gradient, a graph shows where they are read: names by id."""
    own = [(name, p) for name, p in model.named_parameters() if p.is_floating_point() and not p.is_inference()]
    before = [p.requires_grad for _, p in own]
    try:
        for _, p in own:
            p.requires_grad_(True)
        yield {id(p): name for name, p in own}
    finally:
        for (_, p), required in zip(own, before, strict=True):
            p.requires_grad_(required)


def not_read(
    whole: nn.Module,
    stand_ins: Mapping[str, torch.Tensor],
    inputs: tuple[Any, torch.Tensor],
    silent: list[str],
    before: Given,
) -> list[str]:
    """Of the parameters that no gradient reached, those whose numbers make no difference.

    Parameters
    ----------
    whole : model and loss, the model by the name "module"
    stand_ins : what takes the places of its parameters and buffers
    silent : names of the parameters that no gradient reached
    before : loss and activations with the stand-ins as they are
    """

    def changes(names: list[str]) -> bool:
        others = dict(stand_ins)
        others |= {"module." + name: stand_ins["module." + name].detach() * 1.5 + 0.5 for name in names}
        with torch.no_grad():
            return not _same(torch.func.functional_call(whole, others, inputs), before)

    if not silent or not changes(silent):
        return silent
    return [name for name in silent[:_ONE_BY_ONE] if not changes([name])]


def _same(one: Given, other: Given) -> bool:
    """Loss and activations, bit for bit but for the kind of a NaN."""
    pairs = [(one[0], other[0]), *((value, other[1][name]) for name, value in one[1].items())]
    return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs)
