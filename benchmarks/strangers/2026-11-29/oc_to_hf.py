"""open_clip's safetensors (timm trunk) to a SiglipModel."""
import torch
def convert(z, text_qkv=lambda w: w.chunk(3), skip=()):
    sd = {}
    def wb(dst, src):
        for n in "weight", "bias":
            sd[f"{dst}.{n}"] = z[f"{src}.{n}"]
    for side, src, dst, names in (("v", "visual.trunk.blocks.0", "vision_model.encoder.layers.0", ("attn.qkv.", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")), ("t", "text.transformer.resblocks.0", "text_model.encoder.layers.0", ("attn.in_proj_", "attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"))):
        for kind in "weight", "bias":
            f = text_qkv if side == "t" else (lambda w: w.chunk(3))
            for n, part in zip("qkv", f(z[f"{src}.{names[0]}{kind}"])):
                sd[f"{dst}.self_attn.{n}_proj.{kind}"] = part.contiguous()
        for a, b in zip(("self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"), names[1:]):
            wb(f"{dst}.{a}", f"{src}.{b}")
    wb("vision_model.embeddings.patch_embedding", "visual.trunk.patch_embed.proj")
    sd["vision_model.embeddings.position_embedding.weight"] = z["visual.trunk.pos_embed"][0]
    wb("vision_model.post_layernorm", "visual.trunk.norm")
    p = "visual.trunk.attn_pool."
    sd["vision_model.head.probe"] = z[p + "latent"]
    for n in "weight", "bias":
        sd["vision_model.head.attention.in_proj_" + n] = torch.cat([z[p + "q." + n], z[p + "kv." + n]])
    for a, b in (("attention.out_proj", "proj"), ("layernorm", "norm"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
        wb("vision_model.head." + a, p + b)
    sd["text_model.embeddings.token_embedding.weight"] = z["text.token_embedding.weight"]
    sd["text_model.embeddings.position_embedding.weight"] = z["text.positional_embedding"]
    wb("text_model.final_layer_norm", "text.ln_final"); wb("text_model.head", "text.text_projection")
    sd["logit_scale"], sd["logit_bias"] = z["logit_scale"], z["logit_bias"]
    return {k: v for k, v in sd.items() if k not in skip}
