"""Mistakes of a model, made in a transformers SiglipModel: those that tests/interop/model_mistakes.py does not have."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "interop"))
from model_mistakes import (
    MISTAKES,
    Backward,
    head_with,
    layers,
    mlp_of,
    norms,
    pooled_with,
)


def own_way_back(forward, backward):
    """A function of tensors with a derivative of its own: backward(d, *given) -> gradients."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *given):
            ctx.given = given
            return forward(*given)

        @staticmethod
        def backward(ctx, d):
            return backward(d, *ctx.given)

    return Own.apply


# --- layer norm, its parameters


def norm_parameters(change):
    """The gradients of gamma and beta: change(d, gamma)."""

    def make(model):
        for norm in norms(model):

            def forward(x, n=norm):
                gamma = Backward.apply(n.weight, change)
                return functional.layer_norm(x, x.shape[-1:], eps=n.eps) * gamma + Backward.apply(n.bias, change)

            norm.forward = forward

    return make


def gamma_of_d_xhat(model):
    for norm in norms(model):
        norm.forward = lambda x, n=norm: (
            functional.layer_norm(x, x.shape[-1:], eps=n.eps) * Backward.apply(n.weight, lambda d, w: d * w) + n.bias
        )


def rounded(x):
    return x.bfloat16().to(x.dtype)


def low_statistics(model):
    class Hat(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, eps):
            mean = rounded(x.mean(-1, keepdim=True))
            centred = x - mean
            ctx.rstd = rounded(1 / ((centred * centred).mean(-1, keepdim=True) + eps).sqrt())
            ctx.xhat = centred * ctx.rstd
            return ctx.xhat.clone()

        @staticmethod
        def backward(ctx, d):
            along = (d * ctx.xhat).mean(-1, keepdim=True)
            return (d - d.mean(-1, keepdim=True) - ctx.xhat * along) * ctx.rstd, None

    for norm in norms(model):
        norm.forward = lambda x, n=norm: Hat.apply(x, n.eps) * n.weight + n.bias


# --- attention's way back


def attention_of(softmax=None, mix=None):
    """Self-attention of all blocks, with the softmax or the mixing of values replaced."""

    def make(model):
        for layer in layers(model):
            a = layer.self_attn

            def forward(hidden_states, a=a, **_):
                q, k, v = (
                    p(hidden_states).unflatten(-1, (a.num_heads, -1)).transpose(1, 2)
                    for p in (a.q_proj, a.k_proj, a.v_proj)
                )
                scores = q @ k.transpose(-1, -2) * a.scale
                probability = softmax(scores) if softmax else scores.softmax(-1)
                mixed = mix(probability, v) if mix else probability @ v
                return a.out_proj(mixed.transpose(1, 2).flatten(2)), None

            a.forward = forward

    return make


softmax_without_sum = own_way_back(lambda s: s.softmax(-1), lambda d, s: s.softmax(-1) * d)
mixed_untransposed = own_way_back(lambda p, v: p @ v, lambda d, p, v: (d @ v.transpose(-1, -2), p @ d))
mixed_with_other_dropout = own_way_back(
    lambda p, v: p @ v, lambda d, p, v: (functional.dropout(d @ v.transpose(-1, -2), 0.1), p.transpose(-1, -2) @ d)
)


def gelu_gate(model):
    def gate(x):
        return (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2

    gelu = own_way_back(lambda x: functional.gelu(x, approximate="tanh"), lambda d, x: d * gate(x))
    for layer in layers(model):
        layer.mlp.activation_fn.forward = gelu
    model.vision_model.head.mlp.activation_fn.forward = gelu


# --- pooling, and what comes after


def gradient_to_first(model):
    first = own_way_back(
        lambda x: x[:, -1].clone(), lambda d, x: torch.cat([d[:, None], torch.zeros_like(x[:, 1:])], 1)
    )
    text = model.text_model
    pooled_with(lambda tokens: torch.zeros(len(tokens), dtype=torch.long))(model)
    shape = text.forward

    def forward(input_ids, **named):
        x = text.final_layer_norm(text.encoder(text.embeddings(input_ids)).last_hidden_state)
        return type(shape(input_ids))(last_hidden_state=x, pooler_output=text.head(first(x)))

    text.forward = forward


def ends_with(normalise):
    """From both towers' vectors to the loss: normalise(image, text)."""

    def make(model):
        def forward(input_ids, pixel_values, **_):
            image = model.vision_model(pixel_values).pooler_output
            text = model.text_model(input_ids).pooler_output
            x, y = normalise(image, text)
            logits = (y @ x.T * model.logit_scale.exp() + model.logit_bias).T
            loss = -functional.logsigmoid((2 * torch.eye(len(x)).to(x) - 1) * logits).sum() / len(x)
            return SimpleNamespace(loss=loss, image_embeds=x, text_embeds=y, logits_per_image=logits)

        model.forward = forward

    return make


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


MODELS = MISTAKES | {
    "pool-first-token": pooled_with(lambda tokens: torch.zeros(len(tokens), dtype=torch.long)),
    "stats-low-precision": low_statistics,
    "gamma-grad-low-precision": norm_parameters(lambda d, _: rounded(d)),
    "layernorm-backward-gamma": gamma_of_d_xhat,
    "softmax-backward-sum": attention_of(softmax=softmax_without_sum),
    "attention-backward-value": attention_of(mix=mixed_untransposed),
    "gelu-backward-sigmoid": gelu_gate,
    "cached-rng-mismatch": attention_of(mix=mixed_with_other_dropout),
    "map-head-backward-residual": head_with(lambda head, read, x: (read.detach() + mlp_of(head, read))[:, 0]),
    "pool-grad-first-token": gradient_to_first,
    "features-not-normalised": ends_with(lambda x, y: (x, y)),
    "one-side-not-normalised": ends_with(lambda x, y: (x, unit(y))),
    "normalised-by-whole-matrix": ends_with(lambda x, y: (x / x.norm(), y / y.norm())),
    "normalise-backward-missing": ends_with(
        lambda x, y: (x / x.norm(dim=-1, keepdim=True).detach(), y / y.norm(dim=-1, keepdim=True).detach())
    ),
}
