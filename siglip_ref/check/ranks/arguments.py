"""The arguments of check_ranks, refused with a reason before a process is started."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np

from siglip_ref.check.call.as_written import of_no_bias
from siglip_ref.check.call.frameworks import framework_of, require_framework
from siglip_ref.check.loss.arguments import (
    LOSSES,
    require_arguments,
    require_instance,
    require_one_of,
    require_seconds,
    require_whole,
    takes,
)
from siglip_ref.check.ranks.observed import REDUCE, VALUE
from siglip_ref.errors import UsageError

CHECK = "check_ranks"
_SHARDS = ("image_shard", "text_shard", "log_scale", "bias")
_FURTHER: dict[str, tuple[str, ...]] = {"torch": ("rank", "world_size"), "jax": (), "numpy": ("comm",)}
_OWN = {"setup": ("torch", "jax"), "axis_name": ("jax",), "ranks": ("numpy",)}  # whose arguments these are


@dataclass(frozen=True)
class Asked:
    """worlds: numbers of ranks to try; in_group: in the group that is running; bias: whether the loss is given one."""

    framework: str
    worlds: tuple[int, ...]
    in_group: bool
    limit: float
    bias: bool


def examined(
    fn: Callable[..., Any],
    world_size: object,
    framework: str | None,
    reduce: object,
    value: object,
    unequal: object,
    backend: object,
    setup: object,
    device: object,
    limit: object,
    axis_name: object,
    ranks: object,
    loss: object,
) -> Asked:
    """What they come to.

    Raises
    ------
    UsageError : one of them means nothing, or not with the others
    """
    require_instance(fn)
    name = framework if framework is not None else _by_parameters(fn) or framework_of(fn, CHECK)
    require_framework(name, CHECK)
    require_one_of("loss", loss, LOSSES)
    bias = _require_shards(fn, name, loss == "softmax")
    world = require_whole("world_size", world_size, 2, 8, "one rank is check_loss; more than 8 do not fit")
    require_one_of("reduce", reduce, REDUCE)
    require_one_of("value", value, VALUE)
    if not isinstance(unequal, bool | np.bool_):
        raise _another_type("unequal", unequal, "True or False", "unequal=True")
    seconds = require_seconds("limit", limit, 120.0)
    _require_own(name, {"setup": setup, "axis_name": axis_name, "ranks": ranks})
    worlds = (world, world - 1 if world > 2 else 3)
    group = _require_group(max(worlds), backend, device) if name == "torch" else 0
    if name != "torch" and device != "cpu":
        raise UsageError(
            expected=f'device="cpu" for ranks in {name}',
            got=f"device={device!r}",
            cause="its ranks are devices that the host pretends to have" if name == "jax" else "NumPy has no other",
            repair=f"{CHECK}(fn, {world})",
        )
    return Asked(name, (group,) if group else worlds, bool(group), seconds, bias)


def given_a_bias(fn: Callable[..., Any], bias: bool) -> Callable[..., Any]:
    """The loss as one that is given a bias, which is kept from it where it takes none."""
    if bias:
        return fn

    @wraps(fn)
    def given(image_shard: Any, text_shard: Any, log_scale: Any, bias: Any, *rest: Any, **named: Any) -> Any:
        return of_no_bias(fn(image_shard, text_shard, log_scale, *rest, **named))

    return given


def _require_shards(fn: Callable[..., Any], framework: str, may_lack_a_bias: bool) -> bool:
    """A function that can be called on ranks; whether with a bias. What follows may have defaults, so a call without
    one is tried first."""
    further, axis = _FURTHER[framework], named_axis(fn, "ranks") if framework == "jax" else {}
    if may_lack_a_bias:
        with suppress(UsageError):
            require_arguments(fn, (*_SHARDS[:3], *further), **axis)
            return False
    require_arguments(fn, (*_SHARDS, *further), **axis)
    return True


def named_axis(fn: Callable[..., Any], axis: str) -> dict[str, str]:
    """The axis's name as a keyword, for a JAX function that takes it; another one names its axis itself."""
    return {"axis_name": axis} if takes(fn, "axis_name") else {}


def _by_parameters(fn: Callable[..., Any]) -> str | None:
    """The framework in which ranks are called as the function's own parameters say."""
    marks = _FURTHER | {"jax": ("axis_name",)}
    return next((name for name, mark in marks.items() if all(takes(fn, parameter) for parameter in mark)), None)


def _require_own(framework: str, arguments: dict[str, object]) -> None:
    """What is given belongs to this framework, and is of its type."""
    for argument, value in arguments.items():
        owners = _OWN[argument]
        if value is not None and framework not in owners:
            raise UsageError(
                expected=f"{argument}= with a function in {' or '.join(owners)}",
                got=f"{argument}= with a function in {framework}",
                cause=f"{argument}= means nothing there",
                repair=f"leave it out, or framework={owners[0]!r} if that is what the function is written in",
            )
    if not (arguments["axis_name"] is None or (isinstance(arguments["axis_name"], str) and arguments["axis_name"])):
        raise _another_type("axis_name", arguments["axis_name"], "a name", 'axis_name="batch"')
    if not (arguments["setup"] is None or callable(arguments["setup"])):
        raise _another_type("setup", arguments["setup"], "a function", "setup=lambda rank, world_size: ...")
    if framework == "numpy" and not callable(arguments["ranks"]):
        raise UsageError(
            expected="ranks=, a way to run a NumPy function on several ranks",
            got="none" if arguments["ranks"] is None else f"ranks={arguments['ranks']!r}",
            cause="siglip_ref does not communicate; the package mpi beside it does",
            repair=f"from mpi.comm import ThreadComm; {CHECK}(fn, ranks=ThreadComm.run)",
        )


def _another_type(argument: str, value: object, expected: str, repair: str) -> UsageError:
    return UsageError(f"{argument}, {expected}", f"{argument}={value!r}", "another type", repair)


def _require_group(world_size: int, backend: object, device: object) -> int:
    """The size of the group that this process is in (torchrun), 0 if in none; one can be made."""
    import torch.distributed as dist

    from siglip_ref.check.call.in_torch import require_device
    from siglip_ref.check.ranks.torch import require_group

    require_device(str(device))
    if dist.is_available() and dist.is_initialized():
        return int(dist.get_world_size())
    require_group(str(backend), str(device), world_size)
    return 0
