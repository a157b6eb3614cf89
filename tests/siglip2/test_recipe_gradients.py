"""Every new pair, and the whole objective, against complex step: every element of every tensor."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from recipe import CFG, CHOICES, MASK_ID, TOWER, WEIGHTS, batch, decoder_weights, drawn, full_params, perturbed, target

from siglip_ref.arithmetic.complex_step import directional, gradient
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import prefixed, subtree
from siglip_ref.ops.record import Pair
from siglip_ref.siglip2 import RECIPE, Teacher
from siglip_ref.siglip2.captions import places_seen

TOLERANCE = 1e-13  # error relative to the tensor's maximum
ZERO_BY_STRUCTURE = "k/bias"

Arrays = dict[str, Any]
TARGET = target(7, prefix=2)
CAPTIONING = CHOICES.captioning
CONTEXT = drawn((6, 5, 10), 1)
INPUTS = RECIPE.caption_inputs(TARGET.labels, TARGET.parallel, 0, MASK_ID)
PLACES = places_seen(TARGET.labels, TARGET.parallel, CAPTIONING)
SEEN = (np.arange(5) < np.array([5, 3, 4, 5, 1, 2])[:, None])[:, None, None]
MASKED = batch().masked


@dataclass(frozen=True)
class Case:
    """`forward(arrays) -> out, cache`, and `backward(d_out, cache) -> gradients`, a dict with the keys of `arrays`."""

    name: str
    arrays: Arrays
    forward: Callable[[Arrays], Any]
    backward: Callable[[Any, Any], Arrays]


def pair(name: str, pair: Any, arrays: Arrays, given: Callable[[Arrays], tuple[Any, ...]]) -> Case:
    """A case of an operation whose gradients come in the order of its arrays; those under w/ as one dict."""
    keys = list(dict.fromkeys(name.split("/")[0] for name in arrays))

    def backward(d_out: Any, cache: Any) -> Arrays:
        found = pair.backward(d_out, cache)
        named = dict(zip(keys, found if isinstance(found, tuple) else (found,), strict=True))
        return prefixed("w", named.pop("w")) | named if "w" in named else named

    return Case(name, arrays, lambda a: pair.forward(*given(a)), backward)


def _w(weights: Arrays) -> Arrays:
    return prefixed("w", weights)


def _decoder(name: str, weights: Arrays, seen: Any) -> Case:
    own = {key: value for key, value in weights.items() if not key.startswith("out/")}
    settings = (TOWER.heads, "tanh", 1e-6, PLACES, seen)
    arrays = {"context": CONTEXT} | _w(own)
    return pair(name, RECIPE.decoder, arrays, lambda a: (INPUTS, a["context"], subtree(a, "w"), *settings))


def _block(name: str, weights: Arrays) -> Case:
    arrays = {"x": drawn((6, 9, 12), 2), "context": CONTEXT} | _w(subtree(weights, "block00"))
    settings = (TOWER.heads, "tanh", 1e-6, PLACES, None)
    return pair(name, RECIPE.decoder_block, arrays, lambda a: (a["x"], a["context"], subtree(a, "w"), *settings))


def _captions(name: str, **changes: Any) -> Case:
    weights = {name: value for name, value in decoder_weights().items() if "block01" not in name}
    arrays = {"context": CONTEXT} | _w(weights)
    own = replace(CAPTIONING, **changes)
    return pair(name, RECIPE.caption_loss, arrays, lambda a: (TARGET, a["context"], subtree(a, "w"), own))


def _token_loss(name: str, smoothing: float, rows: int | None, columns: int | None) -> Case:
    arrays = {"states": drawn((6, 9, 4), 3), "kernel": drawn((4, 29), 4), "bias": drawn((29,), 5)}
    return pair(name, RECIPE.token_loss, arrays, lambda a: (*a.values(), TARGET.labels, smoothing, rows, columns))


def _view(name: str, size: tuple[int, int], masked: Any) -> Case:
    weights = {k: v for k, v in subtree(full_params(), "image").items() if not k.startswith("pool/")}
    arrays = {"images": drawn((2, *size, 3), 6)} | _w(weights) | ({} if masked is None else {"token": drawn((10,), 7)})

    def backward(d_out: Any, cache: Any) -> Arrays:
        d_images, d, d_token = RECIPE.view.backward(d_out, cache)
        return {"images": d_images} | _w(d) | ({} if masked is None else {"token": d_token})

    def forward(a: Arrays) -> Any:
        return RECIPE.view.forward(a["images"], subtree(a, "w"), CFG, CFG.conventions, a.get("token"), masked)

    return Case(name, arrays, forward, backward)


def _softmax(rows: Any) -> Any:
    weight = np.exp(rows)
    return weight / weight.sum(-1, keepdims=True)


VALUES = {"values": drawn((6, 9), 1)}
TABLE, WIDEN = drawn((29, 3), 8), drawn((3, 7), 9)
PROTOTYPES = {"z": drawn((2, 3, 6), 1), "direction": drawn((11, 6), 2), "gain": drawn((11,), 3)}
CASES = [
    pair("average example", RECIPE.average, VALUES, lambda a: (*a.values(), TARGET.counted, "example")),
    pair("average token", RECIPE.average, VALUES, lambda a: (*a.values(), TARGET.counted, "token")),
    pair("bottleneck", RECIPE.bottleneck, {"table": TABLE, "widen": WIDEN}, lambda a: (TARGET.labels, *a.values())),
    _token_loss("token loss", 0.0, None, None),
    _token_loss("token loss in chunks", 0.0, 7, 5),
    _token_loss("token loss smoothed", 0.1, 20, 29),
    _block("decoder block", decoder_weights()),
    _block("decoder block with biases", decoder_weights(biases=True)),
    _decoder("decoder", decoder_weights(), None),
    _decoder("decoder with biases, padded context", decoder_weights(biases=True), SEEN),
    _captions("caption loss"),
    _captions("caption loss, other conventions", pad_keys="hidden", mean="token", smoothing=0.1, gelu="erf"),
    pair("prototypes", RECIPE.prototypes, PROTOTYPES, lambda a: tuple(a.values())),
    pair(
        "head", RECIPE.head, {"x": drawn((2, 3, 10), 1)} | _w(subtree(full_params(), "local")),
        lambda a: (a["x"], subtree(a, "w"), "erf", 1e-12),
    ),
    pair(
        "cross entropy", RECIPE.cross_entropy, {"scores": drawn((4, 3, 11), 1)},
        lambda a: (a["scores"], _softmax(drawn((4, 1, 11), 2)).astype(a["scores"].dtype), 0.1),
    ),
    pair(
        "mask tokens", RECIPE.mask_tokens, {"patches": drawn((6, 21, 4), 1), "token": drawn((4,), 2)},
        lambda a: (*a.values(), MASKED),
    ),
    _view("view", CFG.image_size, None),
    _view("view masked", CFG.image_size, MASKED[1:3]),
    _view("view local", (8, 16), None),
]  # fmt: skip


def errors(case: Case) -> dict[str, float]:
    """For every input tensor of the case, max |backward - complex step| / max |complex step|, all elements compared."""
    out, cache = case.forward(case.arrays)
    d_out = np.asarray(np.random.default_rng(1).standard_normal(np.shape(out)))
    computed = case.backward(d_out, cache)
    assert computed.keys() == case.arrays.keys()
    found = {}
    for name, value in case.arrays.items():
        exact = gradient(lambda a: (d_out * case.forward(a)[0]).sum(), case.arrays, name)
        assert computed[name].shape == np.shape(value)
        scale = np.abs(computed[name.replace("k/bias", "q/bias")] if name.endswith(ZERO_BY_STRUCTURE) else exact).max()
        found[name] = np.abs(computed[name] - exact).max() / scale
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backward_agrees_with_complex_step(case: Case) -> None:
    assert not {name: error for name, error in errors(case).items() if not error <= TOLERANCE}


def test_every_pair_of_the_recipe_has_a_case() -> None:
    words = {case.name.split(",")[0] for case in CASES}
    own = {name for name, value in vars(RECIPE).items() if isinstance(value, Pair)}
    new = {name.replace("_", " ") for name in own - set(vars(SPECIFICATION))}
    assert not {name for name in new if not any(word.startswith(name) for word in words)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128], ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_precision_is_kept_and_inputs_are_left_alone(case: Case, dtype: type) -> None:
    arrays = {name: np.asarray(value, dtype) for name, value in case.arrays.items()}
    before = {name: np.array(value) for name, value in arrays.items()}
    out, cache = case.forward(arrays)
    assert out.dtype == dtype
    gradients = case.backward(np.ones(out.shape, dtype), cache)
    assert {name: g.dtype for name, g in gradients.items()} == {name: np.dtype(dtype) for name in arrays}
    assert all((before[name] == arrays[name]).all() for name in before)


def _objective(a: Arrays, teacher: Teacher | None = None, **changes: Any) -> Any:
    pixels = {name: a[name] for name in ("images", "crops", "student_whole")}
    params = {name: value for name, value in a.items() if name not in pixels}
    choices = replace(CHOICES, **changes)
    seen = SEEN_BATCH._replace(**pixels, whole=SEEN_BATCH.whole.astype(a["images"].real.dtype))
    return RECIPE.objective(params, seen, teacher or TEACHER, CFG, choices, WEIGHTS, tuple(pixels))


SEEN_BATCH = batch(4, 3)
TEACHER = perturbed(full_params())
ALL = full_params() | {name: getattr(SEEN_BATCH, name) for name in ("images", "crops", "student_whole")}


OTHER = {"patch_centre": "masked", "mask": replace(CHOICES.mask, normaliser="sinkhorn", rounds=3)}


def _exact(name: str, direction: Any, **changes: Any) -> Any:
    """The objective's derivative along a direction of one tensor."""
    return directional(lambda a: _objective(a, **changes).loss, ALL, name, direction)


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")  # of gradients that nobody looks at
@pytest.mark.parametrize("changes", [{}, OTHER], ids=["as the code it comes from", "other conventions"])
def test_the_objective_agrees_with_complex_step_along_directions(changes: Arrays) -> None:
    """Each tensor moves along two random directions: an error anywhere in it shows, divided by its own number only."""
    grads, found = _objective(ALL, **changes).grads, {}
    assert grads.keys() == ALL.keys()
    for name, value in ALL.items():
        directions = [drawn(np.shape(value), 600 + k) for k in range(2)]
        zero = name.endswith(ZERO_BY_STRUCTURE)
        scale = np.abs(grads[name.replace("k/bias", "q/bias") if zero else name]).max()
        off = [abs(_exact(name, way, **changes) - (grads[name] * way).sum()) / np.abs(way).sum() for way in directions]
        found[name] = max(off) / scale
    assert not {name: error for name, error in found.items() if not error <= TOLERANCE}


@pytest.mark.parametrize("changes", [{}, OTHER], ids=["as the code it comes from", "other conventions"])
def test_the_objective_keeps_float32(changes: Arrays) -> None:
    def narrow(values: Any) -> Arrays:
        return {name: np.asarray(value, np.float32) for name, value in values.items()}

    found = _objective(narrow(ALL), Teacher(narrow(TEACHER.params), narrow(TEACHER.centres)), **changes)
    everything = {"loss": found.loss} | dict(found.terms) | dict(found.grads)
    everything |= {f"said {name}": total for name, (total, _) in found.said.items()}
    assert {name for name, value in everything.items() if np.asarray(value).dtype != np.float32} == set()
    wide = _objective(ALL, **changes).loss
    assert abs(found.loss - wide) <= 3e-5 * wide


@pytest.mark.nightly
@pytest.mark.parametrize("name", list(ALL))
def test_the_objective_agrees_with_complex_step_in_every_element(name: str) -> None:
    grads = _objective(ALL).grads
    units = np.eye(np.size(ALL[name])).reshape(-1, *np.shape(ALL[name]))
    exact = np.array([_exact(name, unit) for unit in units]).reshape(np.shape(ALL[name]))
    scale = np.abs(grads[name.replace("k/bias", "q/bias")] if name.endswith(ZERO_BY_STRUCTURE) else exact).max()
    assert np.abs(grads[name] - exact).max() <= TOLERANCE * scale
