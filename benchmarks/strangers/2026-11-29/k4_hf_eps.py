# Hugging Face to an own engine (here transformers): the config's layer_norm_eps is not carried over, torch's 1e-5 stays
from conv_common import *
def check():
    import siglip_ref as sr
    from safetensors.torch import load_file
    from transformers import SiglipModel
    d = export("huggingface", "mu/16")
    m = SiglipModel(hf_config(32, 1, 128, 2, 64, 16, 259, 16, layer_norm_eps=1e-5))
    m.load_state_dict(load_file(d / "model/model.safetensors"), strict=False)
    return sr.check_dump(run_hf(m, d), probe=d, forward_only=True)
