"""Numba twins of the specification's operations: same names, same signatures, float32 and float64."""

from siglip_ref.fast.loss import pair_block, sigmoid_loss

__all__ = ["pair_block", "sigmoid_loss"]
