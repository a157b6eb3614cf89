"""Wrong sigmoid losses (and four right ones), written on 2026-11-29 by somebody who has not read the checker.

Notation of the truths: sim = image_embed @ text_embed.T, l = exp(log_scale) sim + bias, z = 2 eye - 1,
B pairs, D columns, G = (sigmoid(l) - eye) / B, softplus(u) = log(1 + exp(u)), sg = gradient stopped.
SigLIP's own: 1/B sum_ij softplus(-z_ij l_ij).
"""

import math

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F  # noqa: N812

UNIT = {"scale": "log", "embeddings": "unit"}


# ---------------------------------------------------------------------------------------------- torch, one mistake
class _NoUpstream(torch.autograd.Function):
    """Everything is ready after the forward, as in a fused kernel."""

    @staticmethod
    def forward(ctx, x, y, log_scale, bias):
        n = len(x)
        scale = log_scale.exp()
        sim = x @ y.T
        logits = scale * sim + bias
        eye = torch.eye(n, dtype=x.dtype, device=x.device)
        grad = (torch.sigmoid(logits) - eye) / n
        ctx.save_for_backward(
            scale * grad @ y,
            scale * grad.T @ x,
            (grad * scale * sim).sum().reshape(log_scale.shape),
            grad.sum().reshape(bias.shape),
        )
        return -F.logsigmoid((2 * eye - 1) * logits).sum() / n

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors


def t_no_upstream(image_embed, text_embed, log_scale, bias):
    return _NoUpstream.apply(image_embed, text_embed, log_scale, bias)


class _ScaleFromLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, log_scale, bias):
        n = len(x)
        logits = log_scale.exp() * (x @ y.T) + bias
        ctx.save_for_backward(x, y, log_scale, bias, logits)
        z = 2 * torch.eye(n, dtype=x.dtype, device=x.device) - 1
        return -F.logsigmoid(z * logits).sum() / n

    @staticmethod
    def backward(ctx, grad_output):
        x, y, log_scale, bias, logits = ctx.saved_tensors
        eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
        grad = grad_output * (torch.sigmoid(logits) - eye) / len(x)
        scale = log_scale.exp()
        return (
            scale * grad @ y,
            scale * grad.T @ x,
            (grad * logits).sum().reshape(log_scale.shape),
            grad.sum().reshape(bias.shape),
        )


def t_scale_gradient_from_logits(image_embed, text_embed, log_scale, bias):
    return _ScaleFromLogits.apply(image_embed, text_embed, log_scale, bias)


class _LastBlock(torch.autograd.Function):
    BLOCK = 4

    @staticmethod
    def forward(ctx, x, y, log_scale, bias):
        ctx.save_for_backward(x, y, log_scale, bias)
        n = len(x)
        total = x.new_zeros(())
        for start in range(0, n, _LastBlock.BLOCK):
            rows = x[start : start + _LastBlock.BLOCK]
            logits = log_scale.exp() * rows @ y.T + bias
            own = torch.arange(start, start + len(rows), device=x.device)
            z = torch.full_like(logits, -1.0)
            z[torch.arange(len(rows), device=x.device), own] = 1.0
            total = total - F.logsigmoid(z * logits).sum()
        return (total / n).reshape(())

    @staticmethod
    def backward(ctx, grad_output):
        x, y, log_scale, bias = ctx.saved_tensors
        n = len(x)
        scale = log_scale.exp()
        dx = torch.empty_like(x)
        dy = torch.zeros_like(y)
        ds, db = torch.zeros_like(log_scale), torch.zeros_like(bias)
        for start in range(0, n, _LastBlock.BLOCK):
            rows = x[start : start + _LastBlock.BLOCK]
            sim = rows @ y.T
            grad = torch.sigmoid(scale * sim + bias)
            here = torch.arange(len(rows), device=x.device)
            grad[here, here + start] -= 1
            grad = grad * grad_output / n
            dx[start : start + len(rows)] = scale * grad @ y
            dy = scale * grad.T @ rows
            ds = ds + (grad * scale * sim).sum()
            db = db + grad.sum()
        return dx, dy, ds, db


def t_text_gradient_of_last_block(image_embed, text_embed, log_scale, bias):
    return _LastBlock.apply(image_embed, text_embed, log_scale, bias)


def t_labels_minus_one_plus_eye(image_embed, text_embed, log_scale, bias):
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    eye = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    m1_diag1 = -torch.ones_like(logits) + eye
    return -F.logsigmoid(m1_diag1 * logits).sum(-1).mean()


def t_row_maximum_subtracted(image_embed, text_embed, log_scale, bias):
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()  # for stability
    z = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(z * logits).sum() / len(logits)


def t_clamp_straight_through(image_embed, text_embed, log_scale, bias):
    clamped = log_scale.clamp(max=math.log(100.0))
    log_scale = log_scale + (clamped - log_scale).detach()
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    z = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(z * logits).sum() / len(logits)


def t_off_diagonal_off_by_one(image_embed, text_embed, log_scale, bias):
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    n = len(logits)
    negatives = logits.flatten()[:-1].view(n - 1, n + 1)[:, :-1]
    return (-F.logsigmoid(logits.diagonal()).sum() - F.logsigmoid(-negatives).sum()) / n


def t_negatives_from_a_queue(image_embed, text_embed, log_scale, bias):
    scale = log_scale.exp()
    queue = text_embed.detach()
    positive = scale * (image_embed * text_embed).sum(-1) + bias
    negative = scale * image_embed @ queue.T + bias
    off = ~torch.eye(len(negative), dtype=torch.bool, device=negative.device)
    return (-F.logsigmoid(positive).sum() - F.logsigmoid(-negative[off]).sum()) / len(positive)


def t_bce_of_probabilities(image_embed, text_embed, log_scale, bias):
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    labels = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    return F.binary_cross_entropy(torch.sigmoid(logits), labels, reduction="sum") / len(logits)


def t_upper_triangle_twice(image_embed, text_embed, log_scale, bias):
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    n = len(logits)
    i, j = torch.triu_indices(n, n, offset=1, device=logits.device)
    positive = -F.logsigmoid(logits.diagonal()).sum()
    negative = -F.logsigmoid(-logits[i, j]).sum()
    return (positive + 2 * negative) / n


# --------------------------------------------------------------------------------------------- torch, two mistakes
def t2_both_directions_bias_twice(image_embed, text_embed, log_scale, bias):
    logits_per_image = image_embed @ text_embed.T * log_scale.exp() + bias
    logits_per_text = logits_per_image.T + bias
    z = 2 * torch.eye(len(image_embed), dtype=image_embed.dtype, device=image_embed.device) - 1
    loss = 0
    for logits in (logits_per_image, logits_per_text):
        loss = loss - F.logsigmoid(z * logits).sum(1).mean()
    return loss


def t2_width_and_negative_bias(image_embed, text_embed, log_scale, bias):
    logits = image_embed @ text_embed.T * log_scale.exp() - bias.abs()
    z = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(z * logits).sum() / image_embed.shape[1]


def t2_short_labels_and_balance(image_embed, text_embed, log_scale, bias):
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    n = len(logits)
    eye = torch.eye(n, dtype=logits.dtype, device=logits.device)
    z = (2 * eye - 1) * (1 - 0.1)  # label smoothing
    weight = 1 + (n - 2) * eye  # a positive weighs as much as all negatives of its row
    return -(weight * F.logsigmoid(z * logits)).sum() / n


# ------------------------------------------------------------------------------------------------ jax, one mistake
def j_vmap_first_column(image_embed, text_embed, log_scale, bias):
    def row(image, texts):
        logits = jnp.exp(log_scale) * texts @ image + bias
        z = 2.0 * (jnp.arange(len(texts)) == 0) - 1.0
        return -jax.nn.log_sigmoid(z.astype(logits.dtype) * logits).sum()

    return jax.vmap(row, in_axes=(0, None))(image_embed, text_embed).mean()


def j_scan_index_first(image_embed, text_embed, log_scale, bias):
    numbers = jnp.arange(len(image_embed))

    def body(carry, text):
        index, total = carry
        index = index + 1
        logits = jnp.exp(log_scale) * image_embed @ text + bias
        z = jnp.where(numbers == index, 1.0, -1.0).astype(logits.dtype)
        total = total - jax.nn.log_sigmoid(z * logits).sum()
        return (index, total), None

    start = (jnp.zeros((), jnp.int32), jnp.zeros((), image_embed.dtype))
    (_, total), _ = jax.lax.scan(body, start, text_embed)
    return total / len(image_embed)


def j_softplus_with_second_maximum(image_embed, text_embed, log_scale, bias):
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    u = -(2 * jnp.eye(len(logits), dtype=logits.dtype) - 1) * logits
    top = jnp.maximum(u, 0)
    return (top + jnp.log1p(jnp.exp(u - top))).sum() / len(logits)


@jax.custom_vjp
def _untransposed(x, y, log_scale, bias):
    return _untransposed_forward(x, y, log_scale, bias)[0]


def _untransposed_forward(x, y, log_scale, bias):
    logits = jnp.exp(log_scale) * x @ y.T + bias
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum() / len(logits), (x, y, log_scale, bias, logits)


def _untransposed_backward(saved, upstream):
    x, y, log_scale, bias, logits = saved
    grad = upstream * (jax.nn.sigmoid(logits) - jnp.eye(len(logits), dtype=logits.dtype)) / len(logits)
    scale = jnp.exp(log_scale)
    return (
        (scale * grad @ y).astype(x.dtype),
        (scale * grad @ x).astype(y.dtype),
        (grad * (logits - bias)).sum().reshape(log_scale.shape).astype(log_scale.dtype),
        grad.sum().reshape(bias.shape).astype(bias.dtype),
    )


_untransposed.defvjp(_untransposed_forward, _untransposed_backward)


def j_text_gradient_not_transposed(image_embed, text_embed, log_scale, bias):
    return _untransposed(image_embed, text_embed, log_scale, bias)


def j_softplus_scale(image_embed, text_embed, log_scale, bias):
    scale = jax.nn.softplus(log_scale)  # stays positive
    logits = scale * image_embed @ text_embed.T + bias
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum() / len(logits)


# ----------------------------------------------------------------------------------------------- jax, two mistakes
def j2_bias_outside_and_half_text(image_embed, text_embed, log_scale, bias):
    text_embed = 0.5 * text_embed + 0.5 * jax.lax.stop_gradient(text_embed)
    sim = jnp.exp(log_scale) * jnp.einsum("id,jd->ij", image_embed, text_embed)
    z = 2 * jnp.eye(len(sim), dtype=sim.dtype) - 1
    return -jax.nn.log_sigmoid(z * sim + bias).sum(-1).mean()


def j2_softcap_and_mean_negative(image_embed, text_embed, log_scale, bias):
    n = len(image_embed)

    def row(index_and_image):
        index, image = index_and_image
        logits = jnp.exp(log_scale) * text_embed @ image + bias
        logits = 30.0 * jnp.tanh(logits / 30.0)
        own = jnp.arange(n) == index
        positive = jnp.where(own, jax.nn.softplus(-logits), 0).sum()
        negative = jnp.where(own, 0, jax.nn.softplus(logits)).sum()
        return positive + negative / max(n - 1, 1)

    return jax.lax.map(row, (jnp.arange(n), image_embed)).mean()


# ------------------------------------------------------------------------------------------------------- right ones
class _Tiles(torch.autograd.Function):
    """Tiles of 64 x 40, nothing kept but the inputs."""

    @staticmethod
    def forward(ctx, x, y, log_scale, bias):
        ctx.save_for_backward(x, y, log_scale, bias)
        total = x.new_zeros(())
        for i, j, rows, columns, eye in _Tiles.tiles(x, y):
            u = log_scale.exp() * rows @ columns.T + bias
            u = u - 2 * eye * u
            total = total + torch.logaddexp(u, torch.zeros_like(u)).sum()
        return total / len(x)

    @staticmethod
    def tiles(x, y):
        for i in range(0, len(x), 64):
            for j in range(0, len(y), 40):
                rows, columns = x[i : i + 64], y[j : j + 40]
                a = torch.arange(i, i + len(rows), device=x.device)[:, None]
                b = torch.arange(j, j + len(columns), device=x.device)[None]
                yield i, j, rows, columns, (a == b).to(x.dtype)

    @staticmethod
    def backward(ctx, upstream):
        x, y, log_scale, bias = ctx.saved_tensors
        scale = log_scale.exp()
        dx, dy, ds, db = torch.zeros_like(x), torch.zeros_like(y), x.new_zeros(()), x.new_zeros(())
        for i, j, rows, columns, eye in _Tiles.tiles(x, y):
            sim = rows @ columns.T
            l = scale * sim + bias
            # sigma(l) - eye, without cancellation where l is large
            g = torch.sigmoid(l) * (1 - eye) - torch.sigmoid(-l) * eye
            dx[i : i + 64] += g @ columns
            dy[j : j + 40] += g.T @ rows
            ds += (g * sim).sum()
            db += g.sum()
        factor = upstream / len(x)
        scalars = ((ds * scale * factor, log_scale), (db * factor, bias))
        return dx * scale * factor, dy * scale * factor, *(d.reshape(v.shape).to(v.dtype) for d, v in scalars)


def r_tiles_recomputed(image_embed, text_embed, log_scale, bias):
    return _Tiles.apply(image_embed, text_embed, log_scale, bias)


def r_off_diagonal_view(image_embed, text_embed, log_scale, bias):
    n = len(image_embed)
    logits = torch.addmm(bias.expand(n, n), image_embed * log_scale.exp(), text_embed.T)
    negatives = logits.reshape(-1)[1:].view(n - 1, n + 1)[:, :-1]  # the diagonal falls out
    positives = torch.einsum("ii->i", logits)
    zero = logits.new_zeros(())
    return (torch.logaddexp(zero, -positives).sum() + torch.logaddexp(zero, negatives).sum()) / n


def r_rolled_texts(image_embed, text_embed, log_scale, bias):
    n = len(image_embed)

    @jax.checkpoint
    def body(total, shift):
        texts = jnp.roll(text_embed, shift, axis=0)
        logits = jnp.exp(log_scale) * (image_embed * texts).sum(-1) + bias
        u = jnp.where(shift == 0, -logits, logits)
        return total + jnp.logaddexp(u, 0.0).mean(), None

    total, _ = jax.lax.scan(body, jnp.zeros((), image_embed.dtype), jnp.arange(n))
    return total


def r_vmap_of_vmap(image_embed, text_embed, log_scale, bias):
    numbers = jnp.arange(len(image_embed))

    def pair(i, image, j, text):
        logit = jnp.exp(log_scale) * jnp.vdot(image, text) + bias
        return -jax.nn.log_sigmoid(jnp.where(i == j, logit, -logit))

    columns = jax.vmap(pair, in_axes=(None, None, 0, 0))
    table = jax.vmap(columns, in_axes=(0, 0, None, None))(numbers, image_embed, numbers, text_embed)
    table = table.reshape(len(numbers), len(numbers))
    return 0.5 * (table.mean(0).sum() + table.mean(1).sum())


PROGRAMS = {
    "upstream gradient forgotten": {
        "fn": t_no_upstream,
        "framework": "torch",
        "given": UNIT,
        "truth": "value right, all four gradients right for an upstream gradient of 1; whatever the upstream gradient is, they are not multiplied by it",
        "same": ["backward ignores grad_output", "with upstream 3 each gradient is 1/3 of the right one"],
    },
    "scale's gradient from the logits": {
        "fn": t_scale_gradient_from_logits,
        "framework": "torch",
        "given": UNIT,
        "truth": "value, d image, d text, d bias right; d log_scale = sum_ij G_ij l_ij, instead of sum_ij G_ij (l_ij - bias)",
        "same": ["d log_scale is too large by bias * d bias", "the bias was not taken off the logits in d log_scale"],
    },
    "text gradient of the last block of rows": {
        "fn": t_text_gradient_of_last_block,
        "framework": "torch",
        "given": UNIT,
        "truth": "all right but d text_embed, which is exp(log_scale) sum over the images i of the last block of 4 rows (i >= 4 ((B-1) // 4)) of G_ij x_i",
        "same": ["d text_embed is overwritten by each block of 4 images, not accumulated", "right for B <= 4"],
    },
    "labels minus one plus eye": {
        "fn": t_labels_minus_one_plus_eye,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B sum_{i != j} softplus(l_ij) + log 2: the labels are 0 on the diagonal, -1 elsewhere",
        "same": ["no positives: the diagonal is a constant log 2", "z is 0 on the diagonal"],
    },
    "row maximum subtracted": {
        "fn": t_row_maximum_subtracted,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B sum_ij softplus(-z_ij (l_ij - sg(max_k l_ik)))",
        "same": ["each image's logits are shifted so that their maximum is 0, without gradient through the maximum", "the value does not depend on the bias, though its gradient is not zero"],
    },
    "clamp with a straight-through gradient": {
        "fn": t_clamp_straight_through,
        "framework": "torch",
        "given": UNIT,
        "truth": "the scale is min(exp(log_scale), 100); above 100 the gradient of log_scale is that of a scale of 100, not 0",
        "same": ["log_scale is clamped at log 100, its gradient passes the clamp", "right for log_scale <= log 100"],
    },
    "off-diagonal trick off by one": {
        "fn": t_off_diagonal_off_by_one,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B [sum_i softplus(-l_ii) + sum_{i != j} softplus(l_ij) - sum_{i >= 1} softplus(l_{i,i-1}) + sum_{i < B-1} softplus(l_ii)]",
        "same": ["of the negatives those just left of the diagonal (image i, text i-1) are missing; the own pairs, but the last, are counted as negatives too"],
    },
    "negatives' texts without gradient": {
        "fn": t_negatives_from_a_queue,
        "framework": "torch",
        "given": UNIT,
        "truth": "value, d image, d log_scale, d bias right; d text_embed = exp(log_scale) G_jj x_j: only the own pair's part",
        "same": ["texts are detached in the negatives", "d text_embed has no part from the other images"],
    },
    "BCE of probabilities": {
        "fn": t_bce_of_probabilities,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B sum of -max(log p, -100) on the diagonal and -max(log(1 - p), -100) elsewhere, p = sigmoid(l) rounded: right for moderate logits; a sure wrong pair, where p rounds to 1 or 0, costs at most 100 (1 - p is 0 above l = 17 in float32, 37 in float64), loses accuracy before, and its gradient goes to (nearly) zero",
        "same": ["sigmoid followed by a log clamped at -100", "log of a rounded sigmoid: saturates at confident wrong pairs", "1 - sigmoid(l) cancels"],
    },
    "upper triangle counted twice": {
        "fn": t_upper_triangle_twice,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B [sum_i softplus(-l_ii) + 2 sum_{i < j} softplus(l_ij)]",
        "same": ["negatives below the diagonal are missing, those above count twice", "weights of pairs: 2 above, 1 on, 0 below the diagonal"],
    },
    "two: both directions not halved, bias twice in one": {
        "fn": t2_both_directions_bias_twice,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B [sum_ij softplus(-z_ij l_ij) + sum_ij softplus(-z_ij (l_ij + bias))]",
        "same": ["the sum (not the mean) of two losses, the second with twice the bias"],
    },
    "two: divided by the width, bias forced negative": {
        "fn": t2_width_and_negative_bias,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/D sum_ij softplus(-z_ij (exp(log_scale) sim_ij - |bias|))",
        "same": ["B/D times the right one, with -|bias| for the bias", "for bias <= 0 only the divisor is wrong"],
    },
    "two: labels of 0.9, positives weigh B-1": {
        "fn": t2_short_labels_and_balance,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B [(B-1) sum_i softplus(-0.9 l_ii) + sum_{i != j} softplus(0.9 l_ij)]",
        "same": ["logits (scale and bias both) times 0.9, and positives weighted B-1"],
    },
    "vmap: text 0 is everybody's positive": {
        "fn": j_vmap_first_column,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/B sum_ij softplus(-z'_ij l_ij), z'_ij = 1 for j = 0, else -1",
        "same": ["the first text is the positive of all images; all other own pairs are negatives"],
    },
    "scan: index advanced before it is used": {
        "fn": j_scan_index_first,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/B sum_ij softplus(-z'_ij l_ij), z'_ij = 1 for i = j + 1, else -1",
        "same": ["the positive of text j is image j + 1; the last text has none; own pairs are negatives", "labels on the diagonal below the main one, without wrap-around"],
    },
    "hand-made softplus without the second term's sign": {
        "fn": j_softplus_with_second_maximum,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/B sum_ij f(-z_ij l_ij), f(u) = max(u, 0) + log(1 + exp(min(u, 0))): u + log 2 for u > 0, with slope 1 there; softplus(u) for u < 0",
        "same": ["softplus is right below 0 and a straight line u + log 2 above", "for u > 0 exp(0) stands where exp(-u) should", "the gradient of pairs with u > 0 is that of a hinge (1 instead of sigmoid(u))"],
    },
    "text gradient not transposed": {
        "fn": j_text_gradient_not_transposed,
        "framework": "jax",
        "given": UNIT,
        "truth": "all right but d text_embed = exp(log_scale) G @ image_embed instead of G.T @ image_embed",
        "same": ["d text_j = exp(log_scale) sum_i G_ji x_i"],
    },
    "scale is a softplus": {
        "fn": j_softplus_scale,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/B sum_ij softplus(-z_ij (log(1 + exp(log_scale)) sim_ij + bias))",
        "same": ["the scale is softplus(log_scale), not exp"],
    },
    "two: bias outside the sign, half of the text's gradient": {
        "fn": j2_bias_outside_and_half_text,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/B sum_ij softplus(-(z_ij exp(log_scale) sim_ij + bias)); d text_embed is 1/2 of this formula's",
        "same": ["the bias is not multiplied by the label (negatives see -bias), and text gradients are halved", "the negatives' bias has the wrong sign"],
    },
    "two: soft cap at 30, mean of the negatives": {
        "fn": j2_softcap_and_mean_negative,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/B sum_i [softplus(-c_ii) + 1/(B-1) sum_{j != i} softplus(c_ij)], c = 30 tanh(l / 30)",
        "same": ["logits are soft-capped at 30, and negatives weigh 1/(B-1)"],
    },
    "right: tiles recomputed in a custom backward": {
        "fn": r_tiles_recomputed,
        "framework": "torch",
        "given": UNIT,
        "truth": "SigLIP's own",
        "same": [],
    },
    "right: off-diagonal by a view": {
        "fn": r_off_diagonal_view,
        "framework": "torch",
        "given": UNIT,
        "truth": "SigLIP's own",
        "same": [],
    },
    "right: texts rolled in a scan": {
        "fn": r_rolled_texts,
        "framework": "jax",
        "given": {},
        "truth": "SigLIP's own",
        "same": [],
    },
    "right: vmap of vmap, both directions": {
        "fn": r_vmap_of_vmap,
        "framework": "jax",
        "given": {},
        "truth": "SigLIP's own",
        "same": [],
    },
}
