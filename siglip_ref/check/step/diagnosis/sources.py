"""What the gradients of a step may be instead: of other pairs or labels, another loss, other weights or steps, times a
number.

Whatever a loss does with a batch, its gradient is known from the slope of each logit, so a pairing, a subset, a weight
or another loss is a few lines that give these slopes. Adam's first step has the sign of its gradient, whatever else the
optimiser does: of all slopes those are kept whose signs are the program's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.step.diagnosis.order import SPLITS
from siglip_ref.check.step.gradients import PAIRS, Slopes
from siglip_ref.check.step.judge import Plan
from siglip_ref.check.step.run import Taken
from siglip_ref.mistakes.change import bfloat16
from siglip_ref.model.optim import AdamW, clip
from siglip_ref.ops.elementary import Array

Names = frozenset[str] | None  # None: all
Steps = frozenset[int] | None
Make = Callable[[Names, Steps], tuple[Params, ...]]  # the gradients of all steps
_FACTORS = (2, 3, 4, 8)
_SHARES = (1 / 2, 1 / 4, 1 / 8, 8 / 7, 8 / 6, 8 / 5)  # as where a loss is divided by the pairs that are left
_SURELY, _NEARLY = 0.002, 0.01  # of the signs: more than as it should be, less than the best
_PAIRS = "let the gradients be of the declared loss: image i with text i, each pair of the batch once, all of its terms"


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
    before = (zero, *own[:-1])
    both = tuple(_sum((g, h), np.ones(2)) for g, h in zip(own, before, strict=True))
    yield Source("gradients of this step and of the step before, added up", zeroed, _mixed(own, both))
    means = tuple(_sum((g, h), np.full(2, 0.5)) for g, h in zip(own, before, strict=True))
    alone = "hand the optimiser the gradients of this step's batch, at each step"
    yield Source("the mean of the gradients of this step and of the step before", alone, _mixed(own, means))
    whole = "hand the optimiser the gradients of the whole loss, multiplied by nothing else"
    for n in _FACTORS:
        for factor, said in ((n, f"times {n}"), (1 / n, f"divided by {n}")):
            yield Source(f"gradients {said} before the clip", whole, _times(own, own, factor))
    yield Source("gradients with their sign turned", whole, _times(own, own, -1.0))
    yield Source("gradients of zero", "let backward() reach all tensors", _mixed(own, (zero,) * len(own)))
    yield from _of_micro_batches(taken, plan, own)
    yield from _of_other_slopes(taken, plan, own)


def _of_micro_batches(taken: Sequence[Taken], plan: Plan, own: tuple[Params, ...]) -> Iterator[Source]:
    """Micro-batches that are clipped one by one, or as they add up."""
    limit = plan.rule.max_norm
    for n in ((plan.parts,) if plan.parts > 1 else SPLITS) if plan.micro and limit is not None else ():
        assert plan.micro is not None
        found = [plan.micro(k, n) for k in range(len(taken))]
        of = [[clip(one, limit, 0.0, plan.rule.frozen) for one in of_step] for of_step in found]
        each = tuple(mean(of_step) for of_step in of)
        yield Source(f"each of {n} micro-batches clipped by itself", "clip once, the mean", _mixed(own, each), False)
        for divisor, how in ((n, "each divided"), (1, "none divided")):
            grads = tuple(_clipped_as_they_come(of_step, plan, divisor) for of_step in found)
            what = f"the gradients that are added up clipped after each of {n} micro-batches, {how} by {n}"
            yield Source(what, "clip once, behind the last micro-batch", _mixed(own, grads), False)


def _of_other_slopes(taken: Sequence[Taken], plan: Plan, own: tuple[Params, ...]) -> Iterator[Source]:
    """Those of which the signs are the program's; where there is a clip, divided by other numbers, too."""
    if plan.slopes is None:
        return
    at, right = plan.slopes, _declared(plan.parts)
    first = next((k for k, one in enumerate(taken) if any(np.any(move) for move in one.moved.values())), None)
    weights = [one.before for one in taken]
    stale = "compute the gradients at the weights that the step then moves"
    for words, others in (
        ("the weights of the step before", [weights[0], *weights[:-1]]),
        ("the first step's weights", weights[:1] * len(weights)),
    ):
        there = tuple(at(k, params, right) for k, params in enumerate(others))
        yield Source(f"gradients at {words}", stale, _mixed(own, there))
    if first is None:
        return
    signs = partial(_signs, taken[: first + 1])
    usual = signs(list(own))
    told, known = [], [own[first]]
    for what, repair, slopes, change in _kinds(plan.parts):
        grads = [at(k, change(weights[k]), slopes) for k in range(first + 1)]
        if not any(_alike(grads[-1], one) for one in known):
            known.append(grads[-1])
            told.append((what, repair, slopes, change, signs(grads)))
    best = np.max([usual, *(one for *_, one in told)], axis=0)
    for what, repair, slopes, change, found in told:
        if np.any((found > usual + _SURELY) & (found >= best - _NEARLY)):
            every = tuple(at(k, change(weights[k]), slopes) for k in range(len(taken)))
            yield Source(f"gradients {what}", repair, _mixed(own, every))
            for factor in (*_FACTORS, *_SHARES):  # a clip, or eps, shows them
                said = f"gradients {what} (a sum over pairs, divided by {PAIRS}), times {factor:.4g}"
                yield Source(said, repair, _times(own, every, factor), False)


def _signs(taken: Sequence[Taken], grads: Sequence[Params]) -> Array:
    """Which part of each tower's numbers moves against its gradient, or its running mean."""
    right = {"image": [0, 0], "text": [0, 0]}
    for name, move in taken[-1].moved.items():
        if "/" in name:
            mean = sum(0.9 ** (len(grads) - k) * g[name] for k, g in enumerate(grads))
            counts = right[name.split("/")[0]]
            moves = (move != 0) & (mean != 0)
            counts[0] += int(np.sum(move[moves] * mean[moves] < 0))
            counts[1] += int(moves.sum())
    return np.array([hits / max(count, 1) for hits, count in right.values()])


def _alike(one: Params, other: Params) -> bool:
    largest = max(float(np.max(np.abs(g), initial=0.0)) for g in one.values())
    return all(np.allclose(g, other[name], rtol=1e-6, atol=1e-12 * largest) for name, g in one.items())


def _kinds(parts: int) -> Iterator[tuple[str, str, Slopes, Callable[[Params], Params]]]:
    """Slopes of the logits, and weights at which they are taken; in words behind `gradients`, with a repair."""
    for what, slopes in _slopes(parts):
        yield what, _PAIRS, slopes, lambda params: params
    for form, few in (("bfloat16", bfloat16), ("float16", lambda x: np.asarray(x).astype(np.float16).astype(float))):
        rounded = "compute the gradients at the weights that the step moves, not at rounded copies of them"
        yield f"at weights rounded to {form}", rounded, _declared(parts), partial(_rounded, few)


def _slopes(parts: int) -> Iterator[tuple[str, Slopes]]:
    own, own_match = _grouped(_in_a_row(parts), _in_a_row(parts))
    of_own = "" if parts == 1 else f" within each of {parts} micro-batches"
    rank = np.arange(PAIRS) % (PAIRS // parts)
    for shift in range(1, PAIRS // parts):
        there = own & ((rank[None, :] - rank[:, None]) % (PAIRS // parts) == shift)
        yield f"of pairs whose texts are moved by {shift}{of_own}: image i with text i + {shift}", _sigmoid(own, there)
    there = own & (rank[None, :] + rank[:, None] == PAIRS // parts - 1)
    yield f"of pairs whose texts are reversed{of_own}", _sigmoid(own, there)
    yield f"of the positives alone{of_own}", _sigmoid(own_match, own_match)
    yield f"of the negatives alone{of_own}", _sigmoid(own & ~own_match, own_match)
    yield f"with the labels exchanged{of_own}", _sigmoid(own, ~own_match)
    weighted = np.where(own_match, PAIRS // parts - 1, own)
    yield f"of positives that weigh as much as all negatives{of_own}", _sigmoid(weighted, own_match)
    within = own.astype(float)
    for said, axes in (("both ways", (0, 1)), ("over the texts alone", (1,)), ("over the images alone", (0,))):
        yield f"of a softmax loss, {said}{of_own}", partial(_softmax, within, own_match, axes)
    if parts > 1:
        yield "of all pairs of the batch, over the micro-batches", _declared(1)
    for n in SPLITS:
        layouts = {"in a row": _in_a_row(n), "strided": (np.arange(PAIRS) % n, np.arange(PAIRS) // n)}
        for (images, of_images), (texts, of_texts) in product(layouts.items(), repeat=2):
            met, match = _grouped(of_images, of_texts)
            if (n, images, texts) != (parts, "in a row", "in a row"):
                dealt = f"images cut {images}, texts {texts}" if images != texts else f"cut {images}"
                yield f"of {n} micro-batches, {dealt}, which do not see each other's negatives", _sigmoid(met, match)
            if images < texts:
                what = f"of all pairs, where image i's text is that of images cut in {n} {images}, texts {texts}"
                yield what, _sigmoid(np.ones_like(met), match)
            if (images == texts and n < PAIRS) or n == parts:
                for said, each in _weights(n):
                    cut = f"{n} micro-batches" + (" that are strided" if images != "in a row" else "")
                    yield f"of {said.format(cut)}", _sigmoid(met * each[of_images[0]][:, None], match)
    for rest in (1, 2, 3):
        kept = np.arange(PAIRS) < PAIRS - rest
        yield f"of the first {PAIRS - rest} pairs alone", _sigmoid(own & kept[:, None] & kept, own_match)
        if parts == 1 and rest == 1:
            yield "without the first pair", _sigmoid(own & kept[::-1, None] & kept[::-1], own_match)


def _weights(n: int) -> Iterator[tuple[str, Array]]:
    """Micro-batches, of which some count otherwise."""
    which = ["the first", *(f"number {i + 1}" for i in range(1, n - 1)), "the last"]
    for i, said in enumerate(which):
        yield f"{said} of {{}} alone", np.eye(n)[i]
        yield f"{{}}, of which {said} counts twice", 1 + np.eye(n)[i]
        if n > 2:
            yield f"{{}} without {said}", 1 - np.eye(n)[i]
    halves = 0.5 ** np.minimum(np.arange(n, 0, -1), n - 1)
    yield "{}, each averaged with the mean of those before: weights " + ", ".join(f"{x:g}" for x in halves), n * halves
    yield "{}, the sum so far divided again after each", float(n) ** -np.arange(n - 1, -1, -1)


def _in_a_row(n: int) -> tuple[Array, Array]:
    """The group of each of the batch's rows, and its place there."""
    return np.arange(PAIRS) // (PAIRS // n), np.arange(PAIRS) % (PAIRS // n)


def _grouped(images: tuple[Array, Array], texts: tuple[Array, Array]) -> tuple[Array, Array]:
    """Which rows meet, and which are one pair."""
    met = images[0][:, None] == texts[0]
    return met, met & (images[1][:, None] == texts[1])


def _declared(parts: int) -> Slopes:
    return _sigmoid(*_grouped(_in_a_row(parts), _in_a_row(parts)))


def _sigmoid(weights: Array, match: Array) -> Slopes:
    signs = np.where(match, -1.0, 1.0)
    return lambda logits: weights * signs / (1 + np.exp(-signs * logits)) / PAIRS


def _softmax(met: Array, match: Array, axes: Sequence[int], logits: Array) -> Array:
    shares = []
    for axis in axes:
        shown = np.where(met > 0, np.exp(logits - logits.max()), 0.0)
        shares.append(shown / shown.sum(axis, keepdims=True) - match)
    return np.asarray(sum(shares) / len(shares) / PAIRS)


def _rounded(few: Callable[[Array], Array], params: Params) -> Params:
    return {name: few(value) for name, value in params.items()}


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


def _clipped_as_they_come(parts: Sequence[Params], plan: Plan, divisor: int) -> Params:
    """What adds up where it is clipped after every micro-batch."""
    rule, total = plan.rule, {name: 0 * g for name, g in parts[0].items()}
    eps = rule.clip_eps if isinstance(rule, AdamW) else 0.0
    for part in parts:
        added = {name: g + part[name] / divisor for name, g in total.items()}
        total = total | clip(added, rule.max_norm, eps, rule.frozen)
    return total


def mean(parts: Sequence[Params]) -> Params:
    """Of the gradients of micro-batches."""
    return _sum(parts, np.full(len(parts), 1 / len(parts)))


def _sum(parts: Sequence[Params], weights: Array) -> Params:
    return {name: np.asarray(sum(w * one[name] for w, one in zip(weights, parts, strict=True))) for name in parts[0]}


def _times(own: tuple[Params, ...], grads: Sequence[Params], factor: float) -> Make:
    return _mixed(own, tuple({name: factor * g for name, g in one.items()} for one in grads))
