# Text tower: CLIP's pooling, at the highest token id (the end of text in CLIP's vocabulary).
import torch, tiny
from transformers import SiglipTextModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

class MyTextTower(SiglipTextModel):
    def forward(self, input_ids, attention_mask=None, position_ids=None, **kwargs):
        h = self.embeddings(input_ids=input_ids)
        for layer in self.encoder.layers:
            h = layer(h, None)
        h = self.final_layer_norm(h)
        pooled = h[torch.arange(len(h), device=h.device), input_ids.argmax(-1)]
        return BaseModelOutputWithPooling(last_hidden_state=h, pooler_output=self.head(pooled))

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    return sr.check_model(MyTextTower(tiny.text()).eval())
