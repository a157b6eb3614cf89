"""What a step computes: the edit of the optimiser's own formulas that gives the program's numbers.

Found on a few tensors at the first two steps; named only where it gives the other tensors and the last step, too.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.engine.edits import FITS, Fitted, search
from siglip_ref.check.engine.seen import Seen, distance, is_wrong
from siglip_ref.check.step.judge import LABELS, Judged, Moves, Plan, predict
from siglip_ref.check.step.run import Taken
from siglip_ref.mistakes import Reference
from siglip_ref.mistakes.grammar.scope import FREE
from siglip_ref.mistakes.grammar.switched import edited, made, named, singles
from siglip_ref.model import optim
from siglip_ref.model.procedures import several_steps
from siglip_ref.ops.elementary import Array

_ADAMW = tuple(named(one) for one in (optim.adamw_step, optim.clip, optim.norm, several_steps))
_BIG_VISION = tuple(
    named(one) for one in (optim.big_vision_step, optim._factored, optim.clip, optim.norm, several_steps)
)
_EACH = 2  # tensors of each kind on which edits are tried
_REST = "rest"  # stands for all other tensors in the length of the gradient
_SEARCHED = 2  # steps


def derive(taken: Sequence[Taken], plan: Plan, judged: Judged, settings: bool = False) -> Fitted | None:
    """What explains all steps; settings : only another value of a setting is tried."""
    functions = _ADAMW if isinstance(plan.rule, optim.AdamW) else _BIG_VISION
    spec = edited(functions)
    chosen = chosen_of(judged, plan)
    few = [_few(one, chosen, plan) for one in taken[:_SEARCHED]]
    first = [one for one in judged.seen if one.name in chosen and one.probe in LABELS[:_SEARCHED]]
    of_step = {step: [one for one in judged.seen if one.probe == step] for step in LABELS}

    def moves(steps: Sequence[Taken], spec: Reference) -> Moves:
        return predict(steps, plan, [one.grads for one in steps], spec=spec)

    def off(steps: Sequence[Taken], seen: Sequence[Seen], spec: Reference) -> list[float]:
        found = moves(steps, spec)
        return [distance(one, found[one.probe, one.name]) for one in seen]

    def whole(spec: Reference) -> list[float]:
        """As `off` of everything, up to the first that does not fit: most of what passes the screen fails at once."""
        scores = list[float]()

        def each(step: str, found: Params) -> None:
            for one in of_step[step]:
                scores.append(distance(one, found[one.name]))
                if not scores[-1] <= FITS:
                    raise ValueError("does not fit")

        predict(taken, plan, [one.grads for one in taken], spec=spec, each=each)
        return scores if len(scores) == len(judged.seen) else [np.inf]

    def numbers(spec: Reference) -> Array:
        found = moves(taken, spec)
        return np.concatenate([np.ravel(found[one.probe, one.name]) / _top(one.got) for one in judged.seen])

    def rest(spec: Reference) -> Array:
        found = moves(few, spec)
        return np.concatenate([np.ravel(one.got - found[one.probe, one.name]) / _top(one.got) for one in first])

    offers = singles(functions)
    if settings:
        offers = [one for one in offers if FREE in one.new and one.old.startswith("rule.")]
    return search(offers, partial(made, spec=spec), partial(off, few, first), whole, numbers, rest, not settings)


def chosen_of(judged: Judged, plan: Plan) -> list[str]:
    """The smallest tensors of each kind: wrong or right, decayed or not."""
    wrong = {one.name for one in judged.seen if is_wrong(one)}
    sizes = {one.name: np.size(one.got) for one in judged.seen}
    kinds: dict[tuple[bool, bool, bool], list[str]] = {}
    for name in sorted(sizes, key=lambda name: sizes[name]):
        kinds.setdefault((name in wrong, plan.rule.decays(name), plan.rule.frozen(name)), []).append(name)
    return [name for kind in kinds.values() for name in kind[:_EACH]]


def _few(one: Taken, chosen: Sequence[str], plan: Plan) -> Taken:
    """A step of a few tensors, and one number that stands for all others."""
    rest = {name: g for name, g in one.grads.items() if name not in chosen and not plan.rule.frozen(name)}
    length = np.asarray([float(optim.norm(rest))]) if rest else np.zeros(1)

    def of(params: Params, last: Array) -> Params:
        return {name: params[name] for name in chosen} | {_REST: last}

    return replace(one, before=of(one.before, np.ones(1)), grads=of(one.grads, length))


def _top(x: Array) -> float:
    return float(np.max(np.abs(x), initial=0.0)) or 1.0
