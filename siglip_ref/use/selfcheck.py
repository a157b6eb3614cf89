"""The reference proves itself on the user's machine: `siglip-ref selfcheck`, under a minute.

Nothing here compares with another framework. The gradients are proven by complex step and by dual numbers over balls,
a published number is certified anew, mistakes that are put in must show; the rest says what machine this was.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import PRESETS
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config, config
from siglip_ref.model import two_towers
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.model.two_towers import forward
from siglip_ref.ops.elementary import Array
from siglip_ref.process.machine import processor, version
from siglip_ref.vectors.generate import proves
from siglip_ref.vectors.store import FOLDER, read

COMPLEX_STEP_TOLERANCE = 1e-12
# The loss of `sample()` under big_vision's conventions: the float64 nearest to the exact value.
CERTIFIED_LOSS = 2.076674781989735
# Mistakes of every kind of tensor; each must move some gradient by more than a thousand roundings of float32.
MISTAKES = (
    *("label-sign", "negatives-missing", "sum-vs-mean-vs-b2", "logit-scale-not-exp", "bias-subtracted"),
    *("grad-without-scale", "text-grad-not-transposed", "normalise-backward-missing", "one-side-not-normalised"),
    *("gelu-tanh-vs-erf", "gelu-forward-and-backward-differ", "layernorm-eps-1e-5", "layernorm-backward-mean"),
    *("attention-scale-width", "attention-backward-query-scale", "softmax-backward-sum", "head-split"),
    *("qkv-order-k-and-v", "causal-mask-wrong", "eos-pooling-argmax", "map-head-no-residual", "patch-flatten-order"),
    *("token-grad-overwritten", "position-grad-mean", "bias-grad-mean", "gamma-grad-low-precision"),
)
SHOWS = 1000 * 2.0**-24

LIBRARIES = ("numpy", "scipy", "python-flint", "numba", "mpi4py", "torch", "jax")


@dataclass(frozen=True)
class Result:
    """One line of the table. passed None: information, or something that is not installed."""

    what: str
    passed: bool | None
    detail: str
    seconds: float


def selfcheck(progress: Callable[[str], None] | None = None) -> list[Result]:
    """Prove the reference here and now.

    Parameters
    ----------
    progress : called with the name of each step before it runs

    Returns
    -------
    list of Result; the check has passed when no `passed` is False

    Examples
    --------
    >>> all(result.passed is not False for result in selfcheck())  # doctest: +SKIP
    True
    """
    results = []
    for what, run in STEPS.items():
        if progress:
            progress(what)
        start = time.perf_counter()
        passed, detail = run()
        results.append(Result(what, passed, detail, time.perf_counter() - start))
    return results


def sample() -> tuple[Config, dict[str, Array]]:
    """The tiny model with three pairs: parameters, none of them zero, and images, in one dict."""
    cfg = config("tiny")
    rng = np.random.default_rng(2303)

    def draw(shape: tuple[int, ...]) -> Array:
        return rng.integers(-127, 128, shape) / 128.0  # integers: the same on every machine

    arrays = {name: draw(shape) / 2 + name.endswith("gamma") for name, shape in shapes(cfg).items()}
    arrays |= {"log_scale": np.array(1.5), "bias": np.array(-0.75), "images": draw((3, *cfg.image_size, 3))}
    return cfg, arrays


def loss_of(arrays: dict[str, Array], cfg: Config) -> Array:
    """The loss of the sample, from the forward pass alone."""
    params = {name: value for name, value in arrays.items() if name != "images"}
    out = forward(params, arrays["images"], _tokens(cfg), cfg)
    return sigmoid_loss(out.image_embed, out.text_embed, params["log_scale"], params["bias"]).loss


def gradients(arrays: dict[str, Array], cfg: Config, module: Any = two_towers) -> dict[str, Array]:
    """Loss and gradients of the sample by name; module: another `siglip_ref.model.two_towers`, with a mistake."""
    params = {name: value for name, value in arrays.items() if name != "images"}
    loss, grads = module.loss_and_grads(params, arrays["images"], _tokens(cfg), cfg, wrt=("params", "images"))
    return {"loss": loss, **grads}


def _tokens(cfg: Config) -> Array:
    return np.arange(3 * cfg.text_length).reshape(3, -1) * 7 % 11  # some twice


def _machine() -> tuple[None, str]:
    versions = ", ".join(f"{name} {number}" for name in LIBRARIES if (number := version(name)))
    blas = np.show_config("dicts")["Build Dependencies"]["blas"]["name"]
    return None, f"Python {platform.python_version()}, {platform.machine()} {processor()}; {blas}; {versions}"


def _complex_step() -> tuple[bool, str]:
    from siglip_ref.arithmetic.complex_step import directional

    cfg, arrays = sample()
    grads, rng, errors = gradients(arrays, cfg), np.random.default_rng(0), {}
    for name in arrays:
        direction = rng.standard_normal(arrays[name].shape)
        wanted = directional(lambda a: loss_of(a, cfg), arrays, name, direction)
        # a key bias's gradient is zero by structure: what is printed there is rounding of numbers like the query's
        unit = np.abs(grads[name.replace("k/bias", "q/bias")] * direction).sum()
        errors[name] = float(abs((grads[name] * direction).sum() - wanted) / unit)
    worst = max(errors, key=lambda name: errors[name])
    good = all(error <= COMPLEX_STEP_TOLERANCE for error in errors.values())
    return good, f"{len(errors)} gradients, worst error {errors[worst]:.1e} ({worst})"


def _balls() -> tuple[bool, str]:
    from siglip_ref.arithmetic.ball import balls, overlap, precision, radius
    from siglip_ref.arithmetic.dual import Dual

    missed, widest = [], 0.0
    for preset in PRESETS.values():
        cfg, arrays = sample()
        cfg = replace(cfg, conventions=preset)
        rng = np.random.default_rng(1)
        with precision(200):
            inputs = {name: balls(value) for name, value in arrays.items()}
            grads = gradients(inputs, cfg)
            directions = {name: rng.standard_normal(value.shape) for name, value in arrays.items()}
            moved = {name: Dual(value, directions[name]) for name, value in inputs.items()}
            forward = loss_of(moved, cfg).tangent
            backward = sum((grads[name] * directions[name]).sum() for name in inputs)
            if not overlap(forward, backward):
                missed.append(preset.name)
            widest = max(widest, radius(forward), radius(backward))
    detail = f"wrong: {', '.join(missed)}" if missed else f"{len(PRESETS)} conventions"
    return not missed and widest < 1e-35, f"{detail}, all gradients at once, to within {widest:.0e}"


def _certified() -> tuple[bool, str]:
    from siglip_ref.arithmetic.ball import balls, certify

    cfg, arrays = sample()
    found = certify(lambda: {"loss": loss_of({k: balls(v) for k, v in arrays.items()}, cfg)})["loss"]
    floating = float(gradients(arrays, cfg)["loss"])
    off = abs(floating - CERTIFIED_LOSS) / CERTIFIED_LOSS
    good = float(found.value) == CERTIFIED_LOSS and off <= COMPLEX_STEP_TOLERANCE
    return good, f"loss {float(found.value)!r}, proven at {found.bits} bits; in float64 {off:.0e} away"


def _mistakes() -> tuple[bool, str]:
    from siglip_ref.mistakes import find, reference

    cfg, arrays = sample()
    right = gradients(arrays, cfg)
    unseen = []
    for name in MISTAKES:
        wrong = gradients(arrays, cfg, reference(find(name).edits).model)
        if not _largest_error(wrong, right) > SHOWS:
            unseen.append(name)
    unchanged = gradients(arrays, cfg, reference().model)
    false_alarm = _largest_error(unchanged, right) != 0
    detail = f"{len(MISTAKES) - len(unseen)} of {len(MISTAKES)} seen" + (f", not {', '.join(unseen)}" if unseen else "")
    return not unseen and not false_alarm, detail + ("; the right reference is flagged too" if false_alarm else "")


def _vectors() -> tuple[bool | None, str]:
    golden = read(FOLDER)  # schema and hashes
    chosen = [vector for vector in golden.vectors.values() if vector.group == "loss"]
    wrong = [vector.id for vector in chosen if not proves(vector)]
    detail = f"{len(golden.vectors)} read, hashes right; {len(chosen) - len(wrong)} of {len(chosen)} proven again"
    return not wrong, detail + (f", not {', '.join(wrong)}" if wrong else "")


STEPS: dict[str, Callable[[], tuple[bool | None, str]]] = {
    "machine": _machine,
    "complex step": _complex_step,
    "dual numbers over balls": _balls,
    "a certified number": _certified,
    "mistakes put in": _mistakes,
    "golden vectors": _vectors,
}


def _largest_error(got: dict[str, Array], right: dict[str, Array]) -> float:
    """NaN and other shapes count as wrong."""
    return max(_error(got[name], right[name]) for name in right if not name.endswith("k/bias"))


def _error(got: Array, right: Array) -> float:
    if np.shape(got) != np.shape(right):
        return np.inf
    error = float(np.abs(got - right).max() / np.abs(right).max())
    return error if error <= np.inf else np.inf
