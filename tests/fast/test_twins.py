"""Every twin against its specification: a table of all names, random sizes and layouts, extremes."""

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import assert_within_noise, leaves

from siglip_ref import fast, ops
from siglip_ref.errors import UsageError
from siglip_ref.fast.patches import patch_embed_weights
from siglip_ref.ops.record import Ops, Pair, alone_of

KINDS = [np.float32, np.float64]
EPS = 1e-6


class Draw:
    """Arrays of random numbers, some of them not in one piece in memory."""

    def __init__(self, seed: int, kind: type, strided: bool) -> None:
        self.rng, self.kind, self.strided = np.random.default_rng(seed), kind, strided

    def __call__(self, *shape: int) -> np.ndarray:
        x = self.rng.standard_normal(shape).astype(self.kind)
        return np.repeat(x, 2, axis=0)[::2] if self.strided else x

    def gelu_form(self, number: int) -> str:
        """Any form; in float64 not erf, which NumPy has in no wider precision (test_gelu_everywhere has it)."""
        return ["tanh", "quick", "erf"][number % (3 if self.kind is np.float32 else 2)]

    def attention(self, width: int, prefix: str = "") -> dict[str, np.ndarray]:
        parts = ("q", "k", "v", "out")
        kernels = {f"{prefix}{part}/kernel": self(width, width) / self.kind(width**0.5) for part in parts}
        return kernels | {f"{prefix}{part}/bias": self(width) for part in parts}

    def mlp(self, width: int, hidden: int, prefix: str = "") -> dict[str, np.ndarray]:
        shapes = {
            "in/kernel": (width, hidden),
            "in/bias": (hidden,),
            "out/kernel": (hidden, width),
            "out/bias": (width,),
        }
        return {prefix + name: self(*shape) for name, shape in shapes.items()}

    def map_head(self, width: int, hidden: int) -> dict[str, np.ndarray]:
        inside = self.attention(width, "attn/") | self.norm(width, "norm/") | self.mlp(width, hidden, "mlp/")
        return {"probe": self(width)} | inside

    def norm(self, width: int, prefix: str) -> dict[str, np.ndarray]:
        return {f"{prefix}gamma": self(width), f"{prefix}beta": self(width)}


def mask_of(draw: Draw, *shape: int) -> np.ndarray:
    mask = draw.rng.random(shape) < 0.7
    mask[..., 0] = True
    return mask


# The width of what is normed in the middle of a chain is larger by this: two numbers less their mean, divided by their
# deviation, are 1 and -1, whatever they were, so no gradient is left but noise.
LEAST = 4

# pair: what its forward takes at batch b, n tokens, c = 2 h features
ARGUMENTS: dict[str, Callable[[Draw, int, int, int], tuple[Any, ...]]] = {
    "attention": lambda draw, b, n, c: (draw(b, n, c), draw(b, n + 2, c), draw.attention(c), 2),
    "gelu": lambda draw, b, n, c: (3 * draw(b, n, c), draw.gelu_form(b)),
    "layer_norm": lambda draw, b, n, c: (draw(b, n, c), draw(c), draw(c), EPS),
    "linear": lambda draw, b, n, c: (draw(b, n, c), draw(c, n + 3), draw(n + 3)),
    "map_head": lambda draw, b, n, c: (
        draw(b, n, c + LEAST), draw.map_head(c + LEAST, n + 1), 2, "tanh", EPS, mask_of(draw, b, 1, 1, n)
    ),
    "mlp": lambda draw, b, n, c: (draw(b, n, c), draw.mlp(c, n + 4), "tanh"),
    "normalize": lambda draw, b, n, c: (draw(b, c), ["additive", "clamp", "none"][n % 3], 1e-3),
    "patch_embed": lambda draw, b, n, c: (draw(b, 3 * n + 1, 7, 3), draw(27, c), draw(c), 3),
    "position": lambda draw, b, n, c: (draw(b, n, c), draw(n + 2, c)),
    "token_embed": lambda draw, b, n, c: (draw.rng.integers(0, 5, (b, n)), draw(5, c)),
}  # fmt: skip
SIZES = {"b": st.integers(1, 5), "n": st.integers(1, 37), "h": st.integers(1, 19)}


def walk(namespace: Any, pair: str) -> Callable[..., Any]:
    """Forward and backward, as one function of all inputs and the gradient of the output."""
    return walk_pair(Pair(getattr(namespace, f"{pair}_forward"), getattr(namespace, f"{pair}_backward")))


def walk_record(record: Ops, pair: str) -> Callable[..., Any]:
    return walk_pair(getattr(record, pair))


def walk_pair(functions: Pair) -> Callable[..., Any]:
    def run(d_out: np.ndarray, *arguments: Any) -> Any:
        out, cache = functions.forward(*arguments)
        return out, functions.backward(d_out.reshape(out.shape), cache)

    return run


def test_every_operation_has_a_twin_or_a_reason() -> None:
    assert not fast.TWINS.keys() & fast.WITHOUT_TWIN.keys()
    assert fast.TWINS.keys() | fast.WITHOUT_TWIN.keys() == set(ops.__all__)
    assert set(fast.__all__) == set(ops.__all__) | fast.HIGHER_TWINS.keys()
    for name in (*fast.TWINS, *fast.HIGHER_TWINS):  # and the record has all of them
        operation, _, way = name.rpartition("_")
        found = getattr(getattr(fast.OPS, operation), way) if way in Pair._fields else getattr(fast.OPS, name)
        assert alone_of(found) is getattr(fast, name)
    assert fast.COMPILED
    tested = {f"{pair}_{way}" for pair in ARGUMENTS for way in ("forward", "backward")} | {"pair_block"}
    assert tested - fast.WITHOUT_TWIN.keys() == fast.TWINS.keys()


@pytest.mark.parametrize("name", [*fast.TWINS, *fast.HIGHER_TWINS])
def test_same_signature(name: str) -> None:
    specification = getattr(import_module(fast.HIGHER_TWINS[name][1]) if name in fast.HIGHER_TWINS else ops, name)
    wanted = [  # a twin of several parts has them in itself
        p for p in inspect.signature(specification).parameters.values() if p.name != "ops" or "tower" in name
    ]
    found = list(inspect.signature(getattr(fast, name)).parameters.values())
    assert [(p.name, p.default) for p in found[: len(wanted)]] == [(p.name, p.default) for p in wanted]
    assert all(p.default is None for p in found[len(wanted) :])


@pytest.mark.parametrize("name", fast.WITHOUT_TWIN)
def test_the_others_are_the_specification(name: str) -> None:
    assert getattr(fast, name) is getattr(ops, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", ARGUMENTS)
def test_pair(pair: str, kind: type) -> None:
    @settings(deadline=None, max_examples=15)
    @given(**SIZES, strided=st.booleans())
    def check(b: int, n: int, h: int, strided: bool) -> None:
        draw = Draw(b + 10 * n + 1000 * h, kind, strided)
        arguments = ARGUMENTS[pair](draw, b, n, 2 * h)
        d_out = draw(*getattr(ops, f"{pair}_forward")(*arguments)[0].shape)
        assert_within_noise(walk(fast, pair), walk(ops, pair), d_out, *arguments)

    check()


@pytest.mark.parametrize("pair", ARGUMENTS)
def test_large_enough_for_all_threads(pair: str) -> None:
    draw = Draw(1, np.float32, False)
    arguments = ARGUMENTS[pair](draw, 40, 40, 96)
    d_out = draw(*getattr(ops, f"{pair}_forward")(*arguments)[0].shape)
    assert_within_noise(walk(fast, pair), walk(ops, pair), d_out, *arguments)


def smaller(value: Any) -> Iterator[Any]:
    """The same argument, in turn with each axis of each of its arrays one shorter, or one longer."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from (value | {name: other} for other in smaller(item))
    elif isinstance(value, np.ndarray):
        for axis in range(value.ndim):
            yield value.take(range(1, value.shape[axis]), axis)
            yield np.concatenate([value, value.take([0], axis)], axis)


@pytest.mark.parametrize("pair", ARGUMENTS)
def test_what_does_not_fit_has_the_specification_answer(pair: str) -> None:
    """Machine code does not look where an array ends: a wrong shape must not reach it."""
    arguments = ARGUMENTS[pair](Draw(1, np.float32, False), 2, 5, 6)
    arguments = arguments[:5]  # not the MAP head's mask, which broadcasts
    refused = 0
    for position, argument in enumerate(arguments):
        for other in smaller(argument):
            given = (*arguments[:position], other, *arguments[position + 1 :])
            answers = []
            for namespace in (ops, fast):
                try:
                    answers.append(getattr(namespace, f"{pair}_forward")(*given)[0])
                except Exception as problem:
                    answers.append(type(problem))
            if isinstance(answers[0], type):
                refused += 1
                assert answers[0] is answers[1], [np.shape(value) for value in leaves(given)]
            else:
                np.testing.assert_allclose(answers[1], answers[0], rtol=1e-4, atol=1e-5)
    assert refused > 0 or pair in ("gelu", "normalize", "token_embed")


@pytest.mark.parametrize("pair", [pair for pair in ARGUMENTS if pair not in ("position", "token_embed")])
def test_a_gradient_of_another_result_is_refused(pair: str) -> None:
    out, cache = getattr(fast, f"{pair}_forward")(*ARGUMENTS[pair](Draw(1, np.float32, False), 2, 5, 6))
    backward = getattr(fast, f"{pair}_backward")
    for wrong in (out[1:], out[..., 1:], out.astype(np.float64), out.tolist()):
        with pytest.raises(UsageError, match="as the forward's result"):
            backward(wrong, cache)
    backward(out, cache)


EXTREMES = [np.nan, np.inf, -np.inf, 1e-42, -1e4, 1e4]


def assert_same_answer(found: Any, wanted: Any) -> None:
    """Finite where the specification is, and close there; NaN and infinities (with their signs) where it has them."""
    exact = dict(leaves(wanted))
    largest = max(float(np.abs(truth[np.isfinite(truth)]).max(initial=1e-30)) for truth in exact.values())
    for name, got in leaves(found):
        finite = np.isfinite(exact[name])
        np.testing.assert_array_equal(np.isfinite(got), finite, name)
        np.testing.assert_array_equal(got[np.isinf(exact[name])], exact[name][np.isinf(exact[name])], name)
        # a key bias's gradient is zero by structure: only noise of its terms is left
        size = largest if name.endswith("/k/bias") else np.abs(exact[name][finite]).max(initial=1e-30)
        np.testing.assert_allclose(got[finite], exact[name][finite], rtol=1e-4, atol=1e-4 * size, err_msg=name)


STRANGE = ["attention", "gelu", "layer_norm", "linear", "map_head", "mlp", "normalize", "patch_embed", "position"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("pair", STRANGE)
def test_one_strange_number_has_the_specification_answer(pair: str, where: str, value: float, kind: type) -> None:
    draw = Draw(5, kind, False)
    arguments = ARGUMENTS[pair](draw, 3, 4, 6)
    d_out = draw(*getattr(ops, f"{pair}_forward")(*arguments)[0].shape)
    (arguments[0] if where == "forward" else d_out).flat[7] = value
    with np.errstate(all="ignore"):
        found, wanted = (walk(namespace, pair)(d_out, *arguments) for namespace in (fast, ops))
    assert_same_answer(found, wanted)


@pytest.mark.parametrize("form", ["tanh", "erf", "quick"])
@pytest.mark.parametrize("kind", KINDS)
def test_gelu_everywhere(form: Any, kind: type) -> None:
    x = np.concatenate([np.linspace(-40, 40, 4001), np.logspace(-40, 4, 200), [np.nan, 0.0, -0.0]]).astype(kind)
    with np.errstate(all="ignore"):
        found, wanted = (walk(namespace, "gelu")(np.ones_like(x), x, form) for namespace in (fast, ops))
    for got, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=4 * np.finfo(kind).eps, atol=40 * np.finfo(kind).eps)


def test_the_gradient_by_pixels_is_left_out_by_the_twins_towers() -> None:
    draw = Draw(2, np.float64, False)
    out, cache = fast.patch_embed_forward(*ARGUMENTS["patch_embed"](draw, 2, 3, 4))
    d_out = draw(*out.shape)
    whole, d_kernel, d_bias = fast.patch_embed_backward(d_out, cache)
    nothing, d_kernel_alone, d_bias_alone = patch_embed_weights(d_out, cache)
    assert whole is not None and nothing is None
    np.testing.assert_array_equal(d_kernel_alone, d_kernel)
    np.testing.assert_array_equal(d_bias_alone, d_bias)


def test_complex_steps_go_to_the_specification() -> None:
    for pair in ("gelu", "layer_norm", "linear", "normalize"):
        arguments = ARGUMENTS[pair](Draw(1, np.float64, False), 2, 3, 4)
        arguments = (arguments[0] + 1e-30j, *arguments[1:])
        found, wanted = getattr(fast, f"{pair}_forward")(*arguments)[0], getattr(ops, f"{pair}_forward")(*arguments)[0]
        np.testing.assert_array_equal(found, wanted)
