# Vision tower as in CLIP: pool first, post_layernorm on the pooled vector.
import torch, tiny
from transformers import SiglipVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

class MyVisionTower(SiglipVisionModel):
    def forward(self, pixel_values, interpolate_pos_encoding=False, **kwargs):
        h = self.encoder(inputs_embeds=self.embeddings(pixel_values)).last_hidden_state
        pooled = self.post_layernorm(self.head(h))
        return BaseModelOutputWithPooling(last_hidden_state=h, pooler_output=pooled)

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    return sr.check_model(MyVisionTower(tiny.vision()).eval())
