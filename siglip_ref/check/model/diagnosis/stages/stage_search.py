"""One stage of a tower, as the program computes it: the edits that give its numbers from the program's own input."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.engine.edits import Edits, Fitted, search
from siglip_ref.check.model.diagnosis.stages.hypotheses import Whole
from siglip_ref.check.model.placed import Edited, holding, stages_of
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import prepared, stage_values
from siglip_ref.mistakes import Reference, reference
from siglip_ref.mistakes.grammar.switched import Single, edited, made, named, singles
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops import attention as of_attention
from siglip_ref.ops import gelu as of_gelu
from siglip_ref.ops.elementary import Array

_ROWS = 2  # images or texts on which edits are tried: the first, whose caption is full, and the last, the shortest

_OPS = SPECIFICATION
_ATTENTION = (_OPS.attention.forward, of_attention._split, of_attention._join, _OPS.softmax.forward)
_MLP = (_OPS.mlp.forward, _OPS.gelu.forward, of_gelu._tanh_argument, of_gelu._root_two_over_pi)
_EVERY = (_OPS.layer_norm.forward, _OPS.linear.forward)
_OF_STAGE = {
    "+attn": (_OPS.block.forward, *_ATTENTION, *_EVERY),
    "+mlp": (_OPS.block.forward, *_MLP, *_EVERY),
    "norm": (_OPS.layer_norm.forward,),
    "image/stem": (_OPS.patch_embed.forward, _OPS.position.forward, _OPS.linear.forward),
    "text/stem": (_OPS.token_embed.forward, _OPS.position.forward),
    "image/pool": (_OPS.encoder.forward, _OPS.map_head.forward, *_ATTENTION, *_MLP, *_EVERY),
    "text/pool": (_OPS.encoder.forward, _OPS.pool.forward),
    "head": (_OPS.linear.forward,),
    "embed": (_OPS.normalize.forward,),
}


@dataclass(frozen=True)
class Ground:
    """What a model was given, and what it showed: each stage's input and output."""

    probe: Probe
    shown: Mapping[str, Array]

    @cached_property
    def few(self) -> "Ground":
        """Two of its images or texts."""
        rows = _chosen(self.probe.images)
        grids = None if self.probe.grids is None else self.probe.grids[rows]
        probe = replace(self.probe, images=self.probe.images[rows], tokens=self.probe.tokens[rows], grids=grids)
        return Ground(probe, {name: value[_chosen(value)] for name, value in self.shown.items()})

    def without(self, names: Collection[str]) -> "Ground":
        """As if these were not shown."""
        return Ground(self.probe, {name: value for name, value in self.shown.items() if name not in names})


@dataclass(frozen=True)
class Stage:
    """A stage that is shown, and those before it that are not, through which it is computed."""

    name: str
    ground: Ground
    cfg: Config
    conventions: Conventions
    whole: bool = False  # whether a block is looked at as one stage

    @property
    def tower(self) -> str:
        return self.name.split("/")[0]

    @cached_property
    def covered(self) -> tuple[str, ...]:
        """Itself, behind the stages that lead to it unseen."""
        found = list[str]()
        for name in stages_of(self.cfg, self.tower):
            found.append(name)
            if name == self.name:
                break
            if name in self.ground.shown:
                found = []
        return tuple(found)

    @cached_property
    def functions(self) -> tuple[str, ...]:
        """The specification's functions that it is computed by."""
        if self.whole and "/block" in self.name:
            return (named(_OPS.block.forward),)
        functions = [one for name in self.covered for one in functions_of(name)]
        return tuple(map(named, dict.fromkeys(functions)))

    def value(self, changes: Sequence[Any], ground: Ground) -> Array:
        """What it is with changes, from what a program shows before it."""
        with _program(changes, self.functions) as spec:
            probe = ground.probe
            for change in changes:
                if isinstance(change, Whole) and change.value is not None:
                    return change.value(ground.shown, ground.probe)
                probe = change.probe(probe) if isinstance(change, Whole) and change.probe else probe
            given = spec, self.tower, ground.shown, probe, self.cfg, self.conventions, {self.name}
            return stage_values(*given, through=True)[self.name]

    def search(
        self, allowed: float, wholes: Sequence[Whole], offers: Sequence[Single] | None = None, pairs: bool = True,
        base: Edits = (),
    ) -> Fitted | None:  # fmt: skip
        """The changes that give what the program shows.

        Parameters
        ----------
        allowed : the relative error of a right program
        wholes : changes of a whole stage, tried where no single edit fits
        offers : edits that are tried; None: all of its functions
        base : changes that are made beside each
        """
        ground, few, name = self.ground, self.ground.few, self.name
        known, known_few = ground.shown[name], few.shown[name]
        spec = edited(self.functions)
        settings = self.cfg, self.conventions, {name}
        of_few = prepared(spec, self.tower, few.shown, few.probe, *settings, through=True)
        of_all = prepared(spec, self.tower, ground.shown, ground.probe, *settings, through=True)

        @contextmanager
        def program(changes: Edits) -> Iterator[Callable[[bool], Array]]:
            changes = (*base, *changes)
            if any(isinstance(one, Whole) for one in changes):
                value = self.value(changes, ground)
                yield lambda all_rows: value if all_rows else value[_chosen(value)]
                return
            with made(changes):
                yield lambda all_rows: (of_all if all_rows else of_few)()[name]

        fitted = search(
            singles(self.functions) if offers is None else offers,
            program,
            lambda value: [off(known_few, value(False), allowed)],
            lambda value: [off(known, value(True), allowed)],
            lambda value: value(True),
            lambda value: np.asarray(known_few - value(False)),
            pairs=pairs,
            others=wholes,
            alike=max(1e-9, allowed / 20),
        )
        if fitted is None or not base:
            return fitted
        alike, rivals = (tuple((*base, *edits) for edits in some) for some in (fitted.alike, fitted.rivals))
        return Fitted((*base, *fitted.edits), alike, rivals)

    def edited(self, changes: Sequence[Any], stages: Sequence[str]) -> tuple[Edited, Whole]:
        """The changes as they are made in a whole model, in the stages of these names and what leads to them unseen."""
        places = [name for one in stages for name in replace(self, name=one).covered]
        edits = [one for one in changes if not isinstance(one, Whole)]
        spec, whole = (holding(edited(self.functions), edits) if edits else reference()), _NOTHING
        for one in changes:
            if isinstance(one, Whole):
                spec, whole = (replace(spec, ops=one.ops(spec.ops)) if one.ops else spec), one
        made_here = bool(edits) or any(one.ops for one in changes if isinstance(one, Whole))
        return Edited(spec, frozenset(places) if made_here else frozenset()), whole


_NOTHING = Whole("", "")


@contextmanager
def _program(changes: Sequence[Any], functions: tuple[str, ...]) -> Iterator[Reference]:
    edits = [one for one in changes if not isinstance(one, Whole)]
    with made(edits), np.errstate(all="ignore"):
        spec = edited(functions) if edits or not changes else reference()
        for one in changes:
            spec = replace(spec, ops=one.ops(spec.ops)) if isinstance(one, Whole) and one.ops else spec
        yield spec


def functions_of(stage: str) -> tuple[Callable[..., object], ...]:
    """The specification's functions of a stage."""
    return _OF_STAGE.get(stage) or _OF_STAGE.get(stage.split("/")[-1], ())


def off(got: Array, expected: Array, allowed: float, usual: float = 0.0) -> float:
    """The largest deviation in what is allowed; usual : the least size of what is expected."""
    if np.shape(got) != np.shape(expected):
        return np.inf
    top = max(float(np.max(np.abs(expected), initial=0.0)), usual)
    by = float(np.max(np.abs(np.asarray(got, np.float64) - expected), initial=0.0))
    return 0.0 if by == 0 else by / (allowed * top) if top else np.inf


def _chosen(x: Array) -> list[int]:
    return [0, len(x) - 1][:_ROWS]
