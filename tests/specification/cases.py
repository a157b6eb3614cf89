"""Every operation as a case: its differentiable inputs, its forward, its backward. All tests here walk the table."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siglip_ref import ops
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config, config
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.model.naflex import Patches
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.model.two_towers import forward, loss_and_grads
from siglip_ref.ops.elementary import prefixed, subtree

Arrays = dict[str, Any]
EPS = 1e-6
CFG: Config = config("tiny")
TOKENS = np.random.default_rng(5).integers(0, CFG.vocabulary, (3, CFG.text_length))
CAUSAL = np.tril(np.ones((5, 5), bool))
PADDING = np.arange(9) < np.array([9, 4, 7])[:, None]  # (B, N): rows of different length


@dataclass(frozen=True)
class Case:
    """`forward(arrays) -> out`, and `backward(arrays, d_out) -> gradients`, a dict with the keys of `arrays`."""

    name: str
    arrays: Arrays
    forward: Callable[[Arrays], Any]
    backward: Callable[[Arrays, Any], Arrays]


def draw(**wanted: tuple[int, ...]) -> Arrays:
    """Arrays of these shapes, of order 1, the same in every run."""
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal(shape) for name, shape in wanted.items()}


def weights(prefix: str, cfg: Config = CFG) -> Arrays:
    """The tiny model's parameters under `prefix`, none of them zero, so that every term shows."""
    rng = np.random.default_rng(11)
    drawn = {name: 0.4 * rng.standard_normal(shape) + name.endswith("gamma") for name, shape in shapes(cfg).items()}
    return subtree(drawn, prefix)


def pair(name: str, forward: Any, backward: Any, arrays: Arrays, order: str, *settings: Any) -> Case:
    """A case of an op that takes its arrays in their order, then settings; `order` names its gradients."""
    keys = order.split()

    def run_forward(a: Arrays) -> Any:
        return forward(*a.values(), *settings)[0]

    def run_backward(a: Arrays, d_out: Any) -> Arrays:
        gradients = backward(d_out, forward(*a.values(), *settings)[1])
        return dict(zip(keys, gradients if isinstance(gradients, tuple) else (gradients,), strict=True))

    return Case(name, arrays, run_forward, run_backward)


def _attention(name: str, mask: Any) -> Case:
    def unpack(a: Arrays) -> tuple[Any, ...]:
        return a["query"], a["key"], subtree(a, "w"), 2, mask

    def backward(a: Arrays, d_out: Any) -> Arrays:
        d_query, d_key, d_weights = ops.attention_backward(d_out, ops.attention_forward(*unpack(a))[1])
        return {"query": d_query, "key": d_key} | prefixed("w", d_weights)

    arrays = draw(query=(3, 5, 10), key=(3, 5, 10)) | prefixed("w", weights("image/block00/attn"))
    return Case(name, arrays, lambda a: ops.attention_forward(*unpack(a))[0], backward)


def _weighted(name: str, shape: tuple[int, ...], prefix: str, forward: Any, backward: Any, *settings: Any) -> Case:
    """A case of an op that takes x, a dict of weights, then settings."""

    def run_backward(a: Arrays, d_out: Any) -> Arrays:
        d_x, d_weights, *_ = backward(d_out, forward(a["x"], subtree(a, "w"), *settings)[1])
        return {"x": d_x} | prefixed("w", d_weights)

    arrays = draw(x=shape) | prefixed("w", weights(prefix))
    return Case(name, arrays, lambda a: forward(a["x"], subtree(a, "w"), *settings)[0], run_backward)


def _pooling(kind: str) -> Case:
    return Case(
        f"pool {kind}",
        draw(x=(3, 9, 4)),
        lambda a: ops.pool_forward(a["x"], TOKENS, kind)[0],
        lambda a, d_out: {"x": ops.pool_backward(d_out, ops.pool_forward(a["x"], TOKENS, kind)[1])},
    )


def _block() -> Case:
    def forward(x: Any, w: Arrays) -> tuple[Any, Any]:
        out, _, cache = SPECIFICATION.block.forward(x, w, 2, "tanh", EPS, None)
        return out, cache

    def backward(d_out: Any, cache: Any) -> tuple[Any, Arrays]:
        d_x, _, d_weights = SPECIFICATION.block.backward(d_out, cache)
        return d_x, d_weights

    return _weighted("block", (3, 5, 10), "image/block00", forward, backward)


def _encoder() -> Case:
    case = _weighted(
        "encoder",
        (2, 5, 12),
        "text",
        lambda x, w: SPECIFICATION.encoder.forward(x, w, CFG.text, "erf", EPS, CAUSAL)[:2],
        SPECIFICATION.encoder.backward,
    )
    own = {name: value for name, value in case.arrays.items() if name.startswith(("x", "w/block", "w/norm"))}
    return replace(case, arrays=own)


def _naflex_tower() -> Case:
    """Three images of different shape, two of them with padding; values in the padding must change nothing."""
    cfg, grids = replace(CFG, naflex=True), np.array([[2, 4], [1, 5], [7, 1]])

    def run(a: Arrays) -> Any:
        patches = Patches(a["values"], grids)
        return SPECIFICATION.naflex_tower.forward(patches, subtree(a, "w"), cfg, CFG.conventions)

    def backward(a: Arrays, d_out: Any) -> Arrays:
        cache = run(a)[1]
        d_weights, d_named = SPECIFICATION.naflex_tower.backward(d_out, cache)
        d_values, *_ = ops.linear_backward(d_named["stem"], cache.patch)
        return {"values": d_values} | prefixed("w", d_weights)

    arrays = draw(values=(3, 8, 48)) | prefixed("w", weights("image"))
    return Case("naflex tower", arrays, lambda a: run(a)[0], backward)


def _image_tower() -> Case:
    def forward(x: Any, w: Any) -> Any:
        return SPECIFICATION.image_tower.forward(x, w, CFG, CFG.conventions)[:2]

    def backward(d_out: Any, cache: Any) -> tuple[Any, Arrays]:
        d_weights, d_named = SPECIFICATION.image_tower.backward(d_out, cache)
        return ops.patch_embed_backward(d_named["stem"], cache.patch)[0], d_weights

    return _weighted("image tower", (2, 12, 28, 3), "image", forward, backward)


def _text_tower(name: str, mask: Any, cfg: Config = CFG) -> Case:
    tower = SPECIFICATION.text_tower

    def forward(a: Arrays) -> Any:
        return tower.forward(TOKENS, a, cfg, cfg.conventions, mask)[0]

    def backward(a: Arrays, d_out: Any) -> Arrays:
        return tower.backward(d_out, tower.forward(TOKENS, a, cfg, cfg.conventions, mask)[1])[0]

    return Case(name, weights("text", cfg), forward, backward)


def _loss(name: str, forward: Any, arrays: Arrays) -> Case:
    """A case of a function that returns its loss and its gradients at once."""

    def backward(a: Arrays, d_out: Any) -> Arrays:
        return {key: d_out * gradient for key, gradient in zip(a, forward(**a)[1:], strict=True)}

    return Case(name, arrays, lambda a: forward(**a)[0], backward)


def _model(name: str, cfg: Config = CFG, only: tuple[str, ...] = (), **changes: Any) -> Case:
    """All gradients of a model, or those of some inputs only."""
    conventions = replace(cfg.conventions, **changes)
    params = {"image": weights("image", cfg), "text": weights("text", cfg)}
    arrays = prefixed("image", params["image"]) | prefixed("text", params["text"])
    arrays |= {"log_scale": np.array(1.3), "bias": np.array(-0.9), "images": draw(x=(3, 12, 28, 3))["x"]}

    def split(a: Arrays) -> tuple[Any, ...]:
        short = getattr(next(iter(a.values())), "dtype", None) == np.float32
        whole = {key: np.asarray(value, np.float32) if short else value for key, value in arrays.items()} | a
        return {k: v for k, v in whole.items() if k != "images"}, whole["images"], TOKENS, cfg, conventions

    def model_loss(a: Arrays) -> Any:
        params, *rest = split(a)
        out = forward(params, *rest)
        return sigmoid_loss(out.image_embed, out.text_embed, params["log_scale"], params["bias"]).loss

    def backward(a: Arrays, d_out: Any) -> Arrays:
        gradients = loss_and_grads(*split(a), wrt=("params", "images"))[1]
        return {key: d_out * gradients[key] for key in a}

    return Case(name, {key: arrays[key] for key in only or arrays}, model_loss, backward)


BLOCK = draw(image_embed=(4, 6), text_embed=(7, 6)) | {"log_scale": np.array(0.7), "bias": np.array(-1.1)}
SQUARE = draw(image_embed=(5, 3), text_embed=(5, 3)) | {"log_scale": np.array(0.7), "bias": np.array(-1.1)}
MATCH = np.random.default_rng(3).random((4, 7)) < 0.3

OP_CASES = [
    pair("linear", ops.linear_forward, ops.linear_backward, draw(x=(3, 5, 4), k=(4, 6), b=(6,)), "x k b"),
    pair(
        "layer norm", ops.layer_norm_forward, ops.layer_norm_backward, draw(x=(3, 5, 4), g=(4,), b=(4,)), "x g b", EPS
    ),
    *(
        pair(f"gelu {form}", ops.gelu_forward, ops.gelu_backward, {"x": np.linspace(-4.5, 4.5, 37)}, "x", form)
        for form in ("tanh", "erf", "quick")
    ),
    pair("softmax", ops.softmax_forward, ops.softmax_backward, draw(x=(3, 5)), "x"),
    *(
        pair(f"normalize {kind}", ops.normalize_forward, ops.normalize_backward, draw(x=(3, 5)), "x", kind, eps)
        for kind, eps in (("additive", 0.25), ("none", 0.0), ("clamp", 0.25), ("clamp", 9.0))
    ),
    pair(
        "patch embed",
        ops.patch_embed_forward,
        ops.patch_embed_backward,
        draw(images=(2, 9, 13, 3), kernel=(48, 5), bias=(5,)),  # one row and one column stay over
        "images kernel bias",
        4,
    ),
    Case(
        "token embed",
        draw(table=(CFG.vocabulary, 4)),
        lambda a: ops.token_embed_forward(TOKENS, a["table"])[0],
        lambda a, d_out: {"table": ops.token_embed_backward(d_out, (TOKENS, a["table"]))},
    ),
    pair(
        "bottleneck",
        lambda *a: ops.bottleneck_forward(TOKENS, *a),
        ops.bottleneck_backward,
        draw(table=(CFG.vocabulary, 3), widen=(3, 4)),
        "table widen",
    ),
    pair("position", ops.position_forward, ops.position_backward, draw(x=(2, 5, 4), table=(7, 4)), "x table"),
    pair("position resize", *SPECIFICATION.position_resize, draw(table=(5, 4, 3)), "table", 3, 7),
    *(_pooling(kind) for kind in ("last", "first", "mean", "argmax")),
    _attention("attention", None),
    _attention("attention causal", CAUSAL),
    _attention("attention padding", PADDING[:, None, None, :5]),
    _weighted("mlp", (2, 3, 10), "image/block00/mlp", ops.mlp_forward, ops.mlp_backward, "tanh"),
    _weighted("map head", (3, 5, 10), "image/pool", ops.map_head_forward, ops.map_head_backward, 2, "tanh", EPS),
    _loss("pair block", lambda **a: ops.pair_block(**a, match=MATCH), BLOCK),
    _loss("softmax loss", ops.softmax_loss, {k: v for k, v in SQUARE.items() if k != "bias"}),
]

TOWER_CASES = [
    _block(),
    _encoder(),
    _image_tower(),
    _naflex_tower(),
    _text_tower("text tower", None),
    _text_tower("text tower padding", PADDING),
    _text_tower("text tower with a bottleneck", None, replace(CFG, bottleneck=5)),
]

MODEL_CASES = [
    _model("model big_vision"),
    _model("model open_clip", image_gelu="erf", text_gelu="erf", embed_norm="clamp", embed_norm_eps=1e-12),
    _model("model huggingface", embed_norm="none"),
    _model("model with a bottleneck", replace(CFG, bottleneck=5), ("text/token", "text/widen/kernel")),
]
