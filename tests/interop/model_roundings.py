"""A SiglipModel in which one product is computed in fewer bits, with torch code: every product, format and side."""

import torch
from model_mistakes import layers
from torch.nn import functional

SIDES = ("inputs", "output")
OF_ATTENTION = ("image/block01/+attn", "text/block00/+attn", "image/pool")
OF_MLP = ("image/block00/+mlp", "text/block01/+mlp", "image/pool")
# product: the stages in which it is made
STAGES = {
    "patch": ("image/stem",),
    **dict.fromkeys(("q", "k", "v", "scores", "mix", "out"), OF_ATTENTION),
    **dict.fromkeys(("mlp/in", "mlp/out"), OF_MLP),
    "head": ("text/head",),
}
CASES = [(product, stage) for product, stages in STAGES.items() for stage in stages]


class Tf32(torch.autograd.Function):
    """11 bits of the significand, ties to even; the gradient, too, as of a cast."""

    @staticmethod
    def forward(ctx, x):
        return cut(x)

    @staticmethod
    def backward(ctx, d_out):
        return cut(d_out)


def cut(x):
    bits = x.float().contiguous().view(torch.int32)
    even = (bits >> 13) & 1
    return ((bits + 0xFFF + even) & ~0x1FFF).view(torch.float32).to(x.dtype)


def rounded(x, form):
    return Tf32.apply(x) if form == "tf32" else x.to(getattr(torch, form)).to(x.dtype)


def product(x, y, form, side):
    """x @ y with its inputs or its output rounded."""
    if side == "inputs":
        return rounded(x, form) @ rounded(y, form)
    return rounded(x @ y, form)


def linear_in(module, form, side):
    """Make a Linear round; its output with the bias, as a kernel that adds it gives it."""

    def forward(x):
        if side == "inputs":
            return functional.linear(rounded(x, form), rounded(module.weight, form), module.bias)
        return rounded(functional.linear(x, module.weight, module.bias), form)

    module.forward = forward


def attention_in(attention, name, form, side, x_query, x_key, weights):
    """Attention written out, one of its products rounded. weights: q, k, v, out -> weight, bias."""

    def linear(part, x):
        weight, bias = weights[part]
        if part != name:
            return functional.linear(x, weight, bias)
        if side == "inputs":
            return functional.linear(rounded(x, form), rounded(weight, form), bias)
        return rounded(functional.linear(x, weight, bias), form)

    def split(x):
        return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    def times(part, x, y):
        return product(x, y, form, side) if part == name else x @ y

    q, k, v = (split(linear(part, x)) for part, x in (("q", x_query), ("k", x_key), ("v", x_key)))
    scores = times("scores", q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    mixed = times("mix", scores.softmax(-1), v)
    return linear("out", mixed.transpose(1, 2).flatten(2))


def make_rounded(model, name, stage, form, side):
    """One product of one stage in fewer bits."""
    if name == "patch":
        patch = model.vision_model.embeddings.patch_embedding

        def forward(x):
            if side == "inputs":
                return functional.conv2d(rounded(x, form), rounded(patch.weight, form), patch.bias, patch.stride)
            return rounded(functional.conv2d(x, patch.weight, patch.bias, patch.stride), form)

        patch.forward = forward
    elif name == "head":
        linear_in(model.text_model.head, form, side)
    elif name.startswith("mlp/"):
        mlp = model.vision_model.head.mlp if stage == "image/pool" else layer_of(model, stage).mlp
        linear_in({"mlp/in": mlp.fc1, "mlp/out": mlp.fc2}[name], form, side)
    elif stage == "image/pool":
        attention = model.vision_model.head.attention
        attention.forward = lambda probe, x, *_, **__: (
            attention_in(attention, name, form, side, probe, x, of_pool(attention)),
            None,
        )
    else:
        attention = layer_of(model, stage).self_attn
        parts = {part: getattr(attention, f"{part}_proj") for part in ("q", "k", "v", "out")}
        attention.forward = lambda hidden_states, **_: (
            attention_in(
                attention,
                name,
                form,
                side,
                hidden_states,
                hidden_states,
                {part: (linear.weight, linear.bias) for part, linear in parts.items()},
            ),
            None,
        )


def layer_of(model, stage):
    tower, block, _ = stage.split("/")
    return layers(model, tower)[int(block.removeprefix("block"))]


def of_pool(attention):
    parts = zip("qkv", attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    return {part: (w, b) for part, w, b in parts} | {"out": (attention.out_proj.weight, attention.out_proj.bias)}
