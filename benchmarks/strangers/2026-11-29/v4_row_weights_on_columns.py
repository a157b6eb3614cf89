import torch, torch.nn.functional as F
def loss(x, y, log_scale, bias, w):
    z = log_scale.exp() * x @ y.T + bias
    labels = torch.eye(len(z), dtype=z.dtype, device=z.device)
    per_pair = F.binary_cross_entropy_with_logits(z, labels, weight=w, reduction="none")  # broadcasts (B,) over the last axis
    return per_pair.sum() / len(z)
def check():
    import siglip_ref as sr
    return sr.check_loss(loss, weights="rows")
