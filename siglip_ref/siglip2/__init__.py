"""SigLIP 2's training recipe beside the sigmoid loss: captions, two distillations, curation; forward and backward.

Legend, besides that of `siglip_ref.ops`:
    T places of a caption, E width of the decoder, N patches, C width of the encoder, K prototypes of D numbers each,
    R local crops of an image, G examples to choose from.

An order of reading: average, token_loss, decoder, captions; distill, head, teacher; view; curation; objective.
What the paper does not publish has no default: `choices`, whose TABLE says what is published, what may be chosen, and
whose code chooses so. No training code of the authors is public.

Source: Tschannen et al. 2025 (SigLIP 2), arXiv 2502.14786; Wan et al. 2024 (LocCa); Tschannen et al. 2023 (CapPa);
Naeem et al. 2024 (SILC); Caron et al. 2021 (DINO); Zhou et al. 2022 (iBOT); Evans et al. 2024 (JEST).
"""

from dataclasses import fields

from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.record import Ops, Pair
from siglip_ref.siglip2 import (
    average,
    captions,
    curation,
    decoder,
    distill,
    head,
    procedures,
    teacher,
    token_loss,
    view,
)
from siglip_ref.siglip2 import objective as _objective
from siglip_ref.siglip2.captions import Target, box_numbers, target_of
from siglip_ref.siglip2.choices import TABLE, Captioning, Choices, Distillation, captioning, distillation, halved
from siglip_ref.siglip2.objective import Batch, Objective, Weights, weights_of
from siglip_ref.siglip2.record import Recipe
from siglip_ref.siglip2.teacher import Momentum, Teacher, momentum_at, teacher_of
from siglip_ref.siglip2.view import masks


def on(ops: Ops) -> Recipe:
    """The recipe on these operations: the specification's, or their twins.

    >>> from dataclasses import replace
    >>> on(replace(SPECIFICATION, softplus=abs)).softplus(-3.0)
    3.0
    """
    return Recipe(
        **{field.name: getattr(ops, field.name) for field in fields(Ops)},
        decoder_block=Pair(decoder.decoder_block_forward, decoder.decoder_block_backward),
        decoder=Pair(decoder.decoder_forward, decoder.decoder_backward),
        token_loss=Pair(token_loss.token_loss_forward, token_loss.token_loss_backward),
        average=Pair(average.average_forward, average.average_backward),
        caption_loss=Pair(captions.caption_loss_forward, captions.caption_loss_backward),
        prototypes=Pair(head.prototypes_forward, head.prototypes_backward),
        head=Pair(head.head_forward, head.head_backward),
        cross_entropy=Pair(distill.cross_entropy_forward, distill.cross_entropy_backward),
        mask_tokens=Pair(view.mask_tokens_forward, view.mask_tokens_backward),
        view=Pair(view.view_forward, view.view_backward),
        caption_inputs=captions.caption_inputs,
        centred=distill.centred,
        sinkhorn=distill.sinkhorn,
        centre_step=teacher.centre_step,
        ema_step=teacher.ema_step,
        momentum_at=teacher.momentum_at,
        after_step=teacher.after_step,
        pair_losses=curation.pair_losses,
        learnability=curation.learnability,
        choose=curation.choose,
        objective=_objective.objective,
        gathered=procedures.gathered,
        over_ranks=procedures.over_ranks,
        several_steps=procedures.several_steps,
    )


RECIPE = on(SPECIFICATION)

__all__ = [
    "RECIPE", "TABLE", "Batch", "Captioning", "Choices", "Distillation", "Momentum", "Objective", "Recipe", "Target",
    "Teacher", "Weights", "box_numbers", "captioning", "distillation", "halved", "masks", "momentum_at", "on",
    "target_of", "teacher_of", "weights_of",
]  # fmt: skip
