# timm attention written with a fused einsum, qkv unpacked in the order k, q, v.
import fake_tv; fake_tv.install()
import torch, timm
from timm.layers.attention import Attention


class EinopsAttention(Attention):
    def forward(self, x, attn_mask=None, is_causal=False):
        B, N, C = x.shape; k, q, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        w = (torch.einsum("bhid,bhjd->bhij", q, k) * self.scale).softmax(-1)
        return self.proj((w @ v).transpose(1, 2).reshape(B, N, C))

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = timm.create_model("vit_base_patch16_siglip_224", embed_dim=48, depth=2, num_heads=4, img_size=32, num_classes=0).eval()
    for b in m.blocks:
        b.attn.__class__ = EinopsAttention
    return sr.check_model(m)
