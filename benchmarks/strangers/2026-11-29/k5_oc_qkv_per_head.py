# open_clip to Hugging Face: the text tower's in_proj is unpacked head by head, as Megatron and GPT-NeoX store it
from conv_common import *
from oc_to_hf import convert
def per_head(w, heads=2):
    w = w.reshape(heads, 3, -1, *w.shape[1:])
    return [w[:, i].flatten(0, 1) for i in range(3)]
def check():
    import siglip_ref as sr
    from safetensors.torch import load_file
    from transformers import SiglipModel
    d = export("open_clip", "mu/16")
    m = SiglipModel(hf_config(32, 1, 128, 2, 64, 16, 259, 16))
    m.load_state_dict(convert(load_file(d / "model/open_clip_model.safetensors"), text_qkv=per_head), strict=True)
    return sr.check_dump(run_hf(m, d), probe=d, forward_only=True)
