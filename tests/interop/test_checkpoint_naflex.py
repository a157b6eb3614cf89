"""SigLIP 2's variable resolution against transformers' Siglip2Model: every activation and gradient, on many shapes."""

import jax
import numpy as np
import pytest
import torch
from checkpoint_parity import TOLERANCE, error, randomise
from test_checkpoint_huggingface import naflex
from torch.nn.functional import interpolate
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

import siglip_ref as sr
from siglip_ref.architecture.params import shapes
from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.checkpoint.tables.huggingface import table
from siglip_ref.checkpoint.tables.names import to_ours
from siglip_ref.model.naflex import Patches
from siglip_ref.ops.embedding import position_resize_forward

ROOM = 30  # patches there is place for
# No grid here is a single column of several rows: torch 2.13's resize with antialias to width 1 gives every row the
# values of the first, on CPU. Against JAX, which does not, see the end.
GRIDS = {
    "small": [(5, 5), (3, 4), (1, 1)],
    "long": [(1, 30), (15, 2), (2, 15)],
    "larger than the table on one side": [(3, 10), (10, 3), (4, 6)],
    "full": [(6, 5), (5, 6), (5, 5)],
}


def positions_in_float64(table, spatial_shapes, max_length):
    """transformers' own function, but for its rounding of the table to float32 on every CPU."""
    image = table.permute(2, 0, 1)[None]
    rows = []
    for height, width in spatial_shapes.tolist():
        size = interpolate(image, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        flat = size.reshape(table.shape[-1], -1).T
        rows.append(torch.cat([flat, flat[:1].expand(max_length - len(flat), -1)]))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    place = tmp_path_factory.mktemp("naflex")
    model = randomise(naflex())
    model.set_attn_implementation("sdpa")  # eager attention rounds its softmax to float32
    model.save_pretrained(place)
    return model, load_checkpoint(place, np.float64)


def batch(grids, cfg):
    rng = np.random.default_rng(5)
    values = rng.standard_normal((len(grids), ROOM, cfg.patch * cfg.patch * 3))
    patches = Patches(values, np.array(grids))
    return Patches(np.where(patches.seen[..., None], values, 0), patches.grids), rng.integers(0, 40, (len(grids), 7))


def run(model, patches, tokens):
    """transformers' outputs, activations of the image tower, gradients by its names."""
    caught = {}
    encoder = model.vision_model.encoder.layers
    hooks = [model.vision_model.embeddings.register_forward_hook(lambda m, i, o: caught.__setitem__("stem", o))]
    for number, layer in enumerate(encoder):
        name = f"block{number:02d}"
        hooks.append(
            layer.layer_norm2.register_forward_pre_hook(lambda m, i, n=name: caught.__setitem__(n + "/+attn", i[0]))
        )
        hooks.append(layer.register_forward_hook(lambda m, i, o, n=name: caught.__setitem__(n + "/+mlp", o)))
    hooks.append(model.vision_model.post_layernorm.register_forward_hook(lambda m, i, o: caught.__setitem__("norm", o)))
    hooks.append(model.vision_model.head.register_forward_hook(lambda m, i, o: caught.__setitem__("pool", o)))
    values = torch.tensor(patches.values, requires_grad=True)
    model.zero_grad()
    try:
        out = model(
            input_ids=torch.tensor(tokens),
            pixel_values=values,
            pixel_attention_mask=torch.tensor(patches.seen.astype(np.int64)),
            spatial_shapes=torch.tensor(patches.grids),
            return_loss=True,
        )
        out.loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return out, caught, values.grad.numpy()


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_every_activation_and_gradient_agrees(loaded, monkeypatch, grids):
    monkeypatch.setattr(Siglip2VisionEmbeddings, "resize_positional_embeddings", staticmethod(positions_in_float64))
    model, checkpoint = loaded
    cfg, params = checkpoint.config, checkpoint.params
    patches, tokens = batch(grids, cfg)
    out, caught, d_values = run(model, patches, tokens)
    ours = sr.forward(params, patches, tokens, cfg, activations=True)
    assert error(ours.logits, out.logits_per_image.detach().numpy()) <= TOLERANCE
    assert len(caught) == 2 * cfg.image.depth + 3
    for name, theirs in caught.items():
        value, wanted = ours.activations[f"image/{name}"], theirs.detach().numpy()
        if value.ndim == 3:  # what stands in the padding is nobody's business
            value, wanted = value[patches.seen], wanted[patches.seen]
        assert error(value, wanted) <= TOLERANCE, name

    loss, grads = sr.loss_and_grads(params, patches, tokens, cfg, wrt=("params", "images"))
    assert error(loss, out.loss.detach().numpy()) <= TOLERANCE
    assert error(grads["images"], d_values) <= TOLERANCE
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    ours_shapes = shapes(cfg)
    for entry in table(cfg):
        wanted, got = to_ours(theirs[entry.theirs], entry, ours_shapes[entry.ours]), grads[entry.ours]
        if entry.ours.endswith("k/bias"):
            assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(grads[entry.ours.replace("k/bias", "q/bias")]).max()
        else:
            assert error(got, wanted) <= TOLERANCE, entry.ours


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_as_transformers_stands_the_table_is_rounded_to_float32(loaded, grids):
    model, checkpoint = loaded
    patches, tokens = batch(grids, checkpoint.config)
    out, _, _ = run(model, patches, tokens)
    ours = sr.forward(checkpoint.params, patches, tokens, checkpoint.config)
    assert error(ours.logits, out.logits_per_image.detach().numpy()) <= 3e-6


def test_what_stands_in_the_padding_changes_nothing(loaded):
    _, checkpoint = loaded
    cfg, params = checkpoint.config, checkpoint.params
    patches, tokens = batch(GRIDS["small"], cfg)
    noisy = Patches(np.where(patches.seen[..., None], patches.values, 9.0), patches.grids)
    first, second = (sr.loss_and_grads(params, p, tokens, cfg, wrt=("params", "images")) for p in (patches, noisy))
    assert first[0] == second[0]
    assert all(np.allclose(first[1][name], second[1][name], rtol=1e-12, atol=1e-14) for name in first[1])
    assert not second[1]["images"][~patches.seen].any()


@pytest.mark.parametrize("size", [(1, 1), (30, 1), (1, 30), (7, 1), (3, 4), (16, 16), (5, 40), (20, 12)])
def test_positions_as_jax_resizes_them(size):
    """big_vision's own way, in float64, single rows and columns included."""
    table = np.random.default_rng(8).standard_normal((16, 16, 3))
    ours = position_resize_forward(table, *size)[0].reshape(*size, 3)
    with jax.enable_x64(True):
        theirs = np.asarray(jax.image.resize(jax.numpy.asarray(table), (*size, 3), "linear", antialias=True))
    assert theirs.dtype == np.float64
    assert error(ours, theirs) <= 1e-14


def test_patches_that_do_not_fit_are_explained(loaded):
    _, checkpoint = loaded
    patches, tokens = batch(GRIDS["small"], checkpoint.config)
    wrong = [
        Patches(patches.values[:, :20], patches.grids),
        Patches(patches.values, patches.grids * 0),
        Patches(patches.values, patches.grids[:2]),
        Patches(patches.values[..., :-1], patches.grids),
        np.zeros((3, 10, 10, 3)),
    ]
    for bad in wrong:
        with pytest.raises(sr.UsageError, match="cuts an image"):
            sr.forward(checkpoint.params, bad, tokens, checkpoint.config)
