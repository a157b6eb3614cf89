# NaFlex: own attention, whose mask lies on the queries' axis instead of the keys'.
import torch, torch.nn as nn, tiny
from transformers import Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

class Vision(Siglip2VisionModel):
    def forward(self, pixel_values, pixel_attention_mask, spatial_shapes, **kw):
        h = self.embeddings(pixel_values, spatial_shapes)
        bias = torch.zeros(len(h), 1, h.shape[1], h.shape[1], dtype=h.dtype)
        bias = bias.masked_fill(pixel_attention_mask[:, None, :, None] == 0, torch.finfo(h.dtype).min)
        for layer in self.encoder.layers:
            h = layer(h, bias)
        h = self.post_layernorm(h)
        return BaseModelOutputWithPooling(last_hidden_state=h, pooler_output=self.head(h, pixel_attention_mask))

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = Siglip2Model(tiny.naflex()).eval()
    m.vision_model.__class__ = Vision
    return sr.check_model(m)
