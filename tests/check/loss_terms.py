"""The loss as a sum of terms that can be missing, or counted twice: blocks of ranks, positives and negatives apart."""

from dataclasses import dataclass

import numpy as np

from siglip_ref.ops.elementary import sigmoid, softplus


@dataclass(frozen=True)
class Term:
    """One block's positives or negatives. tensors: its part of each tensor, in that tensor's shape, divided by B;
    against_zeros: the same where the texts are zeros, as in a receive buffer that was never filled."""

    key: tuple
    tensors: dict
    against_zeros: dict


def loss_terms(probe, convention, sizes):
    """All terms; they sum up to the loss and its gradients.

    Parameters
    ----------
    sizes : pairs of each rank; for one process any one number
    """
    scale = probe.scale if convention.linear else np.exp(probe.log_scale)
    (x, back_x), (y, back_y) = convention.unit(probe.image_embed), convention.unit(probe.text_embed)
    pairs = len(x)
    similarity = x @ y.T
    logits = scale * similarity + probe.bias
    match = np.eye(pairs, dtype=bool)
    losses = softplus(np.where(match, -logits, logits)) / pairs
    slopes = np.where(match, -sigmoid(-logits), sigmoid(logits)) / pairs
    rank_of = np.repeat(np.arange(len(sizes)), sizes) if len(sizes) > 1 else np.zeros(pairs, int)
    of_scale = 1.0 if convention.linear else scale
    terms = []
    for images in range(len(sizes)):
        for texts in range(len(sizes)):
            block = (rank_of[:, None] == images) & (rank_of == texts)
            for positive in (True, False) if images == texts else (False,):
                mask = block & (match == positive)
                slope = np.where(mask, slopes, 0)
                tensors = {
                    "loss": np.where(mask, losses, 0).sum(),
                    "image_embed": back_x(scale * (slope @ y)),
                    "text_embed": back_y(scale * (slope.T @ x)),
                    convention.scale_name: of_scale * (slope * similarity).sum(),
                    "bias": slope.sum(),
                }
                met = mask / pairs * sigmoid(np.array(probe.bias))  # slopes, where texts are zeros
                zeros = {
                    "loss": mask.sum() / pairs * softplus(np.array(probe.bias)),
                    "text_embed": back_y(scale * (met.T @ x)),
                    "bias": met.sum(),
                }
                terms.append(Term((images, texts, positive), tensors, zeros))
    return terms
