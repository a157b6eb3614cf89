# Text tower with is_causal=True, a habit of CLIP.
import torch, torch.nn as nn, torch.nn.functional as F, tiny
from transformers import SiglipTextModel

class CausalAttention(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.heads = a.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = a.q_proj, a.k_proj, a.v_proj, a.out_proj
    def forward(self, hidden_states, attention_mask=None, **kw):
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        o = F.scaled_dot_product_attention(split(self.q_proj(hidden_states)), split(self.k_proj(hidden_states)), split(self.v_proj(hidden_states)), is_causal=True)
        return self.out_proj(o.transpose(1, 2).flatten(2)), None

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = SiglipTextModel(tiny.text()).eval()
    for layer in m.encoder.layers:
        layer.self_attn = CausalAttention(layer.self_attn)
    return sr.check_model(m)
