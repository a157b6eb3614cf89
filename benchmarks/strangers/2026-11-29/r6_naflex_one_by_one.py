# NaFlex without masks: each image alone, with its own patches, padded afterwards
import torch, torch.nn.functional as F, tiny
from transformers import Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
class V(Siglip2VisionModel):
    def forward(self, pixel_values, pixel_attention_mask, spatial_shapes, **kw):
        e = self.embeddings(pixel_values, spatial_shapes)
        h, pooled = [], []
        for x, mask in zip(e, pixel_attention_mask):
            n = int(mask.sum())
            y = x[None, :n]
            for layer in self.encoder.layers:
                y = layer(y, None)
            y = self.post_layernorm(y)
            pooled.append(self.head(y)[0])
            h.append(F.pad(y[0], (0, 0, 0, len(x) - n)))
        return BaseModelOutputWithPooling(last_hidden_state=torch.stack(h), pooler_output=torch.stack(pooled))
def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = Siglip2Model(tiny.naflex()).eval()
    m.vision_model.__class__ = V
    return sr.check_model(m)
