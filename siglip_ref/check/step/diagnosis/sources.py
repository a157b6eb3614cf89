"""What the gradients of a step may be instead: of other steps, of some micro-batches, times a number."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from siglip_ref.architecture.params import Params
from siglip_ref.check.step.diagnosis.order import SPLITS
from siglip_ref.check.step.diagnosis.variations import arriving, mean
from siglip_ref.check.step.judge import Plan
from siglip_ref.check.step.run import Taken
from siglip_ref.model.optim import AdamW, clip

Names = frozenset[str] | None  # None: all
Steps = frozenset[int] | None
Make = Callable[[Names, Steps], tuple[Params, ...]]  # the gradients of all steps
_FACTORS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Source:
    """what : is said; make : gives them, where these tensors have them at these steps; part : may be so in a group."""

    what: str
    repair: str
    make: Make
    part: bool = True


def sources(taken: Sequence[Taken], plan: Plan) -> Iterator[Source]:
    """All that are tried."""
    own = tuple(one.grads for one in taken)
    zero = {name: 0 * g for name, g in own[0].items()}
    late = "call backward() before the optimiser's step, on the same batch, for all tensors"
    yield Source("the gradients of the step before", late, _mixed(own, (zero, *own[:-1])))
    yield Source("the gradients of the first step", late, _mixed(own, (own[0],) * len(own)))
    zeroed = "zero the gradients of all tensors before each step's first backward()"
    for in_place in (False, True) if plan.rule.max_norm is not None else (False,):
        said = ", and clipped where they are" if in_place else ""
        what = f"gradients that are not zeroed, and add up over the steps{said}"
        yield Source(what, zeroed, _adding_up(own, plan, in_place))
    both = tuple(_times(g, 1.0, h) for g, h in zip(own, (zero, *own[:-1]), strict=True))
    yield Source("gradients of this step and of the step before, added up", zeroed, _mixed(own, both))
    whole = "hand the optimiser the gradients of the whole loss, multiplied by nothing else"
    for n in _FACTORS:
        for factor, said in ((n, f"times {n}"), (1 / n, f"divided by {n}")):
            yield Source(f"gradients {said} before the clip", whole, _mixed(own, tuple(_times(g, factor) for g in own)))
    yield Source("gradients with their sign turned", whole, _mixed(own, tuple(_times(g, -1.0) for g in own)))
    yield Source("gradients of zero", "let backward() reach all tensors", _mixed(own, (zero,) * len(own)))
    if plan.micro is not None:
        for n in SPLITS if plan.parts == 1 else ():
            chunks = tuple(mean(plan.micro(k, n)) for k in range(len(taken)))
            what = f"gradients of the pairs within each of {n} parts of the batch alone, not of all pairs,"
            pairs = "let every tensor learn from all pairs of the batch, not only from those of one part of it"
            yield Source(what, pairs, _mixed(own, chunks))
    for one in arriving(taken, plan):
        if one.grads is not None:
            what = f"{one.what}, {one.how}" if one.how else one.what
            yield Source(what, one.repair, _mixed(own, one.grads), part=False)


def _mixed(own: tuple[Params, ...], other: tuple[Params, ...]) -> Make:
    """The others' in these tensors at these steps."""

    def make(names: Names, steps: Steps) -> tuple[Params, ...]:
        return tuple(
            g if steps is not None and k not in steps
            else {n: h[n] if n in h and (names is None or n in names) else value for n, value in g.items()}
            for k, (g, h) in enumerate(zip(own, other, strict=True))
        )  # fmt: skip

    return make


def _adding_up(own: tuple[Params, ...], plan: Plan, in_place: bool) -> Make:
    """What is not zeroed before these steps is added to."""
    rule = plan.rule

    def make(names: Names, steps: Steps) -> tuple[Params, ...]:
        found, left = list[Params](), Params()
        for k, g in enumerate(own):
            kept = steps is None or k in steps
            now = {n: x + left[n] if kept and n in left and (names is None or n in names) else x for n, x in g.items()}
            eps = rule.clip_eps if isinstance(rule, AdamW) else 0.0
            left = clip(now, rule.max_norm, eps, rule.frozen) if in_place else now
            found.append(now)
        return tuple(found)

    return make


def _times(grads: Params, factor: float, more: Params | None = None) -> Params:
    return {name: factor * g + (more[name] if more else 0.0) for name, g in grads.items()}
