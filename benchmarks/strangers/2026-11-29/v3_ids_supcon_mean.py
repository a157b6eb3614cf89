# ids: positives averaged over their number in the row, as SupCon has it
import torch, torch.nn.functional as F
def loss(x, y, log_scale, bias, ids):
    z = log_scale.exp() * x @ y.T + bias
    same = (ids[:, None] == ids[None, :]).to(z.dtype)
    pos = (same * F.softplus(-z)).sum(1) / same.sum(1)
    neg = ((1 - same) * F.softplus(z)).sum(1)
    return (pos + neg).mean()
def check():
    import siglip_ref as sr
    return sr.check_loss(loss, positives="ids")
