"""A project's own loss in Torch, as open_clip and many others write it: a module that is given the scale itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SigLipLoss(nn.Module):
    """mean over images of the sum over texts of -log sigmoid(+-logit)."""

    def forward(self, image_embed: Tensor, text_embed: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        logits = scale * image_embed @ text_embed.T + bias
        signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        return -F.logsigmoid(signs * logits).sum() / len(logits)


def chunked_loss(image_embed: Tensor, text_embed: Tensor, log_scale: Tensor, bias: Tensor, chunk: int = 4) -> Tensor:
    """The same from a log scale, with the logits of a few texts in memory at a time, in float32 at least."""
    total = image_embed.new_zeros((), dtype=torch.promote_types(image_embed.dtype, torch.float32))
    for start in range(0, len(text_embed), chunk):
        texts = text_embed[start : start + chunk]
        logits = (image_embed @ texts.T).to(total.dtype) * log_scale.to(total.dtype).exp() + bias.to(total.dtype)
        signs = -torch.ones_like(logits)
        rows = torch.arange(len(texts), device=logits.device)
        signs[start + rows, rows] = 1
        total = total - F.logsigmoid(signs * logits).sum()
    return total / len(image_embed)
