"""check_model on open_clip's SigLIP models: its own classes, small depth, both forms of GELU."""

import pytest
import torch
from models import DTYPES, require_pass
from no_torchvision import import_open_clip
from torch import nn

import siglip_ref as sr
from siglip_ref.check.model.adapters.find import load_target

open_clip, timm = import_open_clip()


@timm.models.register_model
def vit_toy_siglip(pretrained=False, num_classes=0, global_pool="map", act_layer=nn.GELU, **others):
    """An image tower of timm's class, height unlike width."""
    return timm.models.vision_transformer.VisionTransformer(
        img_size=(12, 28),
        patch_size=4,
        embed_dim=10,
        depth=2,
        num_heads=2,
        mlp_ratio=1.3,
        class_token=False,
        num_classes=num_classes,
        global_pool=global_pool,
        act_layer=act_layer,
    )


def build(bias=-10, output_dict=False, **text):
    """open_clip's CustomTextCLIP with small towers; `text` changes the text configuration."""
    vision = {"timm_model_name": "vit_toy_siglip", "timm_pool": "map", "timm_proj": "none", "image_size": (12, 28)}
    small = {"context_length": 9, "vocab_size": 29, "width": 12, "heads": 2, "layers": 2, "mlp_ratio": 1.42}
    siglip = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    torch.manual_seed(0)
    return open_clip.CustomTextCLIP(10, vision, small | siglip | text, init_logit_bias=bias, output_dict=output_dict)


@pytest.mark.parametrize("dtype", DTYPES[::-1])
@pytest.mark.sampled(2)  # float16, float32
def test_a_siglip_passes_and_its_gelu_is_named(dtype):
    report = sr.check_model(build(), dtype)
    require_pass(report, dtype)
    assert not report.not_checked
    assert (report.conventions["image_gelu"], report.conventions["text_gelu"]) == ("erf", "erf")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sampled(2, in_turn=True)
def test_siglip_2_has_another_gelu_in_its_text_tower(dtype):
    report = sr.check_model(build(act_kwargs={"approximate": "tanh"}, output_dict=True), dtype)
    require_pass(report, dtype)
    assert (report.conventions["image_gelu"], report.conventions["text_gelu"]) == ("erf", "tanh")


def test_a_text_tower_without_projection_passes():
    report = sr.check_model(build(proj_type="none", width=10, mlp_ratio=1.3), "float64")
    require_pass(report, "float64")
    assert "text/head/kernel" not in {row.name for row in report.rows}


def test_a_released_size_has_the_conventions_of_its_name():
    from siglip_ref.check.model.adapters.open_clip import from_open_clip

    adapter = from_open_clip(load_target("open_clip:ViT-B-16-SigLIP"))
    b16 = sr.config("B/16-224")
    assert (adapter.config.image, adapter.config.text, adapter.config.patches) == (b16.image, b16.text, b16.patches)
    assert adapter.config.conventions == sr.preset("open_clip")


# --- mistakes -----------------------------------------------------------------------------------------------------


def torchs_own_eps(model):
    """What a text configuration without norm_kwargs gives."""
    for module in model.text.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def one_tanh(model):
    model.visual.trunk.blocks[1].mlp.act = nn.GELU("tanh")


def fused_parts_in_another_order(model):
    """k, q, v instead of q, k, v."""
    qkv = model.visual.trunk.blocks[0].attn.qkv
    forward = qkv.forward
    qkv.forward = lambda x: forward(x).unflatten(-1, (3, -1))[..., [1, 0, 2], :].flatten(-2)


def first_token(model):
    model.text.pool_type = "first"


MISTAKES = {
    torchs_own_eps: ("text/block00/+attn", "layernorm-eps"),
    one_tanh: ("image/block01/+mlp", "gelu-tanh-vs-erf"),
    fused_parts_in_another_order: ("image/block00/+attn", "qkv-order-q-and-k"),
    first_token: ("text/pool", "convention"),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
@pytest.mark.sampled(2, in_turn=True)
def test_mistakes_are_caught_and_placed(mistake, dtype):
    model = build()
    mistake(model)
    report = sr.check_model(model, dtype)
    place, id = MISTAKES[mistake]
    assert not report.passed
    assert report.first_divergent.name == place
    assert id in [finding.id for finding in report.findings]


# --- wrong use ------------------------------------------------------------------------------------------------------


def test_a_clip_model_is_no_siglip():
    with pytest.raises(sr.UsageError, match="logit_bias missing"):
        sr.check_model(build(bias=None))
    with pytest.raises(sr.UsageError, match="no SigLIP model of this name"):
        load_target("open_clip:ViT-B-32")
