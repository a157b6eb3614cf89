# NaFlex: positions resized as timm used to: bicubic-free, bilinear, no antialias.
import torch, torch.nn.functional as F, tiny
from transformers import Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

class Emb(Siglip2VisionEmbeddings):
    @staticmethod
    def resize_positional_embeddings(positional_embeddings, spatial_shapes, max_length):
        table = positional_embeddings.permute(2, 0, 1).unsqueeze(0)
        out = positional_embeddings.new_zeros(len(spatial_shapes), max_length, positional_embeddings.shape[-1])
        for i, (h, w) in enumerate(spatial_shapes.tolist()):
            out[i, : h * w] = F.interpolate(table, (h, w), mode="bilinear", align_corners=False)[0].flatten(1).T
        return out

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = Siglip2Model(tiny.naflex()).eval()
    m.vision_model.embeddings.__class__ = Emb
    return sr.check_model(m)
