# timm: an attention pool of one's own, whose MLP has lost its skip connection.
import fake_tv; fake_tv.install()
import torch, timm
from timm.layers import AttentionPoolLatent

class Pool(AttentionPoolLatent):
    def forward(self, x, attn_mask=None):
        B, N, C = x.shape
        q = self.q(self.latent.expand(B, -1, -1)).reshape(B, self.latent_len, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(x).reshape(B, N, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.proj(x.transpose(1, 2).reshape(B, self.latent_len, C))
        return self.mlp(self.norm(x))[:, 0]

def check():
    import siglip_ref as sr
    torch.manual_seed(0)
    m = timm.create_model("vit_base_patch16_siglip_224", embed_dim=48, depth=2, num_heads=4, img_size=32, num_classes=0).eval()
    m.attn_pool.__class__ = Pool
    return sr.check_model(m)
