"""Several mistakes at once, blocks put together otherwise, rows that are mixed: each stage is worked out by itself."""

import math

import pytest

import siglip_ref as sr

torch = pytest.importorskip("torch")
siglip = pytest.importorskip("transformers.models.siglip.modeling_siglip")


def model(side=20):
    from transformers import SiglipConfig

    image = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = image | {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": None, "eos_token_id": None}
    image |= {"image_size": side, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = SiglipConfig(vision_config=image, text_config=text | {"projection_size": 12})
        return siglip.SiglipModel(config).eval()


def attention(core):
    class Other(siglip.SiglipAttention):
        def forward(self, hidden_states, attention_mask=None, **given):
            shape = (*hidden_states.shape[:2], self.num_heads, self.head_dim)
            q, k, v = (f(hidden_states).view(shape).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
            return self.out_proj(core(q, k, v, self.scale).transpose(1, 2).flatten(2)), None

    return Other


def far_keys_hidden(q, k, v, scale):
    place = torch.arange(q.shape[2])
    scores = (q @ k.mT * scale).masked_fill((place[:, None] - place).abs() > 2, -math.inf)
    return scores.softmax(-1) @ v


class PostNorm(siglip.SiglipEncoderLayer):
    def forward(self, x, attention_mask=None, **given):
        x = self.layer_norm1(x + self.self_attn(x)[0])
        return self.layer_norm2(x + self.mlp(x))


class HalfTheBranch(siglip.SiglipEncoderLayer):
    def forward(self, x, attention_mask=None, **given):
        x = x + 0.5 * self.self_attn(self.layer_norm1(x))[0]
        return x + 0.25 * self.mlp(self.layer_norm2(x))


class Relu(siglip.SiglipMLP):
    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


class OverTheBatch(torch.nn.LayerNorm):
    def forward(self, x):
        centred = x - x.mean((0, 1))
        return centred / (centred.square().mean((0, 1)) + self.eps).sqrt() * self.weight + self.bias


class Rolled(siglip.SiglipVisionEmbeddings):
    def forward(self, pixel_values, interpolate_pos_encoding=False):
        return super().forward(pixel_values).roll(1, 0)


class Squeezed(siglip.SiglipVisionEmbeddings):
    def forward(self, pixel_values, interpolate_pos_encoding=False):
        return super().forward(torch.nn.functional.interpolate(pixel_values, (20, 20), mode="bicubic"))


def become(modules, kind):
    for module in modules:
        module.__class__ = kind


def images(of):
    return of.vision_model.encoder.layers


def texts(of):
    return of.text_model.encoder.layers


def mask_and_relu(of):
    become([one.self_attn for one in texts(of)], attention(far_keys_hidden))
    become([one.mlp for one in images(of)], Relu)


class ShortPositions(siglip.SiglipVisionEmbeddings):
    def forward(self, pixel_values, interpolate_pos_encoding=False):
        patches = self.patch_embedding(pixel_values).flatten(2).mT
        return patches + self.position_embedding(self.position_ids).bfloat16().to(patches.dtype)


def mlp_of_the_other_tower(of):
    other = texts(of)[0].mlp

    class Other(siglip.SiglipMLP):
        def forward(self, x):
            return other(x)

    become([images(of)[1].mlp], Other)


WHOLE = "reproduced in a further run"
CASES = {
    "two mistakes in two towers": (20, mask_and_relu, [
        "image/block00/+mlp, image/block01/+mlp: active = relu(hidden)",
        "text/block00/+attn, text/block01/+attn: scores = without_keys(", WHOLE,
    ]),
    "two factors in one block": (20, lambda of: become(images(of)[:1], HalfTheBranch), [
        "image/block00/+attn: after_attention = x + attended / 2",
        "image/block00/+mlp: out = ", WHOLE,
    ]),
    "norms behind": (20, lambda of: become(texts(of), PostNorm), [
        "after_attention = norm1(x + attn(x)) and out = norm2(after_attention + mlp(after_attention))", WHOLE,
    ]),
    "statistics of the batch": (20, lambda of: become([of.vision_model.post_layernorm], OverTheBatch), [
        "image/norm: norms take their mean and variance over the whole batch", WHOLE,
    ]),
    "images of other rows": (20, lambda of: become([of.vision_model.embeddings], Rolled), [
        "image/stem: images of the batch are rolled by one", WHOLE,
    ]),
    "resized to whole patches": (22, lambda of: become([of.vision_model.embeddings], Squeezed), [
        "image/stem: images are resized to 20 x 20 bicubically (a = -0.75), without antialias", WHOLE,
    ]),
    "weights of the other tower": (20, mlp_of_the_other_tower, [
        "image/block01/+mlp: the weights mlp/in, mlp/out of this half of the block are those of text/block00", WHOLE,
    ]),
    "positions in 16 bits": (20, lambda of: become([of.vision_model.embeddings], ShortPositions), [
        "image/stem: image/position rounded to bfloat16", "every value is reproduced in a further run",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_stage_that_deviates_is_worked_out(name):
    side, spoil, told = CASES[name]
    wrong = model(side)
    spoil(wrong)
    computes = sr.check_model(wrong, "float32").computes
    assert len(computes) == len(told) and all(map(str.__contains__, computes, told)), computes


def test_what_is_shown_of_one_stage_is_told_beside_one_that_is_not():
    wrong = model()
    become([one.mlp for one in images(wrong)], Relu)
    strange = attention(lambda q, k, v, scale: torch.cos(q @ k.mT * scale).softmax(-2).square() @ v.cumsum(2))
    become([one.self_attn for one in texts(wrong)], strange)
    computes = sr.check_model(wrong, "float32").computes
    assert "active = relu(hidden)" in computes[0] and not computes[0].startswith("measured"), computes
    assert "from what the program itself gives them; not explained by it: text/block00/+attn" in computes[-1], computes


def test_rows_that_depend_on_each_other_are_told_where_no_formula_is_found():
    wrong = model()
    mixed = attention(lambda q, k, v, scale: (q @ k.mT * scale).softmax(-1) @ v * (1 + v.square().mean()))
    become([one.self_attn for one in texts(wrong)], mixed)
    [found] = sr.check_model(wrong, "float32").findings
    assert "rows of the batch depend on each other from text/block00/+attn on" in found.evidence
    assert found.repair.startswith("a row gives the same alone; ")
