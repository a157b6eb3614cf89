"""The catalogue's mistakes in towers, made in a transformers SiglipModel with torch code."""

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.modeling_siglip import SiglipOutput


class Backward(torch.autograd.Function):
    """A function with a gradient of its own: `change(d_out, x, *rest)`."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change, ctx.x = change, x
        return x.clone()

    @staticmethod
    def backward(ctx, d_out):
        return ctx.change(d_out, ctx.x), None


def factor(number):
    return lambda x: Backward.apply(x, lambda d, _: d * number)


def after(module, change):
    """Put `change` behind a module's forward."""
    forward = module.forward
    module.forward = lambda *args, **named: change(forward(*args, **named))


def layers(model, tower="both"):
    towers = {"image": [model.vision_model], "text": [model.text_model]}
    return [layer for t in towers.get(tower, [model.vision_model, model.text_model]) for layer in t.encoder.layers]


def attend(attention, x, scale=None, mask=None, dropout=0.0, head_size_first=False):
    """Self-attention, written out."""
    heads = attention.num_heads

    def split(y):
        if head_size_first:
            return y.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = (split(p(x)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
    scores = q @ k.transpose(-1, -2) * (attention.scale if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed = functional.dropout(scores.softmax(-1), dropout) @ v
    joined = mixed.permute(0, 2, 3, 1) if head_size_first else mixed.transpose(1, 2)
    return attention.out_proj(joined.flatten(2)), None


def attention_with(tower="both", **options):
    def make(model):
        for layer in layers(model, tower):
            attention = layer.self_attn
            given = {name: value(attention) if callable(value) else value for name, value in options.items()}
            attention.forward = lambda hidden_states, a=attention, g=given, **_: attend(a, hidden_states, **g)

    return make


def quick(model):
    for layer in layers(model, "text"):
        layer.mlp.activation_fn.forward = lambda x: x * torch.sigmoid(1.702 * x)


def exact(model):
    layers(model, "text")[1].mlp.activation_fn = nn.GELU()


def exact_forward_only(model):
    """The exact form, with the derivative of the tanh form."""

    def forward(x):
        return (
            x.detach() * 0
            + functional.gelu(x).detach()
            + (tanh := functional.gelu(x, approximate="tanh"))
            - tanh.detach()
        )

    for layer in layers(model, "image"):
        layer.mlp.activation_fn.forward = forward
    model.vision_model.head.mlp.activation_fn.forward = forward


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.LayerNorm)]


def norm_with(change):
    """Layer norms of the text tower, their normalised input written by hand: change(x, eps) -> xhat."""

    def make(model):
        for norm in norms(model.text_model):
            norm.forward = lambda x, n=norm: change(x, n.eps) * n.weight + n.bias

    return make


def moments(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred, (centred * centred).mean(-1, keepdim=True)


def eps_outside(x, eps):
    centred, variance = moments(x)
    return centred / (variance.sqrt() + eps)


def unbiased(x, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt()


def eps_of_1e_12(model):
    for layer in layers(model, "image")[1:]:
        layer.layer_norm1.eps = 1e-12


def eps_of_1e_5(model):
    layers(model, "text")[0].layer_norm2.eps = 1e-5


def pooled_with(place):
    """The text's vector taken elsewhere: place(tokens) -> positions."""

    def make(model):
        text = model.text_model

        def forward(input_ids, **named):
            x = text.final_layer_norm(text.encoder(text.embeddings(input_ids)).last_hidden_state)
            pooled = x[torch.arange(len(x)), place(input_ids)]
            return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=text.head(pooled))

        text.forward = forward

    return make


def first_end(tokens):
    is_end = tokens == 1
    return torch.where(is_end.any(-1), is_end.int().argmax(-1), tokens.shape[1] - 1)


def masked_padding(model):
    text = model.text_model

    def forward(input_ids, **named):
        seen = (input_ids != 1)[:, None, None, :]
        for layer in text.encoder.layers:
            layer.self_attn.forward = lambda hidden_states, a=layer.self_attn, **_: attend(a, hidden_states, mask=seen)
        x = text.final_layer_norm(text.encoder(text.embeddings(input_ids)).last_hidden_state)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=text.head(x[:, -1]))

    text.forward = forward


def causal_image(model):
    attention_with("image", mask=torch.ones(25, 25, dtype=torch.bool).tril())(model)


def causal_text(model):
    attention_with("text", mask=torch.ones(9, 9, dtype=torch.bool).tril())(model)


def head_with(change):
    """The pooling: change(head, read, x) -> pooled, where read is what the probe reads."""

    def make(model):
        head = model.vision_model.head

        def forward(x):
            probe = head.probe.repeat(len(x), 1, 1)
            return change(head, head.attention(probe, x, x)[0], x)

        head.forward = forward

    return make


def mlp_of(head, read):
    return head.mlp(head.layernorm(read))


def final_norm(change):
    def make(model):
        norm = model.vision_model.post_layernorm
        forward = norm.forward
        norm.forward = lambda x: change(forward, x)

    return make


def patches_with(order):
    """Patches cut by hand: order(images, side, kernel) -> (B, N, C), before the bias."""

    def make(model):
        patch = model.vision_model.embeddings.patch_embedding

        def forward(images):
            flat = order(images.permute(0, 2, 3, 1), patch.kernel_size[0])  # (B, N, P)
            kernel = patch.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (row, column, channel), C
            out = flat @ kernel + patch.bias
            side = images.shape[-1] // patch.kernel_size[0]
            return out.transpose(1, 2).unflatten(2, (side, side))

        patch.forward = forward

    return make


def channels_first(x, p):
    x = x.unflatten(1, (-1, p)).unflatten(3, (-1, p))  # B, rows, p, columns, p, 3
    return x.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)


def plain_view(x, p):
    return x.reshape(len(x), (x.shape[1] // p) ** 2, -1)


def shifted(tower, rows):
    """Rows of the position table as rows(N) chooses them."""

    def make(model):
        table = (model.text_model if tower == "text" else model.vision_model).embeddings.position_embedding
        table.forward = lambda ids: nn.functional.embedding(rows(ids.shape[-1]), table.weight)[None]

    return make


def exchanged(one, other, number):
    def make(model):
        attention = layers(model, "image")[number].self_attn
        first, second = getattr(attention, one), getattr(attention, other)
        one_forward, other_forward = first.forward, second.forward
        first.forward, second.forward = other_forward, one_forward

    return make


def joined_with(unit, unit_of_text=None):
    """Embeddings made of unit length by hand: unit(pooled) -> rows, of texts too unless they have their own."""

    def make(model):
        def forward(input_ids, pixel_values, **_):
            x = unit(model.vision_model(pixel_values=pixel_values).pooler_output)
            y = (unit_of_text or unit)(model.text_model(input_ids=input_ids).pooler_output)
            logits = x @ y.T * model.logit_scale.exp() + model.logit_bias
            loss = -functional.logsigmoid((2 * torch.eye(len(x)).to(x) - 1) * logits).sum() / len(x)
            return SiglipOutput(loss=loss, logits_per_image=logits, image_embeds=x, text_embeds=y)

        model.forward = forward

    return make


def rounded(x):
    return x.to(torch.bfloat16).to(x.dtype)


def mean(x):
    return x.mean(-1, keepdim=True)


class LowPrecisionHat(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        centred = x - rounded(x.mean(-1, keepdim=True))
        ctx.rstd = rounded(((centred * centred).mean(-1, keepdim=True) + eps).rsqrt())
        ctx.xhat = centred * ctx.rstd
        return ctx.xhat.clone()

    @staticmethod
    def backward(ctx, d):
        return (d - mean(d) - ctx.xhat * mean(d * ctx.xhat)) * ctx.rstd, None


def low_precision_statistics(model):
    for norm in norms(model.vision_model):
        norm.forward = lambda x, n=norm: LowPrecisionHat.apply(x, n.eps) * n.weight + n.bias


# what is made -> the ids that name it
FORWARD = {
    "attention-scale-width": attention_with(scale=lambda a: a.embed_dim**-0.5),
    "attention-scale-heads": attention_with("text", scale=lambda a: a.num_heads**-0.5),
    "attention-scale-inverse": attention_with("image", scale=lambda a: a.head_dim**0.5),
    "attention-scale-missing": attention_with(scale=1.0),
    "head-split": attention_with("text", head_size_first=True),
    "dropout-in-eval": attention_with("text", dropout=0.1),
    "quickgelu-vs-gelu": quick,
    "gelu-tanh-vs-erf": exact,
    "gelu-forward-and-backward-differ": exact_forward_only,
    "layernorm-eps-1e-12": eps_of_1e_12,
    "layernorm-eps-1e-5": eps_of_1e_5,
    "layernorm-eps-outside": norm_with(eps_outside),
    "layernorm-unbiased-variance": norm_with(unbiased),
    "causal-mask-wrong": causal_text,
    "causal-mask-in-image": causal_image,
    "padding-mask-applied": masked_padding,
    "eos-pooling-argmax": pooled_with(lambda tokens: tokens.argmax(-1)),
    "eos-pooling-first-eos": pooled_with(first_end),
    "map-head-mean": head_with(lambda head, read, x: x.mean(1)),
    "map-head-no-residual": head_with(lambda head, read, x: mlp_of(head, read)[:, 0]),
    "map-head-probe-residual": head_with(lambda head, read, x: (read + mlp_of(head, read) + head.probe)[:, 0]),
    "post-layernorm-missing": final_norm(lambda norm, x: x),
    "post-layernorm-extra": final_norm(lambda norm, x: norm(norm(x))),
    "patch-flatten-order": patches_with(channels_first),
    "patch-view-without-transpose": patches_with(plain_view),
    "features-not-normalised": joined_with(lambda x: x),
    "normalised-by-whole-matrix": joined_with(lambda x: x / x.norm()),
    "pool-first-token": pooled_with(lambda tokens: tokens[:, 0] * 0),
    "stats-low-precision": low_precision_statistics,
    "position-shift": shifted("text", lambda n: (torch.arange(n) + 1) % n),
    "position-shift-clamped": shifted("image", lambda n: (torch.arange(n) + 1).clamp(max=n - 1)),
    "position-shift-back": shifted("image", lambda n: (torch.arange(n) - 1) % n),
    "qkv-order-q-and-k": exchanged("q_proj", "k_proj", 0),
    "qkv-order-k-and-v": exchanged("k_proj", "v_proj", 1),
}
