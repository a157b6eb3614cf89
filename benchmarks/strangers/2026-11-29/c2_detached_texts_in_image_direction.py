# "keys" are constant, as in MoCo: each direction trains its own side only
import torch, torch.nn.functional as F
def loss(q, k, logit_scale):
    n = torch.arange(q.shape[0])
    t = logit_scale.exp()
    i2t = t * q @ k.detach().T
    t2i = t * k @ q.detach().T
    return (F.cross_entropy(i2t, n) + F.cross_entropy(t2i, n)) / 2
def check():
    import siglip_ref as sr
    return sr.check_loss(loss, loss="softmax")
