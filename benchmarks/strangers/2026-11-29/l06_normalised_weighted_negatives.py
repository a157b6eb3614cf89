# weights of negatives: (1 + similarity of their captions), "soft" false negatives, without detach
import torch, torch.nn.functional as F
def siglip(img, txt, log_scale, bias):
    z = log_scale.exp() * img @ txt.T + bias
    n = len(z)
    sim = txt @ txt.T
    eye = torch.eye(n, dtype=torch.bool)
    w = torch.where(eye, torch.ones_like(sim), 1 - sim.clamp(min=0))
    y = 2 * eye.to(z.dtype) - 1
    return (w * F.softplus(-y * z)).sum() / n
def check():
    import siglip_ref as sr
    return sr.check_loss(siglip)
