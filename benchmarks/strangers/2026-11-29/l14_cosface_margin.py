# margin 0.2 taken off the matching cosine, as CosFace does
import torch, torch.nn.functional as F
def siglip(img, txt, log_scale, bias, m=0.2):
    cos = img @ txt.T
    cos = cos - m * torch.eye(len(cos), dtype=cos.dtype)
    z = log_scale.exp() * cos + bias
    y = 2 * torch.eye(len(cos), dtype=cos.dtype) - 1
    return -F.logsigmoid(y * z).sum() / len(cos)
def check():
    import siglip_ref as sr
    return sr.check_loss(siglip)
