"""Calling and differentiating a loss written in Torch. Loaded only when such a loss is checked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from siglip_ref.check.frameworks import ALONE, ARGUMENTS, Framework, Inputs, Outcome, Setting, Way
from siglip_ref.check.results import no_scalar
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
        before = [leaf.detach().clone() for leaf in leaves]
        loss = _forward(fn, leaves, setting)
        if way == "two graphs":
            other = Inputs(-inputs.text_embed, inputs.image_embed, inputs.scale, inputs.bias)
            _forward(fn, leaves_of(other, setting, way), setting)
        if way == "upstream":
            torch.autograd.backward(3.0 * loss)  # a gradient given by hand makes Torch import all of SymPy
        elif loss.requires_grad:
            torch.autograd.backward(loss)
        if way == "accumulate":
            torch.autograd.backward(_forward(fn, leaves, setting))
        changed = [
            name
            for name, leaf, old in zip(ARGUMENTS, leaves, before, strict=True)
            if leaf.shape != old.shape or not torch.equal(leaf.detach(), old)
        ]
        gradients = {
            name: None if leaf.grad is None else to_numpy(leaf.grad)
            for name, leaf in zip(ARGUMENTS, leaves, strict=True)
            if leaf.requires_grad
        }
        return Outcome(to_numpy(loss).reshape(()), gradients, changed)

    @contextmanager
    def environment(self, fn: Callable[..., Any], setting: Setting) -> Iterator[None]:
        """Random states, default dtype, gradient and autocast modes, and the gradients of a loss that is a module."""
        require_device(setting.device)
        default = torch.get_default_dtype()
        owner = getattr(fn, "__self__", fn)
        parameters = list(owner.parameters()) if isinstance(owner, torch.nn.Module) else []
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        kind = torch.device(setting.device).type
        fork = (
            torch.random.fork_rng([], device_type="cuda") if kind == "cpu" else torch.random.fork_rng(device_type=kind)
        )
        try:
            # leaving inference mode turns gradients on, too
            with fork, torch.inference_mode(False), torch.autocast(kind, enabled=False):
                yield
        finally:
            torch.set_default_dtype(default)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


def require_device(device: str) -> None:
    """One that Torch can use here."""
    try:
        torch.empty(0, device=device)
    except Exception as cause:  # Torch has an error of its own for every kind of device
        raise UsageError(
            expected="a device that Torch can use here",
            got=f"{device!r}: {str(cause).splitlines()[0][:200]}",
            cause="no such device, or a Torch that was built without it",
            repair='device="cpu", or install the Torch of your accelerator',
        ) from None


def leaves_of(inputs: Inputs, setting: Setting, way: Way) -> list[Tensor]:
    dtypes = [getattr(torch, name) for name in (setting.input_dtype, setting.scalar_dtype)]
    leaves = []
    for name in ARGUMENTS:
        value = torch.tensor(getattr(inputs, "scale" if name == "log_scale" else name), dtype=torch.float64)
        leaf = value.to(setting.device, dtypes[value.ndim == 0])
        if way == "strided" and leaf.ndim == 2:
            leaf = _strided(leaf, name)
        leaves.append(leaf.requires_grad_(not way.startswith("only") or way == f"only {name}"))
    return leaves


def _strided(leaf: Tensor, name: str) -> Tensor:
    """The same numbers: the image's stored column by column, the text's in every second place."""
    if name == "image_embed":
        return leaf.t().contiguous().t()
    return torch.stack((leaf, leaf), -1).flatten(1)[:, ::2].detach()


def _forward(fn: Callable[..., Any], leaves: list[Tensor], setting: Setting) -> Tensor:
    kind = torch.device(setting.device).type
    with torch.autocast(kind, getattr(torch, setting.dtype) if setting.autocast else None, setting.autocast):
        loss = fn(*leaves)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise no_scalar(loss, tuple(loss.shape) if isinstance(loss, torch.Tensor) else None)
    return loss


def to_numpy(values: Tensor) -> Array:
    return values.detach().to("cpu", torch.float64).numpy().copy()


FRAMEWORK: type[Framework] = Torch
