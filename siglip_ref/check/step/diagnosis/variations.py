"""Steps by another rule: lines of the optimiser written otherwise, or other gradients handed to it.

Each variation is data. It is run in float64 on the program's own parameters and gradients, and told only where it gives
all parameters at all steps; of several that do, only what they have in common.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.engine.edits import same
from siglip_ref.check.engine.seen import Seen, is_wrong
from siglip_ref.check.step.diagnosis.order import SPLITS
from siglip_ref.check.step.judge import Judged, Moves, Plan, judge, predict
from siglip_ref.check.step.run import Taken
from siglip_ref.mistakes import CATALOGUE, Edit, reference
from siglip_ref.model.optim import AdamW, clip, norm
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import DERIVED

NO_CLIP = "clip-missing"
_FILE = "model/optim.py"
_MOST = 0.9  # of a tensor's numbers; those that are left lie where rounding decides
_FEW = 2  # that may do so in small tensors
_LISTED = 4
_LIMITS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # of a clip, as people set them
_ROUND = 2e-7  # relative: nearer than this to a number of two digits is no chance

# x rounded to fewer bits, in float64: adding and taking away a multiple leaves the leading 8 bits
_FEWER = {
    "bfloat16": "(lambda x: x * (2.0**45 + 1) - (x * (2.0**45 + 1) - x))",
    "float16": "(lambda x: np.asarray(x).astype(np.float16).astype(np.float64))",
}
_BEFORE_USE = "        # both means start at zero"
_KEPT = 'slots[f"first/{name}"], slots[f"second/{name}"] = first, second'
_CLIPPED = "{name: factor * g for name, g in kept.items()}"
_OWN = "max_norm / np.maximum(norm({{n: h for n, h in kept.items() if {0}}}) + eps, max_norm)"
_LENGTH = "np.maximum(norm(kept) + eps, max_norm)"
_MOVED = "moved[name] = p * _narrow(1 - lr * decay, p) - step * (first / length)"
_PLAIN = "_wide(rule.lr, p) * rule.rates(name)"
_STEP = "_narrow(lr / (1 - _power(beta1, steps)), p)"
_END = "    return moved, State(steps, slots)\n\n\ndef "


@dataclass(frozen=True)
class Variation:
    """what : is proven where all that fits says it; how : in which form; id : of the catalogue, where it has an entry;
    grads : of all steps, None: as they should be."""

    what: str
    repair: str
    edits: tuple[Edit, ...] = ()
    how: str = ""
    grads: tuple[Params, ...] | None = None
    id: str = DERIVED


def by_another_rule(taken: Sequence[Taken], plan: Plan, judged: Judged) -> Finding | None:
    """What all steps are right with."""
    fits: list[tuple[Variation, Moves]] = []
    for one in _variations(taken, plan, judged):
        steps = taken if one.grads is None else [replace(t, grads=g) for t, g in zip(taken, one.grads, strict=False)]
        spec = reference(one.edits)
        moves = predict(steps, plan, [step.grads for step in steps], spec=spec)
        if all(_near(seen, moves) for seen in judged.seen) and judge(steps, plan, spec).right:
            fits.append((one, moves))
    if not fits:
        return None
    first, moves = fits[0]
    alike = [one for one, other in fits[1:] if one.what != first.what and _same(moves, other)]
    rivals = [one for one, other in fits[1:] if one.what != first.what and not _same(moves, other)]
    if rivals:
        listed = " and with ".join(dict.fromkeys(one.what for one in [first, *rivals][:_LISTED]))
        return Finding("unknown", "", "", f"measured: every step is right with {listed}: none is named", first.repair)
    forms = [one.how for one, _ in fits if one.what == first.what and one.how]
    said = f"every step is right with {first.what}"
    said += f", {' or '.join(dict.fromkeys(forms[:_LISTED]))}" if forms else ""
    said += f"; the same here: {', '.join(dict.fromkeys(one.what for one in alike[:_LISTED]))}" if alike else ""
    return Finding(first.id, "", "", said, first.repair)


def _variations(taken: Sequence[Taken], plan: Plan, judged: Judged) -> Iterator[Variation]:
    yield from _clips(taken, plan)
    if isinstance(plan.rule, AdamW):
        yield from _schedules()
        yield from _fewer_bits()
    else:
        new = "p = p * (1 - rule.decay)"
        edit = Edit(_FILE, "step = step + _narrow(_wide(rule.decay, p), p) * p", new)
        yield Variation("a decay without the schedule", "multiply the decay by the schedule, too", (edit,))
    yield from arriving(taken, plan)
    yield from _after(taken, plan, judged)


def _clips(taken: Sequence[Taken], plan: Plan) -> Iterator[Variation]:
    """Other clips than of one length over all; each at a limit that does something, or at the declared one."""
    repair = CATALOGUE[NO_CLIP].repair

    def made(what: str, old: str, new: str, id: str = DERIVED) -> Variation:
        return Variation(what, repair, (Edit(_FILE, old, new),), id=id)

    largest = max(float(np.max(np.abs(g), initial=0.0)) for one in taken for g in one.grads.values())
    longest = max(float(norm(one.grads)) for one in taken)
    for limit in (one for one in _LIMITS if one != plan.rule.max_norm):
        cut = f"{{name: np.clip(g, -{limit}, {limit}) for name, g in kept.items()}}"
        if limit < largest:
            yield made(
                f"each number of the gradients cut to -{limit:g} .. {limit:g}, not their length", *_ends(plan, cut)
            )
        if limit < longest and plan.rule.max_norm is None:
            own = f"(lambda c: {{name: c * g for name, g in kept.items()}})({limit} / max(norm(kept), {limit}))"
            yield made(f"gradients clipped to the length {limit:g}", *_ends(plan, own))
    if plan.rule.max_norm is None:
        return
    yield made("gradients that are not clipped", _CLIPPED, "kept", NO_CLIP)
    bounded = _CLIPPED.replace("factor * g", "np.clip(g, -max_norm, max_norm)")
    yield made("each number of the gradients cut to -max_norm .. max_norm, not their length", _CLIPPED, bounded)
    for whose, alike, id in (
        ("each tensor", "n == name", "grad-clip-per-tensor"),
        ("each tower", "n.partition('/')[0] == name.partition('/')[0]", DERIVED),
        ("each tower and log_scale with bias", "('/' in n and n[0]) == ('/' in name and name[0])", DERIVED),
        ("kernels and all others", "kernels(n) == kernels(name)", DERIVED),
    ):
        what = f"{whose} clipped by a length of their own" if " and " in whose else f"{whose} clipped by its own length"
        yield made(what, _CLIPPED, _CLIPPED.replace("factor", _OWN.format(alike)), id)
    most, total = "max(np.abs(g).max() for g in kept.values())", "sum(np.abs(g).sum() for g in kept.values())"
    yield made("a clip by the largest number in place of the length", _LENGTH, _LENGTH.replace("norm(kept)", most))
    yield made("a clip by the sum of all sizes in place of the length", _LENGTH, _LENGTH.replace("norm(kept)", total))
    yield made("gradients that always get the length max_norm, short ones, too", _LENGTH, "(norm(kept) + eps)")
    if isinstance(plan.rule, AdamW):
        update = "clip({n: v - params[n] for n, v in moved.items()}, rule.max_norm, rule.clip_eps)"
        behind = f"    moved = {{n: params[n] + v for n, v in {update}.items()}}\n{_END}big_vision_step("
        edits = Edit(_FILE, "clip(grads, rule.max_norm, rule.clip_eps", "clip(grads, None, rule.clip_eps")
        what = "the clip behind the optimiser, of what it adds"
        yield Variation(what, repair, (edits, Edit(_FILE, f"{_END}big_vision_step(", behind)))


def _ends(plan: Plan, new: str) -> tuple[str, str]:
    """What `clip` returns, where there is a limit or none, and this in its place."""
    return (_CLIPPED, new) if plan.rule.max_norm is not None else ("        return kept\n", f"        return {new}\n")


def _schedules() -> Iterator[Variation]:
    """The schedule in one place of two."""
    both = "multiply lr by the schedule once, and the decay by that lr"
    for what, old, new in (
        ("a decay by lr without the schedule", "1 - lr * decay", f"1 - {_PLAIN} * decay"),
        ("a decay by lr and twice the schedule", "1 - lr * decay", "1 - lr * schedule * decay"),
        ("the schedule in the decay alone, and not in the step", _STEP, _STEP.replace("lr", _PLAIN)),
        ("the schedule twice in the step, and once in the decay", _STEP, _STEP.replace("lr", "lr * schedule")),
    ):
        yield Variation(what, both, (Edit(_FILE, old, new),))


def _fewer_bits() -> Iterator[Variation]:
    """State, gradients or weights that are kept in a narrower format than the parameters'."""
    for form, few in _FEWER.items():
        for which, moments in (
            ("the second moment", ("second",)),
            ("the first moment", ("first",)),
            ("both moments", ("first", "second")),
        ):
            lines = "".join(f"        {m} = {few}({m})\n" for m in moments)
            kept = ", ".join(f"{few}({m})" if m in moments else m for m in ("first", "second"))
            what, repair = f"{which} kept in {form}", f"keep {which} in float32"
            used = (Edit(_FILE, _BEFORE_USE, lines + _BEFORE_USE),)
            yield Variation(what, repair, used, "which the step itself uses")
            stored = (Edit(_FILE, _KEPT, _KEPT.replace("first, second", kept)),)
            yield Variation(what, repair, stored, "rounded behind the step")
        what, repair = f"gradients rounded to {form}", "hand gradients to the optimiser in float32"
        rounded = f"clip({{n: {few}(g) for n, g in grads.items()}}, rule.max_norm, rule.clip_eps"
        yield Variation(
            what, repair, (Edit(_FILE, "clip(grads, rule.max_norm, rule.clip_eps", rounded),), "before the clip"
        )
        behind = Edit(_FILE, "p, g = params[name], grads[name]", f"p, g = params[name], {few}(grads[name])")
        yield Variation(what, repair, (behind,), "behind the clip")
        what, repair = f"parameters rounded to {form} after each step", "keep float32 parameters beside"
        yield Variation(what, repair, (Edit(_FILE, _MOVED, _MOVED.replace("= ", f"= {few}(", 1) + ")"),))


def arriving(taken: Sequence[Taken], plan: Plan) -> Iterator[Variation]:
    """Gradients of some micro-batches, or of some tensors times a number."""
    counts = (plan.parts,) if plan.parts > 1 else SPLITS
    micro = plan.micro
    for n in counts if micro else ():
        assert micro is not None
        found = [micro(k, n) for k in range(len(taken))]
        repair = f"zero gradients once a step; add up those of all {n} micro-batches, each divided by {n}"
        one = ["the first", *(f"number {i + 1}" for i in range(1, n - 1)), "the last"]
        weights = {f"{which} of {n} micro-batches alone": np.eye(n)[i] for i, which in enumerate(one)}
        if n > 2:
            weights |= {f"{n} micro-batches without {which}": 1 - np.eye(n)[i] for i, which in enumerate(one)}
        weights |= {f"all {n} micro-batches, which do not see each other's negatives": np.ones(n)}
        for what, each in weights.items():
            for divisor in sorted({1, n - 1, n, n + 1, n * n} - {0}):
                grads = tuple(_sum(of_step, each / divisor) for of_step in found)
                yield Variation(f"gradients of {what}", repair, how=f"divided by {divisor}", grads=grads)
        if plan.rule.max_norm is not None:
            of = [[clip(one, plan.rule.max_norm, 0.0, plan.rule.frozen) for one in of_step] for of_step in found]
            grads = tuple(_sum(of_step, np.full(n, 1 / n)) for of_step in of)
            yield Variation(f"each of {n} micro-batches clipped by itself", "clip once, the mean", grads=grads)
            for divisor, how in ((n, "each divided"), (1, "none divided")):
                grads = tuple(_clipped_as_they_come(of_step, plan, divisor) for of_step in found)
                what = f"the gradients that are added up clipped after each of {n} micro-batches"
                yield Variation(what, "clip once, behind the last micro-batch", how=f"{how} by {n}", grads=grads)
    for whose, chosen in (
        ("both towers", lambda name: "/" in name),
        ("the image tower", lambda name: name.startswith("image/")),
        ("the text tower", lambda name: name.startswith("text/")),
        ("log_scale and bias", lambda name: "/" not in name),
    ):
        for n in sorted({*SPLITS, *counts}):
            for factor, divides in ((1 / n, "divided"), (n, "multiplied")):
                grads = tuple({m: factor * g if chosen(m) else g for m, g in one.grads.items()} for one in taken)
                what = f"gradients of {whose} {divides} by {n} before the clip, the others' not"
                yield Variation(what, f"take the {n} out: all gradients are of one loss", grads=grads)


def _after(taken: Sequence[Taken], plan: Plan, judged: Judged) -> Iterator[Variation]:
    """Parameters that are changed behind the step: cut to a limit, or brought to a length, which is read off."""
    names = tuple(dict.fromkeys(one.name for one in judged.seen if is_wrong(one)))
    after = [one.before[name] + one.moved[name] for one in taken for name in names]
    still = any(not any(np.any(one.moved[name]) for one in taken) for name in names)  # is not given to the optimiser
    if still or not all(np.isfinite(value).all() for value in after):
        return
    place = _END + ("big_vision_step(" if isinstance(plan.rule, AdamW) else "clip(")
    whose = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    repair = "a step ends with the optimiser; if this is meant, it is no part of the declared rule"

    def made(what: str, new: str) -> Variation:
        text = f"    moved = {{n: {new} if n in {names!r} else v for n, v in moved.items()}}\n{place}"
        return Variation(f"{whose} {what} after each step", repair, (Edit(_FILE, place, text),))

    numbers = np.concatenate([np.ravel(value) for value in after])
    low, high = float(numbers.min()), float(numbers.max())
    for limits in ((None, high), (low, None), (low, high)):
        bounds = [value for value in limits if value is not None]
        if all(np.sum(numbers == value) > 1 or _round_of(value) for value in bounds):
            said = " and ".join(
                f"at {'most' if value == high else 'least'} {_round_of(value) or f'{value:.6g}'}" for value in bounds
            )
            yield made(f"cut to {said}", f"np.clip(v, {limits[0]!r}, {limits[1]!r})")
    for axis in (None, 0, -1):
        if all(value.ndim > (axis is not None) for value in after):
            length = f"np.sqrt((v * v).sum({axis}, keepdims=True))"
            along = "" if axis is None else " of each column" if axis == 0 else " of each row"
            yield made(f"brought to length 1{along}", f"v / {length}")
            old = length.replace("v * v", "params[n] * params[n]")
            yield made(f"brought back to the length before{along}", f"v * ({old} / {length})")


def mean(parts: Sequence[Params]) -> Params:
    """Of the gradients of micro-batches."""
    return _sum(parts, np.full(len(parts), 1 / len(parts)))


def _clipped_as_they_come(parts: Sequence[Params], plan: Plan, divisor: int) -> Params:
    """What adds up where it is clipped after every micro-batch."""
    rule, total = plan.rule, {name: 0 * g for name, g in parts[0].items()}
    eps = rule.clip_eps if isinstance(rule, AdamW) else 0.0
    for part in parts:
        total = total | clip(
            {name: g + part[name] / divisor for name, g in total.items()}, rule.max_norm, eps, rule.frozen
        )
    return total


def _sum(parts: Sequence[Params], weights: Array) -> Params:
    return {name: np.asarray(sum(w * one[name] for w, one in zip(weights, parts, strict=True))) for name in parts[0]}


def _near(seen: Seen, moves: Moves) -> bool:
    """All but a few numbers; the rest is for `judge`, which knows what rounding to fewer bits decides."""
    with np.errstate(all="ignore"):
        found = np.abs(seen.got - moves[seen.probe, seen.name])
        off = found.size - np.sum((found <= 2 * seen.allowed) | (found == 0))
    return bool(off <= max((1 - _MOST) * found.size, _FEW * (found.size > 2 * _FEW)))


def _same(one: Moves, other: Moves) -> bool:
    return all(same(one[key], other[key]) for key in one)


def _round_of(value: float) -> str:
    """A number of two digits, or the logarithm of one, in words."""
    for said, number in (("{:g}", value), ("log {:g}", float(np.exp(min(value, 100.0))))):
        rounded = float(f"{number:.2g}")
        if abs(rounded - number) <= _ROUND * max(abs(number), 1.0) * max(1.0, abs(value)):
            return said.format(rounded)
    return ""
