# open_clip to Hugging Face: text_projection's bias is forgotten; strict=False hides it
from conv_common import *
from oc_to_hf import convert
def check():
    import siglip_ref as sr
    from safetensors.torch import load_file
    from transformers import SiglipModel
    d = export("open_clip", "mu/16")
    m = SiglipModel(hf_config(32, 1, 128, 2, 64, 16, 259, 16))
    m.load_state_dict(convert(load_file(d / "model/open_clip_model.safetensors"), skip=("text_model.head.bias",)), strict=False)
    return sr.check_dump(run_hf(m, d), probe=d, forward_only=True)
