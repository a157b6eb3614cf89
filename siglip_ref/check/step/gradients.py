"""The gradients of a step: of the reference at a model's own weights, or drawn; of lengths at which clipping shows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.params import Params, shapes
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.probe import SHORT, Probe, odd_integers, probe_images, probe_params, probe_tokens
from siglip_ref.check.model.reference import UNIT_ROUNDOFF, reference
from siglip_ref.check.model.tower import values_and_grads
from siglip_ref.model.optim import Chosen, norm
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads

Batch = tuple[Array, Array]  # images (B, height, width, 3), tokens (B, N)
Slopes = Callable[[Array], Array]  # of a loss by its logits (images, texts), given these

PAIRS = 8  # of a batch
# Lengths of the three gradients in units of max_norm: far above it; above it, but not if squares are averaged or halved
# instead of summed; below it. A clip that always shortens by one and the same factor would be hidden by Adam.
LENGTHS = (3.0, 1.2, 0.5)
LARGE = 1e6  # parameters, from which on fewer batches are tried
TINY = 1e-8  # about Adam's eps: where it is added then shows


@dataclass(frozen=True)
class OfModel:
    """Gradients that the reference finds at any weights, for batches whose gradients have the lengths wanted.

    parts : micro-batches, each with its own negatives only, over which the gradient is the mean
    max_norm : the clip, None: any lengths will do; frozen : what does not count in them
    dtype : what the model computes in
    """

    cfg: Config
    conventions: Conventions
    parts: int
    max_norm: float | None
    frozen: Chosen
    dtype: str

    def start(self, prepare: Callable[[Params], Params] = lambda params: params) -> Params:
        """Probe weights, prepared, at which the gradients have about the length of max_norm, or of 1."""
        params = prepare(probe_params(self.cfg, PAIRS // self.parts, "float32", SHORT))
        params["bias"] = np.asarray(-np.log(max(PAIRS // self.parts - 1, 2)), np.float32)
        for _ in range(3):  # the length grows about as the scale does
            lengths = [self._length(params, batch) for batch in self._batches()[-4:]]
            shift = np.log((self.max_norm or 1.0) * LENGTHS[0] / max(lengths))
            params["log_scale"] = np.asarray(np.clip(params["log_scale"] + shift, -6, 4.5), np.float32)
        return params

    def choose(self, k: int, params: Params) -> tuple[Params, dict[str, float], Batch | None]:
        """The batch of step k, its gradients, and how far a correct program's may lie off, by tensor."""
        batches = self._batches()
        batch = batches[-1 - k]
        if self.max_norm is not None:
            wanted = np.log(self.max_norm * LENGTHS[k])
            batch = min(batches, key=lambda one: abs(np.log(self._length(params, one)) - wanted))
        exact, terms = self.gradients(params, batch, self.parts)
        rounded, _ = self.gradients(params, batch, self.parts, np.float32)
        return exact, _noise(exact, rounded, terms, UNIT_ROUNDOFF[self.dtype]), batch

    def gradients(
        self, params: Params, batch: Batch, parts: int, precision: Any = np.float64
    ) -> tuple[Params, dict[str, float]]:
        """The mean over micro-batches of the gradients of each; and `key_terms`, see `model_reference.Reference`."""
        found = []
        for images, tokens in zip(*(np.split(part, parts) for part in batch), strict=True):
            found.append(reference(Probe(params, images, tokens), self.cfg, self.conventions, precision))
        grads = {name: sum(one.grads[name] for one in found) / parts for name in params}
        return grads, {name: sum(one.key_terms[name] for one in found) / parts for name in found[0].key_terms}

    def of_slopes(self, params: Params, batch: Batch, slopes: Slopes) -> Params:
        """The gradients of any loss of the logits, all pairs of the batch together, in float64."""

        def loss(image: Array, text: Array, log_scale: Array, bias: Array, tile: int | None = None) -> LossAndGrads:
            scale, similarity = np.exp(log_scale), image @ text.T
            d = slopes(scale * similarity + bias)
            d_log_scale = (d * similarity).sum() * scale
            return LossAndGrads(0 * bias, scale * (d @ text), scale * (d.T @ image), d_log_scale, d.sum())

        wide: Params = {name: np.asarray(value, np.float64) for name, value in params.items()}
        given = Probe(wide, np.asarray(batch[0], np.float64), batch[1]).given
        ops = replace(SPECIFICATION, sigmoid_loss=loss)
        return values_and_grads(wide, given, batch[1], self.cfg, self.conventions, ops)[2]

    def _length(self, params: Params, batch: Batch) -> float:
        grads, _ = self.gradients(params, batch, self.parts)
        return max(float(norm({name: g for name, g in grads.items() if not self.frozen(name)})), 1e-30)

    def _batches(self) -> list[Batch]:
        """Batches of 1, 2, ... different pairs, the last of which fills the rest: few give short gradients, since equal
        pairs are each other's negatives."""
        images, tokens = probe_images(self.cfg, 3 * PAIRS), probe_tokens(self.cfg, 3 * PAIRS)
        order = np.random.default_rng(5).permutation(3 * PAIRS).reshape(3, PAIRS)
        lasts = range(PAIRS) if sum(map(np.prod, shapes(self.cfg).values())) < LARGE else (1, PAIRS - 1)
        rows = [chosen[np.minimum(np.arange(PAIRS), last)] for last in lasts for chosen in order]
        return [(images[chosen], tokens[chosen]) for chosen in rows]


def _noise(exact: Params, rounded: Params, key_terms: dict[str, float], unit: float) -> dict[str, float]:
    """The float32 error of the reference itself, in the units of another format; at least the median of all tensors."""
    top = {name: float(np.max(np.abs(g), initial=0.0)) for name, g in exact.items()}
    off = {name: float(np.max(np.abs(rounded[name] - g), initial=0.0)) for name, g in exact.items()}
    middle = float(np.median([off[name] / top[name] for name in exact if top[name] and name not in key_terms]))
    factor = unit / UNIT_ROUNDOFF["float32"]
    return {
        name: factor * max(off[name], middle * top[name]) + unit * key_terms.get(name, 0.0)  # zero by structure
        for name in exact
    }


def drawn(start: Params, max_norm: float | None, frozen: Chosen) -> Callable[..., Any]:
    """Gradients for an update function: of the lengths wanted, some tiny, some zero, nothing to be rounded in them."""

    def choose(k: int, params: Params) -> tuple[Params, dict[str, float], None]:
        grads = {}
        for number, (name, value) in enumerate(start.items()):
            g = odd_integers(value.shape, 1.0, [k, number]).astype(np.float64)
            if value.ndim == 2:
                g[len(g) // 2] = 0.0  # as of a token that does not occur
            grads[name] = g * 2.0 ** -(number % 5) * (TINY if number % 7 == 3 else 1.0)
        length = norm({name: g for name, g in grads.items() if not frozen(name)})
        # a power of two keeps them exact in every format, the second factor is exact in most
        scale = (max_norm or 1.0) * LENGTHS[k] / length
        return {name: np.asarray(scale * g, np.float32).astype(np.float64) for name, g in grads.items()}, {}, None

    return choose
