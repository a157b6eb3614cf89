# big_vision to Hugging Face: patch kernel by a plain .T, which exchanges rows and columns
from conv_common import *
from bv_to_hf import convert
def check():
    import siglip_ref as sr
    from transformers import SiglipModel
    d = export("big_vision", "mu/16")
    m = SiglipModel(hf_config(32, 1, 128, 2, 64, 16, 259, 16))
    m.load_state_dict(convert(d / "model.npz", patch=lambda k: k.T), strict=True)
    return sr.check_dump(run_hf(m, d), probe=d, forward_only=True)
