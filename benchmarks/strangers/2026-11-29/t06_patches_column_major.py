# Patch embedding by unfold-and-matmul; the grid is flattened width first.
import torch, tiny
from transformers import SiglipVisionModel
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

class MatmulEmbeddings(SiglipVisionEmbeddings):
    def forward(self, pixel_values, interpolate_pos_encoding=False):
        p = self.patch_size
        x = pixel_values.unfold(2, p, p).unfold(3, p, p)          # B 3 gh gw p p
        x = x.permute(0, 3, 2, 1, 4, 5).flatten(3).flatten(1, 2)  # B gw*gh 3pp
        x = x @ self.patch_embedding.weight.flatten(1).T + self.patch_embedding.bias
        return x + self.position_embedding(self.position_ids)

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = SiglipVisionModel(tiny.vision()).eval()
    m.embeddings.__class__ = MatmulEmbeddings
    return sr.check_model(m, dtype="float64")
