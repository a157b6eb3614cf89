"""Losses of one process: 22 wrong ones (6 of them twice), 4 right ones. For sr.check_loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

# ---------------------------------------------------------------- wrong, torch


def bce_default_reduction(image, text, log_scale, bias):
    logits = log_scale.exp() * image @ text.T + bias
    labels = torch.eye(len(image), dtype=logits.dtype, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, labels)


def bce_both_ways(image, text, log_scale, bias):
    logits_per_image = log_scale.exp() * image @ text.T + bias
    logits_per_text = logits_per_image.T
    labels = torch.eye(len(image), dtype=logits_per_image.dtype)
    loss_i2t = F.binary_cross_entropy_with_logits(logits_per_image, labels, reduction="sum")
    loss_t2i = F.binary_cross_entropy_with_logits(logits_per_text, labels, reduction="sum")
    return (loss_i2t + loss_t2i) / len(image)


def labels_of_bce_in_logsigmoid(image, text, log_scale, bias):
    logits = image @ text.T * log_scale.exp() + bias
    labels = torch.eye(len(image), dtype=logits.dtype)
    return -F.logsigmoid(labels * logits).sum() / len(image)


def balanced_means(image, text, log_scale, bias):
    n = len(image)
    logits = image @ text.T * log_scale.exp() + bias
    positive = torch.eye(n, dtype=torch.bool)
    pos_loss = -F.logsigmoid(logits[positive]).mean()
    neg_loss = -F.logsigmoid(-logits[~positive]).sum() / max(n * (n - 1), 1)
    return pos_loss + neg_loss


def focal(image, text, log_scale, bias, gamma=2.0):
    logits = image @ text.T * log_scale.exp() + bias
    targets = torch.eye(len(image), dtype=logits.dtype)
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = torch.exp(-ce)
    return ((1 - p_t) ** gamma * ce).sum() / len(image)


def clamped_scale(image, text, log_scale, bias):
    scale = log_scale.clamp(max=math.log(100.0)).exp()
    logits = scale * image @ text.T + bias
    z = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    return -F.logsigmoid(z * logits).sum() / len(image)


def logs_with_epsilon(image, text, log_scale, bias, eps=1e-6):
    probs = torch.sigmoid(log_scale.exp() * image @ text.T + bias)
    labels = torch.eye(len(image), dtype=probs.dtype)
    loss = labels * torch.log(probs + eps) + (1 - labels) * torch.log(1 - probs + eps)
    return -loss.sum() / len(image)


def similarities_in_bfloat16(image, text, log_scale, bias):
    """Tensor cores for the big product, the rest in full precision."""
    sim = (image.bfloat16() @ text.bfloat16().T).to(image.dtype)
    logits = log_scale.exp() * sim + bias
    z = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    return -F.logsigmoid(z * logits).sum() / len(image)


def images_in_two_chunks(image, text, log_scale, bias):
    """Never more than half of the logits at once."""
    n, total = len(image), 0.0
    for part in image.chunk(2):
        logits = log_scale.exp() * part @ text.T + bias
        labels = 2 * torch.eye(len(part), n, dtype=logits.dtype) - 1
        total = total - F.logsigmoid(labels * logits).sum()
    return total / n


def hardest_negatives(image, text, log_scale, bias):
    n = len(image)
    logits = log_scale.exp() * image @ text.T + bias
    own = torch.eye(n, dtype=torch.bool)
    pos = F.softplus(-logits.diagonal())
    k = min(n - 1, max(1, n // 2))
    hard = logits.masked_fill(own, float("-inf")).topk(k, dim=1).values
    return (pos + F.softplus(hard).sum(1)).mean()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        n, t = len(image), log_scale.exp()
        sim = image @ text.T
        logits = t * sim + bias
        eye = torch.eye(n, dtype=logits.dtype)
        loss = (F.softplus(-logits) * eye + F.softplus(logits) * (1 - eye)).sum() / n
        grad = ((torch.sigmoid(logits) - eye) / n).to(image.dtype)
        ctx.save_for_backward(image, text, sim, grad, log_scale, bias)
        return loss

    @staticmethod
    def backward(ctx, up):
        image, text, sim, grad, log_scale, bias = ctx.saved_tensors
        grad, t = up * grad, log_scale.exp()
        d_scale = (grad * sim).sum().to(log_scale.dtype).reshape(log_scale.shape)
        d_bias = grad.sum().to(bias.dtype).reshape(bias.shape)
        d_image, d_text = t * (grad @ text), t * (grad.T @ image)
        return d_image.to(image.dtype), d_text.to(text.dtype), d_scale, d_bias


def fused_backward(image, text, log_scale, bias):
    return _Fused.apply(image, text, log_scale, bias)


# ---------------------------------------------------------------- wrong twice, torch


def toy_comparison(image, text, log_scale, bias):
    """From a notebook that puts CLIP and SigLIP side by side."""
    logits = log_scale.exp() * image @ text.T
    n = logits.shape[0]
    targets = 2 * torch.eye(n, dtype=logits.dtype) - 1
    return -F.logsigmoid(targets * logits).mean()


def locked_text_with_temperature(image, text, log_scale, bias):
    """Cached features of a text tower; the temperature as in CLIP's paper."""
    temperature = log_scale.exp()
    logits = F.normalize(image, dim=-1) @ text.T / temperature + bias
    labels = torch.eye(len(image), dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def probabilities_into_bce(image, text, log_scale, bias):
    probs = torch.sigmoid(log_scale.exp() * image @ text.T + bias)
    return F.binary_cross_entropy_with_logits(probs, torch.eye(len(image), dtype=probs.dtype))


def bias_within_scale_both_ways(image, text, log_scale, bias):
    logits = log_scale.exp() * (image @ text.T + bias)
    z = 2 * torch.eye(len(image), dtype=logits.dtype) - 1
    i2t = -F.logsigmoid(z * logits).sum(dim=1).mean()
    t2i = -F.logsigmoid(z * logits.T).sum(dim=1).mean()
    return i2t + t2i


# ---------------------------------------------------------------- wrong, JAX


def jax_softplus_minus_trace(image, text, log_scale, bias):
    """softplus of all logits at once, then what the positives have too much."""
    n, scale = image.shape[0], jnp.exp(log_scale)
    logits = scale * image @ text.T + bias
    positives = scale * jnp.sum(image * text, axis=-1)
    return jnp.sum(jax.nn.softplus(logits)) / n - jnp.mean(positives)


def jax_sign_before_bias(image, text, log_scale, bias):
    sim = image @ text.T
    z = 2 * jnp.eye(len(image), dtype=sim.dtype) - 1
    return -jnp.sum(jax.nn.log_sigmoid(z * sim * jnp.exp(log_scale) + bias)) / len(image)


def jax_smooth_labels(image, text, log_scale, bias, alpha=0.1):
    n = image.shape[0]
    logits = jnp.exp(log_scale) * image @ text.T + bias
    labels = (1 - alpha) * jnp.eye(n, dtype=logits.dtype) + alpha / n
    losses = -labels * jax.nn.log_sigmoid(logits) - (1 - labels) * jax.nn.log_sigmoid(-logits)
    return losses.sum(-1).mean()


def jax_signs_into_cross_entropy(image, text, log_scale, bias):
    logits = jnp.exp(log_scale) * image @ text.T + bias
    labels = 2 * jnp.eye(image.shape[0], dtype=logits.dtype) - 1
    losses = jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return losses.sum() / image.shape[0]


def jax_tutorial(image, text, temperature, bias):
    logits = image @ text.T * temperature + bias
    labels = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jnp.mean(jax.nn.log_sigmoid(labels * logits))


# ---------------------------------------------------------------- NumPy


def _numpy_unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _numpy_value(image, text, log_scale, bias):
    """Value, gradient of the logits, similarities, scale."""
    n, scale, bias = len(image), np.exp(np.asarray(log_scale, image.dtype)), np.asarray(bias, image.dtype)
    sim = image @ text.T
    logits = scale * sim + bias
    z = 2 * np.eye(n, dtype=image.dtype) - 1
    losses = np.logaddexp(0, -z * logits)
    grad = -z * np.exp(-np.logaddexp(0, z * logits)) / n
    return losses.sum() / n, grad, sim, scale


def numpy_gradients_of_unit_rows(image, text, log_scale, bias):
    x, y = _numpy_unit(image), _numpy_unit(text)
    value, grad, sim, scale = _numpy_value(x, y, log_scale, bias)
    return value, scale * grad @ y, scale * grad.T @ x, scale * (grad * sim).sum(), grad.sum()


def numpy_untransposed(image, text, log_scale, bias):
    value, grad, sim, scale = _numpy_value(image, text, log_scale, bias)
    return value, scale * grad @ text, scale * grad @ image, (grad * sim).sum(), grad.sum()


# ---------------------------------------------------------------- right


def right_softplus_minus_diagonal(image, text, log_scale, bias):
    logits = torch.addmm(bias.to(image.dtype).reshape(1), image * log_scale.exp().to(image.dtype), text.T)
    return (F.softplus(logits).sum() - logits.diagonal().sum()) / len(image)


def _rows(part, text, log_scale, bias, first):
    logits = log_scale.exp() * part @ text.T + bias
    z = -torch.ones_like(logits)
    z.diagonal(first).fill_(1)
    return -F.logsigmoid(z * logits).sum()


def right_chunks_recomputed(image, text, log_scale, bias):
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    total, first = 0.0, 0
    for part in image.split(3):
        total = total + checkpoint(_rows, part, text, log_scale, bias, first, use_reentrant=False)
        first += len(part)
    return total / len(image)


def right_jax_mean_then_sum(image, text, log_scale, bias):
    """Mean over texts, sum over images: the same divisor, as there are as many of both."""
    logits = jnp.exp(log_scale) * image @ text.T + bias
    labels = jnp.eye(image.shape[0], dtype=bool)
    return jnp.where(labels, jax.nn.softplus(-logits), jax.nn.softplus(logits)).mean(-1).sum()


def right_numpy_raw(image, text, log_scale, bias):
    x, y = _numpy_unit(image), _numpy_unit(text)
    value, grad, sim, scale = _numpy_value(x, y, log_scale, bias)

    def through_norm(d_unit, unit, raw):
        along = (d_unit * unit).sum(1, keepdims=True)
        return (d_unit - along * unit) / np.linalg.norm(raw, axis=1, keepdims=True)

    d_image = through_norm(scale * grad @ y, x, image)
    d_text = through_norm(scale * grad.T @ x, y, text)
    return value, d_image, d_text, scale * (grad * sim).sum(), grad.sum()


# ---------------------------------------------------------------- truths
# t = exp(log_scale), s_ij = x_i . y_j, l_ij = t s_ij + bias, z_ij = +1 for i = j and -1 else,
# right: 1/B sum_ij softplus(-z_ij l_ij), G_ij = (sigmoid(l_ij) - [i = j]) / B


def _wrong(fn, truth, *same, framework="torch", **given):
    """What check_loss is told unless `given` says something else: log scale, unit rows."""
    given = {"scale": "log", "embeddings": "unit"} | given
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


_right = _wrong

PROGRAMS = {
    "bce, default reduction": _wrong(
        bce_default_reduction,
        "1/B^2 sum softplus(-z l): mean over all B^2 pairs instead of sum over pairs / B",
        "value and all four gradients are 1/B of the right ones",
        "the divisor is B * B instead of B; reduction='mean' instead of 'sum' / B; mean over rows and over columns",
    ),
    "bce, both ways": _wrong(
        bce_both_ways,
        "2/B sum softplus(-z l): image-to-text and text-to-image sums are added without a half",
        "value and all four gradients are twice the right ones",
        "every pair is counted twice; the loss is times 2; the divisor is B / 2",
    ),
    "labels of bce in logsigmoid": _wrong(
        labels_of_bce_in_logsigmoid,
        "labels 1 and 0 instead of +1 and -1 in -1/B sum log sigmoid(z l): every negative pair contributes the "
        "constant "
        "ln 2, whatever its logit: L = 1/B sum_i softplus(-l_ii) + (B - 1) ln 2",
        "the sign (label) of the negatives is 0; softplus(0 * l) = ln 2 for negatives",
        "negatives have no gradient: G = 0 off the diagonal; positives are right; the value has (B - 1) ln 2 "
        "in place of the negatives",
        "only the positives (the diagonal) count, up to a constant (B - 1) ln 2",
    ),
    "balanced means": _wrong(
        balanced_means,
        "1/B sum_i softplus(-l_ii) + 1/(B (B - 1)) sum_{i != j} softplus(l_ij): mean over the positives plus "
        "mean over the "
        "negatives",
        "negatives weigh 1/(B - 1) of what they should; positives are right",
        "each negative's divisor is B (B - 1) instead of B",
        "class-balanced: positives and negatives have equal total weight",
    ),
    "focal": _wrong(
        focal,
        "1/B sum (1 - p)^2 softplus(-z l), p = sigmoid(z l): focal loss with gamma = 2, no alpha; the factor is "
        "differentiated, too",
        "every pair's loss is multiplied by sigmoid(-z l)^2",
        "easy pairs are weighed down by (1 - p_t)^2, gradients go through the weight",
    ),
    "clamped scale": _wrong(
        clamped_scale,
        "t = min(exp(log_scale), 100): right up to t = 100, above it the scale is 100 and d log_scale is 0",
        "log_scale is clamped to at most ln 100 = 4.60517 before exp",
        "the scale has an upper bound of 100",
    ),
    "logs with epsilon": _wrong(
        logs_with_epsilon,
        "-1/B [sum_i ln(sigmoid(l_ii) + 1e-6) + sum_{i != j} ln(1 - sigmoid(l_ij) + 1e-6)]: epsilon 1e-6 within the "
        "logarithm",
        "a pair's loss is -ln(sigmoid(z l) + 1e-6) instead of -ln sigmoid(z l): never more than 13.8155",
        "the loss (its gradient) levels off where a pair is very wrong, sigmoid(z l) of the order of 1e-6 or less: "
        "gradients are times p / (p + 1e-6), p = sigmoid(z l)",
        "losses are saturated, bounded, at -ln 1e-6 = 13.8155; in float32 1 - sigmoid is rounded besides",
    ),
    "similarities in bfloat16": _wrong(
        similarities_in_bfloat16,
        "images and texts are rounded to bfloat16 and so is their product (and in the backward pass the similarities' "
        "gradient and the embeddings' gradients); scale, bias and log sigmoid are in full precision",
        "similarities have bfloat16's precision (8 bits, relative error up to 2^-9 = 0.2 % of each rounding) though "
        "dtype is float32 or float64",
        "the product of the embeddings is computed in (rounded to) bfloat16; a lack of precision, not another formula",
    ),
    "images in two chunks": _wrong(
        images_in_two_chunks,
        "images come in two chunks of m = ceil(B/2) and B - m; in the second one the positive of image i is text i - m "
        "instead of text i: labels' column offset is forgotten; the first chunk is right",
        "image i >= m has its own text as a negative and text i - m as its positive",
        "second half of the images is matched with the first texts; texts from m on are nobody's positive, texts 0 to "
        "B - m - 1 are two images' positive",
        "the labels are wrong: +1 stands at (i, i mod m)",
    ),
    "hardest negatives": _wrong(
        hardest_negatives,
        "1/B sum_i [softplus(-l_ii) + sum over the k largest l_ij, j != i, of softplus(l_ij)], k = max(1, B // "
        "2) (at most "
        "B - 1): of each image only the k hardest negatives count",
        "of the B - 1 negatives of each row only the k with the largest logits are summed, the others have no gradient",
        "easy negatives (about half of them, by row) are left out; right for B = 2",
    ),
    "fused backward": _wrong(
        fused_backward,
        "value, d image, d text, d bias are right; d log_scale is sum G s instead of t sum G s: gradient of the scale, "
        "not of its logarithm",
        "d log_scale is 1/t = exp(-log_scale) times the right one",
        "the factor exp(log_scale) of the chain rule is missing in d log_scale",
    ),
    "toy comparison": _wrong(
        toy_comparison,
        "two mistakes: no bias (logits t s), and mean over B^2 pairs: 1/B^2 sum softplus(-z t s)",
        "bias is left out (bias = 0, d bias = 0 or None) and value and gradients are divided by B once more",
    ),
    "locked text with temperature": _wrong(
        locked_text_with_temperature,
        "two mistakes: raw text rows are not normalised (images are), and similarities are divided by exp(log_scale) "
        "instead of multiplied: l_ij = (x_i . v_j) / t + bias, x_i unit, v_j raw",
        "text embeddings are used raw, each logit's similarity is times |v_j|; the scale is exp(-log_scale) = 1/t",
        "text is not normalised; temperature in place of its inverse (log_scale enters with the other sign)",
        embeddings="raw",
    ),
    "probabilities into bce": _wrong(
        probabilities_into_bce,
        "two mistakes: the sigmoid is applied twice (probabilities p = sigmoid(l) serve as logits), and mean over B^2: "
        "1/B^2 sum softplus(-z sigmoid(l))",
        "logits are sigmoid(t s + bias), between 0 and 1; value and gradients are divided by B once more",
        "positives lose softplus(-sigmoid(l)), negatives softplus(sigmoid(l)), gradients times sigmoid(l)(1 - "
        "sigmoid(l)); "
        "divisor B^2 instead of B",
    ),
    "bias within scale, both ways": _wrong(
        bias_within_scale_both_ways,
        "two mistakes: l = t (s + bias), the bias is multiplied by the scale, and both directions are added "
        "without a half: "
        "2/B sum softplus(-z t (s + bias))",
        "the effective bias is exp(log_scale) * bias; value and gradients are times 2",
        "the bias is added before scaling; every pair counts twice",
    ),
    "jax: softplus minus trace": _wrong(
        jax_softplus_minus_trace,
        "1/B [sum_ij softplus(l_ij) - sum_i t s_ii]: what is taken off for the positives lacks the bias; the "
        "value is the "
        "right one plus bias, d bias is the right one plus 1; d image, d text, d log_scale are right",
        "positive pairs have the loss softplus(-l_ii) + bias",
        "L + bias; d bias = 1/B sum sigmoid(l_ij), without the -1 of the positives",
        framework="jax",
    ),
    "jax: sign before bias": _wrong(
        jax_sign_before_bias,
        "1/B sum softplus(-(z t s + bias)): the label's sign multiplies t s only, not the bias; positives are right, "
        "negatives are softplus(t s - bias) instead of softplus(t s + bias)",
        "for negatives the bias has the opposite sign",
        "for negatives the logit is t s - bias; d bias of negatives is -sigmoid(t s - bias) / B",
        framework="jax",
    ),
    "jax: smooth labels": _wrong(
        jax_smooth_labels,
        "labels are smoothed, alpha = 0.1 over B classes: 0.9 + 0.1/B for positives and 0.1/B for negatives "
        "instead of 1 and "
        "0, in 1/B sum bce(l, label)",
        "label smoothing 0.1; G = (sigmoid(l) - label) / B",
        "a linear term is added to the right loss: 1/B [0.1 (1 - 1/B) sum_i l_ii - (0.1/B) sum_{i != j} l_ij]",
        framework="jax",
    ),
    "jax: signs into cross entropy": _wrong(
        jax_signs_into_cross_entropy,
        "labels +1 and -1 are put into binary cross-entropy, which expects 1 and 0: negatives lose softplus(l) "
        "+ l instead "
        "of softplus(l), positives are right: L + 1/B sum_{i != j} l_ij",
        "label of the negatives is -1 instead of 0 in softplus(l) - label l",
        "every negative's logit is added once more; G of negatives is (sigmoid(l) + 1) / B",
        framework="jax",
    ),
    "jax: tutorial": _wrong(
        jax_tutorial,
        "two mistakes: log_scale itself is the scale (not exponentiated): l = log_scale s + bias, and mean over "
        "B^2 pairs: "
        "1/B^2 sum softplus(-z (log_scale s + bias))",
        "the scale is linear, exp is missing; value and gradients are divided by B once more",
        framework="jax",
    ),
    "numpy: gradients of unit rows": _wrong(
        numpy_gradients_of_unit_rows,
        "value, d log_scale, d bias are right; d image and d text are the gradients with regard to the unit rows "
        "(t G y, t G^T x) instead of the raw ones: the backward pass of the normalisation is missing",
        "d image_i = g instead of (g - x (x . g)) / |u_i|, the same for texts",
        "neither the projection off the row's direction nor the division by its length is in the embeddings' gradients",
        framework="numpy",
        embeddings="raw",
    ),
    "numpy: untransposed": _wrong(
        numpy_untransposed,
        "two mistakes; value, d image, d bias are right: d text is t G x instead of t G^T x (not transposed), "
        "and d log_scale "
        "is sum G s instead of t sum G s",
        "d text_j = t sum_i G_ji x_i, images and texts interchanged in G; d log_scale is 1/t = exp(-log_scale) "
        "times the "
        "right one, the gradient of the scale rather than of its logarithm",
        framework="numpy",
    ),
    "right: softplus minus diagonal": _right(right_softplus_minus_diagonal, "SigLIP's own"),
    "right: chunks recomputed": _right(right_chunks_recomputed, "SigLIP's own", embeddings="raw"),
    "right: mean then sum": _right(right_jax_mean_then_sum, "SigLIP's own", framework="jax"),
    "right: numpy raw": _right(right_numpy_raw, "SigLIP's own", framework="numpy", embeddings="raw"),
}
