"""Single edits of the towers: each made in one stage of `tiny`, forward and backward."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import OneTower, Side, one_tower
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Tower, config
from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.check.engine.single_edits.measure import HeldBack, Tensors, distance
from siglip_ref.check.engine.single_edits.shipped import PAIRS, key_of_model
from siglip_ref.check.model.adapters import Dtype, Run
from siglip_ref.check.model.judge import Judge, judged_rows, make_judge
from siglip_ref.check.model.placed import Placed, stages_of, with_mistakes
from siglip_ref.check.model.probe import Probe, model_probe
from siglip_ref.check.model.reference import reference
from siglip_ref.mistakes import Edit, Mistake
from siglip_ref.mistakes.grammar.places import single_edits
from siglip_ref.noise.measure import TIMES

SMALL = replace(
    config("tiny"), image=Tower(6, 1, 7, 2), text=Tower(8, 1, 9, 2), image_size=(4, 6), patch=2, vocabulary=11,
    text_length=5,
)  # fmt: skip
TINY = replace(config("tiny"), image_size=(20, 20))  # as `siglip-ref check model hf:tiny` has it
SIDES: tuple[Side, ...] = ("image", "text")
INPUTS = 200
FLOOR = 16.0  # unit roundoffs of a tensor's largest number
FINER = 2.0**-27  # what float64 errs by, of what float32 does: four times the ratio of the units
THIN = 16  # every so manieth edit: of the towers there are many, and a run takes a hundred times that of a loss
_ATTENTION, _MLP = "image/block01/+attn", "text/block00/+mlp"
# where an edit of a file is made; the files of whole towers: everywhere in one
STAGES = {
    "ops/linear.py": (_ATTENTION, _MLP, "image/stem", "text/head", "image/pool"),
    "ops/layer_norm.py": (_ATTENTION, _MLP, "image/norm", "text/norm", "image/pool"),
    "ops/softmax.py": (_ATTENTION, "text/block00/+attn", "image/pool"),
    "ops/attention.py": (_ATTENTION, "text/block00/+attn", "image/pool"),
    "ops/gelu.py": ("image/block00/+mlp", _MLP, "image/pool"),
    "ops/mlp.py": ("image/block00/+mlp", _MLP, "image/pool"),
    "ops/map_head.py": ("image/pool",),
    "ops/pooling.py": ("text/pool",),
    "ops/embedding.py": ("image/stem", "text/stem"),
    "model/image.py": ("image",),
    "model/text.py": ("text",),
    "model/encoder.py": ("image", "text"),
}


@dataclass(frozen=True)
class OfModel:
    """The towers under these conventions."""

    conventions: Conventions
    dtypes: Sequence[Dtype] = ("float64", "float32")

    def key(self, dtype: str) -> str:
        """Of the figure."""
        return key_of_model(TINY, self.conventions, dtype)

    def edits(self) -> Sequence[Edit]:
        """Every so manieth of those of all files."""
        return [edit for file in STAGES for edit in single_edits(file)][::THIN]

    def held_back(self) -> Iterator[HeldBack]:
        """Random weights, images and captions, one to five pairs; each tower by itself."""
        for number in range(INPUTS):
            inputs = {side: _drawn(number, side) for side in SIDES}
            right, single = (
                {n: x for probe, cfg in inputs.values() for n, x in self._at((), probe, cfg, kind).items()}
                for kind in (np.float64, np.float32)
            )
            off = {name: distance(single[name], value) for name, value in right.items()}
            top = {name: float(np.max(np.abs(value), initial=0.0)) for name, value in right.items()}
            noise = {n: FINER * off[n] + FLOOR * FORMATS["float64"].unit * top[n] for n in right}
            coarse = {n: TIMES * (4 * off[n] + FORMATS["float32"].unit * top[n]) for n in right}
            yield HeldBack(inputs, right, noise, {"float64": noise, "float32": coarse})

    def run(self, edit: Edit, inputs: Any) -> Tensors:
        """In float64, the tower in which the edit is made."""
        probe, cfg = inputs[_where(edit).partition("/")[0]]
        return self._at(_placed(edit, cfg), probe, cfg, np.float64)

    def _at(self, made: Sequence[Placed], probe: Probe, cfg: Any, kind: Any) -> Tensors:
        params = {name: np.asarray(value, kind) for name, value in probe.params.items()}
        loss, values, grads = with_mistakes(
            made, replace(probe, params=params, images=probe.images.astype(kind)), cfg, self.conventions
        )
        named = f"{cfg.side} loss" if isinstance(cfg, OneTower) else "loss"
        return values | {named: loss} | {f"d {name}": grad for name, grad in grads.items()}

    def sees(self, edit: Edit, dtype: Any, few: int | None = None) -> bool:
        """By the rows of a run at the model's own scale; few : pairs of the batch."""
        probe, judge = _right(self.conventions, dtype, few or PAIRS)
        kind = np.float64 if dtype == "float64" else np.float32
        with np.errstate(all="ignore"):
            try:
                found = self._at(_placed(edit, TINY), probe, TINY, kind)
            except Exception:  # there is no report
                return True
        grads = {name[2:]: value for name, value in found.items() if name.startswith("d ")}
        values = {name: value for name, value in found.items() if name != "loss" and not name.startswith("d ")}
        rows = judged_rows(Run(found["loss"], values, grads), judge)
        return any(row.verdict == "FAIL" for row in rows)


def _where(edit: Edit) -> str:
    """A stage, chosen by the place of the edit, or a whole tower."""
    stages = STAGES[edit.file]
    return stages[(edit.at or 0) % len(stages)]


def _placed(edit: Edit, cfg: Any) -> list[Placed]:
    where = _where(edit).replace("block01", "block01" if cfg is TINY else "block00")
    found = frozenset([where] if "/" in where else stages_of(cfg, where))
    return [Placed(Mistake("", "one vector", "", "", "", "", (edit,)), found)]


@lru_cache(maxsize=8)
def _right(conventions: Conventions, dtype: Dtype, pairs: int) -> tuple[Probe, Judge]:
    probe = model_probe(TINY, pairs, dtype)
    exact = reference(probe, TINY, conventions, np.float64)
    return probe, make_judge(exact, probe, TINY, conventions, dtype, dtype)


def _drawn(number: int, side: Side) -> tuple[Probe, OneTower]:
    """The weights and inputs of this number."""
    rng, cfg = np.random.default_rng([number, 1895]), one_tower(SMALL, side)
    params = {
        name: np.asarray((name.endswith("gamma")) + rng.standard_normal(shape) * rng.uniform(0.1, 0.7))
        for name, shape in shapes(cfg).items()
    }
    pairs = int(rng.integers(1, 6))
    tokens = rng.integers(0, SMALL.vocabulary, (pairs, SMALL.text_length))
    tokens[::2, int(rng.integers(1, SMALL.text_length)) :] = 1
    return Probe(params, rng.uniform(-1, 1, (pairs, *SMALL.image_size, 3)), tokens), cfg
