"""A JAX model whose parameters are a tree in big_vision's layout, with a loss_fn(params, images, tokens)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siglip_ref.architecture.conventions import PRESETS, Conventions
from siglip_ref.architecture.params import shapes
from siglip_ref.check.model.adapters import Dtype, Run
from siglip_ref.checkpoint.tables.big_vision import plain, prefix, read_config, table
from siglip_ref.checkpoint.tables.names import Tensor, require_match
from siglip_ref.errors import UsageError

_SMALL = 1e6  # parameters: what is compiled longer than it runs
_QUICKLY: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}


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
        self._compiled: Callable[..., Any] = loss_fn  # until it is traced
        self._text, self._traced = "", False
        if image_size is None:
            _require_square(plain(found))
        self.config = read_config(plain(found), image_size, conventions)
        above = prefix(found)
        self._table = tuple(replace(e, theirs=above + e.theirs) for e in table(self.config, plain(found)))
        require_match(self._table, found, self.config)

    def parameters(self, dtype: Dtype) -> dict[str, Tensor]:
        """The model's own weights, rounded to dtype."""
        with jax.enable_x64(True):
            return self._to_ours({path: _numpy(jnp.asarray(leaf).astype(dtype)) for path, leaf in self._leaves.items()})

    def run(self, params: Mapping[str, Tensor], images: Tensor, tokens: Tensor, dtype: Dtype) -> Run:
        """Loss and gradients under jit, products in full precision."""
        return self.runs([params], images, tokens, dtype)[0]

    def runs(self, points: Sequence[Mapping[str, Tensor]], images: Tensor, tokens: Tensor, dtype: Dtype) -> list[Run]:
        """The same at several weights, traced once: a loss that draws random numbers shows in the next call."""
        self._traced = False
        return [self.again(params, images, tokens, dtype) for params in points]

    def again(self, params: Mapping[str, Tensor], images: Tensor, tokens: Tensor, dtype: Dtype) -> Run:
        """A further run of a program that was seen to draw no random numbers: as it was traced last."""
        with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
            leaves = [jnp.asarray(array).astype(dtype) for array in self._to_theirs(params).values()]
            tree = jax.tree_util.tree_unflatten(self._tree, leaves)
            given = tree, jnp.asarray(images).astype(dtype), jnp.asarray(tokens.astype(np.int32))
            if not self._traced:
                self._compile(*given)
            (loss, activations), grads = self._compiled(*given)
            by_path = {_path(path): _numpy(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]}
            named = {name: _numpy(value) for name, value in activations.items()}
        names = {entry.ours: entry.theirs for entry in self._table}
        return Run(_numpy(loss), named, self._to_ours(by_path), names)

    def _compile(self, *given: Any) -> None:
        """Trace anew; compile, which takes seconds, only what is another program than the last: its text holds every
        number that was drawn while it was traced."""
        lowered = jax.jit(jax.value_and_grad(self._with_activations, has_aux=True)).lower(*given)
        if (text := lowered.as_text()) != self._text:
            small = sum(math.prod(leaf.shape) for leaf in self._leaves.values()) < _SMALL
            self._compiled, self._text = lowered.compile(_QUICKLY if small else None), text
        self._traced = True

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


def _require_square(found: Mapping[str, tuple[int, ...]]) -> None:
    """That the positions are those of square images, as is assumed where no image_size is given."""
    position, kernel = found.get("img/pos_embedding"), found.get("img/embedding/kernel")
    if position is None or kernel is None or len(kernel) != 4 or not position[-1]:
        return  # a tree of another layout, or of no fixed grid: it is said elsewhere
    patches, patch = math.prod(position) // position[-1], kernel[0]
    if math.isqrt(patches) ** 2 != patches:
        rows = max(n for n in range(1, math.isqrt(patches) + 1) if patches % n == 0)
        likely = rows * patch, patches // rows * patch
        raise UsageError(
            expected="image_size=(height, width), where images are not square",
            got=f"img/pos_embedding {position}: {patches} patches, which no square has, and no image_size",
            cause="rectangular images, of which the tree does not tell height from width",
            repair=f"BigVision(..., image_size={likely}), or the height and width that they really have",
        )


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in keys)


def _numpy(values: Any) -> Tensor:
    array = np.asarray(values)
    return array if array.dtype == np.float64 else np.asarray(array, np.float32)
