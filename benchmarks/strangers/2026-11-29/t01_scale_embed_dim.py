# A re-implementation of the attention for SiglipVisionModel ("flattened heads").
import torch, torch.nn as nn, tiny
from transformers import SiglipVisionModel

class FlatAttention(nn.Module):
    def __init__(self, old):
        super().__init__()
        self.num_heads, self.head_dim = old.num_heads, old.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = old.q_proj, old.k_proj, old.v_proj, old.out_proj
        self.scale = old.embed_dim ** -0.5
    def forward(self, hidden_states, attention_mask=None, **kw):
        b, n, c = hidden_states.shape
        q, k, v = (p(hidden_states).reshape(b, n, self.num_heads, self.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        w = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        return self.out_proj((w @ v).transpose(1, 2).reshape(b, n, c)), w

def build():
    torch.manual_seed(0)
    m = SiglipVisionModel(tiny.vision()).eval()
    for layer in m.encoder.layers:
        layer.self_attn = FlatAttention(layer.self_attn)
    return m

def check():
    import siglip_ref as sr
    return sr.check_model(build())
