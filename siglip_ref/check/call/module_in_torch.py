"""A Torch module under other parameters than its own, in the forward pass and in the backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from siglip_ref.check.call.held_torch import gradients_kept
from siglip_ref.check.call.results import loss_of

Tensor = torch.Tensor
Result = tuple[Any, list[Tensor | None]]  # what a module returned, and a gradient for each leaf


class Swapped(nn.Module):
    """A module and what is done with it, as one: `functional_call` swaps parameters as long as its call runs. So the
    backward pass belongs to it: what is computed again in it, as activation checkpointing does, must meet the same
    ones."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.training = module.training
        self.module, self.run = module, run

    def forward(self, *given: Any) -> Any:
        return self.run(self.module, *given)


def _with_gradients(module: nn.Module, leaves: Sequence[Tensor], more: Sequence[Any]) -> Any:
    result = loss_of(module(*leaves[:2], *more))
    if _is_loss(result) and result.requires_grad:
        with gradients_kept(result, leaves), torch.autocast(result.device.type, enabled=False):
            torch.autograd.backward(result)
    return result


class Held(torch.autograd.Function):
    """A value, with the gradients that were computed beside it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *leaves: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, None, *(None if one is None else upstream * one for one in ctx.gradients)


def differentiated(
    module: nn.Module, own: Callable[..., dict[str, Tensor]], leaves: Sequence[Tensor], more: Sequence[Any]
) -> Any:
    """What the module returns, as a function of the leaves.

    Parameters
    ----------
    own : of the leaves: the module's parameters, by name
    leaves : embeddings, and what `own` makes parameters of; more : what the module takes after the embeddings
    """
    again = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in leaves]
    named = {f"module.{name}": value for name, value in own(*again).items()}
    result = torch.func.functional_call(Swapped(module, _with_gradients), named, (again, more))
    if not _is_loss(result):
        return result
    return Held.apply(result.detach(), [leaf.grad for leaf in again], *leaves)  # type: ignore[no-untyped-call]


def _is_loss(result: Any) -> bool:
    return isinstance(result, Tensor) and result.numel() == 1
