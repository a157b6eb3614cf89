"""How much rounding shows in each tensor of a correct model: measured on a small one, by a law on a large one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config
from siglip_ref.arithmetic.rounded import FORMATS, rounded
from siglip_ref.check.model import noise_table
from siglip_ref.check.model.adapters import Dtype
from siglip_ref.check.model.noise_law import law
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.reference import KEY_BIAS, Reference, reference
from siglip_ref.check.model.tower import values_and_grads
from siglip_ref.noise.measure import FLOAT64, REGIMES, TIMES, announce, measure
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops

MEASURED_UP_TO = 2e8  # multiplications of a forward pass: a dozen runs in rounded arithmetic take seconds
WIDEST = 0.5  # no tolerance grows beyond this while it is twice the noise; at 1 a gradient of zeros would pass
_TABLES = ("image/position", "text/position", "text/token")


@dataclass(frozen=True)
class ModelNoise:
    """relative : by name of value or gradient, in units of the tensor's maximum (a key bias: of its terms' sum);
    overflows : tensors at which even the specification leaves the range; measured : on this model, or by the law"""

    relative: Mapping[str, float]
    overflows: frozenset[str]
    measured: bool


def model_noise(probe: Probe, cfg: Config, conventions: Conventions, exact: Reference, dtype: Dtype) -> ModelNoise:
    """The noise of every value and every gradient of a model that computes in `dtype`.

    Parameters
    ----------
    probe : weights and inputs, exact in `dtype`
    exact : the reference in float64 on this probe

    Notes
    -----
    A model of up to MEASURED_UP_TO multiplications is run in rounded arithmetic, see `siglip_ref.noise.measure`. A
    larger one gets the larger of `siglip_ref.check.model.noise_law`, and the error that the specification shows in
    float32 on this very model: weights of one's own may magnify rounding more than those that the law was fitted on.
    Formats of 16 bits add up in float32, so that error is too much for them; where it would leave a tensor unjudged,
    the specification is run once in the format itself, which takes longer.
    """
    if multiplications(cfg, len(probe.images)) <= MEASURED_UP_TO:
        return measured_noise(probe, cfg, conventions, dtype)
    single = values_of(reference(probe, cfg, conventions, np.float32))
    shown = {name: np.max(np.abs(single[name] - value)) for name, value in values_of(exact).items()}
    scale = FLOAT64 if dtype == "float64" else FORMATS[dtype].unit / FORMATS["float32"].unit
    expected = law(cfg, len(probe.images), dtype, shown)
    relative = {name: max(expected[name], float(error) * scale) for name, error in _relative(shown, exact).items()}
    if dtype in ("bfloat16", "float16") and any(allowed(level) >= 1 for level in relative.values()):
        shown = _errors_of_one_run(probe, cfg, conventions, exact, dtype)
        for name, error in _relative(shown, exact).items():
            if error < relative[name]:  # not if it overflows
                relative[name] = max(expected[name], float(error))
    return ModelNoise(relative, _overflowing(exact, single, dtype), False)


def _errors_of_one_run(
    probe: Probe, cfg: Config, conventions: Conventions, exact: Reference, dtype: Dtype
) -> dict[str, Array]:
    """Of the specification in the format itself: the largest error of every value and gradient."""
    rounding = REGIMES[dtype].rounding
    params = {name: rounded(value, rounding) for name, value in probe.params.items()}
    got = _computed(params, replace(probe, images=rounded(probe.images, rounding)), cfg, conventions)
    return {name: np.max(np.abs(np.asarray(got[name]) - value)) for name, value in values_of(exact).items()}


def _overflowing(exact: Reference, single: Mapping[str, Array], dtype: Dtype) -> frozenset[str]:
    """Where a large model leaves the range: what the specification loses in float32, and everything that is computed
    from an activation which does not fit."""
    lost = {name for name, value in single.items() if not np.isfinite(value).all()}
    largest = FORMATS[dtype].largest
    for name, value in exact.activations.items():
        if not np.max(np.abs(value)) <= largest:
            names, tower = list(exact.activations), name.split("/")[0]
            behind = names[names.index(name) :]
            lost |= {other for other in behind if other.split("/")[0] in (tower, "logits")} | {"loss", *exact.grads}
    return frozenset(lost)


def measured_noise(probe: Probe, cfg: Config, conventions: Conventions, dtype: Dtype) -> ModelNoise:
    """The same, measured whatever the size: before it was shipped, where it is of a standard probe, or now."""
    shipped = noise_table.find(probe, cfg, conventions, dtype)
    if shipped is not None:
        return ModelNoise(*shipped, True)
    announce(f"a model of this size in {dtype}")
    return measured_anew(probe, cfg, conventions, dtype)


def measured_anew(probe: Probe, cfg: Config, conventions: Conventions, dtype: Dtype) -> ModelNoise:
    """Measured now; for float64 at the probe rounded to float32, where it is measured."""
    if dtype == "float64":
        rounded = {name: np.asarray(value, np.float32) for name, value in probe.params.items()}
        probe = replace(probe, params=rounded, images=np.asarray(probe.images, np.float32))
    weights = tuple(
        (name, np.shape(value), np.asarray(value, np.float64).tobytes()) for name, value in probe.params.items()
    )
    inputs = [(x.shape, x.astype(kind).tobytes()) for x, kind in ((probe.images, np.float64), (probe.tokens, np.int64))]
    grids = b"" if probe.grids is None else probe.grids.astype(np.int64).tobytes()
    return _measured(weights, *inputs, grids, cfg, conventions, dtype)


Stored = tuple[tuple[int, ...], bytes]  # shape and bytes of an array


@lru_cache(maxsize=16)  # one probe is used for many checks of the same model
def _measured(
    weights: tuple[tuple[str, tuple[int, ...], bytes], ...],
    images: Stored,
    tokens: Stored,
    grids: bytes,
    cfg: Config,
    conventions: Conventions,
    dtype: Dtype,
) -> ModelNoise:
    params = {name: np.frombuffer(content).reshape(shape) for name, shape, content in weights}
    captions = np.frombuffer(tokens[1], np.int64).reshape(tokens[0])
    shapes_of_images = np.frombuffer(grids, np.int64).reshape(-1, 2) if grids else None
    probe = Probe(params, np.frombuffer(images[1]).reshape(images[0]), captions, shapes_of_images)
    exact = reference(probe, cfg, conventions, np.float64)

    def compute(rounded: dict[str, Array], ops: Ops) -> dict[str, Array]:
        given = {name: rounded[name] for name in params}
        return _computed(given, replace(probe, images=rounded[""]), cfg, conventions, ops)

    noise = measure(compute, params | {"": probe.images}, values_of(exact), dtype, few=True)
    relative = {name: float(error) for name, error in _relative(noise.absolute, exact).items()}
    return ModelNoise(relative, noise.overflows, True)


def allowed(noise: float) -> float:
    """The largest error of a correct model: TIMES the noise; less where that would let a gradient of zeros pass.

    Never less than twice the noise. From a noise of 0.5 on that is 1 and more: nothing can be judged there.

    >>> allowed(0.01), allowed(0.2), allowed(0.3)
    (0.06, 0.5, 0.6)
    """
    return min(TIMES * noise, max(WIDEST, 2 * noise))


def values_of(ref: Reference) -> dict[str, Array]:
    """Activations, loss and gradients by name: no two of them share one."""
    return ref.activations | {"loss": ref.loss} | ref.grads


def _computed(
    params: Mapping[str, Array],
    probe: Probe,
    cfg: Config,
    conventions: Conventions,
    ops: Ops | None = None,
) -> dict[str, Array]:
    """The same of a run of the specification, in the arithmetic of its weights."""
    activations, loss, grads = values_and_grads(params, probe.given, probe.tokens, cfg, conventions, ops)
    return activations | {"loss": loss} | grads


def multiplications(cfg: Config, batch: int) -> float:
    """Of a forward pass, in products with weights."""
    tokens = {"image": cfg.patches, "text": cfg.text_length}
    matrices = {n: np.prod(shape) for n, shape in shapes(cfg).items() if len(shape) == 2 and n not in _TABLES}
    return float(batch * sum(size * tokens[name.split("/")[0]] for name, size in matrices.items()))


def units_of(exact: Reference) -> dict[str, float]:
    """What errors are relative to: a tensor's maximum; for a key bias the sum of its terms."""
    return {
        n: exact.key_terms[n] if n.endswith(KEY_BIAS) else float(np.max(np.abs(x))) for n, x in values_of(exact).items()
    }


def _relative(absolute: Mapping[str, Array], exact: Reference) -> dict[str, Array]:
    units = units_of(exact)
    with np.errstate(all="ignore"):
        return {name: np.where(error == 0, 0.0, error / units[name]) for name, error in absolute.items()}
