"""big_vision's .npz to a SiglipModel; two hooks where the converters differ."""
import numpy as np, torch
def convert(npz, patch=lambda k: k.transpose(3, 2, 0, 1), head_order=("query", "key", "value")):
    z = np.load(npz); T = lambda a: torch.from_numpy(np.ascontiguousarray(a)); sd = {}
    def dense(dst, src, inn):
        k = z[src + "/kernel"]; sd[dst + ".weight"] = T(k.reshape(inn, -1).T); sd[dst + ".bias"] = T(z[src + "/bias"].reshape(-1))
    def ln(dst, src):
        sd[dst + ".weight"], sd[dst + ".bias"] = T(z[src + "/scale"]), T(z[src + "/bias"])
    def block(dst, src, c):
        a = src + "/MultiHeadDotProductAttention_0"
        for n in "query", "key", "value":
            dense(f"{dst}.self_attn.{n[0]}_proj", f"{a}/{n}", c)
        dense(dst + ".self_attn.out_proj", a + "/out", c)
        ln(dst + ".layer_norm1", src + "/LayerNorm_0"); ln(dst + ".layer_norm2", src + "/LayerNorm_1")
        dense(dst + ".mlp.fc1", src + "/MlpBlock_0/Dense_0", c); dense(dst + ".mlp.fc2", src + "/MlpBlock_0/Dense_1", 4 * c)
    v, t, c = "vision_model.", "text_model.", 32
    sd[v + "embeddings.patch_embedding.weight"] = T(patch(z["img/embedding/kernel"])); sd[v + "embeddings.patch_embedding.bias"] = T(z["img/embedding/bias"])
    sd[v + "embeddings.position_embedding.weight"] = T(z["img/pos_embedding"][0])
    block(v + "encoder.layers.0", "img/Transformer/encoderblock_0", c); ln(v + "post_layernorm", "img/Transformer/encoder_norm")
    m = "img/MAPHead_0"; a = m + "/MultiHeadDotProductAttention_0"
    sd[v + "head.probe"] = T(z[m + "/probe"])
    sd[v + "head.attention.in_proj_weight"] = torch.cat([T(z[f"{a}/{n}/kernel"].reshape(c, c).T) for n in head_order])
    sd[v + "head.attention.in_proj_bias"] = torch.cat([T(z[f"{a}/{n}/bias"].reshape(-1)) for n in head_order])
    dense(v + "head.attention.out_proj", a + "/out", c); ln(v + "head.layernorm", m + "/LayerNorm_0")
    dense(v + "head.mlp.fc1", m + "/MlpBlock_0/Dense_0", c); dense(v + "head.mlp.fc2", m + "/MlpBlock_0/Dense_1", 4 * c)
    sd[t + "embeddings.token_embedding.weight"] = T(z["txt/Embed_0/embedding"]); sd[t + "embeddings.position_embedding.weight"] = T(z["txt/pos_embedding"][0])
    block(t + "encoder.layers.0", "txt/Encoder_0/encoderblock_0", c); ln(t + "final_layer_norm", "txt/Encoder_0/encoder_norm"); dense(t + "head", "txt/head", c)
    sd["logit_scale"], sd["logit_bias"] = T(z["t"]), T(z["b"])
    return sd
