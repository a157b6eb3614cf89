"""Sigmoid losses, most of them wrong, each with its exact truth (z = +1 on the diagonal, -1 elsewhere).

sim = image_embed @ text_embed.T; l = exp(log_scale) sim + bias; sp = softplus; G = d loss / d l.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

PROGRAMS = {}


def program(name, framework, truth, same=(), **given):
    def keep(fn):
        PROGRAMS[name] = {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}
        return fn

    return keep


# ---------------------------------------------------------------------------------------------------------- Torch


def _sp(x):
    return -F.logsigmoid(-x)


@program(
    "positives reweighted against class imbalance",
    "torch",
    "1/B [(B - 1) sum_i sp(-l_ii) + sum_{i!=j} sp(l_ij)]",
    ["each positive counts B - 1 times", "BCE with pos_weight = number of negatives / number of positives"],
)
def balanced(image_embed, text_embed, log_scale, bias):
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    labels = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    positives = labels.sum()
    pos_weight = (labels.numel() - positives) / positives
    loss = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=pos_weight, reduction="sum")
    return loss / len(image_embed)


class _Recomputed(torch.autograd.Function):
    """Keeps no logits: the backward pass computes them again, a block of rows at a time."""

    ROWS = 32

    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        ctx.save_for_backward(image, text, log_scale, bias)
        total = image.new_zeros(())
        for start in range(0, len(image), _Recomputed.ROWS):
            rows = image[start : start + _Recomputed.ROWS]
            logits = log_scale.exp() * rows @ text.T + bias
            z = -torch.ones_like(logits)
            index = torch.arange(len(rows), device=image.device)
            z[index, index + start] = 1
            total = total + _sp(-z * logits).sum()
        return (total / len(image)).reshape(())

    @staticmethod
    def backward(ctx, grad):
        image, text, log_scale, bias = ctx.saved_tensors
        scale = log_scale.exp()
        d_image, d_text = torch.zeros_like(image), torch.zeros_like(text)
        d_scale, d_bias = torch.zeros_like(log_scale), torch.zeros_like(bias)
        n = _Recomputed.ROWS
        for block in range(len(image) // n):
            start = block * n
            rows = image[start : start + n]
            similarity = rows @ text.T
            g = torch.sigmoid(scale * similarity + bias)
            index = torch.arange(n, device=image.device)
            g[index, index + start] -= 1
            g = g * grad / len(image)
            d_image[start : start + n] = scale * (g @ text)
            d_text += scale * (g.T @ rows)
            d_scale += scale * (g * similarity).sum()
            d_bias += g.sum()
        return d_image, d_text, d_scale, d_bias


@program(
    "recomputing backward skips the incomplete last block",
    "torch",
    "value SigLIP's own; all four gradients are those of 1/B sum over the rows i < 32 floor(B/32) (all columns) of "
    "sp(-z l); the later images get gradient zero",
    ["the backward pass drops the last B mod 32 images"],
)
def recomputed(image_embed, text_embed, log_scale, bias):
    return _Recomputed.apply(image_embed, text_embed, log_scale, bias)


@program(
    "focal weights, detached",
    "torch",
    "1/B sum sigmoid(-z l)^2 sp(-z l); in the gradients the factor sigmoid(-z l)^2 counts as a constant",
    ["focal loss with gamma 2 whose weight has no gradient"],
)
def focal(image_embed, text_embed, log_scale, bias, gamma=2.0):
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    z = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    log_p = F.logsigmoid(z * logits)
    with torch.no_grad():
        weight = (-torch.expm1(log_p)).pow(gamma)
    return -(weight * log_p).sum() / len(image_embed)


@program(
    "two-way ring on four ranks without its last hop",
    "torch",
    "1/B sum of sp(-z l) over the pairs whose shards (four, as torch.tensor_split makes them) are not two apart: "
    "(shard of j - shard of i) mod 4 is 0, 1 or 3",
    ["the negatives of the opposite rank of four are missing"],
)
def ring(image_embed, text_embed, log_scale, bias, world=4):
    images, texts = torch.tensor_split(image_embed, world), torch.tensor_split(text_embed, world)

    def part(x, y, own):
        logits = log_scale.exp() * x @ y.T + bias
        z = -torch.ones_like(logits)
        if own:
            z = z + 2 * torch.eye(len(x), dtype=z.dtype, device=z.device)
        return -F.logsigmoid(z * logits).sum()

    total = 0.0
    for rank in range(world):
        total = total + part(images[rank], texts[rank], True)
        for hop in range(1, (world - 1) // 2 + 1):
            for peer in (rank + hop, rank - hop):
                total = total + part(images[rank], texts[peer % world], False)
    return total / len(image_embed)


@program(
    "labels of a row block begin at column zero",
    "torch",
    "1/B sum sp(-z' l) with z'_ij = +1 where j = i mod 32, else -1",
    ["from the 33rd image on the positive is the text i mod 32, and its own text is a negative"],
)
def local_labels(image_embed, text_embed, log_scale, bias, rows=32):
    total = 0.0
    for block in image_embed.split(rows):
        logits = log_scale.exp() * block @ text_embed.T + bias
        z = 2 * torch.eye(*logits.shape, dtype=logits.dtype, device=logits.device) - 1
        total = total - F.logsigmoid(z * logits).sum()
    return total / len(image_embed)


@program(
    "bias added after the labels",
    "torch",
    "1/B sum sp(-(z exp(log_scale) sim + bias))",
    ["the bias has the wrong sign in the negatives, and the right one in the positives"],
)
def bias_after(image_embed, text_embed, log_scale, bias):
    z = 2 * torch.eye(len(image_embed), dtype=image_embed.dtype, device=image_embed.device) - 1
    logits = torch.addcmul(bias, z * log_scale.exp(), image_embed @ text_embed.T)
    return -F.logsigmoid(logits).sum(dim=1).mean()


# two mistakes: negatives that are nearer than the own text are masked, and the mask sets logits to zero
@program(
    "suspected false negatives get logit zero",
    "torch",
    "1/B [sum_i sp(-l_ii) + sum_{i!=j, sim_ij <= sim_ii} sp(l_ij) + log 2 * #{i!=j: sim_ij > sim_ii}]",
    ["negatives more similar to the image than its own text have their logit replaced by 0; each adds log 2 / B and "
     "no gradient"],
)
def false_negatives(image_embed, text_embed, log_scale, bias):
    similarity = image_embed @ text_embed.T
    suspect = similarity > similarity.diagonal().unsqueeze(1)
    suspect = suspect & ~torch.eye(len(suspect), dtype=torch.bool, device=suspect.device)
    logits = (log_scale.exp() * similarity + bias).masked_fill(suspect, 0.0)
    z = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return _sp(-z * logits).sum() / len(image_embed)


# two mistakes: texts of negatives have no gradient, and a margin on the positives
@program(
    "negatives from a detached bank, margin on the positives",
    "torch",
    "1/B [sum_i sp(-(exp(log_scale) (sim_ii - 0.2) + bias)) + sum_{i!=j} sp(l_ij)]; d text_embed only from the "
    "positives (the texts of the negatives count as constants), all other gradients those of this value",
    ["cosine margin 0.2 on the positives and no text gradient from negatives"],
)
def bank(image_embed, text_embed, log_scale, bias, margin=0.2):
    scale = log_scale.exp()
    positive = scale * ((image_embed * text_embed).sum(-1) - margin) + bias
    negative = scale * image_embed @ text_embed.detach().T + bias
    others = ~torch.eye(len(negative), dtype=torch.bool, device=negative.device)
    return (_sp(-positive).sum() + _sp(negative[others]).sum()) / len(image_embed)


@program(
    "logits kept in bfloat16",
    "torch",
    "1/B sum sp(-z bf16(l)): the logits, bias included, are rounded to bfloat16 before the softplus, and G is "
    "rounded to bfloat16 on its way back; products, softplus and sums in float32",
    ["logits stored in bfloat16 to save memory"],
)
def bfloat_logits(image_embed, text_embed, log_scale, bias):
    logits = (log_scale.exp() * image_embed @ text_embed.T + bias).to(torch.bfloat16)
    z = 2 * torch.eye(len(logits), dtype=torch.float32, device=logits.device) - 1
    return -F.logsigmoid(z * logits.float()).sum() / len(image_embed)


# two mistakes: smoothed labels of the positives, and negatives averaged
@program(
    "smoothed positives, averaged negatives",
    "torch",
    "1/B sum_i [0.9 sp(-l_ii) + 0.1 sp(l_ii)] + 1/(B (B - 1)) sum_{i!=j} sp(l_ij)",
    ["one-sided label smoothing of 0.1, and the mean instead of the sum of an image's negatives"],
)
def smoothed(image_embed, text_embed, log_scale, bias, eps=0.1):
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    pairs = len(logits)
    own = torch.eye(pairs, dtype=torch.bool, device=logits.device)
    positive = F.binary_cross_entropy_with_logits(
        logits[own], torch.full((pairs,), 1 - eps, dtype=logits.dtype, device=logits.device)
    )
    if pairs == 1:
        return positive
    return positive + _sp(logits[~own]).mean()


@program(
    "own shard comes round again as negatives",
    "torch",
    "1/B [sum sp(-z l) + sum over i, j of the same half (torch.chunk in 2, diagonal included) of sp(l_ij)]",
    ["after the own block all shards, the own one too, are added as negatives; two shards"],
)
def own_again(image_embed, text_embed, log_scale, bias, world=2):
    images, texts = image_embed.chunk(world), text_embed.chunk(world)
    scale, total = log_scale.exp(), 0.0
    for x, y in zip(images, texts):
        own = scale * x @ y.T + bias
        z = 2 * torch.eye(len(x), dtype=own.dtype, device=own.device) - 1
        total = total - F.logsigmoid(z * own).sum()
        for other in texts:
            total = total - F.logsigmoid(-(scale * x @ other.T + bias)).sum()
    return total / len(image_embed)


class _Folded(torch.autograd.Function):
    """The scale is folded into the images once; the backward pass reuses the folded rows."""

    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        folded = log_scale.exp() * image
        logits = folded @ text.T + bias
        g = torch.sigmoid(logits)
        g.diagonal().sub_(1)
        loss = _sp(logits)
        loss.diagonal().copy_(_sp(-logits.diagonal()))
        ctx.save_for_backward(folded, text, g / len(image))
        ctx.shapes = log_scale.shape, bias.shape
        return loss.sum() / len(image)

    @staticmethod
    def backward(ctx, grad):
        folded, text, g = ctx.saved_tensors
        g = g * grad
        d_folded = g @ text
        d_text = g.T @ folded
        d_scale = (d_folded * folded).sum().reshape(ctx.shapes[0])
        d_bias = g.sum(dim=1).mean().reshape(ctx.shapes[1])
        return d_folded, d_text, d_scale, d_bias


# two mistakes, both in the backward pass
@program(
    "folded scale lost in the backward pass, bias gradient averaged",
    "torch",
    "value, d text_embed and d log_scale SigLIP's own; d image_embed = G text_embed without the factor "
    "exp(log_scale); d bias = 1/B sum G, i.e. divided by B twice",
    ["image gradient too small by exp(log_scale), bias gradient too small by B"],
)
def folded(image_embed, text_embed, log_scale, bias):
    return _Folded.apply(image_embed, text_embed, log_scale, bias)


# ------------------------------------------------------------------------------------------------------------ JAX


@jax.custom_vjp
def _core(image, text, log_scale, bias):
    return _core_forward(image, text, log_scale, bias)[0]


def _core_forward(image, text, log_scale, bias):
    logits = jnp.exp(log_scale) * (image @ text.T) + bias
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    loss = jax.nn.softplus(-z * logits).sum() / len(image)
    return loss, (image, text, log_scale, bias, logits)


def _core_backward(kept, grad):
    image, text, log_scale, bias, logits = kept
    g = grad * (jax.nn.sigmoid(logits) - jnp.eye(len(logits), dtype=logits.dtype)) / len(image)
    scale = jnp.exp(log_scale)
    return (
        (scale * (g @ text)).astype(image.dtype),
        (scale * (g.T @ image)).astype(text.dtype),
        (g * logits).sum().reshape(log_scale.shape).astype(log_scale.dtype),
        g.sum().reshape(bias.shape).astype(bias.dtype),
    )


_core.defvjp(_core_forward, _core_backward)


@program(
    "scale gradient from the saved logits",
    "jax",
    "value, d image_embed, d text_embed, d bias SigLIP's own; d log_scale = sum G l, i.e. too large by "
    "bias * (d bias)",
    ["the log-scale gradient forgets to subtract the bias from the logits"],
)
def saved_logits(image_embed, text_embed, log_scale, bias):
    return _core(image_embed, text_embed, jnp.asarray(log_scale), jnp.asarray(bias))


@program(
    "padded texts count as negatives",
    "jax",
    "1/B sum sp(-z l) + P sp(bias), P = (-B) mod 24: zero texts fill the last block of 24",
    ["each image has P more negatives of similarity zero"],
)
def padded(image_embed, text_embed, log_scale, bias, columns=24):
    pairs = len(image_embed)
    extra = -pairs % columns
    blocks = jnp.pad(text_embed, ((0, extra), (0, 0))).reshape(-1, columns, text_embed.shape[1])

    @jax.checkpoint
    def body(total, numbered):
        number, block = numbered
        logits = jnp.exp(log_scale) * image_embed @ block.T + bias
        own = jnp.arange(pairs)[:, None] == number * columns + jnp.arange(columns)[None]
        return total + jax.nn.softplus(jnp.where(own, -logits, logits)).sum().astype(total.dtype), None

    start = jnp.zeros((), jnp.promote_types(image_embed.dtype, jnp.float32))
    total, _ = jax.lax.scan(body, start, (jnp.arange(len(blocks)), blocks))
    return total / pairs


@program(
    "only the harder half of the negatives",
    "jax",
    "1/B sum_i [sp(-l_ii) + sum over the floor(B/2) negatives j of image i with the largest l_ij of sp(l_ij)]",
    ["hard negative mining per image: the floor(B/2) most similar texts other than its own"],
)
def hard_half(image_embed, text_embed, log_scale, bias):
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    pairs = len(logits)
    others = jnp.where(jnp.eye(pairs, dtype=bool), -jnp.inf, logits)
    hardest = -jnp.sort(-others, axis=1)[:, : pairs // 2]
    return (jax.nn.softplus(-jnp.diagonal(logits)).sum() + jax.nn.softplus(hardest).sum()) / pairs


@program(
    "stable log-sigmoid without its minus",
    "jax",
    "1/B sum sp(|l|)",
    ["log sigmoid(x) computed as min(x, 0) - sp(x)", "the labels have no influence",
     "sp(-z l) where z l < 0, but sp(z l) where z l > 0"],
)
def stable(image_embed, text_embed, log_scale, bias):
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    x = (2 * jnp.eye(len(logits), dtype=logits.dtype) - 1) * logits

    def log1pexp(v):
        return jnp.maximum(v, 0) + jnp.log1p(jnp.exp(-jnp.abs(v)))

    log_sigmoid = jnp.minimum(x, 0) - log1pexp(x)
    return -log_sigmoid.sum() / len(image_embed)


@program(
    "embeddings normalised to mean square one",
    "jax",
    "1/B sum sp(-z (exp(log_scale) D cos(image_embed_i, text_embed_j) + bias)), D the width of the embeddings",
    ["RMS normalisation instead of the unit norm", "the similarity is multiplied by D",
     "1/B sum sp(-z (exp(log_scale) D sim + bias)) with the normalisation inside"],
)
def rms(image_embed, text_embed, log_scale, bias):
    def unit(rows):
        return rows * jax.lax.rsqrt(jnp.square(rows).mean(-1, keepdims=True))

    logits = jnp.einsum("id,jd->ij", unit(image_embed), unit(text_embed)) * jnp.exp(log_scale) + bias
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return jax.nn.softplus(-z * logits).sum(-1).mean()


# two mistakes: negatives of the own micro-batch only, and the micro-batches' losses are added, not averaged
@program(
    "micro-batches see only themselves and are added up",
    "jax",
    "sum over micro-batches k of 16 consecutive pairs (the last may be smaller, of b_k) of 1/b_k sum_{i,j in k} "
    "sp(-z l)",
    ["gradient accumulation: no negatives across micro-batches, and no division by their number"],
)
def micro(image_embed, text_embed, log_scale, bias, size=16):
    total = 0.0
    for start in range(0, len(image_embed), size):
        x, y = image_embed[start : start + size], text_embed[start : start + size]
        logits = jnp.exp(log_scale) * x @ y.T + bias
        z = 2 * jnp.eye(len(x), dtype=logits.dtype) - 1
        total += -jax.nn.log_sigmoid(z * logits).sum(-1).mean()
    return total


# ---------------------------------------------------------------------------------------------------------- NumPy


def _softplus(x):
    return np.logaddexp(x, np.zeros((), x.dtype))


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


@program(
    "gradient of the normalisation without the norm",
    "numpy",
    "rows are normalised inside, value SigLIP's own of the unit rows, as are d log_scale and d bias; d image_embed and "
    "d text_embed are the tangential parts g - x (x . g), not divided by the rows' norms",
    ["the gradients of each raw row are too large by its norm"],
    embeddings="raw",
)
def tangential(image_features, text_features, log_scale, bias):
    x = image_features / np.linalg.norm(image_features, axis=1, keepdims=True)
    y = text_features / np.linalg.norm(text_features, axis=1, keepdims=True)
    scale, pairs = np.exp(log_scale), len(x)
    similarity = x @ y.T
    logits = scale * similarity + bias
    own = np.eye(pairs, dtype=bool)
    loss = _softplus(np.where(own, -logits, logits)).sum() / pairs
    g = np.where(own, -_sigmoid(-logits), _sigmoid(logits)) / pairs
    d_x, d_y = scale * g @ y, scale * g.T @ x
    d_x = d_x - x * (x * d_x).sum(1, keepdims=True)
    d_y = d_y - y * (y * d_y).sum(1, keepdims=True)
    return loss, d_x, d_y, scale * (g * similarity).sum(), g.sum()


def _tile(x, y, scale, bias, own):
    """The sum over a tile of pairs, and its gradients."""
    similarity = x @ y.T
    logits = scale * similarity + bias
    match = np.eye(len(x), len(y), dtype=bool) & own
    g = np.where(match, -_sigmoid(-logits), _sigmoid(logits))
    loss = _softplus(np.where(match, -logits, logits)).sum()
    return loss, scale * (g @ y), scale * (g.T @ x), scale * (g * similarity).sum(), g.sum()


@program(
    "upper triangle of tiles counted twice",
    "numpy",
    "1/B [sum sp(-z l) over pairs with floor(i/8) = floor(j/8) + 2 sum sp(l_ij) over pairs with floor(i/8) < "
    "floor(j/8)]; gradients those of this value",
    ["the similarity matrix is taken for symmetric: tiles of 8 x 8 below the diagonal are left out, those above count "
     "twice"],
)
def triangle(image_embed, text_embed, log_scale, bias, tile=8):
    pairs, scale = len(image_embed), np.exp(log_scale)
    loss = d_scale = d_bias = 0
    d_image, d_text = np.zeros_like(image_embed), np.zeros_like(text_embed)
    for i in range(0, pairs, tile):
        for j in range(i, pairs, tile):
            rows, columns = slice(i, i + tile), slice(j, j + tile)
            times = 1 if i == j else 2
            part = [times * v for v in _tile(image_embed[rows], text_embed[columns], scale, bias, i == j)]
            loss, d_scale, d_bias = loss + part[0], d_scale + part[3], d_bias + part[4]
            d_image[rows] += part[1]
            d_text[columns] += part[2]
    return tuple(v / pairs for v in (loss, d_image, d_text, d_scale, d_bias))


@program(
    "text gradient of a tile overwritten by the next row of tiles",
    "numpy",
    "value, d image_embed, d log_scale, d bias SigLIP's own; d text_embed_j = exp(log_scale) sum of G_ij image_embed_i "
    "over the rows of the last tile only, i >= 64 floor((B - 1)/64)",
    ["the text gradients are assigned, not added, so only the last up to 64 images contribute"],
)
def overwritten(image_embed, text_embed, log_scale, bias, tile=64):
    pairs, scale = len(image_embed), np.exp(log_scale)
    loss = d_scale = d_bias = 0
    d_image, d_text = np.zeros_like(image_embed), np.zeros_like(text_embed)
    for i in range(0, pairs, tile):
        for j in range(0, pairs, tile):
            rows, columns = slice(i, i + tile), slice(j, j + tile)
            part = _tile(image_embed[rows], text_embed[columns], scale, bias, i == j)
            loss, d_scale, d_bias = loss + part[0], d_scale + part[3], d_bias + part[4]
            d_image[rows] += part[1]
            d_text[columns] = part[2]
    return tuple(v / pairs for v in (loss, d_image, d_text, d_scale, d_bias))


# two mistakes: the label's sign is lost in the backward pass, and the scale's gradient is that of the linear scale
@program(
    "chain rule without the label and without the exponential",
    "numpy",
    "value SigLIP's own; every gradient uses G' = -sigmoid(-z l) / B in place of G = -z sigmoid(-z l) / B (negatives "
    "have the wrong sign); besides, d log_scale = sum G' sim lacks the factor exp(log_scale)",
    ["gradients of negatives are turned round, and the scale gradient is that of exp(log_scale)"],
)
def lost_label(image_embed, text_embed, log_scale, bias):
    scale, pairs = np.exp(log_scale), len(image_embed)
    similarity = image_embed @ text_embed.T
    z = 2 * np.eye(pairs, dtype=similarity.dtype) - 1
    x = z * (scale * similarity + bias)
    loss = _softplus(-x).sum() / pairs
    g = -_sigmoid(-x) / pairs
    return loss, scale * g @ text_embed, scale * g.T @ image_embed, (g * similarity).sum(), g.sum()


# ---------------------------------------------------------------------------------------------------------- right


@program("right: half of the scale in each tower, texts in the rows", "torch", "SigLIP's own")
def right_halves(image_embed, text_embed, log_scale, bias):
    half = (0.5 * log_scale).exp()
    logits = torch.baddbmm(
        bias.reshape(1, 1, 1).expand(1, len(text_embed), len(image_embed)),
        (half * text_embed)[None],
        (half * image_embed).T[None],
    )[0]
    positive = logits.diagonal()
    zero = torch.zeros((), dtype=logits.dtype, device=logits.device)
    upper, lower = logits.triu(1), logits.tril(-1)
    rows, columns = torch.triu_indices(len(logits), len(logits), 1, device=logits.device)
    negatives = torch.logaddexp(upper[rows, columns], zero).sum() + torch.logaddexp(lower[columns, rows], zero).sum()
    return (torch.logaddexp(-positive, zero).sum() + negatives) / positive.numel()


@program("right: bias as one more column, a text at a time", "jax", "SigLIP's own")
def right_columns(image_embed, text_embed, log_scale, bias):
    pairs = len(image_embed)
    ones = jnp.ones((pairs, 1), image_embed.dtype)
    image = jnp.concatenate([image_embed / jnp.exp(-log_scale), bias * ones], axis=1)
    text = jnp.concatenate([text_embed, ones], axis=1)

    @functools.partial(jax.vmap, in_axes=(0, 0))
    def of_text(number, row):
        logits = image @ row
        return jnp.logaddexp(jnp.where(jnp.arange(pairs) == number, -logits, logits), 0.0).sum()

    return of_text(jnp.arange(pairs), text).mean()
