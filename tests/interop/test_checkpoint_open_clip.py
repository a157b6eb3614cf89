"""Models that open_clip built and saved, loaded here."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_parity import randomise, require_parity
from no_torchvision import import_open_clip
from torch import nn

import siglip_ref as sr
from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.checkpoint.save import save_checkpoint, to_their_tensors
from siglip_ref.checkpoint.tables import open_clip as layout

open_clip, timm = import_open_clip()

VISION = {"timm_model_name": "vit_small_siglip", "timm_pool": "map", "timm_proj": "none", "image_size": 12}
TEXT = {"context_length": 9, "vocab_size": 29, "width": 12, "heads": 2, "layers": 2, "mlp_ratio": 1.42}
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}


@timm.models.register_model
def vit_small_siglip(pretrained=False, num_classes=0, global_pool="map", **others):
    """timm's class with heads of 64, as in the released models, and the GELU of any that is not in our list."""
    return timm.models.vision_transformer.VisionTransformer(
        img_size=12,
        patch_size=4,
        embed_dim=128,
        depth=2,
        num_heads=2,
        mlp_ratio=1.3,
        class_token=False,
        num_classes=num_classes,
        global_pool=global_pool,
        act_layer=lambda: nn.GELU(approximate="tanh"),
    )


def saved(path, **text):
    """A random model, its weights and its settings as open_clip's hub files have them."""
    torch.manual_seed(0)
    model = randomise(open_clip.CustomTextCLIP(128, VISION, TEXT | SIGLIP | text, init_logit_bias=-10))
    safetensors.torch.save_file(model.state_dict(), path / "open_clip_model.safetensors")
    settings = {"model_cfg": {"embed_dim": 128, "vision_cfg": VISION, "text_cfg": TEXT | SIGLIP | text}}
    (path / "open_clip_config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("text", [{}, {"act_kwargs": {"approximate": "tanh"}}, {"norm_kwargs": {"eps": 1e-3}}])
def test_a_saved_model_is_the_same_here(tmp_path, text):
    model = saved(tmp_path, **text)
    require_parity(model, load_checkpoint(tmp_path, np.float64))


def test_a_training_checkpoint_is_the_same_here(tmp_path):
    model = saved(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, tmp_path / "epoch_3.pt")
    require_parity(model, load_checkpoint(tmp_path / "epoch_3.pt", np.float64))


def test_without_settings_the_conventions_are_an_assumption_that_is_said(tmp_path):
    saved(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    checkpoint = load_checkpoint(tmp_path, np.float64)
    assert "taken for a SigLIP 1" in checkpoint.notes[0]
    given = load_checkpoint(tmp_path, np.float64, conventions=sr.preset("open_clip", text_gelu="tanh"))
    assert given.config.conventions.text_gelu == "tanh"


def test_open_clip_loads_what_we_save(tmp_path):
    model = saved(tmp_path)
    checkpoint = load_checkpoint(tmp_path, np.float64)
    save_checkpoint(tmp_path / "ours", checkpoint.params, checkpoint.config, "open_clip")
    back = safetensors.torch.load_file(tmp_path / "ours" / "open_clip_model.safetensors")
    own = model.state_dict()
    assert own.keys() == back.keys()
    assert all(torch.equal(own[name].reshape(back[name].shape), back[name]) for name in own)
    model.load_state_dict(back)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256", "ViT-SO400M-14-SigLIP-384"])
def test_released_settings_give_the_released_size_and_activation(name):
    """open_clip's own settings, on shapes alone; the activation is the one that timm's model has."""
    settings = open_clip.get_model_config(name)
    sizes = {
        "ViT-B-16-SigLIP": "B/16-224",
        "ViT-B-32-SigLIP2-256": "siglip2-B/32-256",
        "ViT-SO400M-14-SigLIP-384": "So400m/14-384",
    }
    cfg = sr.config(sizes[name])
    with torch.device("meta"):
        model = open_clip.CustomTextCLIP(cfg.embed, settings["vision_cfg"], settings["text_cfg"], init_logit_bias=-10)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    read = layout.read_config(found, {"model_cfg": settings})
    tanh = type(model.visual.trunk.blocks[0].mlp.act).__name__ == "GELUTanh" or "tanh" in str(
        model.visual.trunk.blocks[0].mlp.act
    )
    assert read.conventions.image_gelu == ("tanh" if tanh else "erf")
    assert replace(read, name=cfg.name, conventions=cfg.conventions) == cfg
    assert {entry.theirs for entry in layout.table(cfg)} == set(found)


def test_fused_tensors_keep_their_order():
    """q, k, v stacked in this order, and k, v in the pooling head."""
    cfg = sr.config("tiny")
    params = sr.init(cfg, seed=1)
    theirs = to_their_tensors(params, layout.table(cfg), cfg, "open_clip")
    fused = theirs["visual.trunk.blocks.1.attn.qkv.weight"]
    assert np.array_equal(fused[10:20], params["image/block01/attn/k/kernel"].T)
    assert np.array_equal(theirs["visual.trunk.attn_pool.kv.weight"][10:], params["image/pool/attn/v/kernel"].T)
