"""The operations as a record: what computes with it reaches every part through it, so another part is one `replace`."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial, update_wrapper
from typing import Any, NamedTuple, TypeVar

Function = Callable[..., Any]
T = TypeVar("T")


class Pair(NamedTuple):
    """An operation: `out, cache = forward(...)`; the gradients of what it was given: `backward(d_out, cache)`."""

    forward: Function
    backward: Function


def _absent(*given: Any, **named: Any) -> Any:
    """Stands where a record of `siglip_ref.ops` has nothing: towers are made of what is there, and come later."""
    raise NotImplementedError(
        "this record ends below the towers; siglip_ref.model.specification.SPECIFICATION has them"
    )


ABSENT = Pair(_absent, _absent)


@dataclass(frozen=True, repr=False, eq=False)
class Ops:
    """All operations, from the logarithm of a sigmoid to a whole tower and a step of the optimiser.

    A function of several parts has a last parameter `ops`, and asks it for each: `ops.linear.forward(x, kernel, bias)`.
    Which record that is nobody has to say: a record gives itself to its functions. So in
    `replace(SPECIFICATION, softmax=other)` attention, blocks and towers compute with the other softmax, too; only a
    compiled twin has its parts inside itself.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from siglip_ref.model.specification import SPECIFICATION
    >>> doubled = replace(SPECIFICATION, softplus=lambda z: 2 * z)
    >>> doubled.softplus(3.0), SPECIFICATION.pair_block is doubled.pair_block
    (6.0, False)
    """

    softplus: Function
    sigmoid: Function
    linear: Pair
    layer_norm: Pair
    gelu: Pair
    softmax: Pair
    attention: Pair
    mlp: Pair
    token_embed: Pair
    bottleneck: Pair
    position: Pair
    position_resize: Pair
    patch_embed: Pair
    pool: Pair
    map_head: Pair
    normalize: Pair
    pair_block: Function
    sigmoid_loss: Function
    softmax_loss: Function
    block: Pair = ABSENT
    encoder: Pair = ABSENT
    image_tower: Pair = ABSENT
    naflex_tower: Pair = ABSENT
    text_tower: Pair = ABSENT
    meet: Function = (
        _absent  # the blocks of a loss whose bits depend on nothing, see `siglip_ref.ops.reproducible.blocks`
    )
    total: Function = _absent  # of its tallies
    adamw_step: Function = _absent
    name: str = "siglip_ref.ops"  # what reports call these operations
    compiled: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Pair):
                object.__setattr__(self, field.name, Pair(*(bound(function, self) for function in value)))
            elif callable(value):
                object.__setattr__(self, field.name, bound(value, self))

    def __repr__(self) -> str:
        return f"<operations of {self.name}>"


def bound(function: Callable[..., T], ops: Ops) -> Callable[..., T]:
    """The function with this record as its `ops`, if it has parts; whatever record it had before."""
    alone = alone_of(function)
    return update_wrapper(partial(alone, ops=ops), alone) if _has_parts(alone) else alone


def alone_of(function: Callable[..., T]) -> Callable[..., T]:
    """A function of a record as it was written, without the record."""
    return function.func if isinstance(function, partial) and "ops" in function.keywords else function


def _has_parts(function: Function) -> bool:
    """Whether one of its own parameters is `ops`."""
    code = getattr(function, "__code__", None)
    return code is not None and "ops" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
