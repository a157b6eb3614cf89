import torch, torch.nn as nn, tiny
from transformers import SiglipVisionModel
class A(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.h = a.q_proj, a.k_proj, a.v_proj, a.out_proj, a.num_heads
    def forward(self, hidden_states, attention_mask=None, **kw):
        c = hidden_states.shape[-1]
        w = lambda p: p.weight.view(self.h, c // self.h, c)
        q = torch.einsum("bnc,hdc->hbnd", hidden_states, w(self.q_proj)) + self.q_proj.bias.view(self.h, 1, 1, -1)
        k = torch.einsum("bnc,hdc->hbdn", hidden_states, w(self.k_proj)) + self.k_proj.bias.view(self.h, 1, -1, 1)
        v = torch.einsum("bnc,hdc->hbnd", hidden_states, w(self.v_proj))
        p = torch.exp(s := q @ k * (c / self.h) ** -0.5 - 0.0)
        p = p / p.sum(-1, keepdim=True)
        o = torch.einsum("hbnd,chd->bnc", p @ v, self.out_proj.weight.view(c, self.h, -1))
        return o + (self.out_proj.weight @ self.v_proj.bias + self.out_proj.bias), None
def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = SiglipVisionModel(tiny.vision()).eval()
    for layer in m.encoder.layers:
        layer.self_attn = A(layer.self_attn)
    return sr.check_model(m)
