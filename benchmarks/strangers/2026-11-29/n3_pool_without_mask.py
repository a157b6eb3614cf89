# NaFlex: the pooling head is SigLIP 1's, which knows no mask.
import torch, tiny
from transformers import Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2MultiheadAttentionPoolingHead

class Head(Siglip2MultiheadAttentionPoolingHead):
    def forward(self, hidden_state, attention_mask=None):
        probe = self.probe.repeat(hidden_state.shape[0], 1, 1)
        x = self.attention(probe, hidden_state, hidden_state, need_weights=False)[0]
        return (x + self.mlp(self.layernorm(x)))[:, 0]

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = Siglip2Model(tiny.naflex()).eval()
    m.vision_model.head.__class__ = Head
    return sr.check_model(m)
