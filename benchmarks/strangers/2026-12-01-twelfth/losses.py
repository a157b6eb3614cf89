"""Wrong sigmoid losses, and three right ones, written on 2026-12-01 by somebody who has not read the checker.

In the truths: l_ij = exp(log_scale) x_i.y_j + bias, x and y unit rows, B pairs, z_ij = 1 where i = j, else -1;
SigLIP's own is 1/B sum_ij softplus(-z_ij l_ij).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

# ---------------------------------------------------------------- torch


def mean_everything(image_features, text_features, logit_scale, logit_bias):
    logits = image_features @ text_features.T * logit_scale.exp() + logit_bias
    n = logits.shape[0]
    labels = 2 * torch.eye(n, device=logits.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).mean()


def tiny_bce(img_emb, txt_emb, log_scale, bias):
    logits = (img_emb @ txt_emb.t()) * log_scale.exp()
    labels = torch.eye(logits.size(0), device=logits.device, dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels)


def plain_temperature(image_embeds, text_embeds, temperature, bias):
    """The learnt temperature, as it is kept."""
    logits = torch.matmul(image_embeds, text_embeds.t()) * temperature + bias
    labels = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def clip_style_clamp(image_embeds, text_embeds, logit_scale, logit_bias):
    scale = torch.clamp(logit_scale.exp(), max=100.0)
    logits_per_text = text_embeds @ image_embeds.t() * scale + logit_bias
    eye = torch.eye(logits_per_text.size(0), device=logits_per_text.device, dtype=logits_per_text.dtype)
    loglik = F.logsigmoid((-torch.ones_like(logits_per_text) + 2 * eye) * logits_per_text)
    return -loglik.sum(dim=-1).mean()


def equation_of_the_paper(x, y, t_prime, b):
    """1 / (1 + exp(z (-t x.y + b))), as it is displayed."""
    n = x.shape[0]
    z = 2 * torch.eye(n, device=x.device, dtype=x.dtype) - torch.ones(n, n, device=x.device, dtype=x.dtype)
    inner = z * (-t_prime.exp() * torch.einsum("id,jd->ij", x, y) + b)
    return -F.logsigmoid(-inner).sum(dim=1).mean()


def balanced_bce(image_embeds, text_embeds, log_scale, bias):
    """Positives weigh as much as all their negatives."""
    logits = log_scale.exp() * image_embeds @ text_embeds.T + bias
    b = logits.size(0)
    labels = torch.eye(b, device=logits.device, dtype=logits.dtype)
    pos_weight = torch.full((), b - 1.0, device=logits.device, dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=pos_weight)


def zero_one_labels(image_features, text_features, logit_scale, logit_bias):
    logits = logit_scale.exp() * image_features @ text_features.T + logit_bias
    labels = torch.eye(logits.shape[0], device=logits.device, dtype=logits.dtype)
    return -torch.sum(F.logsigmoid(labels * logits)) / logits.shape[0]


def positives_and_negatives(image_features, text_features, logit_scale, logit_bias):
    logits = logit_scale.exp() * image_features @ text_features.T + logit_bias
    mask = torch.eye(logits.shape[0], dtype=torch.bool, device=logits.device)
    pos_loss = -F.logsigmoid(logits[mask]).mean()
    neg_loss = -F.logsigmoid(-logits[~mask]).mean()
    return pos_loss + neg_loss


def safe_log(image_features, text_features, logit_scale, logit_bias):
    logits = image_features @ text_features.T * torch.exp(logit_scale) + logit_bias
    signs = torch.full_like(logits, -1.0)
    signs.fill_diagonal_(1.0)
    probs = torch.sigmoid(signs * logits)
    return -torch.log(probs + 1e-8).sum(dim=-1).mean()


def scale_item(image_features, text_features, logit_scale, logit_bias):
    scale = logit_scale.exp().item()
    logits = scale * image_features @ text_features.t() + logit_bias
    labels = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def norm_of_the_batch(image_features, text_features, logit_scale, logit_bias):
    image_features = image_features / image_features.norm()
    text_features = text_features / text_features.norm()
    logits = logit_scale.exp() * image_features @ text_features.t() + logit_bias
    labels = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


class RawFeatures(nn.Module):
    """Features as get_image_features and get_text_features give them."""

    def forward(self, image_features, text_features, logit_scale, logit_bias):
        logits = torch.matmul(text_features, image_features.t()) * logit_scale.exp() + logit_bias
        eye = torch.eye(logits.size(0), device=logits.device, dtype=logits.dtype)
        m1_diag1 = -torch.ones_like(logits) + 2 * eye
        return -torch.sum(F.logsigmoid(m1_diag1 * logits), dim=-1).mean()


def divided_by(image_embeds, text_embeds, log_temperature, bias):
    temperature = log_temperature.exp()
    logits = image_embeds @ text_embeds.T / temperature + bias
    labels = 2 * torch.eye(logits.shape[0], device=logits.device, dtype=logits.dtype) - 1
    return F.softplus(-labels * logits, threshold=60).sum() / logits.shape[0]


def chunked_rows(image_embeds, text_embeds, log_scale, bias, chunk_size=4):
    """Never more than chunk_size rows of logits at once."""
    n = image_embeds.shape[0]
    scale = log_scale.exp()
    total = image_embeds.new_zeros(())
    for start in range(0, n, chunk_size):
        rows = image_embeds[start : start + chunk_size]
        logits = scale * rows @ text_embeds.T + bias
        labels = 2 * torch.eye(rows.shape[0], n, device=logits.device, dtype=logits.dtype) - 1
        total = total - F.logsigmoid(labels * logits).sum()
    return total / n


class FusedSigLIP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        n = image.shape[0]
        sim = image @ text.t()
        scale = log_scale.exp()
        logits = sim * scale + bias
        labels = torch.eye(n, device=image.device, dtype=logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / n
        ctx.save_for_backward(image, text, log_scale, bias)
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        image, text, log_scale, bias = ctx.saved_tensors
        n = image.shape[0]
        scale = log_scale.exp()
        sim = image @ text.t()
        d_logits = torch.sigmoid(sim * scale + bias)
        d_logits.diagonal().sub_(1.0)
        d_logits = d_logits * (grad_output / n)
        d_image = scale * (d_logits @ text)
        d_text = scale * (d_logits.t() @ image)
        d_scale = (d_logits * sim).sum()
        return d_image, d_text, d_scale.reshape(log_scale.shape), d_logits.sum().reshape(bias.shape)


def fused(image_embeds, text_embeds, log_scale, bias):
    return FusedSigLIP.apply(image_embeds, text_embeds, log_scale, bias)


def matched_pairs(image_embeds, text_embeds, logit_scale, logit_bias):
    logits_per_image = logit_scale.exp() * image_embeds @ text_embeds.t() + logit_bias
    return -F.logsigmoid(logits_per_image.diag()).mean()


def both_directions(image_embeds, text_embeds, log_scale, bias):
    logits_per_image = log_scale.exp() * image_embeds @ text_embeds.T
    logits_per_text = logits_per_image.T
    labels = torch.eye(len(logits_per_image), device=logits_per_image.device, dtype=logits_per_image.dtype)
    loss_i = F.binary_cross_entropy_with_logits(logits_per_image, labels, reduction="none").sum(1).mean()
    loss_t = F.binary_cross_entropy_with_logits(logits_per_text, labels, reduction="none").sum(1).mean()
    return loss_i + loss_t


# ---------------------------------------------------------------- JAX


def flax_params(zimg, ztxt, logit_scale, logit_bias):
    logits = jnp.dot(zimg, ztxt.T) * logit_scale + logit_bias
    targets = jnp.eye(zimg.shape[0], dtype=logits.dtype)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))


@jax.jit
def jax_clip(zimg, ztxt, logit_scale, logit_bias):
    logits = jnp.exp(logit_scale) * zimg @ ztxt.T + logit_bias
    labels = jnp.arange(zimg.shape[0])
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    columns = optax.softmax_cross_entropy_with_integer_labels(logits.T, labels)
    return (rows.mean() + columns.mean()) / 2


def each_pair_once(zimg, ztxt, logit_scale, logit_bias):
    """The matrix holds every pair twice; its upper half is enough."""
    logits = jnp.einsum("id,jd->ij", zimg, ztxt) * jnp.exp(logit_scale) + logit_bias
    n = logits.shape[0]
    signs = 2 * jnp.eye(n, dtype=logits.dtype) - 1
    return -jnp.sum(jnp.triu(jax.nn.log_sigmoid(signs * logits))) / n


# ---------------------------------------------------------------- NumPy


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def numpy_text_gradient(image, text, log_scale, bias):
    n = image.shape[0]
    t = np.exp(np.asarray(log_scale, image.dtype))
    sim = image @ text.T
    logits = t * sim + np.asarray(bias, image.dtype)
    labels = 2 * np.eye(n, dtype=image.dtype) - 1
    loss = np.logaddexp(0, -labels * logits).sum() / n
    dlogits = -labels * _sigmoid(-labels * logits) / n
    dimage = t * dlogits @ text
    dtext = t * dlogits @ image
    return loss, dimage, dtext, np.reshape(t * (dlogits * sim).sum(), np.shape(log_scale)), np.reshape(dlogits.sum(), np.shape(bias))


def numpy_mean(image, text, log_scale, bias):
    t = np.exp(np.asarray(log_scale, image.dtype))
    sim = image @ text.T
    logits = t * sim + np.asarray(bias, image.dtype)
    labels = np.eye(len(image), dtype=image.dtype)
    loss = (np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))).mean()
    dlogits = (_sigmoid(logits) - labels) / logits.size
    return (
        loss,
        t * (dlogits @ text),
        t * (dlogits.T @ image),
        np.reshape((dlogits * sim).sum(), np.shape(log_scale)),
        np.reshape(dlogits.sum(), np.shape(bias)),
    )


# ---------------------------------------------------------------- right ones


def right_chunks(image_embeds, text_embeds, log_scale, bias, chunk_size=8):
    n = image_embeds.shape[0]
    scale = log_scale.exp()
    total = image_embeds.new_zeros(())
    for start in range(0, n, chunk_size):
        rows = image_embeds[start : start + chunk_size]
        logits = scale * rows @ text_embeds.T + bias
        labels = torch.full_like(logits, -1.0)
        labels.diagonal(offset=start).fill_(1.0)
        total = total - F.logsigmoid(labels * logits).sum()
    return total / n


class RightModule(nn.Module):
    """Normalises; rows are texts; half of both directions, which are the same."""

    def forward(self, image_features, text_features, logit_scale, logit_bias):
        image = F.normalize(image_features, p=2, dim=-1)
        text = F.normalize(text_features, p=2, dim=-1)
        logits_per_text = text @ image.t() * logit_scale.exp() + logit_bias
        labels = torch.eye(logits_per_text.size(0), device=logits_per_text.device, dtype=logits_per_text.dtype)
        loss_t = F.binary_cross_entropy_with_logits(logits_per_text, labels, reduction="sum") / len(labels)
        loss_i = F.binary_cross_entropy_with_logits(logits_per_text.t(), labels, reduction="sum") / len(labels)
        return 0.5 * (loss_i + loss_t)


def right_jax(zimg, ztxt, t_prime, b):
    def row(x, i):
        logits = ztxt @ x * jnp.exp(t_prime) + b
        own = jnp.arange(ztxt.shape[0]) == i
        return jax.nn.softplus(jnp.where(own, -logits, logits)).sum()

    return jax.vmap(row)(zimg, jnp.arange(zimg.shape[0])).mean()


# ---------------------------------------------------------------- the programs

UNIT = {"scale": "log", "embeddings": "unit"}
RAW = {"scale": "log", "embeddings": "raw"}


def _one(fn, truth, *same, framework="torch", given=UNIT):
    return {"fn": fn, "framework": framework, "given": dict(given), "truth": truth, "same": list(same)}


PROGRAMS = {
    "mean of the matrix": _one(
        mean_everything,
        "1/B^2 sum_ij softplus(-z_ij l_ij): the mean over all B*B pairs",
        "divided by B*B in place of B",
        "value and all four gradients are 1/B of the right ones",
        'reduction="mean"',
    ),
    "tiny BCE": _one(
        tiny_bce,
        "two mistakes: 1/B^2 sum_ij softplus(-z_ij exp(log_scale) x_i.y_j): no bias, and the mean over all B*B pairs",
        "the bias is not added (as if it were 0; its gradient is 0 or missing), divided by B*B in place of B",
        "BCE with logits, reduction mean, without a bias",
    ),
    "temperature as it is": _one(
        plain_temperature,
        "1/B sum_ij softplus(-z_ij (log_scale x_i.y_j + bias)): exp of log_scale is missing",
        "the logarithm of the scale is used as the scale",
        "the loss takes a linear scale but is given its logarithm",
        "the scale is t' in place of exp(t'); the gradient of log_scale is sum G_ij s_ij",
    ),
    "clamped to 100": _one(
        clip_style_clamp,
        "1/B sum_ij softplus(-z_ij (min(exp(log_scale), 100) x_i.y_j + bias)): right up to log_scale = ln 100 = 4.605, "
        "beyond it the scale is 100 and the gradient of log_scale is 0",
        "the scale is clamped in the forward pass, at 100",
        "CLIP's clamp of the scale",
    ),
    "the paper's equation": _one(
        equation_of_the_paper,
        "1/B sum_ij softplus(-z_ij (exp(log_scale) x_i.y_j - bias)): the bias is subtracted",
        "the sign of the bias is wrong; so is its gradient's: it is -(sum_ij G_ij), G taken at the changed logits",
        "-bias in place of bias",
    ),
    "balanced BCE": _one(
        balanced_bce,
        "two mistakes: 1/B^2 [(B - 1) sum_i softplus(-l_ii) + sum_{i != j} softplus(l_ij)]: positives weigh B - 1, and the "
        "mean over all B*B pairs",
        "pos_weight B - 1 and reduction mean (divided by B*B)",
        "(B-1)/B times the right weight of positives, 1/B of that of negatives",
        "(B-1)/B [mean over the positives + mean over the negatives], each class by its own count",
    ),
    "labels 0 and 1": _one(
        zero_one_labels,
        "1/B sum_i softplus(-l_ii) + (B - 1) log 2: labels of negatives are 0 in place of -1, each negative gives log 2 "
        "and no gradient",
        "labels are eye(B), in place of 2 eye(B) - 1",
        "gradients are those of the positives alone; the value besides is (B - 1) ln 2 = 0.6931 (B - 1) too large",
        "negatives have no effect (zero gradient), a constant is added",
    ),
    "means of both kinds": _one(
        positives_and_negatives,
        "1/B sum_i softplus(-l_ii) + 1/(B (B - 1)) sum_{i != j} softplus(l_ij): negatives are averaged over their own number",
        "negatives weigh 1/(B - 1) of what they should, positives are right",
        "mean of positives plus mean of negatives",
    ),
    "safe log": _one(
        safe_log,
        "-1/B sum_ij log(sigmoid(z_ij l_ij) + 1e-8): an epsilon of 1e-8 in the logarithm",
        "log(sigmoid + eps) in place of logsigmoid; no pair's loss exceeds -log 1e-8 = 18.42; gradients of pairs with "
        "z l below about -18.4 vanish; a pair that is right beyond doubt gives -1e-8",
        "the loss of a pair saturates at about 18.42",
    ),
    "scale.item()": _one(
        scale_item,
        "SigLIP's value, image, text and bias gradients; the gradient of log_scale is missing (0): exp(log_scale).item()",
        "the scale is detached",
        "log_scale gets no gradient",
    ),
    "norm of the batch": _one(
        norm_of_the_batch,
        "each matrix is divided by its Frobenius norm in place of each row by its own: "
        "1/B sum_ij softplus(-z_ij (exp(log_scale) u_i.v_j / (|U|_F |V|_F) + bias))",
        "normalised by the norm of the whole batch, not by rows; for rows of equal norms similarities are 1/B of the right ones",
        "norm() without dim",
        "rows are not normalised to unit length",
        given=RAW,
    ),
    "features as they come": _one(
        RawFeatures(),
        "1/B sum_ij softplus(-z_ij (exp(log_scale) u_i.v_j + bias)) of raw rows u, v: nothing is normalised",
        "the embeddings are not normalised, products of raw rows in place of cosines",
        "both normalisations are missing",
        given=RAW,
    ),
    "divided by the temperature": _one(
        divided_by,
        "1/B sum_ij softplus(-z_ij (x_i.y_j / exp(log_scale) + bias)): divided by the scale",
        "the scale is exp(-log_scale); the sign of log_scale is wrong",
        "the scale is taken for a temperature",
    ),
    "chunks without offset": _one(
        chunked_rows,
        "rows in chunks of 4, labels eye(4, B) in each: the positive of image i is text i mod 4 in place of text i; "
        "1/B sum_ij softplus(-z'_ij l_ij), z'_ij = 1 where j = i mod 4, else -1",
        "labels of a chunk lack its offset; only the first 4 rows (the first chunk) are right",
        "positives are at the wrong place beyond the first chunk",
        "own pairs of images 4, 5, ... are treated as negatives, (i, i mod 4) as positives",
    ),
    "fused backward": _one(
        fused,
        "SigLIP's value, image, text and bias gradients; the gradient of log_scale is sum_ij G_ij s_ij: the factor "
        "exp(log_scale) is missing",
        "the gradient of log_scale is that of the linear scale",
        "the gradient of log_scale is exp(-log_scale) times the right one",
    ),
    "matched pairs only": _one(
        matched_pairs,
        "1/B sum_i softplus(-l_ii): the diagonal alone, no negatives",
        "negatives are missing",
        "only positive pairs count",
    ),
    "both directions, no bias": _one(
        both_directions,
        "two mistakes: 2/B sum_ij softplus(-z_ij exp(log_scale) x_i.y_j): no bias, and both directions are added, not halved",
        "the bias is not added (as if it were 0; its gradient is 0 or missing), and twice the loss",
    ),
    "Flax parameters": _one(
        flax_params,
        "two mistakes: 1/B^2 sum_ij softplus(-z_ij (log_scale x_i.y_j + bias)): exp of log_scale is missing, and the mean "
        "over all B*B pairs",
        "the logarithm of the scale is used as the scale, divided by B*B in place of B",
        framework="jax",
    ),
    "CLIP's loss": _one(
        jax_clip,
        "CLIP's: 1/2 (mean_i -log softmax_j(l)_ii + mean_j -log softmax_i(l)_jj), softmax over rows and over columns",
        "softmax cross-entropy in both directions, halved, in place of sigmoids",
        "InfoNCE; the bias cancels, its gradient is 0",
        framework="jax",
    ),
    "each pair once": _one(
        each_pair_once,
        "1/B sum_{i <= j} softplus(-z_ij l_ij): pairs below the diagonal are left out",
        "negatives with i > j (image i, text j) are missing; only the upper triangle with the diagonal counts",
        "half of the negatives are missing: those of texts before the image's own",
        framework="jax",
    ),
    "NumPy: text's gradient": _one(
        numpy_text_gradient,
        "value, image, scale and bias gradients are right; the text's is exp(log_scale) G @ x in place of G.T @ x",
        "the transpose of G is missing in the gradient of text_embed",
        "d text_i = t sum_j G_ij x_j in place of t sum_j G_ji x_j",
        framework="numpy",
    ),
    "NumPy: mean": _one(
        numpy_mean,
        "two mistakes: value and image, text, bias gradients are 1/B of the right ones (mean over B*B pairs); the gradient of "
        "log_scale is 1/B^2 sum_ij (sigmoid(l) - eye)_ij s_ij: the factor exp(log_scale) is missing besides",
        "divided by B*B in place of B, and the gradient of log_scale is that of the linear scale",
        "gradient of log_scale is exp(-log_scale)/B times the right one",
        framework="numpy",
    ),
    "fine: chunks": _one(right_chunks, "SigLIP's own", "rows in chunks of 8, diagonal at an offset; sum / B"),
    "fine: module": _one(
        RightModule(), "SigLIP's own", "normalises raw rows; half the sum of both directions of BCE, sum / B", given=RAW
    ),
    "fine: vmap": _one(right_jax, "SigLIP's own", "vmap over rows, softplus of -l or l, summed by row, mean", framework="jax"),
}
