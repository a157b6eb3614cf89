"""Spots of the optimiser's text, and what is written there instead, of optimisers and restarts: forms.toml."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from inspect import getsource
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.mistakes import Edit, Reference, reference
from siglip_ref.mistakes.change import bfloat16
from siglip_ref.model import optim
from siglip_ref.ops.elementary import Array

_FILE = "model/optim.py"
_CALLS = "/calls"


@dataclass(frozen=True)
class Form:
    """What may be written at some spots. number : it is asked for by; whole : of all tensors together; groups : with
    tensors that are treated apart; texts : by spot. Of one that has a number of each step and tensor: key : what it is
    called; usual : its numbers by the rule; common : whether a factor common to all steps changes (next to) nothing."""

    what: str
    repair: str
    texts: tuple[tuple[str, str], ...]
    number: int = -1
    whole: bool = False
    groups: bool = False
    key: str = ""
    usual: tuple[float, ...] = (1.0, 1.0, 1.0)
    common: bool = False

    @property
    def spots(self) -> frozenset[str]:
        return frozenset(spot for spot, _ in self.texts)

    @property
    def free(self) -> bool:
        """Whether a number in it is not known."""
        return any("_number(" in text for _, text in self.texts)

    @property
    def others(self) -> bool:
        """Whether it takes what belongs to another tensor."""
        return any("_other(" in text or "_whose(" in text for _, text in self.texts)


Where = tuple[frozenset[str] | None, frozenset[int] | None]  # tensors and steps; None: all


@dataclass
class Asked:
    """What the program's text asks. on : which forms are taken, where; step : that is taken now; since : the first step
    at which a form is; mean, total : of each tensor, where several stand in one array; numbers : of forms that
    have one; own : of those that have one of each tensor and step; stuck, limits : of each tensor, which of its numbers
    never move, and what they may be at least and at most; units : along which axis a tensor always has length 1."""

    on: dict[int, Where] = field(default_factory=dict)
    still: set[str] = field(default_factory=set)
    other: Mapping[str, str] = field(default_factory=dict)
    schedule: Callable[[int], float] = lambda k: 1.0
    mean: Callable[[str, Array], Array] = lambda name, x: np.asarray(x.mean())
    total: Callable[[str, Array], Array] = lambda name, x: np.asarray(x.sum())
    step: int = 0
    since: int = 0
    raw: Params = field(default_factory=dict)
    twice: bool = False
    numbers: dict[int, float] = field(default_factory=dict)
    own: dict[int, Mapping[tuple[str, int], Any]] = field(default_factory=dict)
    stuck: Mapping[str, Array] = field(default_factory=dict)
    limits: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    units: Mapping[str, int | None] = field(default_factory=dict)

    def ask(self, number: int, name: str | None = None) -> bool:
        """Whether a form is taken, at this step, in this tensor."""
        names, steps = self.on[number]
        return (steps is None or self.step in steps) and (name is None or names is None or name in names)

    def named(self, number: int, name: str) -> bool:
        """Whether a form treats this tensor apart."""
        names, _ = self.on[number]
        return names is not None and name in names

    def given(self, grads: Params, state: optim.State) -> Params:
        """Notes which step begins, and its gradients."""
        self.raw = dict(grads)
        if not self.twice:
            self.step = int(state.slots.get(_CALLS, 0))
        return self.raw

    def counting(self, state: optim.State) -> dict[str, Any]:
        """The slots, and how many steps were asked for."""
        return dict(state.slots) | {_CALLS: self.step + 1}

    def idle(self, state: optim.State) -> optim.State:
        """As it was, after a step that is not made."""
        return optim.State(state.steps, self.counting(state))

    def again(self, step: Callable[..., Any], params: Params, state: Any, rule: Any, schedule: Array) -> Any:
        """One step more with the same gradients."""
        if self.twice:
            return params, state
        self.twice = True
        try:
            return step(params, self.raw, state, rule, schedule)
        finally:
            self.twice = False

    def names(self) -> dict[str, Any]:
        """As they stand in the text."""
        return {
            "_on": self.on, "_counting": self.counting, "_idle": self.idle,
            "_number": lambda i: self.numbers.get(i, 1.0), "_own": lambda i, name: self.own[i][name, self.step],
            "_stuck": lambda name, p, now: np.where(self.stuck.get(name, 0.0), p, now),
            "_limited": lambda name, now: np.clip(now, *self.limits.get(name, (-np.inf, np.inf))),
            "_unit": lambda name, x: x / np.sqrt((x * x).sum(self.units.get(name), keepdims=True)),
            "_behind": _behind, "_ask": self.ask, "_named": self.named, "_given": self.given, "_twice": self.again,
            "_still": self.still, "_half": lambda x: np.asarray(x).astype(np.float16).astype(np.float64),
            "_mean": lambda name, x: self.mean(name, x), "_total": lambda name, x: self.total(name, x),
            "_schedule": lambda k: self.schedule(max(k, 0)), "_since": lambda steps: max(steps - self.since, 1),
            "_other": lambda key, name, slots, p: slots.get(f"{key}/{self.other.get(name, name)}", 0 * p),
            "_whose": lambda name: self.other.get(name, name),
            "_kept": _kept, "_chained": _chained, "_rounded": _rounded, "_raw": _Raw(self),
        }  # fmt: skip


def _behind(moved: Params, updates: Params, params: Params, rule: Any, schedule: float) -> Params:
    """Updates clipped by their length: of all that is added (schedule 0), or before lr and the schedule."""
    length = optim.norm(updates) / (rule.lr * schedule or 1.0) + rule.clip_eps
    less = 1 - rule.max_norm / np.maximum(length, rule.max_norm) if rule.max_norm is not None else 0.0
    return {name: value + less * updates.get(name, 0.0) for name, value in moved.items()}


class _Raw:
    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def __getitem__(self, name: str) -> Array:
        return self._asked.raw[name]


def _kept(slots: dict[str, Array], key: str, name: str, value: Array) -> Array:
    slots[f"{key}/{name}"] = value
    return value


def _chained(slots: dict[str, Array], key: str, name: str, x: Array, beta: float) -> Array:
    return _kept(slots, key, name, beta * slots.get(f"{key}/{name}", 0 * x) + (1 - beta) * x)


def _rounded(slots: Mapping[str, Array], name: str) -> dict[str, Array]:
    return {
        key: bfloat16(value) if key.partition("/")[2] == name and not key.startswith("first/") else value
        for key, value in slots.items()
    }


@lru_cache(maxsize=2)
def program(rule: str) -> tuple[Reference, tuple[Form, ...], Asked]:
    """The optimiser's text with all forms in it, each behind a question; the forms, and what is asked.

    rule : "adamw" or "big_vision"
    """
    data: dict[str, Any] = tomllib.loads(Path(__file__).with_name("forms.toml").read_text(encoding="utf-8"))
    both = (data["every"], data[rule])
    spots = {name: (context, old) for part in both for name, context, old in part["spot"]}
    numbers = tomllib.loads(Path(__file__).with_name("numbers.toml").read_text(encoding="utf-8"))
    forms = [form for part in both for about in part["form"] for form in _forms(**about)]
    forms += [_of_numbers(**about) for about in numbers[rule]]
    forms = [replace(f, number=i, texts=_numbered(f, i)) for i, f in enumerate(forms)]
    edits = [Edit(_FILE, old, new) for part in both for old, new in part["base"]]
    plain = getsource(optim)
    for edit in edits:
        plain = plain.replace(edit.old, edit.new, 1)
    made_at = []
    for spot, (context, old) in spots.items():
        if plain.count(context) != 1:
            raise ValueError(f"{_FILE} holds {context!r} {plain.count(context)} times, not once")
        new = old
        for form in forms:
            for text in (text for its, text in form.texts if its == spot):
                number = form.number
                asks = f"_ask({number})" if form.whole or form.groups or spot == "counted" else f"_ask({number}, name)"
                text = text.replace("OLD", old).replace("NAMED(", f"_named({number}, ")
                new = f"(({text}) if {number} in _on and {asks} else ({new}))"
        made_at.append(Edit(_FILE, old, new, plain.index(context) + context.index(old)))
    edits += sorted(
        made_at, key=lambda edit: -(edit.at or 0)
    )  # from the end, so that places before stay where they are
    made, asked = reference(edits), Asked()
    made.optim.adamw_step.__globals__.update(asked.names())
    return made, tuple(forms), asked


def _numbered(form: Form, i: int) -> tuple[tuple[str, str], ...]:
    asked = f"_own({i}, name)" if form.key else f"_number({i})"
    return tuple((spot, text.replace("NUMBER", asked)) for spot, text in form.texts)


def _of_numbers(spots: list[str], texts: list[str], usual: Sequence[float] = (1.0, 1.0, 1.0), **about: Any) -> Form:
    return Form(texts=tuple(zip(spots, texts, strict=True)), usual=tuple(usual), **about)


def _forms(
    spots: list[str], repair: str, forms: list[list[str]], whole: bool = False, groups: bool = False
) -> list[Form]:
    found = []
    for what, *texts in forms:
        own = texts[len(spots)] if len(texts) > len(spots) else repair
        pairs = tuple((spot, text) for spot, text in zip(spots, texts, strict=False) if text)
        found.append(Form(what, own, pairs, whole=whole, groups=groups))
    return found
