"""Single edits of the optimisers: what each of three steps adds to every parameter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.check.coverage.measure import PATIENCE, HeldBack, Tensors, at_most
from siglip_ref.check.engine.seen import distance
from siglip_ref.check.engine.shipped import key_of_step
from siglip_ref.check.step.check import steps_of_update
from siglip_ref.check.step.judge import LABELS, Judged, Plan, Rule, judge
from siglip_ref.check.step.run import STEPS
from siglip_ref.check.step.subject import StepSubject
from siglip_ref.mistakes import Edit, reference
from siglip_ref.mistakes.grammar.places import single_edits
from siglip_ref.model.optim import AdamW, State

FLOOR = 16.0  # unit roundoffs of a parameter, and of what it is moved by, that no right step is off
SPARED = 60.0  # of the same, which the check allows, about: see `siglip_ref.check.step.judge`
SURELY = 4.0  # times what is allowed of the right steps: no other parameters on the way change that
INPUTS = 200
FUNCTIONS = {True: ("adamw_step",), False: ("big_vision_step", "_factored")}
SHARED = ("clip", "norm", "_wide", "_narrow", "_power")


@dataclass(frozen=True)
class OfStep:
    """Steps of a rule, without a schedule."""

    rule: Rule
    dtypes: Sequence[str] = ("float64", "float32")

    def key(self, dtype: str) -> str:
        """Of the figure."""
        return key_of_step(self.rule, dtype)

    def edits(self) -> Sequence[Edit]:
        """Of the rule's own step, and of what it is made of."""
        return single_edits("model/optim.py", FUNCTIONS[isinstance(self.rule, AdamW)] + SHARED)

    def held_back(self) -> Iterator[HeldBack]:
        """Parameters and gradients of any size, some of them zero or tiny, some gradients longer than the clip."""
        for number in range(INPUTS):
            inputs = params, _ = _drawn(number, self.rule)
            right = self._moves(reference().optim, inputs)
            sizes = {
                key: np.abs(params[key.partition(" ")[2]]).max() + np.abs(move).max() for key, move in right.items()
            }
            noise, spared = (
                {
                    dtype: {key: float(times * FORMATS[dtype].unit * size) for key, size in sizes.items()}
                    for dtype in self.dtypes
                }
                for times in (FLOOR, SPARED)
            )
            yield HeldBack(inputs, right, noise["float64"], spared)

    def run(self, edit: Edit, inputs: Any) -> Tensors:
        """In float64."""
        return self._moves(reference((edit,)).optim, inputs)

    def _step(self, optim: Any) -> Any:
        return optim.adamw_step if isinstance(self.rule, AdamW) else optim.big_vision_step

    def _moves(self, optim: Any, inputs: tuple[Params, list[Params]]) -> Tensors:
        """What each step adds, by its number and the parameter."""
        (params, grads), state, found = inputs, State(0, {}), Params()
        for k, given in enumerate(grads):
            moved, state = self._step(optim)(dict(params), dict(given), state, self.rule)  # an edit may write into them
            found |= {f"{k} {name}": moved[name] - value for name, value in params.items()}
            params = moved
        return found

    def sees(self, edit: Edit, dtype: str, few: int | None = None) -> bool:
        """By the rows of its steps; few : of the steps."""
        step = self._step(reference((edit,)).optim)
        plan, right = _right(self.rule, dtype)

        def step_fn(params: Any, grads: Any, state: Any) -> Any:
            return step(params, grads, state or State(0, {}), self.rule)

        with np.errstate(all="ignore"):
            try:
                with at_most(PATIENCE):
                    done = steps_of_update(step_fn, plan, None, dtype, "numpy", lambda line: None)
            except Exception:  # there is no report
                return True
            moved = {
                (label, name): x
                for label, one in zip(LABELS, done.taken, strict=False)
                for name, x in one.moved.items()
            }
            for one in right.seen:
                if few is not None and LABELS.index(one.probe) >= few:
                    continue
                if (one.probe, one.name) not in moved or distance(one, one.exact, moved[one.probe, one.name]) > SURELY:
                    return True
            if few is not None:
                return False
            subject = StepSubject(step_fn, plan, lambda: done, False, lambda line: None)
            return subject.judge(subject.compare()).verdict != "PASS"


@lru_cache(maxsize=8)
def _right(rule: Rule, dtype: str) -> tuple[Plan, Judged]:
    """What was to be done, and the right steps."""
    plan = Plan(rule, lambda k: 1.0, 1, FORMATS[dtype].unit, None)
    step = reference().optim.adamw_step if isinstance(rule, AdamW) else reference().optim.big_vision_step
    done = steps_of_update(
        lambda params, grads, state: step(params, grads, state or State(0, {}), rule), plan, None, dtype, "numpy",
        lambda line: None,
    )  # fmt: skip
    return plan, judge(done.taken, plan)


def _drawn(number: int, rule: Rule) -> tuple[Params, list[Params]]:
    """The parameters and the gradients of three steps of this number."""
    rng = np.random.default_rng([number, 1894])
    rows, columns = (int(n) for n in rng.integers(2, 9, 2))
    if number % 4 == 3:  # from a size on an optimiser factors what it keeps
        rows, columns = rows + 32, columns + 40
    shapes: dict[str, tuple[int, ...]] = {
        "a/kernel": (rows, columns),
        "b/bias": (columns,),
        "c/gamma": (rows,),
        "d": (),
    }
    params = {name: rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 1) for name, shape in shapes.items()}
    grads = []
    for _ in range(STEPS):
        drawn = {name: rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 0) for name, shape in shapes.items()}
        drawn["a/kernel"][rng.integers(rows)] = 0.0
        length = np.sqrt(sum((g * g).sum() for g in drawn.values()))
        wanted = (rule.max_norm or 1.0) * 10.0 ** rng.uniform(-1, 1) / length
        grads.append({name: np.asarray(g * wanted) for name, g in drawn.items()})
    return {name: np.asarray(value) for name, value in params.items()}, grads
