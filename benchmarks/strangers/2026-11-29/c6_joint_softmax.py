# log_softmax over all pairs at once: dim=None in old code, flatten here
import torch
def loss(image_embed, text_embed, log_scale):
    logits = log_scale.exp() * (image_embed @ text_embed.T)
    rows = torch.log_softmax(logits, 1).diagonal()
    joint = torch.log_softmax(logits.flatten(), 0).view_as(logits).diagonal()
    return -(rows.mean() + joint.mean()) / 2
def check():
    import siglip_ref as sr
    return sr.check_loss(loss, loss="softmax")
