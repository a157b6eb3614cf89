"""Calling and differentiating a loss written in Torch. Loaded only when such a loss is checked."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from siglip_ref.check.call.frameworks import ALONE, ARGUMENTS, Framework, Inputs, Outcome, Setting, Way, wanted
from siglip_ref.check.call.held_torch import gradients_kept
from siglip_ref.check.call.refusals import ELSEWHERE
from siglip_ref.check.call.results import no_scalar
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

Tensor = torch.Tensor


class Torch:
    """Leaves, one forward, one backward, on whatever device Torch has."""

    name = "torch"
    ways: tuple[Way, ...] = (
        "again",
        "upstream",
        "accumulate",
        "two graphs",
        "strided",
        *ALONE,
    )

    def call(self, fn: Callable[..., Any], inputs: Inputs, setting: Setting, way: Way) -> Outcome:
        """Forward and backward on fresh leaves."""
        leaves = leaves_of(inputs, setting, way)
        asked = [name for name, leaf in zip(ARGUMENTS, leaves, strict=True) if leaf.requires_grad]
        before = [leaf.detach().clone() for leaf in leaves]
        loss = forward_of(fn, leaves, setting)
        if way == "two graphs":
            other = Inputs(-inputs.image_embed, inputs.text_embed[::-1].copy(), inputs.scale, inputs.bias)
            forward_of(fn, leaves_of(other, setting, way), setting)
        # a gradient given by hand makes Torch import all of SymPy
        backward_into(3.0 * loss if way == "upstream" else loss, leaves)
        if way == "accumulate":
            backward_into(forward_of(fn, leaves, setting), leaves)
        changed = [
            name
            for name, leaf, old in zip(ARGUMENTS, leaves, before, strict=True)
            if leaf.shape != old.shape or not torch.equal(leaf.detach(), old)
        ]
        gradients = {
            name: None if leaf.grad is None else to_numpy(leaf.grad)
            for name, leaf in zip(ARGUMENTS, leaves, strict=True)
            if name in asked
        }
        return Outcome(to_numpy(loss).reshape(()), gradients, changed)

    @contextmanager
    def environment(self, fn: Callable[..., Any], setting: Setting) -> Iterator[None]:
        """Random states, gradient and autocast modes; what is made without naming a device is made on this one."""
        require_device(setting.device)
        kind = torch.device(setting.device).type
        elsewhere = torch.get_default_device().type != kind
        fork = (
            torch.random.fork_rng([], device_type="cuda") if kind == "cpu" else torch.random.fork_rng(device_type=kind)
        )
        # leaving inference mode turns gradients on, too
        made_here = torch.device(setting.device) if elsewhere else nullcontext()
        with fork, torch.inference_mode(False), torch.autocast(kind, enabled=False), made_here:
            yield


def require_device(device: str) -> None:
    """One that Torch can use here."""
    try:
        torch.empty(0, device=device).cpu()  # not the meta device, which holds no numbers
    except Exception as cause:  # Torch has an error of its own for every kind of device
        raise UsageError(
            expected="a device that Torch can use here",
            got=f"{device!r}: {str(cause).splitlines()[0][:200]}",
            cause="",
            repair='device="cpu", or install the Torch of your accelerator; where there is none: ' + ELSEWHERE,
        ) from None


def leaves_of(inputs: Inputs, setting: Setting, way: Way) -> list[Tensor]:
    dtypes = [getattr(torch, name) for name in (setting.input_dtype, setting.scalar_dtype)]
    leaves = []
    for name in ARGUMENTS:
        numbers = getattr(inputs, "scale" if name == "log_scale" else name)
        value = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        leaf = value.to(setting.device, dtypes[value.ndim == 0])
        if way == "strided" and leaf.ndim == 2:
            leaf = _strided(leaf, name)
        leaves.append(leaf.requires_grad_(name in wanted(setting, way)))
    return leaves


def _strided(leaf: Tensor, name: str) -> Tensor:
    """The same numbers: the image's stored column by column, the text's in every second place."""
    if name == "image_embed":
        return leaf.t().contiguous().t()
    return torch.stack((leaf, leaf), -1).flatten(1)[:, ::2].detach()


def forward_of(fn: Callable[..., Any], leaves: list[Tensor], setting: Setting) -> Tensor:
    """The loss, which must be one number."""
    kind = torch.device(setting.device).type
    with torch.autocast(kind, getattr(torch, setting.dtype) if setting.autocast else None, setting.autocast):
        loss = fn(*leaves)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise no_scalar(loss, tuple(loss.shape) if isinstance(loss, torch.Tensor) else None)
    return loss


def backward_into(loss: Tensor, leaves: Sequence[Tensor]) -> None:
    """Into our leaves alone; a loss of which nothing requires a gradient has none to give."""
    if loss.requires_grad:
        with gradients_kept(loss, leaves):
            torch.autograd.backward(loss)


def to_numpy(values: Tensor) -> Array:
    return values.detach().to("cpu", torch.float64).numpy().copy()


FRAMEWORK: type[Framework] = Torch
