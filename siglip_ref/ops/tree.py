"""Weights are flat dicts with path-like names; these two functions walk them."""

from collections.abc import Mapping

from siglip_ref.ops.elementary import Array


def subtree(weights: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The entries under `prefix/`, named without it."""
    start = prefix + "/"
    return {name[len(start) :]: value for name, value in weights.items() if name.startswith(start)}


def prefixed(prefix: str, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The same entries named with `prefix/` before them."""
    return {f"{prefix}/{name}": value for name, value in weights.items()}
