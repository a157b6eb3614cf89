"""The specification as one record: the operations and what is made of them; and whose operations a caller means."""

from dataclasses import replace
from types import ModuleType

from siglip_ref import ops as operations
from siglip_ref.errors import UsageError
from siglip_ref.model.encoder import block_backward, block_forward, encoder_backward, encoder_forward
from siglip_ref.model.image import image_tower_backward, image_tower_forward
from siglip_ref.model.naflex import naflex_tower_backward, naflex_tower_forward
from siglip_ref.model.optim import adamw_step
from siglip_ref.model.text import text_tower_backward, text_tower_forward
from siglip_ref.ops.record import Ops, Pair
from siglip_ref.ops.reproducible import blocks, tally

SPECIFICATION = replace(
    operations.OPERATIONS,
    block=Pair(block_forward, block_backward),
    encoder=Pair(encoder_forward, encoder_backward),
    image_tower=Pair(image_tower_forward, image_tower_backward),
    naflex_tower=Pair(naflex_tower_forward, naflex_tower_backward),
    text_tower=Pair(text_tower_forward, text_tower_backward),
    meet=blocks.meet,
    total=tally.total,
    adamw_step=adamw_step,
)


def chosen(ops: Ops | ModuleType | None) -> Ops:
    """The operations that a caller means: a record, `siglip_ref.ops` or `siglip_ref.fast`; None: the specification.

    >>> from siglip_ref import ops
    >>> chosen(None) is chosen(ops) is SPECIFICATION
    True
    """
    found = SPECIFICATION if ops is None or ops is operations else getattr(ops, "OPS", ops)
    if not isinstance(found, Ops):
        raise UsageError(
            expected="ops=siglip_ref.ops, ops=siglip_ref.fast, or a record siglip_ref.ops.record.Ops",
            got=repr(ops),
            cause="operations are swapped as a whole record, not as a namespace of some functions",
            repair="dataclasses.replace(siglip_ref.model.specification.SPECIFICATION, pair_block=...)",
        )
    return found
