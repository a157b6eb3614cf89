"""Which tensors and which steps, as data and in words."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.step.diagnosis.factors import parts
from siglip_ref.check.step.judge import Judged, Plan
from siglip_ref.check.step.run import RESTART_BEFORE, Taken
from siglip_ref.model.optim import kernels
from siglip_ref.ops.elementary import Array

_LISTED = 4
_UNIT = 1e-5


def groups(names: Sequence[str], plan: Plan) -> dict[str, frozenset[str]]:
    """Groups of tensors that trainers treat apart, by what they are called; none twice."""
    chosen: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("the image tower", lambda n: n.startswith("image/")),
        ("the text tower", lambda n: n.startswith("text/")),
        ("log_scale and bias", lambda n: "/" not in n),
        ("both towers", lambda n: "/" in n),
        ("all kernels", kernels),
        ("all but kernels", lambda n: not kernels(n)),
        ("all that decay", plan.rule.decays),
        ("all that do not decay", lambda n: not plan.rule.decays(n)),
        ("all but the image tower", lambda n: not n.startswith("image/")),
        ("all but the text tower", lambda n: not n.startswith("text/")),
        ("all of two or more axes", lambda n: n.endswith(("/kernel", "/token", "/probe", "/position"))),
        ("all of two or more axes but positions", lambda n: n.endswith(("/kernel", "/token", "/probe"))),
        ("all but biases and norms", lambda n: n.split("/")[-1] not in ("bias", "beta", "gamma")),
    )
    found: dict[str, frozenset[str]] = {}
    for words, among in chosen:
        its = frozenset(name for name in names if among(name))
        if its and len(its) < len(names) and its not in found.values():
            found[words] = its
    return found


def whose(chosen: frozenset[str], names: Sequence[str], plan: Plan) -> str:
    """These tensors of all that are trained, in words."""
    if chosen.issuperset(names):
        return "all tensors alike"
    for words, its in groups(names, plan).items():
        if its == chosen:
            return f"{words} ({len(its)} of {len(names)} tensors)"
    where = parts([name for name in names if name in chosen], set(names) - chosen)
    more = f" and {len(where) - _LISTED} more" if len(where) > _LISTED else ""
    return f"{', '.join(where[:_LISTED])}{more} ({len(chosen)} of {len(names)} tensors)"


def stuck(taken: Sequence[Taken], judged: Judged) -> Params:
    """Of each tensor, 1 for each number that never moves and should."""
    found: Params = {}
    for one in judged.seen:
        still = (one.got == 0) & (np.abs(one.exact) > one.allowed)
        found[one.name] = np.asarray(found.get(one.name, 0) + still)
    never = {name: np.all([one.moved[name] == 0 for one in taken], axis=0) for name in found}
    return {name: np.where(never[name] & (count > 0), 1.0, 0.0) for name, count in found.items()}


def numbers_of(stuck: Params) -> str:
    """How many numbers of each tensor."""
    listed = [
        f"{'all' if its.all() else int(its.sum())} of the {np.size(its)} numbers of {name}"
        for name, its in stuck.items()
        if its.any()
    ]
    many = len(listed) > _LISTED
    partly = [one for one in listed if not one.startswith("all")]
    shown = [*partly, *(one for one in listed if one not in partly)][:_LISTED] if many else listed
    return ", ".join(shown) + (f" and of {len(listed) - _LISTED} tensors more" if many else "")


def limits(taken: Sequence[Taken], wrong: frozenset[str]) -> dict[str, tuple[Array, Array]]:
    """Of each tensor the least and the largest number after any step, where it stands there more than once."""
    found = {}
    for name, value in taken[0].before.items():
        after = np.stack([one.before[name] + one.moved[name] for one in taken])
        ends = []
        for end, none in ((after.min(), -np.inf), (after.max(), np.inf)):
            stands = name in wrong and np.isfinite(end) and np.sum(after == end) > 1
            ends.append(np.full(np.shape(value), end if stands else none))
        found[name] = (ends[0], ends[1])
    return found


def units(taken: Sequence[Taken], wrong: frozenset[str]) -> dict[str, int | None]:
    """Wrong tensors that have length 1 after every step: along which axis, or as a whole."""
    found: dict[str, int | None] = {}
    for name in wrong:
        after = [one.before[name] + one.moved[name] for one in taken]
        for axis in (None, 0, -1) if np.ndim(after[0]) else ():
            if all(np.allclose((x * x).sum(axis), 1, rtol=_UNIT) for x in after):
                found.setdefault(name, axis)
    return found


def limits_of(limits: Mapping[str, tuple[Array, Array]], names: frozenset[str] | None) -> list[str]:
    """In words, of these tensors."""
    said = []
    for name, its in limits.items():
        low, high = (float(np.ravel(x)[0]) for x in its)
        ends = [f"at {word} {_plainly(x)}" for word, x in (("least", low), ("most", high)) if np.isfinite(x)]
        ends = [f"at {_plainly(low)}"] if low == high else ends
        if ends and (names is None or name in names):
            said.append(f"{name} {' and '.join(ends)}")
    return said


def _plainly(x: float) -> str:
    """A number, or that of which it is the logarithm, where that is rounder."""
    number = float(np.exp(min(x, 100.0)))
    return f"log {number:.4g}" if abs(float(f"{number:.2g}") / number - 1) < 1e-6 else f"{x:.6g}"


def at_steps(steps: frozenset[int] | None, count: int, restarted: bool) -> str:
    """These steps, in words, with a leading comma."""
    if steps is None:
        return ""
    first = min(steps)
    behind = ", the first after save and load" if restarted and first == RESTART_BEFORE else ""
    if len(steps) == 1:
        last = first == count - 1
        return f", at step {first + 1}" + (behind or (" (the last that was taken)" if last else " alone"))
    return f", at steps {' and '.join(str(k + 1) for k in sorted(steps))}"
