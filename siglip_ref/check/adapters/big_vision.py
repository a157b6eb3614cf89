"""A JAX model whose parameters are a tree in big_vision's layout, with a loss_fn(params, images, tokens)."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siglip_ref.check.adapters import Dtype, Run
from siglip_ref.check.adapters.names import Entry, Table, Tensor, require_match
from siglip_ref.conventions import PRESETS, Conventions
from siglip_ref.errors import UsageError
from siglip_ref.params import shapes
from siglip_ref.sizes import Config, Tower

ENCODERS = {"image": "img/Transformer", "text": "txt/Encoder_0"}
ATTENTION, MLP = "MultiHeadDotProductAttention_0", "MlpBlock_0"
Shape = tuple[int, ...]


class BigVision:
    """An Adapter for any JAX function of such a tree.

    Parameters
    ----------
    loss_fn : loss_fn(params, images, tokens) -> scalar loss, or (loss, activations) with activations named as ours;
        images (B, height, width, 3), tokens (B, N) int32
    params : the tree; blocks one by one (encoderblock_0) or stacked on a leading axis (encoderblock); with or without
        "params" above it
    image_size : height and width; None: square
    conventions : what the model shall follow; default big_vision's
    name : title of the report
    """

    def __init__(
        self,
        loss_fn: Callable[..., Any],
        params: Any,
        *,
        image_size: tuple[int, int] | None = None,
        conventions: Conventions = PRESETS["big_vision"],
        name: str = "JAX model in big_vision's layout",
    ) -> None:
        leaves, self._tree = jax.tree_util.tree_flatten_with_path(params)
        self._leaves = {_path(path): leaf for path, leaf in leaves}
        found = {path: tuple(leaf.shape) for path, leaf in self._leaves.items()}
        self.name, self._loss_fn = name, loss_fn
        self.config = read_config(_plain(found), image_size, conventions)
        prefix = _prefix(found)
        self._table = tuple(replace(e, theirs=prefix + e.theirs) for e in table(self.config, _plain(found)))
        require_match(self._table, found, self.config)

    def parameters(self, dtype: Dtype) -> dict[str, Tensor]:
        """The model's own weights, rounded to dtype."""
        with jax.enable_x64(True):
            return self._to_ours({path: _numpy(jnp.asarray(leaf).astype(dtype)) for path, leaf in self._leaves.items()})

    def run(self, params: Mapping[str, Tensor], images: Tensor, tokens: Tensor, dtype: Dtype) -> Run:
        """Loss and gradients under jit, products in full precision."""
        with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
            leaves = [jnp.asarray(array).astype(dtype) for array in self._to_theirs(params).values()]
            tree = jax.tree_util.tree_unflatten(self._tree, leaves)
            pixels, ids = jnp.asarray(images).astype(dtype), jnp.asarray(tokens.astype(np.int32))
            grad = jax.jit(jax.value_and_grad(self._with_activations, has_aux=True))
            (loss, activations), grads = grad(tree, pixels, ids)
            by_path = {_path(path): _numpy(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]}
            named = {name: _numpy(value) for name, value in activations.items()}
        names = {entry.ours: entry.theirs for entry in self._table}
        return Run(_numpy(loss), named, self._to_ours(by_path), names)

    def _with_activations(self, tree: Any, images: Any, tokens: Any) -> tuple[Any, dict[str, Any]]:
        out = self._loss_fn(tree, images, tokens)
        loss, activations = out if isinstance(out, tuple) else (out, {})
        return jnp.reshape(loss, ()), activations

    def _to_theirs(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        arrays = {path: np.empty(leaf.shape, params["bias"].dtype) for path, leaf in self._leaves.items()}
        for entry in self._table:
            which, parts = entry.part
            arrays[entry.theirs].reshape(parts, -1)[which] = params[entry.ours].ravel()
        return arrays

    def _to_ours(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            e.ours: arrays[e.theirs].reshape(e.part[1], -1)[e.part[0]].reshape(shape)
            for shape, e in ((shapes(self.config)[e.ours], e) for e in self._table)
        }


def read_config(found: Mapping[str, Shape], image_size: tuple[int, int] | None, conventions: Conventions) -> Config:
    """Sizes as the shapes of the tree show them."""
    try:
        patch, _, _, width = found["img/embedding/kernel"]
        patches = found["img/pos_embedding"][1]
        vocabulary, _ = found["txt/Embed_0/embedding"]
        length = found["txt/pos_embedding"][1]
        towers = [_tower(found, encoder) for encoder in ENCODERS.values()]
    except (KeyError, ValueError) as error:
        raise UsageError(
            expected="a tree in big_vision's layout: img/embedding/kernel (p, p, 3, W), img/Transformer/..., txt/...",
            got=f"{error} in a tree of {', '.join(sorted(found)[:4])} ...",
            cause="another layout, or another model",
            repair="write an Adapter for this tree: examples/ has one",
        ) from error
    side = math.isqrt(patches) * patch
    return Config(
        f"{width} wide, {towers[0].depth} + {towers[1].depth} blocks",
        towers[0],
        towers[1],
        image_size or (side, side),
        patch,
        vocabulary,
        length,
        text_head="txt/head/kernel" in found,
        conventions=conventions,
    )


def _tower(found: Mapping[str, Shape], encoder: str) -> Tower:
    stacked = f"{encoder}/encoderblock/{MLP}/Dense_0/kernel" in found
    blocks = {path.split("/")[2] for path in found if path.startswith(f"{encoder}/encoderblock")}
    first = "encoderblock" if stacked else "encoderblock_0"
    width, heads, _ = found[f"{encoder}/{first}/{ATTENTION}/query/kernel"][-3:]
    hidden = found[f"{encoder}/{first}/{MLP}/Dense_0/kernel"]
    return Tower(width, hidden[0] if stacked else len(blocks), hidden[-1], heads)


def table(cfg: Config, found: Mapping[str, Shape]) -> Table:
    """Our names and those of big_vision. Source: big_vision models/vit.py, models/proj/image_text/*.py (2025-05).

    `found` only says, for each tower, whether its blocks are stacked on a leading axis.
    """
    ours = shapes(cfg)
    return tuple(_with_shape(entry, ours[entry.ours], cfg) for entry in _entries(cfg, found))


def _with_shape(entry: Entry, ours: Shape, cfg: Config) -> Entry:
    """The entry with the shape of their tensor: attention is split into heads, stacked blocks have a leading axis."""
    heads = (cfg.image if entry.ours.startswith("image") else cfg.text).heads
    part = entry.ours.split("/attn/")[-1]
    width = ours[0] if ours else 0
    if entry.ours == "image/patch/kernel":
        ours = (cfg.patch, cfg.patch, 3, ours[1])
    elif part in ("q/kernel", "k/kernel", "v/kernel"):
        ours = (width, heads, width // heads)
    elif part in ("q/bias", "k/bias", "v/bias"):
        ours = (heads, width // heads)
    elif part == "out/kernel" and "/attn/" in entry.ours:
        ours = (heads, width // heads, width)
    elif entry.part[1] == 1 and "/attn/" not in entry.ours:
        return entry  # as ours, up to axes of length 1
    stacked = "encoderblock/" in entry.theirs
    return replace(entry, shape=(entry.part[1], *ours) if stacked else ours)


def _entries(cfg: Config, found: Mapping[str, Shape]) -> Iterator[Entry]:
    yield Entry("image/patch/kernel", "img/embedding/kernel")
    yield Entry("image/patch/bias", "img/embedding/bias")
    yield Entry("image/position", "img/pos_embedding")
    yield Entry("text/token", "txt/Embed_0/embedding")
    yield Entry("text/position", "txt/pos_embedding")
    for tower, depth in (("image", cfg.image.depth), ("text", cfg.text.depth)):
        encoder = ENCODERS[tower]
        stacked = f"{encoder}/encoderblock/LayerNorm_0/scale" in found
        for i in range(depth):
            block = f"{encoder}/encoderblock" + ("" if stacked else f"_{i}")
            ours, part = f"{tower}/block{i:02d}", (i, depth) if stacked else (0, 1)
            yield from _norm(f"{ours}/norm1", f"{block}/LayerNorm_0", part)
            yield from _attention(f"{ours}/attn", f"{block}/{ATTENTION}", part)
            yield from _norm(f"{ours}/norm2", f"{block}/LayerNorm_1", part)
            yield from _mlp(f"{ours}/mlp", f"{block}/{MLP}", part)
        yield from _norm(f"{tower}/norm", f"{encoder}/encoder_norm")
    yield Entry("image/pool/probe", "img/MAPHead_0/probe")
    yield from _attention("image/pool/attn", f"img/MAPHead_0/{ATTENTION}")
    yield from _norm("image/pool/norm", "img/MAPHead_0/LayerNorm_0")
    yield from _mlp("image/pool/mlp", f"img/MAPHead_0/{MLP}")
    if cfg.text_head:
        yield from _dense("text/head", "txt/head")
    yield Entry("log_scale", "t")
    yield Entry("bias", "b")


Part = tuple[int, int]


def _dense(ours: str, theirs: str, part: Part = (0, 1)) -> Iterator[Entry]:
    yield Entry(f"{ours}/kernel", f"{theirs}/kernel", part=part)
    yield Entry(f"{ours}/bias", f"{theirs}/bias", part=part)


def _norm(ours: str, theirs: str, part: Part = (0, 1)) -> Iterator[Entry]:
    yield Entry(f"{ours}/gamma", f"{theirs}/scale", part=part)
    yield Entry(f"{ours}/beta", f"{theirs}/bias", part=part)


def _attention(ours: str, theirs: str, part: Part = (0, 1)) -> Iterator[Entry]:
    for short, long in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
        yield from _dense(f"{ours}/{short}", f"{theirs}/{long}", part)


def _mlp(ours: str, theirs: str, part: Part = (0, 1)) -> Iterator[Entry]:
    yield from _dense(f"{ours}/in", f"{theirs}/Dense_0", part)
    yield from _dense(f"{ours}/out", f"{theirs}/Dense_1", part)


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in keys)


def _prefix(found: Mapping[str, Shape]) -> str:
    return "params/" if all(path.startswith("params/") for path in found) else ""


def _plain(found: Mapping[str, Shape]) -> dict[str, Shape]:
    return {path.removeprefix(_prefix(found)): shape for path, shape in found.items()}


def _numpy(values: Any) -> Tensor:
    array = np.asarray(values)
    return array if array.dtype == np.float64 else np.asarray(array, np.float32)
