"""keras-hub's SigLIP backbone, as installed, behind an adapter. Needs keras-hub and torch, KERAS_BACKEND=torch."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from keras_hub.models import SigLIPBackbone, SigLIPTextEncoder, SigLIPVisionEncoder

import siglip_ref as sr
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.check.model.adapters import Run

IMAGE, TEXT = Tower(width=10, depth=2, mlp=13, heads=2), Tower(width=12, depth=2, mlp=17, heads=3)
PARTS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "attention_output": "out",
    "fc1": "in",
    "fc2": "out",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "layernorm": "norm",
    "self_attn": "attn",
    "attention": "attn",
}
WHOLE = {
    "image": {
        "embedding/patch_embedding": "patch",
        "embedding/position_embedding/embeddings": "position",
        "post_layer_norm": "norm",
        "head/variable": "pool/probe",
        "head/": "pool/",
    },
    "text": {
        "embedding/token_embedding/embeddings": "token",
        "embedding/position_embedding/embeddings": "position",
        "post_layer_norm": "norm",
    },
}


def our_name(path: str, side: str) -> str:
    """Of a weight of a tower."""
    for theirs, ours in WHOLE[side].items():
        if path.startswith(theirs):
            path = ours + path.removeprefix(theirs)
            break
    parts = [PARTS.get(part, part) for part in path.split("/")]
    parts[0] = f"block{int(parts[0][14:]):02d}" if parts[0].startswith("encoder_block_") else parts[0]
    return "/".join([side, *parts])


@dataclass
class KerasHub:
    model: Any
    config: Config
    name: str = "keras-hub SigLIPBackbone"

    def table(self) -> dict[str, torch.Tensor]:
        towers = {"image": self.model.vision_encoder, "text": self.model.text_encoder}
        found = {our_name(w.path, side): w.value for side, tower in towers.items() for w in tower.trainable_weights}
        last = {w.path.split("/")[-1]: w.value for w in self.model.weights if "siglip_head" in w.path}
        return found | {"log_scale": last["logit_scale"], "bias": last["logit_bias"]}

    def parameters(self, dtype: str) -> dict[str, Any]:
        wanted = shapes(self.config)
        return {name: w.detach().numpy().reshape(wanted[name]).copy() for name, w in self.table().items()}

    def run(self, params: Any, images: Any, tokens: Any, dtype: str) -> Run:
        table, wanted = self.table(), shapes(self.config)
        with torch.no_grad():
            for name, w in table.items():
                w.copy_(torch.from_numpy(np.array(params[name])).reshape(w.shape))
                w.grad = None
        given = {"images": torch.from_numpy(np.array(images)).float(), "token_ids": torch.from_numpy(np.array(tokens))}
        logits = self.model(given)["vision_logits"]
        loss = -torch.nn.functional.logsigmoid((2 * torch.eye(len(logits)) - 1) * logits).sum() / len(logits)
        loss.backward()
        grads = {name: w.grad.numpy().reshape(wanted[name]).copy() for name, w in table.items()}
        return Run(loss.detach().numpy(), {"logits": logits.detach().numpy()}, grads)


def built() -> KerasHub:
    def sizes(tower: Tower) -> dict[str, int]:
        return dict(hidden_dim=tower.width, num_layers=tower.depth, num_heads=tower.heads, intermediate_dim=tower.mlp)

    vision = SigLIPVisionEncoder(patch_size=4, image_shape=(20, 20, 3), **sizes(IMAGE))
    text = SigLIPTextEncoder(
        vocabulary_size=29, embedding_dim=12, max_sequence_length=9, projection_dim=10, **sizes(TEXT)
    )
    cfg = Config("keras-hub, tiny", IMAGE, TEXT, (20, 20), 4, 29, 9)
    return KerasHub(SigLIPBackbone(vision_encoder=vision, text_encoder=text), cfg)


if __name__ == "__main__":
    report = sr.check_model(built())
    print(report)
    sys.exit(0 if report.passed else 1)
