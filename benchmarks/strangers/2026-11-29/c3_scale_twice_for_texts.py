import torch
from torch import nn
def contrastive(img, txt, log_scale):
    scale = log_scale.exp()
    logits_per_image = scale * img @ txt.T
    logits_per_text = scale * logits_per_image.T
    target = torch.arange(img.size(0))
    ce = nn.CrossEntropyLoss()
    return 0.5 * (ce(logits_per_image, target) + ce(logits_per_text, target))
def check():
    import siglip_ref as sr
    return sr.check_loss(contrastive, loss="softmax")
