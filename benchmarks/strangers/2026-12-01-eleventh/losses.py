"""Sigmoid losses as people write them, 2026-12-01, by somebody who has not read the checker.

22 wrong ones (five with two mistakes), three right ones in unusual ways.
l_ij = t s_ij + b, s_ij = image_i . text_j, t = exp(log_scale), d_ij = 1 where i == j, z_ij = 2 d_ij - 1.
Right: L = 1/B sum_ij softplus(-z_ij l_ij); G_ij = dL/dl_ij = (sigmoid(l_ij) - d_ij) / B.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

# ---------------------------------------------------------------- torch


def bce_default_reduction(image_features, text_features, logit_scale, logit_bias):
    logits = logit_scale.exp() * image_features @ text_features.t() + logit_bias
    targets = torch.eye(logits.shape[0], device=logits.device, dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)


def paper_equation(zimg, ztxt, t_prime, b):
    """Section 3.2: 1 / (1 + exp(z (-t x.y + b))), its -log summed, over the size of the mini-batch."""
    n = zimg.size(0)
    t = torch.exp(t_prime)
    labels = 2 * torch.eye(n, dtype=zimg.dtype) - torch.ones(n, n, dtype=zimg.dtype)
    return F.softplus(labels * (-t * (zimg @ ztxt.T) + b)).sum() / n


def bias_under_the_scale(image_embeds, text_embeds, logit_scale, logit_bias):
    similarity = image_embeds @ text_embeds.t()
    logits = (similarity + logit_bias) * logit_scale.exp()
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum(dim=-1).mean()


def sigmoid_then_with_logits(image_features, text_features, logit_scale, logit_bias):
    probs = torch.sigmoid(logit_scale.exp() * image_features @ text_features.t() + logit_bias)
    targets = torch.eye(len(probs), dtype=probs.dtype)
    return F.binary_cross_entropy_with_logits(probs, targets, reduction="sum") / len(probs)


def balanced(image_emb, text_emb, log_temp, bias):
    """'As there are so many more negatives, take the mean of each kind.'"""
    logits = log_temp.exp() * torch.einsum("id,jd->ij", image_emb, text_emb) + bias
    n = logits.size(0)
    positive = torch.eye(n, dtype=torch.bool)
    positive_loss = -F.logsigmoid(logits[positive]).mean()
    negative_loss = -F.logsigmoid(-logits[~positive]).mean()
    return positive_loss + negative_loss


def diagonal_only(image_embeds, text_embeds, logit_scale, logit_bias):
    """As kornia's first SigLip2Model."""
    logits_per_image = image_embeds @ text_embeds.t() * logit_scale.exp() + logit_bias
    return -F.logsigmoid(torch.diagonal(logits_per_image)).mean()


def chunks_of_rows(image_features, text_features, logit_scale, logit_bias, chunk_size=4):
    """To save memory; every chunk makes its labels anew."""
    n = image_features.shape[0]
    total = image_features.new_zeros(())
    for start in range(0, n, chunk_size):
        rows = image_features[start : start + chunk_size]
        logits = logit_scale.exp() * rows @ text_features.t() + logit_bias
        labels = -torch.ones_like(logits)
        labels.fill_diagonal_(1)
        total = total - F.logsigmoid(labels * logits).sum()
    return total / n


def scale_clamped_in_forward(image_embeds, text_embeds, logit_scale, logit_bias):
    scale = torch.clamp(logit_scale.exp(), max=100.0)
    logits = scale * image_embeds @ text_embeds.t() + logit_bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def bias_as_a_number(image_features, text_features, logit_scale, logit_bias):
    """torch.compile broke its graph on a bias of shape (1,), so it became a float."""
    bias = logit_bias.item()
    logits = torch.mm(image_features, text_features.t()) * logit_scale.exp() + bias
    targets = torch.eye(len(logits), dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def matmul_in_bfloat16(image_features, text_features, logit_scale, logit_bias):
    """The fast path of a trainer: tensor cores for the product, everything else as it was."""
    similarity = (image_features.to(torch.bfloat16) @ text_features.to(torch.bfloat16).t()).to(image_features.dtype)
    logits = logit_scale.exp() * similarity + logit_bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum(-1).mean()


def normalised_over_the_batch(image_features, text_features, logit_scale, logit_bias):
    image_features = F.normalize(image_features, dim=0)
    text_features = F.normalize(text_features, dim=0)
    logits = logit_scale.exp() * image_features @ text_features.t() + logit_bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def over_tau_minus_b(z_a, z_b, log_tau, b):
    """Two mistakes: the scale is taken for a temperature, and b is subtracted."""
    tau = log_tau.exp()
    logits = (z_a @ z_b.t()) / tau - b
    y = 2 * torch.eye(z_a.size(0), dtype=z_a.dtype) - 1
    return F.softplus(-y * logits).sum(dim=1).mean()


def clip_class_without_bias(image_features, text_features, logit_scale, logit_bias=None):
    """Two mistakes: a CLIP class that has no bias (it is accepted, never used), and both ways added."""
    logits_per_image = logit_scale.exp() * image_features @ text_features.t()
    labels = torch.eye(len(logits_per_image), dtype=logits_per_image.dtype)
    loss = 0
    for logits in (logits_per_image, logits_per_image.t()):
        loss = loss + F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()
    return loss


def log_of_probability(image_features, text_features, logit_scale, logit_bias):
    """Two mistakes: .item() cuts the scale's gradient, and 1e-6 is added within the logarithm."""
    scale = math.exp(logit_scale.item())
    logits = scale * image_features @ text_features.t() + logit_bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -torch.log(torch.sigmoid(labels * logits) + 1e-6).sum() / len(logits)


# ---------------------------------------------------------------- JAX


def jax_scale_not_exponentiated(zimg, ztxt, t, b):
    logits = jnp.dot(zimg, ztxt.T) * t + b
    m1_diag1 = -jnp.ones_like(logits) + 2 * jnp.eye(logits.shape[0], dtype=logits.dtype)
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(m1_diag1 * logits), axis=-1))


def jax_labels_of_zero(zimg, ztxt, log_t, b):
    logits = jnp.exp(log_t) * zimg @ ztxt.T + b
    labels = jnp.eye(logits.shape[0], dtype=logits.dtype)
    return -jax.nn.log_sigmoid(labels * logits).sum() / logits.shape[0]


def jax_all_pairs_then_positives(zimg, ztxt, log_t, b):
    """Negatives as one sum, without a mask of the diagonal; then the positives."""
    logits = jnp.exp(log_t) * jnp.einsum("nd,md->nm", zimg, ztxt) + b
    negatives = jax.nn.softplus(logits).sum(axis=-1)
    positives = jax.nn.softplus(-jnp.diagonal(logits))
    return (negatives + positives).mean()


def jax_text_stopped(zimg, ztxt, log_t, b):
    """The stop_gradient of a locked-tower experiment, left in, at the wrong tower even."""
    ztxt = jax.lax.stop_gradient(ztxt)
    logits = jnp.exp(log_t) * zimg @ ztxt.T + b
    z = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return jax.nn.softplus(-z * logits).sum(-1).mean()


@jax.custom_vjp
def jax_fused(zimg, ztxt, log_t, b):
    return _fused_forward(zimg, ztxt, log_t, b)[0]


def _fused_forward(zimg, ztxt, log_t, b):
    n = zimg.shape[0]
    sim = zimg @ ztxt.T
    logits = jnp.exp(log_t) * sim + b
    loss = (jax.nn.softplus(logits).sum() - jnp.trace(logits)) / n
    return loss, (zimg, ztxt, log_t, b, sim, (jax.nn.sigmoid(logits) - jnp.eye(n, dtype=logits.dtype)) / n)


def _fused_backward(kept, g):
    zimg, ztxt, log_t, b, sim, dlogits = kept
    dlogits = g * dlogits
    t = jnp.exp(log_t)
    dt = (dlogits * sim).sum()
    return (
        t * dlogits @ ztxt,
        t * dlogits.T @ zimg,
        dt.reshape(jnp.shape(log_t)).astype(log_t.dtype),
        dlogits.sum().reshape(jnp.shape(b)).astype(b.dtype),
    )


jax_fused.defvjp(_fused_forward, _fused_backward)


def jax_clipped_mean(zimg, ztxt, log_t, b):
    """Two mistakes: logits clipped to [-10, 10] 'for stability', and the mean over all pairs."""
    logits = jnp.clip(jnp.exp(log_t) * zimg @ ztxt.T + b, -10.0, 10.0)
    z = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jnp.mean(jax.nn.log_sigmoid(z * logits))


# ---------------------------------------------------------------- NumPy


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid(x):
    return np.exp(-_softplus(-x))


def numpy_signed_targets(image, text, log_scale, bias):
    """The value is right; backward subtracts the labels that forward used, -1 and 1."""
    n = len(image)
    scale = np.exp(log_scale)
    similarity = image @ text.T
    logits = scale * similarity + bias
    labels = (2 * np.eye(n) - 1).astype(image.dtype)
    loss = _softplus(-labels * logits).sum() / n
    grad = (_sigmoid(logits) - labels) / n
    return loss, scale * grad @ text, scale * grad.T @ image, scale * (grad * similarity).sum(), grad.sum()


def numpy_untransposed(image, text, log_scale, bias):
    """Two mistakes: grad is not transposed for the texts, and the bias gets the mean of it."""
    n = len(image)
    scale = np.exp(log_scale)
    similarity = image @ text.T
    logits = scale * similarity + bias
    loss = (_softplus(logits).sum() - np.trace(logits)) / n
    grad = (_sigmoid(logits) - np.eye(n, dtype=image.dtype)) / n
    return loss, scale * grad @ text, scale * grad @ image, scale * (grad * similarity).sum(), grad.mean()


# ---------------------------------------------------------------- right ones


def right_two_classes(image, text, log_scale, bias):
    """Each pair is a question with two answers, of which 'no' has the logit 0."""
    n, d = image.shape
    left = torch.cat([log_scale.exp() * image, bias.reshape(1, 1).to(image.dtype).expand(n, 1)], dim=1)
    right = torch.cat([text, text.new_ones(n, 1)], dim=1)
    yes = (left @ right.t()).reshape(-1)
    answers = torch.stack([torch.zeros_like(yes), yes], dim=1)
    return F.cross_entropy(answers, torch.eye(n, dtype=torch.long).reshape(-1), reduction="sum") / n


class _ClosedForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        similarity = image @ text.t()
        logits = log_scale.exp() * similarity + bias
        grad = torch.sigmoid(logits)
        grad.diagonal().sub_(1)
        loss = F.softplus(logits).mean(dim=1)
        own = logits.diagonal()
        loss = loss.sum() + (F.softplus(-own) - F.softplus(own)).mean()
        ctx.save_for_backward(image, text, log_scale, bias, similarity, grad)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        image, text, log_scale, bias, similarity, grad = ctx.saved_tensors
        grad = grad * (upstream / len(image))
        scaled = log_scale.exp() * grad
        return (
            scaled @ text,
            scaled.t() @ image,
            (scaled * similarity).sum().reshape(log_scale.shape).to(log_scale.dtype),
            grad.sum().reshape(bias.shape).to(bias.dtype),
        )


def right_closed_form(image, text, log_scale, bias):
    """Gradients by hand; the sum over rows of the mean over columns."""
    return _ClosedForm.apply(image, text, log_scale, bias)


def right_jax_rolled(image, text, log_scale, bias):
    """A ring on one device: in step k image i meets text i + k; in step 0 its own."""
    t = jnp.exp(log_scale)

    @jax.checkpoint
    def step(carry, k):
        total, travelling = carry
        logits = t * jnp.sum(image * travelling, axis=-1) + bias
        z = jnp.where(k == 0, 1.0, -1.0).astype(logits.dtype)
        return (total + jnp.mean(jnp.logaddexp(0.0, -z * logits)), jnp.roll(travelling, -1, axis=0)), None

    (total, _), _ = jax.lax.scan(step, (jnp.zeros((), image.dtype), text), jnp.arange(len(image)))
    return total


# ---------------------------------------------------------------- truths

LOG_UNIT = {"scale": "log", "embeddings": "unit"}


def _one(fn, truth, *same, framework="torch", **given):
    return {"fn": fn, "framework": framework, "given": LOG_UNIT | given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "BCE, default reduction": _one(
        bce_default_reduction,
        "1/B^2 sum_ij softplus(-z l): the mean over all pairs instead of the sum over pairs divided by B",
        "the loss and all four gradients are 1/B of the right ones",
        "divided by B*B instead of B",
        "the mean over rows and columns",
    ),
    "the paper's equation": _one(
        paper_equation,
        "1/B sum softplus(-z (t s - b)): the bias is subtracted",
        "the sign of the bias is wrong",
        "the right loss at -bias; the gradient of the bias is minus the one there",
    ),
    "bias under the scale": _one(
        bias_under_the_scale,
        "1/B sum softplus(-z t (s + b)): the bias is multiplied by t = exp(log_scale)",
        "the bias is added before scaling",
        "logits are t s + t b; the bias is t times too large",
    ),
    "sigmoid, then BCE with logits": _one(
        sigmoid_then_with_logits,
        "1/B sum softplus(-z sigmoid(l)): the sigmoid is applied twice, probabilities are taken for logits",
        "BCE-with-logits of sigmoid(l)",
        "logits are sigmoid(t s + b) in place of t s + b",
    ),
    "means of positives and negatives": _one(
        balanced,
        "1/B sum_i softplus(-l_ii) + 1/(B(B-1)) sum_{i!=j} softplus(l_ij): negatives are averaged over all B(B-1) "
        "of them",
        "negatives are weighted by 1/(B-1), positives are right",
        "the mean over positives plus the mean over negatives",
    ),
    "diagonal only": _one(
        diagonal_only,
        "1/B sum_i softplus(-l_ii): positives only, no negatives",
        "the off-diagonal pairs are missing (weight 0)",
    ),
    "chunks with labels from the start": _one(
        chunks_of_rows,
        "the positive of image i is text (i mod 4) instead of text i: rows go in chunks of 4, each with labels 2 "
        "eye(4, B) - 1 that start at "
        "column 0; from row 4 on the own pair counts as a negative, and text i mod 4 as the positive",
        "labels lack the offset of the chunk of 4 rows",
        "right in rows 0 to 3 (all right if B <= 4); in later rows the labels of pairs (i, i) and (i, i mod 4) are"
        " wrong (exchanged)",
        "positives are at (i, i mod 4)",
    ),
    "scale clamped at 100": _one(
        scale_clamped_in_forward,
        "1/B sum softplus(-z (min(t, 100) s + b)): the scale is clamped at 100 within the loss; above it log_scale"
        " has no gradient",
        "exp(log_scale) is limited to 100",
        "right for log_scale < ln 100 = 4.605, wrong above",
    ),
    "bias as a float": _one(
        bias_as_a_number,
        "the right value, and right gradients but for that of the bias, which gets none (it is made a Python "
        "number by .item())",
        "the bias is detached",
        "the bias's gradient is 0 or missing",
    ),
    "matmul in bfloat16": _one(
        matmul_in_bfloat16,
        "1/B sum softplus(-z (t bf16(bf16(image) . bf16(text)) + b)): embeddings and their products are rounded to"
        " bfloat16",
        "similarities have only 8 bits: products in lower precision (bfloat16) than asked",
        "rounding too coarse for the dtype; relative error of similarities about 2^-9 to 2^-8",
    ),
    "normalised over the batch": _one(
        normalised_over_the_batch,
        "embeddings are normalised along the batch (dim=0: every feature over the B rows) instead of along the "
        "features: 1/B sum softplus(-z (t "
        "sum_d x_id y_jd / (|x_:d| |y_:d|) + b))",
        "normalised along the wrong axis (columns instead of rows)",
        "feature d of image and text is divided by its norm over the batch",
        embeddings="raw",
    ),
    "over tau, minus b (two)": _one(
        over_tau_minus_b,
        "1/B sum softplus(-z (s / t - b)): divided by exp(log_scale) instead of multiplied, and the bias is subtracted",
        "the right loss at -log_scale and -bias",
        "the scale is inverted, 1/t; and the sign of the bias is wrong",
    ),
    "CLIP's class, no bias (two)": _one(
        clip_class_without_bias,
        "2/B sum softplus(-z t s): the bias is not used, and both directions are added (doubled)",
        "twice the right loss at bias 0; the bias gets no gradient",
        "bias ignored, and a factor of 2",
    ),
    "log of a probability (two)": _one(
        log_of_probability,
        "-1/B sum log(sigmoid(z l) + 1e-6), and log_scale gets no gradient (.item())",
        "1e-6 is added to the probability before the logarithm, and the scale is detached",
        "the loss of a pair cannot exceed -log(1e-6) = 13.8, its gradient is lessened by sigmoid/(sigmoid + 1e-6),"
        " and log_scale has no gradient",
    ),
    "JAX: scale not exponentiated": _one(
        jax_scale_not_exponentiated,
        "1/B sum softplus(-z (log_scale s + b)): log_scale itself is the factor, exp is missing",
        "the scale is not exponentiated; it is linear",
        "exp(log_scale) is replaced by log_scale",
        framework="jax",
    ),
    "JAX: labels 0 and 1": _one(
        jax_labels_of_zero,
        "1/B sum_i softplus(-l_ii) + (B-1) log 2: labels are 0 and 1 instead of -1 and 1, so every negative gives "
        "log 2 and no gradient",
        "negatives have label 0: constant log 2 each",
        "positives only, plus the constant (B-1) log 2",
        framework="jax",
    ),
    "JAX: all pairs are negatives, too": _one(
        jax_all_pairs_then_positives,
        "1/B [sum_ij softplus(l_ij) + sum_i softplus(-l_ii)]: positives are counted as negatives besides",
        "the diagonal is in the negatives too: extra term 1/B sum_i softplus(l_ii)",
        "the right loss plus the mean of softplus(l_ii)",
        framework="jax",
    ),
    "JAX: text stopped": _one(
        jax_text_stopped,
        "the right value; the text embeddings get no gradient (stop_gradient)",
        "text_embed is detached, its gradient is 0",
        framework="jax",
    ),
    "JAX: gradient of t, not of log t": _one(
        jax_fused,
        "the right value and gradients, but that of log_scale lacks the factor t: it is sum G s = dL/dt",
        "the gradient of log_scale is divided by exp(log_scale)",
        "it is the gradient with respect to exp(log_scale)",
        framework="jax",
    ),
    "JAX: clipped, mean of pairs (two)": _one(
        jax_clipped_mean,
        "1/B^2 sum softplus(-z clip(l, -10, 10)): logits clipped to [-10, 10] (no gradient outside), and the mean "
        "over all pairs",
        "divided by B*B instead of B, and logits limited to +-10",
        framework="jax",
    ),
    "NumPy: signed targets in backward": _one(
        numpy_signed_targets,
        "the value is right; gradients use G = (sigmoid(l) - z)/B with z = -1 off the diagonal: (sigmoid(l) + 1)/B"
        " for negatives, right "
        "for positives; all four gradients are wrong",
        "backward subtracts labels of -1 and 1 where 0 and 1 belong",
        "the gradient of every negative is 1/B too large: the gradients are those of the right loss plus 1/B "
        "sum_{i!=j} l_ij",
        framework="numpy",
    ),
    "NumPy: untransposed, mean (two)": _one(
        numpy_untransposed,
        "the value is right; the text gradient is t G @ image instead of t G.T @ image, and the bias's gradient is"
        " mean(G) instead of sum(G)",
        "G is not transposed for the texts, and the gradient of the bias is divided by B*B",
        framework="numpy",
    ),
    "right: two classes": _one(right_two_classes, "SigLIP's own"),
    "right: closed form": _one(right_closed_form, "SigLIP's own"),
    "right: JAX, rolled": _one(right_jax_rolled, "SigLIP's own", framework="jax"),
}
