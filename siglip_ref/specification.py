"""The specification as one record, in the order in which it is read; and whose operations a caller means."""

from types import ModuleType

from siglip_ref import reproducible, tally
from siglip_ref.errors import UsageError
from siglip_ref.ops import elementary
from siglip_ref.ops.attention import attention_backward, attention_forward
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
from siglip_ref.ops.position_resize import position_resize_backward, position_resize_forward
from siglip_ref.ops.sigmoid_loss import sigmoid_loss
from siglip_ref.ops.softmax import softmax_backward, softmax_forward
from siglip_ref.ops.softmax_loss import softmax_loss
from siglip_ref.optim import adamw_step
from siglip_ref.record import Ops, Pair
from siglip_ref.towers.encoder import block_backward, block_forward, encoder_backward, encoder_forward
from siglip_ref.towers.image import image_tower_backward, image_tower_forward
from siglip_ref.towers.naflex import naflex_tower_backward, naflex_tower_forward
from siglip_ref.towers.text import text_tower_backward, text_tower_forward

SPECIFICATION = Ops(
    softplus=elementary.softplus,
    sigmoid=elementary.sigmoid,
    linear=Pair(linear_forward, linear_backward),
    layer_norm=Pair(layer_norm_forward, layer_norm_backward),
    gelu=Pair(gelu_forward, gelu_backward),
    softmax=Pair(softmax_forward, softmax_backward),
    attention=Pair(attention_forward, attention_backward),
    mlp=Pair(mlp_forward, mlp_backward),
    token_embed=Pair(token_embed_forward, token_embed_backward),
    position=Pair(position_forward, position_backward),
    position_resize=Pair(position_resize_forward, position_resize_backward),
    patch_embed=Pair(patch_embed_forward, patch_embed_backward),
    pool=Pair(pool_forward, pool_backward),
    map_head=Pair(map_head_forward, map_head_backward),
    normalize=Pair(normalize_forward, normalize_backward),
    block=Pair(block_forward, block_backward),
    encoder=Pair(encoder_forward, encoder_backward),
    image_tower=Pair(image_tower_forward, image_tower_backward),
    naflex_tower=Pair(naflex_tower_forward, naflex_tower_backward),
    text_tower=Pair(text_tower_forward, text_tower_backward),
    pair_block=pair_block,
    sigmoid_loss=sigmoid_loss,
    softmax_loss=softmax_loss,
    meet=reproducible.meet,
    total=tally.total,
    adamw_step=adamw_step,
    name="siglip_ref.ops",
)


def chosen(ops: Ops | ModuleType | None) -> Ops:
    """The operations that a caller means: a record, `siglip_ref.ops` or `siglip_ref.fast`; None: the specification.

    >>> from siglip_ref import ops
    >>> chosen(None) is chosen(ops) is SPECIFICATION
    True
    """
    found = SPECIFICATION if ops is None else getattr(ops, "OPS", ops)
    if not isinstance(found, Ops):
        raise UsageError(
            expected="ops=siglip_ref.ops, ops=siglip_ref.fast, or a record siglip_ref.record.Ops",
            got=repr(ops),
            cause="operations are swapped as a whole record, not as a namespace of some functions",
            repair="dataclasses.replace(siglip_ref.ops.OPS, pair_block=...)",
        )
    return found
