import torch, torch.nn.functional as F
class SigLipLoss(torch.nn.Module):
    def forward(self, image_features, text_features, logit_scale, logit_bias):
        logits = logit_scale.exp() * (image_features @ text_features.T + logit_bias)
        labels = -torch.ones_like(logits)
        labels.diagonal().fill_(1.0)
        return -F.logsigmoid(labels * logits).sum() / image_features.shape[0]
def check():
    import siglip_ref as sr
    return sr.check_loss(SigLipLoss())
