# NaFlex: spatial shapes are read as (width, height), as PIL's size is.
import torch, torch.nn.functional as F, tiny
from transformers import Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

class Emb(Siglip2VisionEmbeddings):
    def forward(self, pixel_values, spatial_shapes):
        x = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        n = self.position_embedding_size
        table = self.position_embedding.weight.T.reshape(1, -1, n, n)
        pos = []
        for width, height in spatial_shapes.tolist():
            p = F.interpolate(table, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
            pos.append(F.pad(p.flatten(2)[0].T, (0, 0, 0, x.shape[1] - height * width)))
        return x + torch.stack(pos)

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = Siglip2Model(tiny.naflex()).eval()
    m.vision_model.embeddings.__class__ = Emb
    return sr.check_model(m)
