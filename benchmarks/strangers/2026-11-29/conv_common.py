"""Exports the probe, runs a Hugging Face model, writes answer.npz. The converters are the programs'."""
import tempfile, pathlib, numpy as np, torch
def export(layout, size):
    from siglip_ref.check.files.probe_export import export_probe
    d = pathlib.Path(tempfile.mkdtemp()) / "probe"
    export_probe(d, size, layout)
    return d
def hf_config(width, depth, mlp, heads, image, patch, vocab, length, twidth=None, tmlp=None, theads=None, **kw):
    from transformers import SiglipConfig
    v = dict(hidden_size=width, num_hidden_layers=depth, intermediate_size=mlp, num_attention_heads=heads, image_size=image, patch_size=patch, **kw)
    t = dict(hidden_size=twidth or width, num_hidden_layers=depth, intermediate_size=tmlp or mlp, num_attention_heads=theads or heads, vocab_size=vocab, max_position_embeddings=length, projection_size=width, **kw)
    return SiglipConfig(text_config=t, vision_config=v)
def run_hf(model, probe):
    """Towers of a SiglipModel, stage by stage."""
    model = model.eval()
    inp = np.load(probe / "inputs.npz")
    out = {}
    with torch.no_grad():
        for side, tower, x in (("image", model.vision_model, inp["pixel_values"]), ("text", model.text_model, inp["tokens"])):
            y = tower(torch.from_numpy(x), output_hidden_states=True)
            out[f"{side}/stem"] = y.hidden_states[0]
            for i, h in enumerate(y.hidden_states[1:]):
                out[f"{side}/block{i:02d}/+mlp"] = h
            out[f"{side}/norm"] = y.last_hidden_state
            out["image/pool" if side == "image" else "text/head"] = y.pooler_output
            out[f"{side}/embed"] = y.pooler_output / y.pooler_output.norm(dim=-1, keepdim=True)
        out["logits"] = model.logit_scale.exp() * out["image/embed"] @ out["text/embed"].T + model.logit_bias
    np.savez(probe / "answer.npz", **{k: v.numpy() for k, v in out.items()})
    return probe / "answer.npz"
