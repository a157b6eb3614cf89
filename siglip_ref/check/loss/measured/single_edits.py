"""Single edits of the sigmoid loss, under each convention in which a loss is checked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.arithmetic.variants import PLAIN
from siglip_ref.check.call.frameworks import Outcome, Setting
from siglip_ref.check.engine.expected.captions import with_captions
from siglip_ref.check.engine.expected.convention import SOFTMAX, Convention, Objective, as_given
from siglip_ref.check.engine.expected.expected import CONVENTIONS, Truth, judge, truth
from siglip_ref.check.engine.expected.probes import Probe, loss_probes, points_of
from siglip_ref.check.engine.expected.repeated import MIDDLE, repeated_probe
from siglip_ref.check.engine.expected.tolerance import SAFETY
from siglip_ref.check.engine.single_edits.measure import PATIENCE, HeldBack, Tensors, at_most, distance
from siglip_ref.mistakes import Edit, reference
from siglip_ref.mistakes.grammar.places import single_edits
from siglip_ref.noise.measure import LOSS_FORMS, in_the_form
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops

TILES = 3  # of a side: the program that is edited cuts its batch, so that every block of it counts
FLOOR = 4.0  # unit roundoffs of a tensor's largest number: what no form may differ by
INPUTS = 240
LARGE = {40: 70, 80: 131, 120: 300, 160: 520, 200: 1030}  # pairs of some; the last have most
LARGEST = 4100
MANY = 256  # pairs, beyond which two forms must do
KINDS: dict[str, Any] = {"float64": np.float64, "float32": np.float32}
Files = tuple[tuple[str, tuple[str, ...] | None], ...]
BLOCK: Files = (("ops/elementary.py", ("softplus", "sigmoid")), ("ops/pair_block.py", ("pair_block",)))
TILED: Files = (*BLOCK, ("ops/sigmoid_loss.py", None))
COUNTED: Files = (*BLOCK, ("ops/pair_block.py", ("_counted",)))  # of labels and weights
OF_SOFTMAX: Files = (("ops/softmax.py", ("softmax_forward",)), ("ops/softmax_loss.py", None))
VARIANTS = (
    SOFTMAX,
    Objective(reduction="mean"),
    Objective(bias=False),
    Objective(positives="ids"),
    Objective(positives="captions"),
    Objective(weights="pairs"),
    Objective(weights="rows"),
    Objective(weights="columns"),
    Objective(smoothing=0.1),
    Objective(per_image=2),
)


@dataclass(frozen=True)
class OfLoss:
    """A loss of one convention."""

    convention: Convention
    dtypes: Sequence[str] = ("float64", "float32")

    def key(self, dtype: str) -> str:
        """Of the figure."""
        return key_of(self.convention, dtype)

    def edits(self) -> Sequence[Edit]:
        """Of everything between what it is given and its gradients."""
        files = (
            *files_of(self.convention.objective),
            *([("ops/normalize.py", None)] if self.convention.normalises else []),
        )
        return [edit for file, functions in files for edit in single_edits(file, functions)]

    def held_back(self) -> Iterator[HeldBack]:
        """Rows with full mantissas, of one or thousands of pairs, ties, zero rows, rows of any length."""
        for number in range(INPUTS):
            probe = _drawn(number, self.convention)
            right = self._at(probe, PLAIN, np.float64)
            spread = {dtype: self._spread(probe, right, dtype) for dtype in self.dtypes}
            spared = {dtype: {n: SAFETY * off for n, off in of.items()} for dtype, of in spread.items()}
            yield HeldBack(probe, right, spread["float64"], spared)

    def _spread(self, probe: Probe, right: Tensors, dtype: str) -> dict[str, float]:
        """What equal forms of the loss differ by, whole and in tiles."""
        unit = FORMATS[dtype].unit
        many = probe.shape[0] > MANY
        floor = unit * max(FLOOR, probe.shape[0])  # sums over all pairs, one after another
        found = {name: floor * float(np.max(np.abs(value), initial=0.0)) for name, value in right.items()}
        for number, form in enumerate(LOSS_FORMS[-2:] if many else LOSS_FORMS):
            ops = replace(in_the_form(form, PLAIN), tiles=1 + 2 * (number % 2))
            for name, value in self._at(probe, ops, KINDS[dtype]).items():
                found[name] = max(found[name], distance(value, right[name]))
        return found

    def run(self, edit: Edit, inputs: Probe) -> Tensors:
        """In float64."""
        return self._at(inputs, reference((edit,)).ops, np.float64)

    def _at(self, probe: Probe, ops: Ops, kind: Any) -> dict[str, Array]:
        tiles = getattr(ops, "tiles", TILES)
        loss = partial(self.convention.objective.computed, captions=probe.text_embed, ops=ops, tiles=tiles)
        given = as_given(loss, self.convention.normalises, self.convention.linear, ops.normalize)
        scale = probe.scale if self.convention.linear else probe.log_scale
        rows = probe.image_embed.astype(kind), probe.text_embed.astype(kind)
        found = given(*rows, np.asarray(scale, kind), np.asarray(probe.bias, kind))
        names = ("loss", "image_embed", "text_embed", self.convention.scale_name, "bias")
        tensors = dict(zip(names, found, strict=True))
        objective = self.convention.objective
        if objective.kind == "softmax" or not objective.bias:
            del tensors["bias"]  # no gradient of it is asked
        return tensors

    def sees(self, edit: Edit, dtype: str, few: int | None = None) -> bool:
        """By the rows of its calls, at every probe at which it runs."""
        ops, refused = reference((edit,)).ops, 0
        probes = _probes(self.convention, dtype)[:few]
        for probe, right in probes:
            try:
                with np.errstate(all="ignore"), at_most(PATIENCE):
                    found = self._at(probe, ops, KINDS[dtype])
            except Exception:  # a call that is refused shows nothing
                refused += 1
                continue
            gradients: dict[str, Array | None] = {name: value for name, value in found.items() if name != "loss"}
            if any(row.verdict == "FAIL" for row in judge(Outcome(found["loss"], gradients), right, "")):
                return True
        return refused == len(probes)  # then there is no report


def files_of(objective: Objective) -> Files:
    """Where it is written, and in which functions."""
    if objective.kind == "softmax":
        return OF_SOFTMAX
    if objective.labelled:
        return COUNTED
    return TILED if objective.plain else BLOCK  # tiles are cut alike, whatever the sum is divided by


@lru_cache(maxsize=16)
def _probes(convention: Convention, dtype: str) -> list[tuple[Probe, Truth]]:
    """Those of a check, with what is right at them."""
    setting = plain_setting(dtype)
    points = convention.objective.points(points_of(convention.embeddings, dtype))
    probes, _ = loss_probes(points, None, dtype, setting.scalar_dtype)
    large = repeated_probe(MIDDLE, None, dtype, setting.scalar_dtype)
    called = (with_captions(probe, convention.objective.per_image) for probe in (*probes, *([large] if large else [])))
    return [(probe, truth(probe, convention, setting)) for probe in called]


def key_of(convention: Convention, dtype: str) -> str:
    """What names a figure.

    >>> key_of(CONVENTIONS[0], "float32")
    'loss, sigmoid, log, unit, float32'
    """
    return f"loss, {convention.objective.measured}, {convention.scale}, {convention.normalises or 'unit'}, {dtype}"


def plain_setting(dtype: str) -> Setting:
    """In which a loss is measured: the plain one."""
    return Setting(dtype, "float64" if dtype == "float64" else "float32", "cpu", False)


def _drawn(number: int, convention: Convention) -> Probe:
    """The inputs of this number."""
    rng = np.random.default_rng([number, 1893])
    raw = convention.normalises is not None
    pairs, width = LARGE.get(number, int(rng.integers(1, 24))), int(rng.integers(2, 40))
    if convention != CONVENTIONS[0]:  # the softmax of a single logit is 1, whatever it is
        pairs = min(max(pairs, 1 + (convention.objective.kind == "softmax")), 131)
    elif number == INPUTS - 1:
        pairs, width = LARGEST, 24
    images = rng.standard_normal((pairs, width))
    texts = (number % 5 - 2) / 2 * images + rng.choice([0.05, 0.5, 1.0]) * rng.standard_normal((pairs, width))
    if number % 6 == 1:  # the same rows come again
        images[pairs // 2 :], texts[: pairs // 2] = images[: pairs - pairs // 2], texts[pairs - pairs // 2 :]
    if number % 10 == 3:  # along axes: many logits are the bias alone
        images, texts = np.eye(pairs, width) + np.eye(pairs, width, -1), np.eye(pairs, width, 1) + 1e-300
        images[:, 0] += ~images.any(1)
    images, texts = (rows / np.sqrt((rows * rows).sum(-1, keepdims=True)) for rows in (images, texts))
    if raw:
        images, texts = (rows * np.exp2(rng.uniform(-6, 6, (pairs, 1))) for rows in (images, texts))
    elif number % 8 == 5:
        images[pairs // 3], texts[-1] = 0, 0
    log_scale, bias = rng.uniform(0, 5), 0.0 if number % 10 == 3 else rng.uniform(-20, 5)
    drawn = Probe(f"held back {number}", images, texts, log_scale, float(np.exp(log_scale)), bias)
    return with_captions(drawn, convention.objective.per_image)
