"""Tiny configurations, shared."""
def vision():
    from transformers import SiglipVisionConfig
    return SiglipVisionConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
def text():
    from transformers import SiglipTextConfig
    return SiglipTextConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, max_position_embeddings=16, projection_size=48)
def naflex():
    from transformers import Siglip2Config
    t = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, max_position_embeddings=16, projection_size=48)
    v = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_patches=16, patch_size=4)
    return Siglip2Config(text_config=t, vision_config=v)
