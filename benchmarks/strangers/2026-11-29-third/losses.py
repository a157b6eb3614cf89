"""Wrong sigmoid losses (and three right ones), written on 2026-11-29 by somebody who has not read the checker.

Notation of the truths: sim = image_embed @ text_embed.T, scale = exp(log_scale), l = scale sim + bias, z = 2 eye - 1,
B pairs, G = (sigmoid(l) - eye) / B, softplus(u) = log(1 + exp(u)), sg = gradient stopped, bf16(u) = u rounded to bfloat16.
SigLIP's own: 1/B sum_ij softplus(-z_ij l_ij).
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

UNIT = {"scale": "log", "embeddings": "unit"}
RAW = {"scale": "log", "embeddings": "raw"}


def signs(n, like):
    return 2 * torch.eye(n, dtype=like.dtype, device=like.device) - 1


# ---------------------------------------------------------------------------------------------- torch, one mistake
def t_padded_columns(image_embed, text_embed, log_scale, bias):
    """Texts padded to the tile; the mask of the last tile is missing."""
    n = len(image_embed)
    tile = 16
    texts = F.pad(text_embed, (0, 0, 0, -n % tile))
    total = 0.0
    rows = torch.arange(n, device=image_embed.device)
    for start in range(0, len(texts), tile):
        columns = torch.arange(start, start + tile, device=image_embed.device)
        logits = log_scale.exp() * image_embed @ texts[start : start + tile].T + bias
        own = rows[:, None] == columns[None, :]
        total = total + F.softplus(torch.where(own, -logits, logits), threshold=100).sum()
    return total / n


def t_bce_signed_targets(image_embed, text_embed, log_scale, bias):
    """Labels of +-1, as the paper has them, go into BCE, which wants 0 and 1."""
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    labels = signs(len(logits), logits)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(logits)


def t_bias_outside_the_sign(image_embed, text_embed, log_scale, bias):
    sim = image_embed @ text_embed.T
    labels = signs(len(sim), sim)
    return -F.logsigmoid(labels * log_scale.exp() * sim + bias).sum() / len(sim)


def t_near_duplicates_ignored(image_embed, text_embed, log_scale, bias):
    """False negatives out: a caption that is (nearly) the same one is no negative."""
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    n = len(logits)
    with torch.no_grad():
        same = text_embed @ text_embed.T > 0.99
        same.fill_diagonal_(False)
    per_pair = -F.logsigmoid(signs(n, logits) * logits)
    return per_pair.masked_fill(same, 0.0).sum() / n


def t_roll_one_short(image_embed, text_embed, log_scale, bias):
    """A ring of one device: texts are rolled past the images."""
    n = len(image_embed)
    scale = log_scale.exp()
    total = -F.logsigmoid(scale * (image_embed * text_embed).sum(-1) + bias).sum()
    for shift in range(1, n - 1):
        rolled = text_embed.roll(-shift, 0)
        total = total - F.logsigmoid(-(scale * (image_embed * rolled).sum(-1) + bias)).sum()
    return total / n


class _LockedImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, log_scale, bias):
        logits = log_scale.exp() * (x @ y.T) + bias
        ctx.save_for_backward(x, y, log_scale, bias)
        return -F.logsigmoid(signs(len(x), x) * logits).sum() / len(x)

    @staticmethod
    def backward(ctx, grad_output):
        x, y, log_scale, bias = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None, None  # evaluation: nothing to do
        scale, sim = log_scale.exp(), x @ y.T
        eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
        grad = grad_output * (torch.sigmoid(scale * sim + bias) - eye) / len(x)
        return (
            scale * grad @ y,
            scale * grad.T @ x,
            (grad * sim * scale).sum().reshape(log_scale.shape),
            grad.sum().reshape(bias.shape),
        )


def t_locked_image_no_gradients(image_embed, text_embed, log_scale, bias):
    return _LockedImage.apply(image_embed, text_embed, log_scale, bias)


def t_half_logsigmoid(image_embed, text_embed, log_scale, bias):
    """As under autocast: the product is float32, the logits are handed on in half."""
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    likelihood = F.logsigmoid((signs(len(logits), logits) * logits).half())
    return -likelihood.to(image_embed.dtype).sum() / len(logits)


class _TextsKeptInBfloat16(torch.autograd.Function):
    """What backward needs is kept in 16 bits, to save memory."""

    @staticmethod
    def forward(ctx, x, y, log_scale, bias):
        ctx.save_for_backward(x, y.bfloat16(), log_scale, bias)
        return -F.logsigmoid(signs(len(x), x) * (log_scale.exp() * x @ y.T + bias)).sum() / len(x)

    @staticmethod
    def backward(ctx, grad_output):
        x, y, log_scale, bias = ctx.saved_tensors
        y = y.to(x.dtype)
        scale, sim = log_scale.exp(), x @ y.T
        logits = scale * sim + bias
        z = signs(len(x), x)
        grad = -grad_output * z * torch.sigmoid(-z * logits) / len(x)
        return (
            scale * grad @ y,
            scale * grad.T @ x,
            (grad * sim * scale).sum().reshape(log_scale.shape),
            grad.sum().reshape(bias.shape),
        )


def t_texts_kept_in_bfloat16(image_embed, text_embed, log_scale, bias):
    return _TextsKeptInBfloat16.apply(image_embed, text_embed, log_scale, bias)


class _BiasNotDivided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, log_scale, bias):
        sim = x @ y.T
        z = signs(len(x), x)
        logits = log_scale.exp() * sim + bias
        ctx.save_for_backward(x, y, log_scale, sim, -z * torch.sigmoid(-z * logits))
        ctx.shape = bias.shape
        return -F.logsigmoid(z * logits).sum() / len(x)

    @staticmethod
    def backward(ctx, grad_output):
        x, y, log_scale, sim, residual = ctx.saved_tensors
        factor = grad_output * log_scale.exp() / len(x)
        return (
            factor * (residual @ y),
            factor * (residual.T @ x),
            (factor * (residual * sim).sum()).reshape(log_scale.shape),
            (grad_output * residual.sum()).reshape(ctx.shape),
        )


def t_bias_gradient_not_divided(image_embed, text_embed, log_scale, bias):
    return _BiasNotDivided.apply(image_embed, text_embed, log_scale, bias)


# --------------------------------------------------------------------------------------------- torch, two mistakes
def t_two_clamped_scale_and_both_directions(image_embed, text_embed, log_scale, bias):
    """From a CLIP class: clamp at 100, and a loss of each direction, added."""
    scale = log_scale.exp().clamp(max=100.0)
    per_image = scale * image_embed @ text_embed.T + bias
    per_text = scale * text_embed @ image_embed.T + bias
    z = signs(len(per_image), per_image)
    return sum(-F.logsigmoid(z * logits).sum(-1).mean() for logits in (per_image, per_text))


class _ScalarsHalfDone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, log_scale, bias):
        sim = x @ y.T
        z = signs(len(x), x)
        logits = log_scale.exp() * sim + bias
        residual = -z * torch.sigmoid(-z * logits) / len(x)
        ctx.save_for_backward(
            x, y, log_scale, residual, (residual * sim).sum().reshape(log_scale.shape), residual.sum().reshape(bias.shape)
        )
        return -F.logsigmoid(z * logits).sum() / len(x)

    @staticmethod
    def backward(ctx, grad_output):
        x, y, log_scale, residual, d_scale, d_bias = ctx.saved_tensors
        factor = grad_output * log_scale.exp()
        return factor * residual @ y, factor * residual.T @ x, d_scale, d_bias


def t_two_scalars_half_done(image_embed, text_embed, log_scale, bias):
    return _ScalarsHalfDone.apply(image_embed, text_embed, log_scale, bias)


def t_two_soft_labels_and_mean(image_embed, text_embed, log_scale, bias):
    """Captions that are alike are positive in part."""
    logits = image_embed @ text_embed.T * log_scale.exp() + bias
    with torch.no_grad():
        labels = (text_embed @ text_embed.T).clamp(0.0, 1.0)
        labels.fill_diagonal_(1.0)
    return F.binary_cross_entropy_with_logits(logits, labels)


# ------------------------------------------------------------------------------------------------------------- jax
def j_tail_dropped(image_embed, text_embed, log_scale, bias):
    """A scan wants equal chunks."""
    n, d = image_embed.shape
    chunk = min(n, 32)
    count = n // chunk
    x, y = image_embed[: count * chunk], text_embed[: count * chunk]

    def step(total, k):
        rows = jax.lax.dynamic_slice(x, (k * chunk, 0), (chunk, d))
        logits = jnp.exp(log_scale) * rows @ y.T + bias
        own = jnp.arange(chunk)[:, None] + k * chunk == jnp.arange(len(y))
        return total - jax.nn.log_sigmoid(jnp.where(own, logits, -logits)).sum(), None

    total, _ = jax.lax.scan(step, jnp.zeros((), image_embed.dtype), jnp.arange(count))
    return total / n


@jax.custom_vjp
def _logits_kept_in_bfloat16(x, y, log_scale, bias):
    return _kept_forward(x, y, log_scale, bias)[0]


def _kept_forward(x, y, log_scale, bias):
    logits = jnp.exp(log_scale) * (x @ y.T) + bias
    z = 2 * jnp.eye(len(x), dtype=x.dtype) - 1
    value = -jax.nn.log_sigmoid(z * logits).sum() / len(x)
    return value, (x, y, log_scale, bias, logits.astype(jnp.bfloat16))


def _kept_backward(kept, upstream):
    x, y, log_scale, bias, logits = kept
    z = 2 * jnp.eye(len(x), dtype=x.dtype) - 1
    grad = -upstream * z * jax.nn.sigmoid(-z * logits.astype(x.dtype)) / len(x)
    scale = jnp.exp(log_scale)
    d_log_scale = (grad * (x @ y.T)).sum() * scale
    return (
        (scale * grad @ y).astype(x.dtype),
        (scale * grad.T @ x).astype(y.dtype),
        d_log_scale.reshape(log_scale.shape).astype(log_scale.dtype),
        grad.sum().reshape(bias.shape).astype(bias.dtype),
    )


_logits_kept_in_bfloat16.defvjp(_kept_forward, _kept_backward)


def j_logits_kept_in_bfloat16(image_embed, text_embed, log_scale, bias):
    return _logits_kept_in_bfloat16(image_embed, text_embed, log_scale, bias).reshape(())


def j_stable_bce_without_abs(image_embed, text_embed, log_scale, bias):
    """max(l, 0) - l y + log(1 + exp(-|l|)), from memory."""
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    labels = jnp.eye(len(logits), dtype=logits.dtype)
    return (jnp.maximum(logits, 0) - logits * labels + jax.nn.softplus(-logits)).sum() / len(logits)


def j_hard_negatives_weighted(image_embed, text_embed, log_scale, bias):
    """Negatives weighted by how hard they are, with mean weight 1 in each row."""
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    n = len(logits)
    eye = jnp.eye(n, dtype=bool)
    weights = (n - 1) * jax.nn.softmax(jnp.where(eye, -jnp.inf, jax.lax.stop_gradient(logits)), axis=-1) if n > 1 else 0.0
    positives = jax.nn.softplus(-jnp.diagonal(logits)).sum()
    negatives = jnp.where(eye, 0.0, weights * jax.nn.softplus(logits)).sum()
    return (positives + negatives) / n


def j_normalised_over_the_batch(image_embed, text_embed, log_scale, bias):
    x = image_embed / jnp.linalg.norm(image_embed, axis=0)
    y = text_embed / jnp.linalg.norm(text_embed, axis=0)
    logits = jnp.exp(log_scale) * x @ y.T + bias
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum(-1).mean()


def j_scalars_in_bfloat16(image_embed, text_embed, log_scale, bias):
    """The policy casts all parameters, scale and bias among them."""
    log_scale, bias = log_scale.astype(jnp.bfloat16), bias.astype(jnp.bfloat16)
    logits = image_embed @ text_embed.T * jnp.exp(log_scale.astype(image_embed.dtype)) + bias.astype(image_embed.dtype)
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum(-1).mean()


def j_two_minus_bias_and_half(image_embed, text_embed, log_scale, bias):
    """The displayed equation of the paper, and the one half of a symmetric loss that has one direction only."""
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T - bias
    z = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -0.5 * jax.nn.log_sigmoid(z * logits).sum(-1).mean()


def j_two_balanced_and_bias_stopped(image_embed, text_embed, log_scale, bias):
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + jax.lax.stop_gradient(bias)
    n = len(logits)
    eye = jnp.eye(n, dtype=logits.dtype)
    positives = (eye * jax.nn.softplus(-logits)).sum() / n
    negatives = ((1 - eye) * jax.nn.softplus(logits)).sum() / max(n * (n - 1), 1)
    return positives + negatives


# ----------------------------------------------------------------------------------------------------------- numpy
def n_value_of_clipped_logits(image_embed, text_embed, log_scale, bias):
    """exp must not overflow, so logits are clipped; backward uses the clipped ones, too."""
    n = len(image_embed)
    eye = np.eye(n, dtype=image_embed.dtype)
    z = 2 * eye - 1
    scale = np.exp(log_scale)
    sim = image_embed @ text_embed.T
    logits = np.clip(scale * sim + bias, -20, 20)
    loss = np.log1p(np.exp(-z * logits)).sum() / n
    grad = -z / (1 + np.exp(z * logits)) / n
    return loss, scale * grad @ text_embed, scale * grad.T @ image_embed, (grad * sim).sum() * scale, grad.sum()


def n_scale_gradient_from_both_sides(image_embed, text_embed, log_scale, bias):
    n = len(image_embed)
    z = 2 * np.eye(n, dtype=image_embed.dtype) - 1
    scale = np.exp(log_scale)
    signed = z * (scale * image_embed @ text_embed.T + bias)
    loss = np.logaddexp(0, -signed).sum() / n
    grad = -z * np.exp(-np.logaddexp(0, signed)) / n
    d_image, d_text = scale * grad @ text_embed, scale * grad.T @ image_embed
    # scale d/dscale = x . d/dx: the sum over both inputs
    d_log_scale = (image_embed * d_image).sum() + (text_embed * d_text).sum()
    return loss, d_image, d_text, d_log_scale, grad.sum()


# ------------------------------------------------------------------------------------------------------ right ones
def r_bias_as_a_feature(image_embed, text_embed, log_scale, bias):
    """Scale and bias in the product: [scale x, 1] . [y, bias]."""
    one = torch.ones_like(image_embed[:, :1])
    images = torch.cat([log_scale.exp() * image_embed, one], 1)
    texts = torch.cat([text_embed, bias * one], 1)
    logits = images @ texts.T
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return torch.logaddexp(torch.zeros_like(logits), torch.where(own, -logits, logits)).sum(0).mean()


def r_row_by_row(image_embed, text_embed, log_scale, bias):
    """One image at a time, computed again in backward; positive is told by its index."""

    @jax.checkpoint
    def row(args):
        index, x = args
        logits = jnp.exp(log_scale) * (text_embed @ x) + bias
        return jnp.logaddexp(0.0, jnp.where(jnp.arange(len(text_embed)) == index, -logits, logits)).sum()

    return jax.lax.map(row, (jnp.arange(len(image_embed)), image_embed)).mean()


def r_quarters(image_embed, text_embed, log_scale, bias):
    """Divide and conquer: a block of pairs is four smaller ones; gradients are added in place."""
    n = len(image_embed)
    scale = np.exp(log_scale)
    d_image, d_text = np.zeros_like(image_embed), np.zeros_like(text_embed)
    sums = np.zeros(3)

    def block(rows, columns):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height > 48 or width > 48:
            i, j = rows.start + (height + 1) // 2, columns.start + (width + 1) // 2
            for part in (slice(rows.start, i), slice(i, rows.stop)):
                for other in (slice(columns.start, j), slice(j, columns.stop)):
                    if part.start < part.stop and other.start < other.stop:
                        block(part, other)
            return
        x, y = image_embed[rows], text_embed[columns]
        sim = x @ y.T
        own = np.arange(rows.start, rows.stop)[:, None] == np.arange(columns.start, columns.stop)
        z = np.where(own, 1, -1).astype(sim.dtype)
        signed = z * (scale * sim + bias)
        grad = -z * np.exp(-np.logaddexp(0, signed)) / n
        d_image[rows] += scale * grad @ y
        d_text[columns] += scale * grad.T @ x
        sums[:] += np.logaddexp(0, -signed).sum() / n, scale * (grad * sim).sum(), grad.sum()

    block(slice(0, n), slice(0, n))
    return sums[0], d_image, d_text, sums[1], sums[2]


PROGRAMS = {
    "padded columns": {
        "fn": t_padded_columns,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B [sum_ij softplus(-z l) + B P softplus(bias)], P = -B mod 16: texts are padded with P rows of zeros to a multiple of 16, and each image has them as negatives of logit bias; right where 16 divides B",
        "same": ["the value is too large by P softplus(bias), d bias by P sigmoid(bias), P = -B mod 16; d image, d text, d log_scale right", "the mask of the last tile is missing", "texts of zeros counted as negatives where 16 does not divide the batch"],
    },
    "signed targets in binary cross-entropy": {
        "fn": t_bce_signed_targets,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B sum_ij [softplus(l) - z l]: positives right, negatives cost softplus(l) + l instead of softplus(l)",
        "same": ["labels of negatives are -1 instead of 0 in binary cross-entropy", "SigLIP's plus 1/B sum_(i != j) l_ij", "the gradient of a negative is (sigmoid(l) + 1) / B"],
    },
    "bias outside the sign": {
        "fn": t_bias_outside_the_sign,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B sum_ij softplus(-(z scale sim + bias)): positives right; negatives softplus(scale sim - bias) instead of softplus(scale sim + bias)",
        "same": ["the bias has the opposite sign in negatives", "the label's sign does not multiply the bias"],
    },
    "near duplicates ignored": {
        "fn": t_near_duplicates_ignored,
        "framework": "torch",
        "given": UNIT,
        "truth": "pairs i != j whose texts have y_i . y_j > 0.99 are left out; all others right, divided by B",
        "same": ["negatives with (nearly) equal captions are masked", "equal captions are no negatives (and no positives)", "weight 0 for negatives whose text is the same as the own one; with rows of zeros nothing is masked"],
    },
    "roll one short": {
        "fn": t_roll_one_short,
        "framework": "torch",
        "given": UNIT,
        "truth": "of the negatives the pairs (i, i - 1 mod B) are missing (B >= 3: image i with the text before it; image 0 with the last text); for B = 2 all negatives are missing; B = 1 is right",
        "same": ["one diagonal of the logits (shift B - 1, that is -1, cyclic) is left out", "each image has B - 2 negatives instead of B - 1; divided by B"],
    },
    "locked image, no gradients": {
        "fn": t_locked_image_no_gradients,
        "framework": "torch",
        "given": UNIT,
        "truth": "right if image_embed requires a gradient; if it requires none, backward gives no gradient (None) to text_embed, log_scale and bias either",
        "same": ["with a locked image tower nothing gets a gradient", "needs_input_grad[0] alone decides for all inputs"],
    },
    "half logsigmoid": {
        "fn": t_half_logsigmoid,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B sum_ij h(softplus(-h(z l))), h = rounding to float16: logits, log-sigmoids, 1/B of the upstream gradient, and the logits' gradient G are rounded to float16 (11 bits, subnormal below 2^-14); products and sums are in full precision",
        "same": ["the log-sigmoid is computed in float16", "logits (or z l) are rounded to float16, and the gradient of the logits, too", "small log-sigmoids and gradients (below about 6e-8) become 0"],
    },
    "texts kept in bfloat16": {
        "fn": t_texts_kept_in_bfloat16,
        "framework": "torch",
        "given": UNIT,
        "truth": "value right; all four gradients are those of SigLIP's loss at bf16(text_embed): logits are recomputed with it, d image = scale G bf16(y), and d log_scale, d bias from the recomputed logits",
        "same": ["backward uses texts rounded to bfloat16", "gradients of the texts rounded to 8 bits, given straight through", "right where the texts are exact in bfloat16"],
    },
    "bias's gradient not divided": {
        "fn": t_bias_gradient_not_divided,
        "framework": "torch",
        "given": UNIT,
        "truth": "value and d image, d text, d log_scale right; d bias is B times the right one",
        "same": ["1/B is missing in d bias", "d bias = sum over pairs of sigmoid(l) - eye"],
    },
    "two: clamped scale, both directions": {
        "fn": t_two_clamped_scale_and_both_directions,
        "framework": "torch",
        "given": UNIT,
        "truth": "2/B sum_ij softplus(-z (min(scale, 100) sim + bias)); where the scale is above 100, d log_scale = 0",
        "same": ["twice SigLIP's, with scale clamped at 100 (log_scale clamped at log 100)", "both directions are added without 1/2, and the scale is clamped"],
    },
    "two: scalars half done": {
        "fn": t_two_scalars_half_done,
        "framework": "torch",
        "given": UNIT,
        "truth": "value, d image, d text right; d log_scale = sum G sim (the factor scale is missing); d log_scale and d bias are not multiplied by the upstream gradient",
        "same": ["d log_scale is the gradient by scale: 1/scale times the right one", "upstream gradient ignored for scale and bias (with upstream 3 they are 1/3 of what they should be)"],
    },
    "two: soft labels, mean": {
        "fn": t_two_soft_labels_and_mean,
        "framework": "torch",
        "given": UNIT,
        "truth": "1/B^2 sum_ij [softplus(l) - t_ij l], t_ij = sg clamp(y_i . y_j, 0, 1) off the diagonal, 1 on it: labels from the texts' similarity, without gradient, and divided by B^2",
        "same": ["negatives are positive in part, by the cosine of their captions", "mean over all pairs instead of sum / B", "SigLIP's minus 1/B sum_(i != j) max(y_i . y_j, 0) l_ij, and the whole divided by B once more"],
    },
    "tail dropped": {
        "fn": j_tail_dropped,
        "framework": "jax",
        "given": UNIT,
        "truth": "with n = 32 floor(B / 32): 1/B sum over i, j < n; the last B mod 32 images and the last B mod 32 texts are left out, and the divisor is B; right for B < 32 and where 32 divides B",
        "same": ["rows and columns beyond the last whole chunk of 32 are dropped", "the pairs of the tail have zero gradients"],
    },
    "logits kept in bfloat16": {
        "fn": j_logits_kept_in_bfloat16,
        "framework": "jax",
        "given": UNIT,
        "truth": "value right; gradients are from G' = -z sigmoid(-z bf16(l)) / B: the saved logits are rounded to bfloat16; d image = scale G' y, d text = scale G'^T x, d log_scale = scale sum G' sim, d bias = sum G'",
        "same": ["backward computes the sigmoid from logits in bfloat16 (8 bits)", "the logits' gradient is taken at rounded logits"],
    },
    "stable cross-entropy without abs": {
        "fn": j_stable_bce_without_abs,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/B sum_ij [max(l, 0) - y l + softplus(-l)], y = eye: right for l > 0; for l < 0 each pair costs |l| too much: negatives softplus(l) + |l|, positives softplus(-l) + |l|",
        "same": ["softplus(-|l|) became softplus(-l)", "SigLIP's plus 1/B sum_ij max(-l, 0), on positives and negatives alike", "1/B sum_ij [max(l, 0) + softplus(-l)] - 1/B sum_i l_ii"],
    },
    "hard negatives weighted": {
        "fn": j_hard_negatives_weighted,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/B [sum_i softplus(-l_ii) + sum_(i != j) w_ij softplus(l_ij)], w_ij = (B - 1) sg softmax over j != i of l_ij; positives right",
        "same": ["negatives are weighted in each row by a softmax of their own logits (with stopped gradient), weights of mean 1", "w_ij = (B - 1) exp(l_ij) / sum_(k != i) exp(l_ik); for B = 2 (and B = 1) it is right"],
    },
    "normalised over the batch": {
        "fn": j_normalised_over_the_batch,
        "framework": "jax",
        "given": RAW,
        "truth": "raw embeddings: each column (feature) is divided by its length over the batch, instead of each row by its own: x / sqrt(sum_i x_ik^2); then SigLIP's loss",
        "same": ["norm over axis 0 instead of axis 1", "rows are not of unit length, columns are", "a feature that is 0 in every row gives NaN; one pair gives entries of +-1"],
    },
    "scalars in bfloat16": {
        "fn": j_scalars_in_bfloat16,
        "framework": "jax",
        "given": UNIT,
        "truth": "log_scale and bias are rounded to bfloat16 (8 bits) before exp and sum; SigLIP's at bf16(log_scale), bf16(bias); d log_scale and d bias are rounded to bfloat16, too",
        "same": ["scale is exp(bf16(log_scale))", "scale's and bias's gradients have 8 bits", "right values where both are exact in bfloat16"],
    },
    "two: minus bias, one half": {
        "fn": j_two_minus_bias_and_half,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/(2B) sum_ij softplus(-z (scale sim - bias)): the bias is subtracted, and all is halved",
        "same": ["half of SigLIP's with the opposite bias; d bias: its sign is opposite"],
    },
    "two: balanced, bias stopped": {
        "fn": j_two_balanced_and_bias_stopped,
        "framework": "jax",
        "given": UNIT,
        "truth": "1/B sum_i softplus(-l_ii) + 1/(B (B - 1)) sum_(i != j) softplus(l_ij); d bias = 0",
        "same": ["negatives are averaged: weight 1/(B - 1)", "mean of positives plus mean of negatives; the bias has no gradient"],
    },
    "value of clipped logits": {
        "fn": n_value_of_clipped_logits,
        "framework": "numpy",
        "given": UNIT,
        "truth": "value 1/B sum_ij softplus(-z clip(l, -20, 20)); gradients are with G at the clipped logits and not zero where it clips (straight through), which differs from SigLIP's by at most sigmoid(-20) = 2e-9 per pair",
        "same": ["logits are clipped at +-20; a pair costs at most 20 and at least 2e-9", "gradients are right but for sigmoids below 2e-9, which are 2e-9 instead", "the clip's gradient is 1"],
    },
    "scale's gradient from both sides": {
        "fn": n_scale_gradient_from_both_sides,
        "framework": "numpy",
        "given": UNIT,
        "truth": "value, d image, d text, d bias right; d log_scale is twice the right one",
        "same": ["d log_scale = sum x d_x + sum y d_y = 2 scale sum G sim"],
    },
    "right: bias as a feature": {"fn": r_bias_as_a_feature, "framework": "torch", "given": UNIT, "truth": "SigLIP's own"},
    "right: row by row": {"fn": r_row_by_row, "framework": "jax", "given": UNIT, "truth": "SigLIP's own"},
    "right: quarters": {"fn": r_quarters, "framework": "numpy", "given": UNIT, "truth": "SigLIP's own"},
}
