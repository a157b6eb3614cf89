# two: the bias is subtracted (a threshold), and the temperature divides without exp: logits = sim / (log_scale) is avoided by 1 + elu
import torch, torch.nn.functional as F
def siglip(img, txt, log_scale, bias):
    scale = 1 + F.elu(log_scale)
    z = scale * img @ txt.T - bias
    y = torch.eye(len(z), dtype=z.dtype)
    return -(y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)).sum() / len(z)
def check():
    import siglip_ref as sr
    return sr.check_loss(siglip)
