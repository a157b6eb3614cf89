"""Tensors that a function under test holds: numbers, gradients, versions and flags, put back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

Tensor = torch.Tensor


def remembered(tensor: Tensor, numbers: bool = True) -> Callable[[], None]:
    """What puts this tensor back, with or without its numbers. Its gradient is taken away until then, so that a
    backward pass starts a new one."""
    if tensor.device.type == "meta" or tensor.layout is not torch.strided or tensor.is_quantized:
        return lambda: None
    values, version = tensor.detach().clone() if numbers else None, _version(tensor)
    leaf, requires, grad = tensor.is_leaf, tensor.requires_grad, tensor.grad if tensor.is_leaf else None
    kept = None if grad is None else grad.detach().clone()
    if grad is not None:
        tensor.grad = None

    def undo() -> None:
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if values is not None:
                if not _equal(tensor, values):
                    _write(tensor, values)
                _set_version(tensor, version)
        if not leaf:
            return
        if tensor.requires_grad != requires:
            tensor.requires_grad_(requires)
        if tensor.grad is not grad:
            tensor.grad = grad
        if grad is not None and kept is not None and not _equal(grad, kept):
            with torch.no_grad():
                grad.copy_(kept)

    return undo


@contextmanager
def gradients_kept(loss: Tensor, ours: Sequence[Tensor]) -> Iterator[None]:
    """A backward pass writes into these leaves only: those of others get back the gradients that they had."""
    others = [leaf for leaf in leaves_under(loss) if not any(leaf is own for own in ours)]
    before = [leaf.grad for leaf in others]
    for leaf in others:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, grad in zip(others, before, strict=True):
            leaf.grad = grad


def leaves_under(loss: Tensor) -> list[Tensor]:
    """All tensors that a backward pass from here writes a gradient into."""
    found, seen = [], set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [after for after, _ in node.next_functions]
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit: a NaN equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(x.detach().resolve_conj().reshape(-1).view(torch.uint8) for x in (one, other)))


def _write(tensor: Tensor, numbers: Tensor) -> None:
    if tensor.shape == numbers.shape and tensor.dtype == numbers.dtype:
        tensor.copy_(numbers)
    else:
        tensor.data = numbers


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _set_version(tensor: Tensor, version: int | None) -> None:
    """Where this Torch has a way to: a backward pass of the user's that saved the tensor is then still possible."""
    if version is not None and tensor._version != version:
        with suppress(AttributeError, TypeError, RuntimeError):
            torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
