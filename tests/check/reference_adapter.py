"""The reference itself behind the Adapter protocol, with a place to break it."""

from dataclasses import dataclass, field

import numpy as np

import siglip_ref as sr
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Run


def untouched(run):
    return run


@dataclass
class ReferenceAdapter:
    """Computes in NumPy; `spoil` changes the finished Run."""

    config: Config = field(default_factory=lambda: sr.config("tiny"))
    spoil: object = untouched
    own: dict | None = None
    name: str = "the reference itself"

    def parameters(self, dtype):
        return self.own or sr.init(self.config, dtype=np.float32)

    def run(self, params, images, tokens, dtype):
        kind = np.float64 if dtype == "float64" else np.float32  # more digits than asked for are welcome
        params = {name: value.astype(kind) for name, value in params.items()}
        images = images.astype(kind)
        values = sr.forward(params, images, tokens, self.config, activations=True).activations
        loss, grads = sr.loss_and_grads(params, images, tokens, self.config)
        return self.spoil(Run(loss, values, grads))
