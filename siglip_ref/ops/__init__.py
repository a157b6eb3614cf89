"""The specification: every operation of SigLIP as a forward/backward pair of plain NumPy functions.

Legend, used in every comment of this package:
    B batch, H heads, N tokens (M keys), C width, D embedding, V vocabulary, W ranks, b pairs a rank,
    h = C / H head size, P = patch * patch * 3 numbers in a patch, Bi images and Bt texts of a block.

No function names a dtype: it computes in the arithmetic of the arrays it is given (float64, float32, complex
step, balls, rounded numbers) and returns that same arithmetic. Nothing is written in place, nothing is conjugated.
A forward returns `out, cache`; its backward takes `d_out, cache`, and quotes the forward lines that it undoes.
"""

from siglip_ref.ops.attention import attention_backward, attention_forward
from siglip_ref.ops.elementary import erf, number, pi, sigmoid, softplus
from siglip_ref.ops.embedding import (
    patch_embed_backward,
    patch_embed_forward,
    position_backward,
    position_forward,
    token_embed_backward,
    token_embed_forward,
)
from siglip_ref.ops.gelu import gelu_backward, gelu_forward
from siglip_ref.ops.layer_norm import layer_norm_backward, layer_norm_forward
from siglip_ref.ops.linear import linear_backward, linear_forward
from siglip_ref.ops.map_head import map_head_backward, map_head_forward
from siglip_ref.ops.mlp import mlp_backward, mlp_forward
from siglip_ref.ops.normalize import normalize_backward, normalize_forward
from siglip_ref.ops.pair_block import pair_block
from siglip_ref.ops.pooling import pool_backward, pool_forward
from siglip_ref.ops.softmax import softmax_backward, softmax_forward
from siglip_ref.ops.softmax_loss import softmax_loss

__all__ = [
    "attention_backward",
    "attention_forward",
    "erf",
    "gelu_backward",
    "gelu_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_forward",
    "map_head_backward",
    "map_head_forward",
    "mlp_backward",
    "mlp_forward",
    "normalize_backward",
    "normalize_forward",
    "number",
    "pair_block",
    "patch_embed_backward",
    "patch_embed_forward",
    "pi",
    "pool_backward",
    "pool_forward",
    "position_backward",
    "position_forward",
    "sigmoid",
    "softmax_backward",
    "softmax_forward",
    "softmax_loss",
    "softplus",
    "token_embed_backward",
    "token_embed_forward",
]
