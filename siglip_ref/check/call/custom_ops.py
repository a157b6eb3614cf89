"""Operators that a loss has registered with Torch: what torch.library.opcheck says of each, at the arguments that the
loss gives it. What it tests is not seen by calling a loss: eager Torch believes a schema, and takes no fake kernel."""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch._library import custom_ops, simple_registry
from torch.overrides import TorchFunctionMode

from siglip_ref.check.call.answers import in_a_line
from siglip_ref.check.call.frameworks import Inputs, Setting
from siglip_ref.check.call.in_torch import backward_into, forward_of, leaves_of

_OWN = ("aten", "prim", "prims", "inductor", "c10d", "_c10d_functional", "profiler", "torchvision", "higher_order")
COMPILED = ("test_faketensor", "test_aot_dispatch_dynamic")  # need a fake kernel, which eager code does not


@dataclass(frozen=True)
class OfOp:
    """What one test of opcheck says of an operator. fault : False where it has no fake kernel to be tested."""

    op: str
    test: str
    words: str
    fault: bool


def of_custom_ops(fn: Callable[..., Any], inputs: Inputs, setting: Setting) -> list[OfOp]:
    """Of all operators that one forward and backward of the loss calls, and that are not Torch's own: failing tests."""
    watch, leaves = _Watch(), leaves_of(inputs, setting, "plain")
    with _uncompiled(), watch, suppress(Exception):  # what it raises is told by other calls
        backward_into(forward_of(fn, leaves, setting), leaves)
    found: list[OfOp] = []
    for name, (op, args, named) in watch.called.items():
        told = torch.library.opcheck(op, args, dict(named), raise_exception=False)
        for test, result in told.items():
            if isinstance(result, BaseException):
                found.append(OfOp(name, test, in_a_line(result), test not in COMPILED or _has_fake(name)))
    return found


class _Watch(TorchFunctionMode):
    """Keeps the arguments of the first call of each operator that is not Torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.called: dict[str, tuple[Any, tuple[Any, ...], Mapping[str, Any]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            op = func if isinstance(func, torch._ops.OpOverload) else getattr(func, func.overloads()[0])
            if op.namespace not in _OWN:
                self.called.setdefault(op._schema.name, (op, _copied(args), _copied(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _copied(value: Any) -> Any:
    """As it was at the call; inside an autograd function nothing asks for a gradient."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad and torch.is_grad_enabled())
    if isinstance(value, tuple | list):
        return type(value)(map(_copied, value))
    return {name: _copied(one) for name, one in value.items()} if isinstance(value, dict) else value


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled code calls its operators where nobody can watch; and it would be compiled again for being watched."""
    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance and "torch._dynamo" in sys.modules else nullcontext()


def _has_fake(name: str) -> bool:
    """Whether somebody wrote a fake kernel for it, which can be wrong; Torch's own stand-in raises."""
    decorated = custom_ops.OPDEFS.get(name)
    if decorated is not None:
        return decorated._abstract_fn is not None
    written = simple_registry.singleton.find(name).fake_impl.kernel is not None
    return written or torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta")
