"""Wrong towers in Torch, one of each kind: what is told of them is what they compute, proven in a further run."""

import math

import pytest

import siglip_ref as sr

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers.models.siglip.modeling_siglip")


def model_with(old, new, under):
    torch.manual_seed(3)
    tower = {"hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 11, "max_position_embeddings": 6, "bos_token_id": None, "eos_token_id": None}
    image = tower | {"image_size": 8, "patch_size": 4}
    config = hf.SiglipConfig(vision_config=image, text_config=text | {"projection_size": 8})
    model = hf.SiglipModel(config).eval()
    for name, module in model.named_modules():
        if type(module) is old and name.startswith(under):
            module.__class__ = new
    return model


class FromTheStart(hf.SiglipEncoderLayer):
    """The second residual starts from the block's input."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        after = hidden_states + self.self_attn(self.layer_norm1(hidden_states))[0]
        return hidden_states + self.mlp(self.layer_norm2(after))


class OtherRoot(hf.SiglipMLP):
    """GELU with 0.79 in the place of sqrt(2/pi)."""

    def forward(self, hidden_states):
        x = self.fc1(hidden_states)
        return self.fc2(x / 2 * (1 + torch.tanh(0.79 * (x + 0.044715 * x**3))))


class HalfWeights(hf.SiglipAttention):
    """Attention weights that are kept in float16."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        parts = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in parts)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).half().to(q.dtype)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights


class Sampled(torch.nn.LayerNorm):
    """Two differences: the deviation of a sample, and eps beside it."""

    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) * self.weight + self.bias


def worked_out(model):
    report = sr.check_model(model)
    assert report.verdict == "FAIL" and report.computes[-1].startswith("reproduced in a further run"), report
    assert "unknown" not in [finding.id for finding in report.findings], report
    return report


def test_a_stage_that_reads_what_came_earlier():
    report = worked_out(model_with(hf.SiglipEncoderLayer, FromTheStart, "text_model"))
    assert report.computes[0].startswith("text/block00/+mlp, text/block01/+mlp: out = x + step, "), report


def test_a_pool_that_reads_before_the_norm():
    class Unnormed(hf.SiglipMultiheadAttentionPoolingHead):
        def forward(self, hidden_state):
            return super().forward(seen.pop())

    seen = []
    model = model_with(hf.SiglipMultiheadAttentionPoolingHead, Unnormed, "vision_model")
    model.vision_model.post_layernorm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    report = worked_out(model)
    assert report.computes[0] == "image/pool: x as it is, where the specification has out as it is"


def test_a_number_of_the_formula_is_measured():
    report = worked_out(model_with(hf.SiglipMLP, OtherRoot, "text_model"))
    factor = f"{2 / math.pi / 0.79**2:.6g}"  # on pi, which is one of the numbers there
    assert factor in report.computes[0] and report.computes[0].startswith("text/block00/+mlp"), report


def test_weights_of_attention_in_fewer_bits():
    report = sr.check_model(model_with(hf.SiglipAttention, HalfWeights, "vision_model"))
    finding = report.findings[0]
    assert finding.id == "product-low-precision" and "float16 or tf32 (11 bits)" in finding.evidence, report
    assert "the output of the softmax of the scores" in finding.evidence, report


def test_rows_without_a_gradient():
    class Lacking(hf.SiglipTextEmbeddings):
        def forward(self, input_ids=None, position_ids=None, inputs_embeds=None):
            table = self.position_embedding.weight
            kept = torch.ones(len(table), 1, dtype=table.dtype)
            kept[[1, 4]] = 0
            return self.token_embedding(input_ids) + kept * table + ((1 - kept) * table).detach()

    report = worked_out(model_with(hf.SiglipTextEmbeddings, Lacking, ""))
    assert report.computes[0].startswith("text/stem: ") and ", [1, 4])" in report.computes[0], report


def test_two_mistakes_are_told_in_full_and_not_in_part():
    report = worked_out(model_with(torch.nn.LayerNorm, Sampled, "vision_model"))
    told = "norms divide by std + eps, std with the divisor C - 1 of a sample"
    assert [told in line for line in report.computes] == [True] * (len(report.computes) - 1) + [False], report
    assert len(report.computes) == 5, report
    assert not any("of all that deviates is explained" in one.evidence for one in report.findings), report


class Attending(hf.SiglipAttention):
    """Attention by hand: what becomes of queries, keys and values, and of the scores."""

    turned, hidden = staticmethod(lambda q, k, v: (q, k, v)), staticmethod(lambda scores: scores)

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        parts = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = self.turned(*(p(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in parts))
        mixed = self.hidden(q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        if mixed.shape[2] != hidden_states.shape[1]:  # batch and places exchanged
            mixed = mixed.transpose(0, 2)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def in_windows(scores):
    places = torch.arange(scores.shape[-1])
    return scores.masked_fill(places[:, None] // 2 != places // 2, -math.inf)


def mean_of_two(q, k, v):
    return q, *(x.mean(1, keepdim=True).expand_as(x) for x in (k, v))


@pytest.mark.parametrize(
    ("kind", "under", "said"),
    [
        ({"hidden": staticmethod(in_windows)}, "text", "token i sees key j only where i // 2 == j // 2"),
        ({"turned": staticmethod(lambda q, k, v: (q, k.flip(1), v.flip(1)))}, "vision",
         "of 2 heads, head i reads the keys and values of the last head but i"),
        ({"turned": staticmethod(lambda *qkv: [x.transpose(0, 2) for x in qkv])}, "text",
         "attention runs over the rows of the batch, place by place"),
        ({"turned": staticmethod(mean_of_two)}, "vision", "mean_head(x) is the mean over heads"),
    ],
)  # fmt: skip
def test_other_attentions(kind, under, said):
    report = worked_out(model_with(hf.SiglipAttention, type("Other", (Attending,), kind), under))
    assert said in report.computes[0], report


def test_a_pool_of_other_heads_beside_another_mistake():
    model = model_with(hf.SiglipMLP, OtherRoot, "text_model")
    pool = model.vision_model.head.attention
    pool.num_heads, pool.head_dim = 4, 2
    report = worked_out(model)
    assert "image/pool: attention has 4 heads of 2 features, scores divided by sqrt(2)" in report.computes[0], report
    assert report.computes[1].startswith("text/block00/+mlp"), report


class Selu(hf.SiglipMLP):
    """Another activation, of a factor and a parameter."""

    def forward(self, hidden_states):
        return self.fc2(torch.nn.functional.selu(self.fc1(hidden_states)))


class Clamped(hf.SiglipMLP):
    """An activation whose limit no hidden unit of the first run reaches."""

    def forward(self, hidden_states):
        return self.fc2(torch.nn.functional.relu6(self.fc1(hidden_states)))


class Quick(torch.autograd.Function):
    """GELU with the slope of another form."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.nn.functional.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx, d_out):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(1.702 * x)
        return d_out * (gate + 1.702 * x * gate * (1 - gate))


class OtherSlope(hf.SiglipMLP):
    """Every value is right."""

    def forward(self, hidden_states):
        return self.fc2(Quick.apply(self.fc1(hidden_states)))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Selu, "is 1.0507 * where(x > 0, x, 1.67326 * (exp(x) - 1))"),
        (Clamped, "is minimum(maximum(x, 0), 6)"),
        (OtherSlope, "has the slope of x * sigmoid(1.702 * x) in the place of its own"),
    ],
)
def test_curves_of_activations_are_read_off(kind, said):
    report = worked_out(model_with(hf.SiglipMLP, kind, "text_model"))
    assert (
        f"text/block00/+mlp, text/block01/+mlp: {'backwards, ' * (kind is OtherSlope)}the activation"
        in report.computes[0]
    )
    assert said in report.computes[0], report


def test_two_mistakes_of_one_half_where_another_stage_shows_one():
    model = model_with(hf.SiglipMLP, Selu, "text_model")
    for norm in (one for one in model.text_model.modules() if isinstance(one, torch.nn.LayerNorm)):
        norm.eps = 1e-3
    report = worked_out(model)
    assert any("variance + 0.001" in line and "1.67326" in line for line in report.computes), report


def test_a_pool_that_keeps_its_probe():
    class Kept(hf.SiglipMultiheadAttentionPoolingHead):
        def forward(self, hidden_state):
            probe = self.probe.repeat(len(hidden_state), 1, 1)
            read = probe + self.attention(probe, hidden_state, hidden_state)[0]
            return (read + self.mlp(self.layernorm(read)))[:, 0]

    report = worked_out(model_with(hf.SiglipMultiheadAttentionPoolingHead, Kept, "vision_model"))
    assert report.computes[0].startswith("image/pool: read = probe + attn(probe, x), where"), report


class Earlier(hf.SiglipEncoder):
    """The output of its last block is not used."""

    def forward(self, inputs_embeds, attention_mask=None, **kwargs):
        states = [inputs_embeds]
        for layer in self.layers:
            states.append(layer(states[-1], attention_mask))
        return hf.BaseModelOutput(last_hidden_state=states[-2])


class Beside(hf.SiglipEncoder):
    """Its second block reads what the first one was given."""

    def forward(self, inputs_embeds, attention_mask=None, **kwargs):
        for layer in self.layers:
            out = layer(inputs_embeds, attention_mask)
        return hf.BaseModelOutput(last_hidden_state=out)


@pytest.mark.parametrize(
    ("kind", "under", "said"),
    [
        (Earlier, "vision", "image/norm: a final norm that reads the output of block00, where the specification has"),
        (Beside, "text", "text/block01/+attn: block01 that reads the output of stem, where the specification has"),
    ],
)
def test_a_stage_that_reads_what_an_earlier_one_gave(kind, under, said):
    report = worked_out(model_with(hf.SiglipEncoder, kind, under))
    assert report.computes[0].startswith(said), report
    assert [finding.id for finding in report.findings] == ["derived"], report


@pytest.mark.parametrize("pixels", ["row, column, channel", "column, row, channel", "channel, column, row"])
def test_patches_laid_out_otherwise_than_their_kernels(pixels):
    class Flattened(torch.nn.Conv2d):
        def forward(self, x):
            b, c, height, width = x.shape
            x = x.reshape(b, c, height // 4, 4, width // 4, 4).permute(0, 2, 4, *map(axes.index, pixels.split(", ")))
            x = torch.nn.functional.linear(x.reshape(b, height // 4, width // 4, -1), self.weight.flatten(1), self.bias)
            return x.permute(0, 3, 1, 2)

    axes = ["", "channel", "", "row", "", "column"]
    report = worked_out(model_with(torch.nn.Conv2d, Flattened, "vision_model"))
    told = f"image/stem: patches laid out as {pixels} that meet kernels laid out as channel, row, column, where"
    assert report.computes[0].startswith(told), report
