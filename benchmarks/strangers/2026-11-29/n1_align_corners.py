# NaFlex: positions resized with align_corners=True (and so without antialias, which torch refuses together? it does not).
import torch, torch.nn.functional as F, tiny
from transformers import Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

class Emb(Siglip2VisionEmbeddings):
    @staticmethod
    def resize_positional_embeddings(positional_embeddings, spatial_shapes, max_length):
        table = positional_embeddings.permute(2, 0, 1)[None]
        out = []
        for h, w in spatial_shapes.tolist():
            r = F.interpolate(table, size=(h, w), mode="bilinear", align_corners=True, antialias=True)[0].flatten(1).T
            out.append(torch.cat([r, r[:1].expand(max_length - h * w, -1)]))
        return torch.stack(out)

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = Siglip2Model(tiny.naflex()).eval()
    m.vision_model.embeddings.__class__ = Emb
    return sr.check_model(m)
