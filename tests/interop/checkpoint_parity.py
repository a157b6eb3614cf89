"""Is a checkpoint, once loaded, the very model that wrote it: weights, activations, every gradient?"""

import numpy as np
import torch

import siglip_ref as sr
from siglip_ref.check.model.adapters.find import adapter_for

TOLERANCE = 1e-11


def randomise(model):
    """Every parameter random, biases and norms too, so that no mix-up of two of them can go unseen; float64."""
    generator = torch.Generator().manual_seed(7)
    model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model


def inputs(cfg, batch=3):
    """Random images and tokens."""
    rng = np.random.default_rng(3)
    images = rng.uniform(-1, 1, (batch, *cfg.image_size, 3))
    return images, rng.integers(0, cfg.vocabulary, (batch, cfg.text_length))


def error(got, expected):
    """max |got - expected| / max |expected|."""
    assert np.shape(got) == np.shape(expected)
    return np.abs(got - expected).max() / np.abs(expected).max()


def require_parity(model, checkpoint):
    """The loaded weights are the model's own, and what we compute with them is what the model computes."""
    adapter = adapter_for(model)
    own = adapter.parameters("float64")
    assert own.keys() == checkpoint.params.keys()
    assert not [name for name in own if not np.array_equal(own[name], checkpoint.params[name])]
    cfg = checkpoint.config
    images, tokens = inputs(cfg)
    theirs = adapter.run(own, images, tokens, "float64")
    ours = sr.forward(checkpoint.params, images, tokens, cfg, activations=True).activations
    loss, grads = sr.loss_and_grads(checkpoint.params, images, tokens, cfg)
    assert error(loss, theirs.loss) <= TOLERANCE
    assert len(theirs.activations) >= 2 * (cfg.image.depth + cfg.text.depth) + 6
    assert grads.keys() == theirs.grads.keys()
    far = {name: error(ours[name], value) for name, value in theirs.activations.items()}
    for name, gradient in grads.items():
        if name.endswith("k/bias"):  # zero by structure: judged against its sister
            sister = np.abs(grads[name.replace("k/bias", "q/bias")]).max()
            far[name] = max(np.abs(gradient).max(), np.abs(theirs.grads[name]).max()) / sister
        else:
            far[name] = error(gradient, theirs.grads[name])
    assert not {name: e for name, e in far.items() if not e <= TOLERANCE}
