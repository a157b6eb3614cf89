"""Changes of a whole stage that no edit of one formula is: another block, other weights, other inputs, other rows.

Each is a change as the engine's search has it, with what it computes in words; it changes the operations, the
parameters and inputs, or gives the stage's value outright.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from siglip_ref.check.model.probe import Probe
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops

Params = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Whole:
    """One change. now, was : what is computed, and what should be; one of the other three is given.

    ops : the operations with it; probe : parameters and inputs with it; value : the stage itself, from what the
    program shows and was given
    """

    now: str
    was: str
    ops: Callable[[Ops], Ops] | None = None
    probe: Callable[[Probe], Probe] | None = None
    value: Callable[[Mapping[str, Array], Probe], Array] | None = None
    factor: float = 1.0

    @property
    def place(self) -> str:
        """Of a whole stage there is one."""
        return "whole"

    @property
    def drops(self) -> bool:
        """It is no part that is left out."""
        return False

    @property
    def plain(self) -> bool:
        """It is no factor."""
        return False

    @property
    def function(self) -> str:
        """It is in no function, and no edit of an expression."""
        return ""

    old = new = text = property(lambda self: "")

    @property
    def rank(self) -> tuple[int, int]:
        """After every edit of one formula."""
        return 9, len(self.now)


def other_weights(now: str, names: Mapping[str, str], turned: bool = False, was: str = "kernels as they are") -> Whole:
    """Parameters that are read in the place of others: by each name, the other's; turned: transposed."""

    def taken(probe: Probe) -> Probe:
        new = {name: np.asarray(probe.params[other]) for name, other in names.items()}
        return replace(probe, params=dict(probe.params) | {n: x.T if turned else x for n, x in new.items()})

    return Whole(now, was, probe=taken)


def changed_weights(now: str, was: str, names: Iterable[str], change: Callable[[Array], Array]) -> Whole:
    """Parameters that are changed before they are read."""

    def changed(probe: Probe) -> Probe:
        new = {name: change(np.asarray(probe.params[name], np.float64)) for name in names}
        return replace(probe, params=dict(probe.params) | new)

    return Whole(now, was, probe=changed)


def other_inputs(now: str, was: str, images: Callable[[Array], Array] | None = None,
                 tokens: Callable[[Array], Array] | None = None) -> Whole:  # fmt: skip
    """Other images, or other tokens, than were given."""

    def changed(probe: Probe) -> Probe:
        new = probe.images if images is None else images(probe.images)
        return replace(probe, images=new, tokens=probe.tokens if tokens is None else tokens(probe.tokens))

    return Whole(now, was, probe=changed)
