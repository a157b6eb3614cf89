"""A Torch module under other parameters than its own, in the forward pass and in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from siglip_ref.check.call.held_torch import gradients_kept
from siglip_ref.check.call.results import loss_of

Tensor = torch.Tensor


class Given(nn.Module):
    """A module whose backward pass runs before its call returns: `functional_call` swaps parameters as long as that,
    and what is computed again in the backward, as activation checkpointing does, must meet the same ones."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.training = module.training
        self.module = module

    def forward(self, inputs: tuple[Any, ...], backward: Callable[[Tensor], None]) -> Any:
        result = loss_of(self.module(*inputs))
        if isinstance(result, Tensor) and result.numel() == 1 and result.requires_grad:
            backward(result)
        return result


def differentiated(
    module: nn.Module, own: Callable[[list[Tensor]], tuple[dict[str, Tensor], tuple[Any, ...]]], leaves: list[Tensor]
) -> Any:
    """What the module returns, as a function of the leaves.

    Parameters
    ----------
    own : of leaves: the module's parameters by name, and what it is called with
    """
    result: list[Any] = []

    class Held(torch.autograd.Function):
        """The value, with the gradients that were computed beside it."""

        @staticmethod
        def forward(ctx: Any, *given: Tensor) -> Tensor:
            again = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in given]

            def backward(loss: Tensor) -> None:
                with gradients_kept(loss, again), torch.autocast(loss.device.type, enabled=False):
                    torch.autograd.backward(loss)

            with torch.enable_grad():
                parameters, inputs = own(again)
                named = {f"module.{name}": value for name, value in parameters.items()}
                found = torch.func.functional_call(Given(module), named, (inputs, backward))
            result.append(found)
            ctx.gradients = [leaf.grad for leaf in again]
            return found.detach() if isinstance(found, Tensor) else torch.zeros(())

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Any:
            return tuple(None if one is None else upstream * one for one in ctx.gradients)

    loss = Held.apply(*leaves)  # type: ignore[no-untyped-call]
    fits = isinstance(result[0], Tensor) and result[0].numel() == 1
    return loss if fits else result[0]
