"""Which tensors and which steps, as data and in words."""

from collections.abc import Callable, Sequence

from siglip_ref.check.step.diagnosis.factors import parts
from siglip_ref.check.step.judge import Plan
from siglip_ref.check.step.run import RESTART_BEFORE
from siglip_ref.model.optim import kernels

_LISTED = 4


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
