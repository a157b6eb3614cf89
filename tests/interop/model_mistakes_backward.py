"""The catalogue's mistakes on the way back, made in a transformers SiglipModel: every value stays right."""

import math

import torch
from model_mistakes import (
    FORWARD,
    Backward,
    after,
    factor,
    head_with,
    joined_with,
    layers,
    mean,
    mlp_of,
    moments,
    norms,
    rounded,
)
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling


def norm_backward(change):
    """Layer norms of both towers with d_x by hand: change(d_xhat, xhat, rstd) -> d_x."""

    class Hat(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, eps):
            centred, variance = moments(x)
            ctx.rstd = (variance + eps).rsqrt()
            ctx.xhat = centred * ctx.rstd
            return ctx.xhat.clone()

        @staticmethod
        def backward(ctx, d):
            return change(d, ctx.xhat, ctx.rstd), None

    def make(model):
        for norm in norms(model):
            norm.forward = lambda x, n=norm: Hat.apply(x, n.eps) * n.weight + n.bias

    return make


def query_scale(model):
    for layer in layers(model, "text"):
        after(layer.self_attn.q_proj, factor(math.sqrt(layer.self_attn.head_dim)))


def key_scale(model):
    for layer in layers(model, "image"):
        after(layer.self_attn.k_proj, factor(math.sqrt(layer.self_attn.head_dim)))


def before(module, change):
    forward = module.forward
    module.forward = lambda x: forward(change(x))


def one_path(model):
    for layer in layers(model):
        before(layer.self_attn.k_proj, torch.detach)
        before(layer.self_attn.v_proj, torch.detach)


def detached_blocks(half):
    """The shortcut round one half of a block, detached: what is added is still right."""

    def make(model):
        for layer in layers(model):

            def forward(x, *_, la=layer, **__):
                attended = la.self_attn(hidden_states=la.layer_norm1(x))[0]
                x = (x.detach() if half == "attn" else x) + attended
                return (x.detach() if half == "mlp" else x) + la.mlp(la.layer_norm2(x))

            layer.forward = forward

    return make


def position_mean(model):
    after(model.text_model.embeddings.position_embedding, factor(1 / 4))
    after(model.vision_model.embeddings.position_embedding, factor(1 / 4))


def bias_mean(model):
    for module in model.text_model.modules():
        if isinstance(module, nn.Linear):

            def forward(x, m=module):
                return functional.linear(x, m.weight) + factor(1 / x.shape[:-1].numel())(m.bias)

            module.forward = forward


def overwritten_tokens(model):
    table = model.text_model.embeddings.token_embedding

    def forward(tokens):
        def last_only(d, weight):
            grad = torch.zeros_like(weight)
            for place, token in enumerate(tokens.flatten().tolist()):
                grad[token] = d.flatten(0, 1)[place]
            return grad

        class Look(torch.autograd.Function):
            @staticmethod
            def forward(ctx, weight):
                ctx.weight = weight
                return weight[tokens]

            @staticmethod
            def backward(ctx, d):
                return last_only(d, ctx.weight)

        return Look.apply(table.weight)

    table.forward = forward


def probe_of_first_image(model):
    head = model.vision_model.head

    def forward(x):
        probe = head.probe.repeat(len(x), 1, 1)
        probe = torch.cat([probe[:1], probe[1:].detach()])
        read = head.attention(probe, x, x)[0]
        return (read + mlp_of(head, read))[:, 0]

    head.forward = forward


def norm_parameters(change):
    """The gradients of gamma and beta changed: change(d, parameter)."""

    def make(model):
        for norm in norms(model):
            norm.forward = lambda x, n=norm: functional.layer_norm(
                x, n.normalized_shape, Backward.apply(n.weight, change), Backward.apply(n.bias, change), n.eps
            )

    return make


def gamma_of_hat(model):
    for norm in norms(model):
        norm.forward = lambda x, n=norm: functional.layer_norm(
            x, n.normalized_shape, Backward.apply(n.weight, lambda d, gamma: d * gamma), n.bias, n.eps
        )


def attention_by(mix):
    """Self-attention of the text tower with a backward of its own: mix(scores, value)."""

    def make(model):
        for layer in layers(model, "text"):

            def forward(hidden_states, a=layer.self_attn, **_):
                q, k, v = (
                    p(hidden_states).unflatten(-1, (a.num_heads, -1)).transpose(1, 2)
                    for p in (a.q_proj, a.k_proj, a.v_proj)
                )
                return a.out_proj(mix(q @ k.transpose(-1, -2) * a.scale, v).transpose(1, 2).flatten(2)), None

            layer.self_attn.forward = forward

    return make


class SoftmaxWithoutSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        ctx.out = scores.softmax(-1)
        return ctx.out.clone()

    @staticmethod
    def backward(ctx, d):
        return ctx.out * d


class MixUntransposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, probability, value):
        ctx.save_for_backward(probability, value)
        return probability @ value

    @staticmethod
    def backward(ctx, d):
        probability, value = ctx.saved_tensors
        return d @ value.transpose(-1, -2), probability @ d


class GateAlone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.gate = (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        return functional.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx, d):
        return d * ctx.gate


def gate_alone(model):
    for layer in layers(model, "text"):
        layer.mlp.activation_fn.forward = GateAlone.apply


def gradient_to_first(model):
    text = model.text_model

    def forward(input_ids, **named):
        x = text.final_layer_norm(text.encoder(text.embeddings(input_ids)).last_hidden_state)
        pooled = x[:, -1].detach() + x[:, 0] - x[:, 0].detach()
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=text.head(pooled))

    text.forward = forward


BACKWARD = {
    "layernorm-backward-mean": norm_backward(lambda d, xhat, rstd: (d - xhat * mean(d * xhat)) * rstd),
    "layernorm-backward-variance": norm_backward(lambda d, xhat, rstd: (d - mean(d)) * rstd),
    "layernorm-backward-gamma": gamma_of_hat,
    "gamma-grad-low-precision": norm_parameters(lambda d, _: rounded(d)),
    "softmax-backward-sum": attention_by(lambda scores, v: SoftmaxWithoutSum.apply(scores) @ v),
    "attention-backward-value": attention_by(lambda scores, v: MixUntransposed.apply(scores.softmax(-1), v)),
    "gelu-backward-sigmoid": gate_alone,
    "normalise-backward-missing": joined_with(lambda x: x / x.norm(dim=-1, keepdim=True).detach()),
    "map-head-backward-residual": head_with(lambda head, read, x: (read.detach() + mlp_of(head, read))[:, 0]),
    "pool-grad-first-token": gradient_to_first,
    "attention-backward-query-scale": query_scale,
    "attention-backward-key-scale": key_scale,
    "attention-backward-input": lambda model: [
        before(la.self_attn.v_proj, torch.detach) for la in layers(model, "text")
    ],
    "self-attention-one-path": one_path,
    "residual-backward-attention": detached_blocks("attn"),
    "residual-backward-mlp": detached_blocks("mlp"),
    "bias-grad-mean": bias_mean,
    "token-grad-overwritten": overwritten_tokens,
    "position-grad-mean": position_mean,
    "probe-grad-first-image": probe_of_first_image,
}


MISTAKES = FORWARD | BACKWARD
