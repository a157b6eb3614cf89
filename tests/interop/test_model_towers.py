"""check_model on one tower alone: of transformers, timm, open_clip, or behind an Adapter; and on NaFlex models."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import transformers
from no_torchvision import import_open_clip
from torch import nn

import siglip_ref as sr
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.probe import probe_params
from siglip_ref.check.model.tower import values_and_grads

open_clip, timm = import_open_clip()

SIZES = {"hidden_size": 10, "num_hidden_layers": 2, "intermediate_size": 13, "num_attention_heads": 2}
VISION = SIZES | {"image_size": 16, "patch_size": 4}
TEXT = SIZES | {"vocab_size": 29, "max_position_embeddings": 9, "bos_token_id": None, "eos_token_id": None}
NAFLEX = SIZES | {"num_patches": 16, "patch_size": 4}
ENDS = {"pooled": "image/pool", "last": "image/norm", "last-but-one": "image/block00/+mlp"}


def image_tower(**changes):
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION | changes))


def text_tower():
    return transformers.SiglipTextModel(transformers.SiglipTextConfig(**TEXT, projection_size=12))


def classifier():
    config = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)
    return transformers.SiglipForImageClassification(config)


def naflex_tower():
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**NAFLEX))


def timm_tower(pool="map", **changes):
    sizes = {"img_size": (12, 28), "patch_size": 4, "embed_dim": 10, "depth": 2, "num_heads": 2, "mlp_ratio": 1.3}
    sizes |= {"class_token": False, "num_classes": 0, "global_pool": pool, "fc_norm": False} | changes
    return timm.models.vision_transformer.VisionTransformer(**sizes)


def open_clip_text():
    return open_clip.transformer.TextTransformer(
        context_length=9, vocab_size=29, width=12, heads=2, layers=2, mlp_ratio=1.42, output_dim=10,
        no_causal_mask=True, pool_type="last", proj_bias=True, norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip


TOWERS = {
    "SiglipVisionModel": (image_tower, "image/pool"),
    "SiglipVisionModel without head": (lambda: image_tower(vision_use_head=False), "image/norm"),
    "SiglipTextModel": (text_tower, "text/head"),
    "SiglipForImageClassification": (classifier, "image/norm"),
    "Siglip2VisionModel": (naflex_tower, "image/pool"),
    "timm": (timm_tower, "image/pool"),
    "timm without head": (lambda: timm_tower("avg"), "image/norm"),
    "open_clip text": (open_clip_text, "text/head"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.sampled(2, in_turn=True)
def test_a_right_tower_passes_and_says_where_it_ends(name, dtype):
    make, end = TOWERS[name]
    report = sr.check_model(make(), dtype)
    assert report.verdict == "PASS", report
    assert not report.findings and not report.not_checked
    rows = [row.name for row in report.rows if row.kind == "activation"]
    assert rows[-1] == end
    assert f"({end})" in report.notes[0] and "alone, up to" in report.title
    assert "loss" not in [row.name for row in report.rows]
    assert {row.name.split("/")[0] for row in report.rows} == {end.split("/")[0]}


@pytest.mark.parametrize("make", [image_tower, timm_tower, naflex_tower])
@pytest.mark.parametrize("up_to", ENDS)
@pytest.mark.sampled(4)  # each tower and each end
def test_an_image_tower_can_end_in_three_places(make, up_to):
    report = sr.check_model(make(), up_to=up_to)
    assert report.verdict == "PASS", report
    assert [row.name for row in report.rows if row.kind == "activation"][-1] == ENDS[up_to]


def test_every_mistake_is_of_this_check_or_said_not_to_be():
    report = sr.check_model(image_tower())
    for name in ("eos-pooling-argmax", "pool-first-token"):
        assert "image tower alone" in report.sight.elsewhere[name]
    assert "layernorm-eps-1e-5" in report.sight.seen


def swap(tower, one, other):
    for part in ("weight", "bias"):
        first, second = tower.get_submodule(one), tower.get_submodule(other)
        a, b = getattr(first, part), getattr(second, part)
        setattr(first, part, b)
        setattr(second, part, a)


def exchanged(tower, at=1):
    layer = tower.encoder.layers[at].self_attn
    q, k = layer.q_proj.forward, layer.k_proj.forward
    layer.q_proj.forward, layer.k_proj.forward = k, q


def another_eps(tower):
    tower.encoder.layers[0].layer_norm2.eps = 1e-5


def exact_gelu(tower):
    tower.encoder.layers[0].mlp.activation_fn = nn.GELU()


def without_last_norm(tower):
    norm = tower.post_layernorm if hasattr(tower, "post_layernorm") else tower.final_layer_norm
    norm.forward = lambda x: x


def head_without_residual(tower):
    mlp = tower.head.mlp.forward
    tower.head.mlp.forward = lambda x: mlp(x) * 2


def no_positions(tower):
    embeddings = tower.embeddings
    forward = embeddings.forward
    embeddings.forward = lambda *a, **k: forward(*a, **k).roll(1, 1)


def detached(tower):
    forward = tower.encoder.layers[0].forward
    tower.encoder.layers[0].forward = lambda x, *a, **k: forward(x.detach(), *a, **k)


PLANTED = {
    "layernorm-eps-1e-5": (another_eps, "block00/+mlp"),
    "gelu-tanh-vs-erf": (exact_gelu, "block00/+mlp"),
    "queries and keys exchanged": (exchanged, "block01/+attn"),
    "final-norm-missing": (without_last_norm, "norm"),
    "positions moved": (no_positions, "stem"),
}


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.sampled(2, in_turn=True)
def test_a_planted_mistake_is_found_at_its_stage(name, side):
    plant, stage = PLANTED[name]
    tower = image_tower() if side == "image" else text_tower()
    plant(tower)
    report = sr.check_model(tower)
    assert report.verdict == "FAIL", report
    first = next(row for row in report.rows if row.verdict == "FAIL")
    assert first.name == f"{side}/{stage}"
    assert report.findings[0].tensor in (first.name, "encoder.layers.0.layer_norm2")


@pytest.mark.parametrize("up_to", ["last", "last-but-one"])
def test_a_planted_mistake_in_a_tower_without_head(up_to):
    tower = image_tower(vision_use_head=False)
    exchanged(tower, 0)
    report = sr.check_model(tower, up_to=up_to)
    assert report.verdict == "FAIL"
    assert next(row.name for row in report.rows if row.verdict == "FAIL") == "image/block00/+attn"
    assert "image/block00/+attn" in [one.tensor for one in report.findings]


def test_a_pooling_head_and_a_detached_tensor():
    tower = image_tower()
    head_without_residual(tower)
    report = sr.check_model(tower)
    assert next(row.name for row in report.rows if row.verdict == "FAIL") == "image/pool"
    tower = image_tower()
    detached(tower)
    report = sr.check_model(tower)
    wrong = [row for row in report.rows if row.verdict == "FAIL"]
    assert wrong[0].kind == "gradient" and wrong[-1].name == "image/position"


def test_a_large_tower_is_judged_by_the_law():
    tower = image_tower(hidden_size=768, num_attention_heads=12, intermediate_size=3072, image_size=64, patch_size=16)
    assert sr.check_model(tower).verdict == "PASS"


@dataclass
class Ours:
    """The reference's own tower as somebody's Adapter; wrong: multiplies its end."""

    config: sr.OneTower
    wrong: float = 1.0
    name: str = "a tower of ours"

    def parameters(self, dtype):
        return probe_params(self.config, 4, dtype)

    def run(self, params, images, tokens, dtype):
        params = {name: np.asarray(value, np.float32) for name, value in params.items()}
        given = np.asarray(images, np.float32)
        values, loss, grads = values_and_grads(params, given, tokens, self.config, self.config.conventions)
        return Run(loss, values | {self.config.end: values[self.config.end] * np.float32(self.wrong)}, grads)


@pytest.mark.parametrize("up_to", ENDS)
def test_an_adapter_can_be_a_tower_alone(up_to):
    cfg = sr.one_tower(sr.config("tiny"), "image", up_to)
    assert sr.check_model(Ours(cfg)).verdict == "PASS"
    report = sr.check_model(Ours(cfg, 1.01))
    assert [row.name for row in report.rows if row.verdict == "FAIL"] == [ENDS[up_to]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sr.check_model(image_tower(vision_use_head=False), up_to="pooled"), 'up_to="last"'),
        (lambda: sr.check_model(image_tower(), up_to="middle"), "last-but-one"),
        (lambda: sr.check_model(Ours(sr.one_tower(sr.config("tiny"), "image")), up_to="last"), "sr.one_tower"),
        (lambda: sr.one_tower(replace(sr.config("mu/16")), "image", "last-but-one"), 'up_to="last"'),
    ],
)
def test_what_cannot_be_is_said(call, said):
    with pytest.raises(sr.UsageError) as error:
        call()
    assert said in str(error.value)


def interpolated(mode, antialias, **more):
    def resize(positional_embeddings, spatial_shapes, max_length):
        out = []
        for height, width in spatial_shapes.tolist():
            grid = positional_embeddings.permute(2, 0, 1)[None]
            at = nn.functional.interpolate(grid, (height, width), mode=mode, antialias=antialias, **more)
            at = at[0].flatten(1).T
            out.append(torch.cat([at, at[:1].expand(max_length - len(at), -1)]))
        return torch.stack(out)

    return resize


def naflex_model():
    text = TEXT | {"projection_size": 10}
    return transformers.Siglip2Model(transformers.Siglip2Config(vision_config=NAFLEX, text_config=text))


RESIZES = {
    "bilinearly, without antialias": interpolated("bilinear", False),
    "bicubically (a = -0.75), without antialias": interpolated("bicubic", False),
    "bicubically (a = -0.5), with antialias": interpolated("bicubic", True),
    "to the nearest neighbour": interpolated("nearest", False),
    "bilinearly, without antialias, with aligned corners": interpolated("bilinear", False, align_corners=True),
}


@pytest.mark.parametrize("words", RESIZES)
def test_a_table_of_positions_resized_otherwise_is_named(words):
    model = naflex_model()
    model.vision_model.embeddings.resize_positional_embeddings = RESIZES[words]
    report = sr.check_model(model)
    assert report.verdict == "FAIL"
    assert [(one.id, one.tensor) for one in report.findings] == [("resize-filter-antialias", "image/stem")], report
    assert words in report.findings[0].evidence


def test_a_right_naflex_model_passes():
    for dtype in ("float32", "float64"):
        report = sr.check_model(naflex_model(), dtype)
        assert report.verdict == "PASS", report
        assert "NaFlex" in report.sight.elsewhere["patch-flatten-order"]


@pytest.mark.parametrize("place", ["blocks", "pooling head"])
def test_a_dropped_mask_is_named(place):
    tower = naflex_tower()
    for layer in tower.encoder.layers if place == "blocks" else [tower.head]:
        forward = layer.forward
        layer.forward = lambda x, *a, forward=forward, **k: forward(x, None)
    report = sr.check_model(tower)
    assert report.verdict == "FAIL"
    assert len(report.findings) == 1 and place in report.findings[0].evidence, report
    stage = "image/block00/+attn" if place == "blocks" else "image/pool"
    assert report.findings[0].tensor == stage == next(row.name for row in report.rows if row.verdict == "FAIL")


class Pool(timm.layers.AttentionPoolLatent):
    """A subclass, as people write them, that lost the residual around its MLP."""

    def forward(self, x, attn_mask=None):
        batch, width = len(x), x.shape[2]
        heads = (batch, -1, self.num_heads, self.head_dim)
        query = self.q(self.latent.expand(batch, -1, -1)).reshape(heads).transpose(1, 2)
        key, value = (part.reshape(heads).transpose(1, 2) for part in self.kv(x).chunk(2, -1))
        read = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return self.mlp(self.norm(self.proj(read.reshape(batch, -1, width))))[:, 0]


def test_a_pooling_head_of_a_class_of_its_own_is_judged():
    tower = timm_tower()
    tower.attn_pool.__class__ = Pool
    report = sr.check_model(tower)
    assert (report.verdict, report.findings[0].id) == ("FAIL", "map-head-no-residual"), report


class NormAfterPool(transformers.SiglipVisionModel):
    """CLIP's order: what stands for the last hidden state has another shape."""

    def forward(self, pixel_values, interpolate_pos_encoding=False, **rest):
        hidden = self.encoder(inputs_embeds=self.embeddings(pixel_values)).last_hidden_state
        pooled = self.post_layernorm(self.head(hidden))
        return transformers.modeling_outputs.BaseModelOutputWithPooling(hidden, pooled)


def test_an_activation_of_another_shape_is_wrong_and_no_reason_to_raise():
    tower = image_tower()
    tower.__class__ = NormAfterPool
    report = sr.check_model(tower)
    assert (report.verdict, report.findings[0].tensor) == ("FAIL", "image/norm"), report


class OneByOne(transformers.Siglip2VisionModel):
    """Each image alone, with its own patches, which needs no mask."""

    def forward(self, pixel_values, pixel_attention_mask, spatial_shapes, **rest):
        states, pooled = [], []
        for x, mask in zip(self.embeddings(pixel_values, spatial_shapes), pixel_attention_mask, strict=True):
            own = x[None, : int(mask.sum())]
            for layer in self.encoder.layers:
                own = layer(own, None)
            own = self.post_layernorm(own)
            pooled.append(self.head(own)[0])
            states.append(nn.functional.pad(own[0], (0, 0, 0, len(x) - own.shape[1])))
        return transformers.modeling_outputs.BaseModelOutputWithPooling(torch.stack(states), torch.stack(pooled))


def test_modules_that_one_pass_calls_image_by_image_are_not_judged_and_the_end_is():
    tower = naflex_tower()
    tower.__class__ = OneByOne
    report = sr.check_model(tower)
    assert report.verdict == "PASS", report
    assert any("image/block00/+mlp: one pass calls 'encoder.layers.0' again" in said for said in report.not_checked)
