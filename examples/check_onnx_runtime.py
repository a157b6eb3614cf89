"""Check an engine without gradients, and its converter: a probe goes through transformers and ONNX into ONNX Runtime.

pip install -c constraints.txt -e ".[models,engines]"
python check_onnx_runtime.py        prints the report

With your own converter or engine, replace `answer`.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import SiglipModel

import siglip_ref as sr
from siglip_ref.check.files.probe_export import export_probe


class Towers(torch.nn.Module):
    """What a deployed model computes, and beside it the stream after every block."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, tokens):
        image = self.model.vision_model(pixel_values, output_hidden_states=True)
        text = self.model.text_model(tokens, output_hidden_states=True)
        unit = [out.pooler_output / out.pooler_output.norm(dim=-1, keepdim=True) for out in (image, text)]
        logits = self.model.logit_scale.exp() * unit[0] @ unit[1].T + self.model.logit_bias
        streams = (*image.hidden_states, image.last_hidden_state, *text.hidden_states, text.last_hidden_state)
        return (*streams, image.pooler_output, text.pooler_output, *unit, logits)


def names(depth):
    """As the report calls them."""
    streams = ["stem", *(f"block{block:02d}/+mlp" for block in range(depth)), "norm"]
    both = [f"{tower}/{stream}" for tower in ("image", "text") for stream in streams]
    return [*both, "image/pool", "text/head", "image/embed", "text/embed", "logits"]


def answer(probe):
    """Convert the probe's checkpoint, run it, write what came out."""
    model = SiglipModel.from_pretrained(probe / "model", attn_implementation="eager").eval()
    inputs = np.load(probe / "inputs.npz")
    given = {"pixel_values": inputs["pixel_values"], "tokens": inputs["tokens"]}
    outputs = names(model.config.vision_config.num_hidden_layers)
    example = tuple(torch.from_numpy(value) for value in given.values())
    with torch.no_grad():
        torch.onnx.export(
            Towers(model), example, probe / "model.onnx", input_names=list(given), output_names=outputs, dynamo=False
        )
    session = onnxruntime.InferenceSession(probe / "model.onnx", providers=["CPUExecutionProvider"])
    np.savez(probe / "answer.npz", **dict(zip(outputs, session.run(None, given), strict=True)))
    return probe / "answer.npz"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe"
        export_probe(probe, "mu/16", "huggingface")
        report = sr.check_dump(answer(probe), probe=probe, forward_only=True)
    print(report)
    report.raise_if_failed()
