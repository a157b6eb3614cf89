# no bias; the log scale is clamped to [0, log 100] as CLIP's training does with the parameter
import math, torch, torch.nn.functional as F
def loss(x, y, log_scale):
    s = log_scale.clamp(0, math.log(100)).exp()
    z = s * x @ y.T
    return -F.logsigmoid(z * (2 * torch.eye(len(z), dtype=z.dtype) - 1)).sum(1).mean()
def check():
    import siglip_ref as sr
    return sr.check_loss(loss, bias=None)
