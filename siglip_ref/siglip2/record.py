"""The operations of SigLIP 2's recipe: those of SigLIP, and those of decoder, distillations and curation."""

from dataclasses import dataclass

from siglip_ref.ops.record import ABSENT, Function, Ops, Pair


@dataclass(frozen=True, repr=False, eq=False)
class Recipe(Ops):
    """A record of operations like any other: `replace(RECIPE, token_loss=other)` is felt by the whole objective.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from siglip_ref.siglip2 import RECIPE
    >>> other = replace(RECIPE, caption_inputs=lambda labels, *rest: labels)
    >>> other.objective is RECIPE.objective
    False
    """

    decoder_block: Pair = ABSENT
    decoder: Pair = ABSENT
    token_loss: Pair = ABSENT
    average: Pair = ABSENT
    caption_loss: Pair = ABSENT
    prototypes: Pair = ABSENT
    head: Pair = ABSENT
    cross_entropy: Pair = ABSENT
    mask_tokens: Pair = ABSENT
    view: Pair = ABSENT
    caption_inputs: Function = ABSENT.forward
    centred: Function = ABSENT.forward
    sinkhorn: Function = ABSENT.forward
    centre_step: Function = ABSENT.forward
    ema_step: Function = ABSENT.forward
    momentum_at: Function = ABSENT.forward
    after_step: Function = ABSENT.forward
    pair_losses: Function = ABSENT.forward
    learnability: Function = ABSENT.forward
    choose: Function = ABSENT.forward
    objective: Function = ABSENT.forward
    gathered: Function = ABSENT.forward
    over_ranks: Function = ABSENT.forward
    several_steps: Function = ABSENT.forward
