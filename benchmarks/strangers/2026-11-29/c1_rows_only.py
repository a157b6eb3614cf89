import torch, torch.nn.functional as F
def clip_loss(image_features, text_features, logit_scale):
    logits_per_image = logit_scale.exp() * image_features @ text_features.t()
    labels = torch.arange(len(logits_per_image), device=image_features.device)
    return F.cross_entropy(logits_per_image, labels)
def check():
    import siglip_ref as sr
    return sr.check_loss(clip_loss, loss="softmax")
