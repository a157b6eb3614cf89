"""The specification: every operation of SigLIP as a forward/backward pair of plain NumPy functions.

Legend, used in every comment of this package:
    B batch, H heads, N tokens (M keys), C width, D embedding, V vocabulary, W ranks, b pairs a rank,
    h = C / H head size, K columns of a bottleneck, P = patch * patch * 3 numbers in a patch, Bi images and Bt texts of
    a block.

No function names a dtype: it computes in the arithmetic of the arrays it is given (float64, float32, complex
step, balls, rounded numbers) and returns that same arithmetic. Nothing is written in place, nothing is conjugated.
A forward returns `out, cache`; its backward takes `d_out, cache`, and quotes the forward lines that it undoes.
A function of several parts asks its last parameter, the record `ops`, for them; the names below have them already.
"""

from collections.abc import Callable
from typing import TypeVar

from siglip_ref.ops import attention, embedding, gelu, map_head, mlp
from siglip_ref.ops import pair_block as _pair_block
from siglip_ref.ops import softmax_loss as _softmax_loss
from siglip_ref.ops.elementary import erf, number, pi, sigmoid, softplus
from siglip_ref.ops.embedding import (
    position_backward,
    position_forward,
    position_resize_backward,
    position_resize_forward,
    token_embed_backward,
    token_embed_forward,
)
from siglip_ref.ops.layer_norm import layer_norm_backward, layer_norm_forward
from siglip_ref.ops.linear import linear_backward, linear_forward
from siglip_ref.ops.normalize import normalize_backward, normalize_forward
from siglip_ref.ops.pooling import pool_backward, pool_forward
from siglip_ref.ops.record import Ops, Pair, bound
from siglip_ref.ops.sigmoid_loss import sigmoid_loss as _sigmoid_loss
from siglip_ref.ops.softmax import softmax_backward, softmax_forward

T = TypeVar("T")

OPERATIONS = Ops(
    softplus=softplus, sigmoid=sigmoid,
    linear=Pair(linear_forward, linear_backward), layer_norm=Pair(layer_norm_forward, layer_norm_backward),
    gelu=Pair(gelu.gelu_forward, gelu.gelu_backward),
    softmax=Pair(softmax_forward, softmax_backward),
    attention=Pair(attention.attention_forward, attention.attention_backward),
    mlp=Pair(mlp.mlp_forward, mlp.mlp_backward),
    token_embed=Pair(token_embed_forward, token_embed_backward),
    bottleneck=Pair(embedding.bottleneck_forward, embedding.bottleneck_backward),
    position=Pair(position_forward, position_backward),
    position_resize=Pair(position_resize_forward, position_resize_backward),
    patch_embed=Pair(embedding.patch_embed_forward, embedding.patch_embed_backward),
    pool=Pair(pool_forward, pool_backward),
    map_head=Pair(map_head.map_head_forward, map_head.map_head_backward),
    normalize=Pair(normalize_forward, normalize_backward),
    pair_block=_pair_block.pair_block, sigmoid_loss=_sigmoid_loss, softmax_loss=_softmax_loss.softmax_loss,
)  # fmt: skip


def _alone(function: Callable[..., T]) -> Callable[..., T]:
    """A function of several parts, called by itself: with those of the specification."""
    return bound(function, OPERATIONS)


attention_forward, attention_backward = _alone(attention.attention_forward), _alone(attention.attention_backward)
bottleneck_forward, bottleneck_backward = _alone(embedding.bottleneck_forward), _alone(embedding.bottleneck_backward)
gelu_forward, gelu_backward = _alone(gelu.gelu_forward), _alone(gelu.gelu_backward)
map_head_forward, map_head_backward = _alone(map_head.map_head_forward), _alone(map_head.map_head_backward)
mlp_forward, mlp_backward = _alone(mlp.mlp_forward), _alone(mlp.mlp_backward)
patch_embed_forward = _alone(embedding.patch_embed_forward)
patch_embed_backward = _alone(embedding.patch_embed_backward)
pair_block, softmax_loss = _alone(_pair_block.pair_block), _alone(_softmax_loss.softmax_loss)

__all__ = [
    "attention_backward", "attention_forward", "bottleneck_backward", "bottleneck_forward", "erf",
    "gelu_backward", "gelu_forward", "layer_norm_backward",
    "layer_norm_forward", "linear_backward", "linear_forward", "map_head_backward", "map_head_forward",
    "mlp_backward", "mlp_forward", "normalize_backward", "normalize_forward", "number", "pair_block",
    "patch_embed_backward", "patch_embed_forward", "pi", "pool_backward", "pool_forward", "position_backward",
    "position_forward", "position_resize_backward", "position_resize_forward", "sigmoid", "softmax_backward",
    "softmax_forward", "softmax_loss", "softplus", "token_embed_backward", "token_embed_forward",
]  # fmt: skip
