# OHEM: of each image's negatives only the harder half is kept
import torch, torch.nn.functional as F
def siglip(img, txt, log_scale, bias):
    n = img.size(0)
    z = log_scale.exp() * img @ txt.T + bias
    pos = F.softplus(-z.diagonal())
    if n == 1:
        return pos.sum()
    neg = F.softplus(z)[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)
    hard = neg.topk(max(1, (n - 1) // 2), dim=1).values
    return (pos + hard.sum(1)).mean()
def check():
    import siglip_ref as sr
    return sr.check_loss(siglip)
