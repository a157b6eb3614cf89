"""Sigmoid losses as people write them: 22 wrong ones, 4 right ones. For sr.check_loss.

In the truths: B pairs, x_i unit image rows, y_j unit text rows, s_ij = x_i . y_j, t = exp(log_scale), b = bias,
l_ij = t s_ij + b, SigLIP's loss L = 1/B (sum_i softplus(-l_ii) + sum_{i != j} softplus(l_ij)).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812

# ---------------------------------------------------------------- torch


def transformers_with_mean(image_embeds, text_embeds, logit_scale, logit_bias):
    image_embeds = image_embeds / image_embeds.norm(p=2, dim=-1, keepdim=True)
    text_embeds = text_embeds / text_embeds.norm(p=2, dim=-1, keepdim=True)
    logits_per_text = torch.matmul(text_embeds, image_embeds.t().to(text_embeds.device))
    logits_per_text = logits_per_text * logit_scale.exp() + logit_bias

    eye = torch.eye(logits_per_text.size(0), device=logits_per_text.device, dtype=logits_per_text.dtype)
    m1_diag1 = -torch.ones_like(logits_per_text) + 2 * eye
    loglik = F.logsigmoid(m1_diag1 * logits_per_text)
    nll = -torch.mean(loglik, dim=-1)
    return nll.mean()


def balanced_bce(image_features, text_features, logit_scale, logit_bias):
    """Positives are rare, so they are weighted up."""
    logits = logit_scale.exp() * image_features @ text_features.T + logit_bias
    n = logits.shape[0]
    labels = torch.eye(n, device=logits.device, dtype=logits.dtype)
    criterion = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(float(n - 1), dtype=logits.dtype))
    return criterion(logits, labels)


def over_temperature(image, text, log_temperature, bias):
    temperature = log_temperature.exp()
    sim = torch.einsum("id,jd->ij", image, text)
    logits = sim / temperature + bias
    z = 2 * torch.eye(len(sim), dtype=sim.dtype) - 1
    return -F.logsigmoid(z * logits).sum() / len(sim)


def minus_as_in_the_paper(image_embeds, text_embeds, logit_scale, logit_bias):
    bs = text_embeds.shape[0]
    labels = 2 * torch.eye(bs) - torch.ones((bs, bs))
    labels = labels.to(text_embeds.device, text_embeds.dtype)
    logits = -text_embeds @ image_embeds.t() * logit_scale.exp() + logit_bias
    return -torch.mean(F.logsigmoid(-labels * logits))


def clamped_logits(image, text, log_scale, bias):
    logits = image @ text.t() * torch.exp(log_scale) + bias
    logits = torch.clamp(logits, min=-10.0, max=10.0)  # numerical stability
    labels = torch.full_like(logits, -1.0).fill_diagonal_(1.0)
    return F.softplus(-labels * logits).sum(dim=1).mean()


def log_with_epsilon(image, text, log_scale, bias, eps=1e-6):
    prob = torch.sigmoid(image @ text.T * log_scale.exp() + bias)
    target = torch.eye(prob.shape[0], dtype=prob.dtype, device=prob.device)
    loss = target * torch.log(prob + eps) + (1 - target) * torch.log(1 - prob + eps)
    return -loss.sum(dim=-1).mean()


def both_directions(image_features, text_features, logit_scale, logit_bias):
    """Like CLIP: a loss per image and a loss per text."""
    logits_per_image = logit_scale.exp() * image_features @ text_features.T + logit_bias
    logits_per_text = logits_per_image.T
    n = logits_per_image.shape[0]
    labels = 2 * torch.eye(n, dtype=logits_per_image.dtype) - 1
    loss_i = -F.logsigmoid(labels * logits_per_image).sum() / n
    loss_t = -F.logsigmoid(labels * logits_per_text).sum() / n
    return loss_i + loss_t


def scale_as_number(image, text, log_scale, bias):
    scale = log_scale.exp().item()
    logits = torch.addmm(bias.to(image.dtype).expand(len(image), len(text)), image, text.T, alpha=scale)
    labels = torch.eye(len(image), dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1).mean()


def chunked_labels(image, text, log_scale, bias, chunk_size=4):
    """Never holds the whole matrix."""
    total = image.new_zeros(())
    for rows in image.split(chunk_size):
        logits = log_scale.exp() * rows @ text.T + bias
        labels = 2 * torch.eye(*logits.shape, dtype=logits.dtype, device=logits.device) - 1
        total = total - F.logsigmoid(labels * logits).sum()
    return total / image.shape[0]


def three_chunks(image, text, log_scale, bias, num_chunks=3):
    n = len(image)
    size = n // num_chunks
    loss = 0.0
    for k in range(num_chunks):
        rows = slice(k * size, (k + 1) * size)
        logits = log_scale.exp() * image[rows] @ text.T + bias
        labels = -torch.ones_like(logits)
        labels[torch.arange(size), torch.arange(k * size, (k + 1) * size)] = 1
        loss = loss - F.logsigmoid(labels * logits).sum()
    return loss / n


def focal(image, text, log_scale, bias, gamma=2.0):
    logits = log_scale.exp() * image @ text.T + bias
    targets = torch.eye(len(image), dtype=logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = torch.sigmoid(logits)
    p_t = p * targets + (1 - p) * (1 - targets)
    return (bce * (1 - p_t) ** gamma).sum() / len(image)


def mean_of_each(image_features, text_features, logit_scale, logit_bias):
    logits = logit_scale * image_features @ text_features.T + logit_bias
    positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    pos_loss = -F.logsigmoid(logits[positive]).mean()
    neg_loss = -F.logsigmoid(-logits[~positive]).mean()
    return pos_loss + neg_loss


def products_in_bfloat16(image, text, log_scale, bias):
    sim = (image.to(torch.bfloat16) @ text.to(torch.bfloat16).T).to(image.dtype)
    logits = sim * log_scale.exp() + bias
    labels = 2 * torch.eye(len(sim), dtype=sim.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(sim)


def smoothed_and_bracketed(image, text, log_scale, bias, smoothing=0.1):
    n = image.size(0)
    logits = log_scale.exp() * (image @ text.T + bias)
    targets = torch.eye(n, dtype=image.dtype) * (1 - smoothing) + smoothing / n
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / n


def softplus_of_all(image, text, log_scale, bias):
    logits = log_scale.exp() * (image @ text.T) + bias
    negatives = F.softplus(logits).sum()
    positives = F.softplus(-logits.diagonal()).sum()
    return (negatives + positives) / image.shape[0]


# ---------------------------------------------------------------- JAX


def optax_plus_minus_one(zimg, ztxt, t_prime, b):
    logits = zimg @ ztxt.T * jnp.exp(t_prime) + b
    labels = 2 * jnp.eye(len(zimg)) - 1
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum(-1).mean()


def labels_zero_and_one(zimg, ztxt, t_prime, b):
    logits = jnp.dot(zimg, ztxt.T) * jnp.exp(t_prime) + b
    labels = jnp.eye(zimg.shape[0])
    loglik = jax.nn.log_sigmoid(labels * logits)
    return jnp.mean(-jnp.sum(loglik, axis=-1))


def texts_normalised_only(image, text, log_scale, bias):
    text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
    logits = jnp.einsum("id,jd->ij", image, text) * jnp.exp(log_scale) + bias
    z = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum() / logits.shape[0]


def temperature_as_stored(params_img, params_txt, temperature, bias):
    """Ported from a model without a bias."""
    del bias
    logits = temperature * params_img @ params_txt.T
    n = logits.shape[0]
    return jnp.sum(jax.nn.softplus(jnp.where(jnp.eye(n, dtype=bool), -logits, logits))) / n


def locked_images(image, text, log_scale, bias):
    """LiT: the image tower is locked."""
    image = jax.lax.stop_gradient(image)
    logits = jnp.exp(log_scale) * image @ text.T + bias
    z = 2.0 * jnp.eye(len(image)) - 1.0
    return jnp.sum(jnp.logaddexp(0, -z * logits)) / len(image)


# ---------------------------------------------------------------- NumPy


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


def two_scalars_by_hand(image, text, log_scale, bias):
    n = len(image)
    t = np.exp(log_scale)
    sim = image @ text.T
    logits = t * sim + bias
    z = 2 * np.eye(n, dtype=sim.dtype) - 1
    loss = np.logaddexp(0, -z * logits).sum() / n
    grad = -z * _sigmoid(-z * logits) / n
    d_scale, d_bias = np.sum(grad * sim), grad.mean()
    return (
        loss,
        t * grad @ text,
        t * grad.T @ image,
        np.asarray(d_scale).reshape(np.shape(log_scale)),
        np.asarray(d_bias).reshape(np.shape(bias)),
    )


def division_by_a_constant(image, text, log_scale, bias):
    n = len(image)
    image_norm = np.linalg.norm(image, axis=1, keepdims=True)
    text_norm = np.linalg.norm(text, axis=1, keepdims=True)
    x, y = image / image_norm, text / text_norm
    t = np.exp(log_scale)
    logits = t * x @ y.T + bias
    z = 2 * np.eye(n, dtype=x.dtype) - 1
    loss = np.logaddexp(0, -z * logits).sum() / n
    grad = (_sigmoid(logits) - np.eye(n, dtype=x.dtype)) / n
    return (
        loss,
        t * grad @ y / image_norm,
        t * grad.T @ x / text_norm,
        np.asarray((grad * (logits - bias)).sum()).reshape(np.shape(log_scale)),
        np.asarray(grad.sum()).reshape(np.shape(bias)),
    )


# ---------------------------------------------------------------- right


def right_cosine_similarity(image, text, log_scale, bias):
    sim = F.cosine_similarity(image[:, None], text[None], dim=-1)
    logits = sim * log_scale.exp() + bias
    labels = torch.eye(len(sim), dtype=sim.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels) * len(sim)


def right_columns_in_chunks(image, text, log_scale, bias, size=5):
    scaled, loss = log_scale.exp() * image, []
    for start in range(0, len(text), size):
        columns = text[start : start + size]
        logits = scaled @ columns.T + bias
        loss.append(F.softplus(logits).sum())
        own = logits[start : start + len(columns)].diagonal()
        loss.append((F.softplus(-own) - F.softplus(own)).sum())
    return torch.stack(loss).sum() / len(image)


def right_vmap(image, text, log_scale, bias):
    """A loss of each image, mean over its texts; then the sum over images."""

    @jax.checkpoint
    def of_image(i, row):
        logits = jnp.exp(log_scale) * text @ row + bias
        return -jax.nn.log_sigmoid(jnp.where(jnp.arange(len(text)) == i, logits, -logits)).mean()

    return jax.vmap(of_image)(jnp.arange(len(image)), image).sum()


def right_by_hand(image, text, log_scale, bias):
    n, t = len(image), np.exp(log_scale)
    logits = t * (image @ text.T) + bias
    signed = np.where(np.eye(n, dtype=bool), -logits, logits)
    loss = (np.maximum(signed, 0) + np.log1p(np.exp(-np.abs(signed)))).sum() / n
    grad = _sigmoid(logits) / n
    grad[np.diag_indices(n)] = -_sigmoid(-np.diag(logits)) / n
    d_image, d_text = t * grad @ text, t * grad.T @ image
    d_scale = np.asarray((d_image * image).sum()).reshape(np.shape(log_scale))
    return loss, d_image, d_text, d_scale, np.asarray(grad.sum()).reshape(np.shape(bias))


# ---------------------------------------------------------------- truths


def _wrong(fn, truth, *same, framework="torch", **given):
    given = {"scale": "log", "embeddings": "unit"} | given
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


_right = _wrong

PROGRAMS = {
    "transformers with mean": _wrong(
        transformers_with_mean,
        "the mean over all B^2 pairs: divisor B^2 instead of B; value and all gradients are SigLIP's / B",
        "divided by B once too often",
        "mean over both axes of the logits instead of sum over texts and mean over images",
        "value and all four gradients are too small by the factor B",
        embeddings="raw",
    ),
    "balanced bce": _wrong(
        balanced_bce,
        "two mistakes: each positive has weight B - 1 (negatives weight 1), and the divisor is B^2 instead of B: "
        "1/B^2 ((B - 1) sum_i softplus(-l_ii) + sum_{i != j} softplus(l_ij))",
        "positives weigh (B - 1) / B of what they should, negatives 1 / B of it",
        "positives (B - 1)/B^2 each instead of 1/B, negatives 1/B^2 each instead of 1/B",
        "positives weigh B - 1 times as much as negatives, and everything is a mean over B^2 pairs",
    ),
    "over temperature": _wrong(
        over_temperature,
        "logits are s_ij / t + b instead of t s_ij + b, t = exp(log_scale); gradients are those of this loss",
        "the scale is inverted: exp(-log_scale) in place of exp(log_scale)",
        "log_scale has the wrong sign; the similarity is divided by the scale",
    ),
    "minus as in the paper": _wrong(
        minus_as_in_the_paper,
        "two mistakes: the bias is subtracted, logits t s_ij - b instead of t s_ij + b, and the divisor is B^2 instead "
        "of B (the two minus signs on s and on the labels cancel)",
        "bias of the wrong sign, and the mean over all B^2 pairs",
        "1/B^2 sum softplus(-z_ij (t s_ij - b))",
        "logits are t s_ij - b; value and gradients are divided by B once too often",
    ),
    "clamped logits": _wrong(
        clamped_logits,
        "logits are clamped to [-10, 10]: every l_ij below -10 counts as -10, above 10 as 10, and such a pair gets no "
        "gradient at all",
        "logits clipped at +-10; gradient 0 outside",
        "the loss of a positive never exceeds softplus(10) = 10.0000454, that of a pair is never below 4.54e-5",
    ),
    "log with epsilon": _wrong(
        log_with_epsilon,
        "1e-6 is added inside the logarithm: -log(sigmoid(l_ii) + 1e-6) and -log(1 - sigmoid(l_ij) + 1e-6); losses are "
        "bounded by -log(1e-6) = 13.8 and the gradient of badly wrong pairs vanishes",
        "log(p + eps) with eps = 1e-6 in place of logsigmoid",
        "the loss of a pair saturates at 13.8 from about |logit| = 14 on; the logit's gradient is multiplied by "
        "p / (p + 1e-6), p the probability of the pair's label",
    ),
    "both directions": _wrong(
        both_directions,
        "the loss of rows and that of columns are added without 1/2: value and all gradients are 2 times SigLIP's",
        "everything too large by the factor 2",
        "divisor B / 2 instead of B",
    ),
    "scale as a number": _wrong(
        scale_as_number,
        "the value and the gradients of images, texts and bias are right; log_scale gets no gradient (0 or None)",
        "the scale is a constant for the gradient (detached, .item())",
        "d log_scale is missing",
    ),
    "chunked labels": _wrong(
        chunked_labels,
        "rows come in chunks of 4 and each chunk's positives start at text 0: image i's positive is text i mod 4 "
        "instead of text i; its own text is a negative when i >= 4. Right where B <= 4",
        "labels of every chunk lack the chunk's offset",
        "from the fifth image on the positive is one of the first four texts (column i - 4 floor(i / 4))",
        "z_ij = 1 where j = i mod 4, else -1",
    ),
    "three chunks": _wrong(
        three_chunks,
        "only the first 3 floor(B / 3) images count: the last B mod 3 images (one or two) are left out with all their "
        "pairs; the divisor stays B. Right where 3 divides B",
        "the remainder of the rows is dropped: rows from 3 floor(B/3) on have no loss; their images get no gradient",
        "the last B mod 3 images are missing; all texts are still there",
    ),
    "focal": _wrong(
        focal,
        "each pair's loss is multiplied by (1 - p)^2, p = sigmoid(z_ij l_ij) the probability of its label: focal loss "
        "with gamma = 2; divisor B",
        "pair losses are weighted by sigmoid(-z l)^2, through which the gradient flows",
        "1/B sum sigmoid(-z_ij l_ij)^2 softplus(-z_ij l_ij)",
    ),
    "mean of each": _wrong(
        mean_of_each,
        "the mean over the B positives plus the mean over the B (B - 1) negatives: negatives weigh 1 / (B (B - 1)) "
        "each instead of 1 / B, positives are right",
        "the negative part is divided by B - 1 too much",
        "positives and negatives are averaged apart and added",
        "negatives have the weight 1 / (B - 1) of positives",
        scale="linear",
    ),
    "products in bfloat16": _wrong(
        products_in_bfloat16,
        "embeddings are rounded to bfloat16 (8 significant bits) and so is each similarity, whatever the dtype asked for; "
        "gradients pass through bfloat16, too; everything else is SigLIP's",
        "similarities have the precision of bfloat16, relative errors of up to 2^-9 = 0.2 % (0.4 % a step)",
        "rounding: the matrix product is done in bfloat16; no error of formula",
    ),
    "smoothed and bracketed": _wrong(
        smoothed_and_bracketed,
        "two mistakes: logits are t (s_ij + b) instead of t s_ij + b, and the labels are smoothed: 0.9 + 0.1 / B for "
        "positives, 0.1 / B for negatives instead of 1 and 0",
        "the bias is multiplied by the scale, and label smoothing of 0.1 as in softmax",
        "label smoothing of 0.1 spread over B texts: targets 0.9 eye + 0.1 / B; and bias inside the bracket",
    ),
    "softplus of all": _wrong(
        softplus_of_all,
        "the diagonal counts as negative, too: 1/B (sum_{ij} softplus(l_ij) + sum_i softplus(-l_ii)), too much by "
        "1/B sum_i softplus(l_ii)",
        "each matching pair is a positive and a negative at once",
        "positive pairs are not left out of the negatives",
        "value is SigLIP's + 1/B sum_i softplus(l_ii)",
        "a positive costs softplus(-l) + softplus(l) = 2 softplus(-l) + l",
    ),
    "optax plus minus one": _wrong(
        optax_plus_minus_one,
        "cross entropy with labels -1 and 1 in place of 0 and 1: positives are right, a negative costs "
        "softplus(l) + l = 2 softplus(l) - softplus(-l) instead of softplus(l)",
        "negatives have the target -1 instead of 0",
        "1/B sum_{i != j} l_ij is added: value too large by that, the gradient of each negative's logit too large by "
        "1/B",
        framework="jax",
    ),
    "labels zero and one": _wrong(
        labels_zero_and_one,
        "labels are 1 and 0 in place of 1 and -1: every negative costs the constant log 2 = 0.693 and has no gradient; "
        "1/B sum_i softplus(-l_ii) + (B - 1) log 2",
        "negatives are multiplied by 0: only positives have a gradient, value too large or small by a constant",
        "the negative part is (B - 1) log 2, positives are right",
        framework="jax",
    ),
    "texts normalised only": _wrong(
        texts_normalised_only,
        "images are not normalised: s_ij = u_i . y_j with the raw image row u_i; each similarity is the cosine times "
        "|u_i|. Texts are normalised rightly",
        "image rows keep their length",
        "the normalisation of the images is missing",
        framework="jax",
        embeddings="raw",
    ),
    "temperature as stored": _wrong(
        temperature_as_stored,
        "two mistakes: the scale is log_scale itself instead of exp(log_scale), and there is no bias: logits are "
        "log_scale s_ij; the bias' gradient is 0",
        "log_scale is not exponentiated, bias is left out",
        "logits are log_scale s_ij instead of exp(log_scale) s_ij + b",
        framework="jax",
    ),
    "locked images": _wrong(
        locked_images,
        "the value and the gradients of texts, log_scale and bias are right; images get the gradient 0",
        "stop_gradient on the images",
        "d image is missing (zero)",
        framework="jax",
    ),
    "two scalars by hand": _wrong(
        two_scalars_by_hand,
        "two mistakes in the gradients, the value is right, d image and d text, too: d log_scale is sum G s, without "
        "the factor t = exp(log_scale) (the derivative by t, not by log t); d bias is the mean of G instead of its sum, "
        "1 / B^2 of the right one",
        "d log_scale is too small by the factor exp(log_scale), d bias by B^2",
        "the gradient by the scale instead of by its logarithm; the bias' gradient is averaged over all pairs",
        framework="numpy",
    ),
    "division by a constant": _wrong(
        division_by_a_constant,
        "the value, d log_scale and d bias are right; d image and d text lack the projection of the normalisation's "
        "derivative: they are g / |u| instead of (g - x (x . g)) / |u|, g the gradient by the unit row x",
        "norms are constants in the backward pass; the part of the gradient along the row stays",
        "image and text gradients have a radial part x (x . g) / |u| too much",
        framework="numpy",
        embeddings="raw",
    ),
    "right: cosine similarity": _right(right_cosine_similarity, "SigLIP's own", embeddings="raw"),
    "right: columns in chunks": _right(right_columns_in_chunks, "SigLIP's own"),
    "right: vmap": _right(right_vmap, "SigLIP's own", framework="jax"),
    "right: by hand": _right(right_by_hand, "SigLIP's own", framework="numpy"),
}
