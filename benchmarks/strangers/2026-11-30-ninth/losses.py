"""Wrong (and four right) sigmoid losses, written on 2026-11-30 by somebody who has not read the checker."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
import torch.utils.checkpoint

# ---------------------------------------------------------------- torch


def mean_of_matrix(image, text, log_scale, bias):
    logits = image @ text.T * log_scale.exp() + bias
    labels = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).mean()


def mean_then_over_n(image, text, log_scale, bias):
    """As in a question on big_vision's tracker: 'the loss is quite small at the beginning'."""
    logits = log_scale.exp() * image @ text.t() + bias
    n = logits.size(0)
    labels = 2 * torch.eye(n, dtype=logits.dtype) - torch.ones(n, n, dtype=logits.dtype)
    return -torch.mean(F.logsigmoid(labels * logits)) / n


def bce_over_temperature(image, text, log_scale, bias):
    temperature = log_scale.exp()
    logits = image @ text.t() / temperature + bias
    labels = torch.eye(logits.size(0), dtype=logits.dtype, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, labels)


def minus_bias(image, text, log_scale, bias):
    """The paper's displayed formula, taken at its word: z (-t x.y + b) in the exponent."""
    n = image.shape[0]
    exponent = -log_scale.exp() * image @ text.T + bias
    z = 2 * torch.eye(n, dtype=image.dtype) - 1
    return F.softplus(z * exponent).sum() / n


def shifted_cosine(image, text, log_scale, bias):
    cosine = torch.einsum("id,jd->ij", image, text)
    logits = (cosine + bias) * log_scale.exp()
    n = len(cosine)
    signs = torch.full((n, n), -1.0, dtype=logits.dtype).fill_diagonal_(1.0)
    return -F.logsigmoid(signs * logits).sum(dim=1).mean()


def sigmoid_then_log(image, text, log_scale, bias, eps=1e-6):
    """ "For numerical stability"."""
    p = torch.sigmoid(log_scale.exp() * (image @ text.T) + bias)
    y = torch.eye(p.size(0), dtype=p.dtype)
    loss = -(y * torch.log(p + eps) + (1 - y) * torch.log(1 - p + eps))
    return loss.sum(dim=-1).mean()


def scale_at_most_100(image, text, log_scale, bias):
    scale = torch.clamp(log_scale, max=math.log(100.0)).exp()
    logits = scale * image @ text.T + bias
    labels = 2 * torch.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / logits.shape[0]


def positives_and_negatives_alike(image, text, log_scale, bias):
    logits = image @ text.T * log_scale.exp() + bias
    own = torch.eye(logits.size(0), dtype=torch.bool)
    positive = -F.logsigmoid(logits[own]).mean()
    negative = -F.logsigmoid(-logits[~own]).mean()
    return 0.5 * (positive + negative)


def bce_without_bias(image, text, log_scale, bias):
    """A CLIP model in which only the criterion was exchanged; there is no bias that it could learn."""
    logits_per_image = log_scale.exp() * image @ text.t()
    logits_per_text = logits_per_image.t()
    labels = torch.eye(logits_per_image.size(0), dtype=logits_per_image.dtype)
    i2t = F.binary_cross_entropy_with_logits(logits_per_image, labels)
    t2i = F.binary_cross_entropy_with_logits(logits_per_text, labels)
    return (i2t + t2i) / 2


def both_ways_with_default_bias(image, text, log_scale, bias, logit_bias=-10.0):
    """CLIP's template: one term an direction. The caller's bias is not handed on; the default stands."""
    logits = log_scale.exp() * image @ text.t() + logit_bias
    n = logits.shape[0]
    labels = 2 * torch.eye(n, dtype=logits.dtype) - 1
    i2t = -F.logsigmoid(labels * logits).sum() / n
    t2i = -F.logsigmoid(labels * logits.t()).sum() / n
    return i2t + t2i


def scale_as_number(image, text, log_scale, bias):
    scale = math.exp(log_scale.item())
    logits = scale * (image @ text.T) + bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def eye_of_each_chunk(image, text, log_scale, bias):
    """Two halves of the images, one after the other, to save memory."""
    n = image.shape[0]
    total = image.new_zeros(())
    for rows in image.chunk(2):
        logits = log_scale.exp() * rows @ text.T + bias
        labels = 2 * torch.eye(rows.shape[0], n, dtype=logits.dtype) - 1
        total = total - F.logsigmoid(labels * logits).sum()
    return total / n


def norm_of_matrix(image, text, log_scale, bias):
    image = image / image.norm()
    text = text / text.norm()
    logits = log_scale.exp() * image @ text.T + bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def labels_from_texts(image, text, log_scale, bias):
    """Negatives whose captions are alike count less."""
    n = len(image)
    logits = image @ text.T * log_scale.exp() + bias
    with torch.no_grad():
        labels = text @ text.T - 1 + torch.eye(n, dtype=text.dtype)
    return -F.logsigmoid(labels * logits).sum() / n


def hardest_half(image, text, log_scale, bias):
    """Online hard negative mining: of each image's negatives the higher half."""
    logits = log_scale.exp() * image @ text.T + bias
    n = len(logits)
    own = torch.eye(n, dtype=torch.bool)
    k = max(1, (n - 1) // 2)
    hard = logits.masked_fill(own, float("-inf")).topk(k, dim=1).values
    losses = torch.cat([F.softplus(-logits[own]), F.softplus(hard).flatten()])
    return losses.mean()


def right_both_directions(image, text, log_scale, bias):
    logits = F.cosine_similarity(image[:, None], text[None], dim=-1) * log_scale.exp() + bias
    labels = torch.eye(len(logits), dtype=logits.dtype)
    i2t = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    t2i = F.binary_cross_entropy_with_logits(logits.T, labels, reduction="sum")
    return (i2t + t2i) / (2 * len(logits))


def right_recomputed_blocks(image, text, log_scale, bias):
    """Blocks of three texts; each is computed again in the backward."""

    def block(image, some, log_scale, bias, start):
        logits = (log_scale.exp() * image) @ some.T + bias
        columns = torch.arange(start, start + len(some))
        signs = torch.where(torch.arange(len(image))[:, None] == columns, 1.0, -1.0).to(logits.dtype)
        return -F.logsigmoid(signs * logits).sum()

    total = image.new_zeros(())
    for start in range(0, len(text), 3):
        total = total + torch.utils.checkpoint.checkpoint(
            block, image, text[start : start + 3], log_scale, bias, start, use_reentrant=False
        )
    return total / len(image)


# ---------------------------------------------------------------- JAX


def jax_mean_and_frozen_scale(image, text, log_scale, bias):
    scale = jax.lax.stop_gradient(jnp.exp(log_scale))
    logits = jnp.einsum("nd,md->nm", image, text) * scale + bias
    labels = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jnp.mean(jax.nn.log_sigmoid(labels * logits))


@jax.custom_vjp
def _fused(image, text, log_scale, bias):
    return _fused_forward(image, text, log_scale, bias)[0]


def _fused_forward(image, text, log_scale, bias):
    n = image.shape[0]
    similarity = image @ text.T
    logits = jnp.exp(log_scale) * similarity + bias
    eye = jnp.eye(n, dtype=logits.dtype)
    loss = jnp.sum(jax.nn.softplus((1 - 2 * eye) * logits)) / n
    return loss, (image, text, log_scale, similarity, (jax.nn.sigmoid(logits) - eye) / n)


def _fused_backward(kept, g):
    image, text, log_scale, similarity, d_logits = kept
    d_logits = g * d_logits
    scale = jnp.exp(log_scale)
    d_scale = jnp.sum(d_logits * similarity).reshape(log_scale.shape).astype(log_scale.dtype)
    d_bias = jnp.sum(d_logits).reshape(log_scale.shape).astype(log_scale.dtype)
    d_image = (scale * (d_logits @ text)).astype(image.dtype)
    return d_image, (scale * (d_logits.T @ image)).astype(text.dtype), d_scale, d_bias


_fused.defvjp(_fused_forward, _fused_backward)


def jax_fused_kernel(image, text, log_scale, bias):
    return _fused(image, text, log_scale, bias)


def jax_all_negatives(image, text, log_scale, bias):
    """Positives from the diagonal, negatives from the matrix; the diagonal was not taken out of it."""
    logits = jnp.exp(log_scale) * image @ text.T + bias
    positive = jax.nn.softplus(-jnp.diagonal(logits)).sum()
    negative = jax.nn.softplus(logits).sum()
    return (positive + negative) / image.shape[0]


def jax_bfloat16_products(image, text, log_scale, bias):
    """The products on the matrix unit, the rest in what came in."""
    similarity = jnp.dot(image.astype(jnp.bfloat16), text.astype(jnp.bfloat16).T, preferred_element_type=jnp.float32)
    logits = similarity.astype(image.dtype) * jnp.exp(log_scale) + bias
    labels = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jnp.sum(jax.nn.log_sigmoid(labels * logits), axis=-1).mean()


def jax_scale_as_stored(image, text, log_scale, bias):
    """big_vision's trainer gets the temperature already exponentiated from the model; this caller hands on t'."""
    logits = jnp.dot(image, text.T) * log_scale + bias
    eye = jnp.eye(image.shape[0], dtype=logits.dtype)
    m1_diag1 = -jnp.ones_like(logits) + 2 * eye
    return jnp.mean(-jnp.sum(jax.nn.log_sigmoid(m1_diag1 * logits), axis=-1))


def right_jax_diagonals(image, text, log_scale, bias):
    """Diagonal by diagonal: the texts turn by one row, as on a ring of single examples."""
    n = image.shape[0]

    def turn(carry, hop):
        texts, total = carry
        logits = jnp.exp(log_scale) * jnp.sum(image * texts, axis=-1) + bias
        total = total + jax.nn.softplus(jnp.where(hop == 0, -logits, logits)).sum()
        return (jnp.roll(texts, -1, axis=0), total), None

    (_, total), _ = jax.lax.scan(turn, (text, jnp.zeros((), image.dtype)), jnp.arange(n))
    return total / n


# ---------------------------------------------------------------- NumPy


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def numpy_untransposed(image, text, log_scale, bias):
    n = len(image)
    scale = np.exp(log_scale)
    similarity = image @ text.T
    logits = scale * similarity + bias
    z = 2 * np.eye(n, dtype=logits.dtype) - 1
    loss = np.logaddexp(0, -z * logits).sum() / n
    g = -z * _sigmoid(-z * logits) / n
    return loss, scale * (g @ text), scale * (g @ image), scale * (g * similarity).sum(), g.sum()


def numpy_loop(image, text, log_scale, bias):
    """Pair by pair, L = -log sigma(z (t sim - b)), as a lecture has it; its gradients are those of this loss."""
    n = len(image)
    scale = np.exp(log_scale)
    loss, d_log_scale, d_bias = 0.0, 0.0, 0.0
    d_image, d_text = np.zeros_like(image), np.zeros_like(text)
    for i in range(n):
        logits = scale * (text @ image[i]) - bias
        z = -np.ones_like(logits)
        z[i] = 1
        loss += np.logaddexp(0, -z * logits).sum() / (n * n)
        g = -z * _sigmoid(-z * logits) / (n * n)
        d_image[i] = scale * (g @ text)
        d_text += scale * np.outer(g, image[i])
        d_log_scale += (g * (logits + bias)).sum()
        d_bias -= g.sum()
    return loss, d_image, d_text, d_log_scale, d_bias


def right_numpy_split(image, text, log_scale, bias):
    """Positives and negatives as two lists."""
    n = len(image)
    scale = np.exp(log_scale)
    similarity = text @ image.T  # rows are texts
    logits = scale * similarity + bias
    away = ~np.eye(n, dtype=bool)
    loss = (np.logaddexp(0, -logits[~away]).sum() + np.logaddexp(0, logits[away]).sum()) / n
    g = np.where(away, _sigmoid(logits), -_sigmoid(-logits)) / n
    return loss, scale * (g.T @ text), scale * (g @ image), scale * (g * similarity).sum(), g.sum()


# ---------------------------------------------------------------- truths


def _wrong(fn, truth, *same, framework="torch", **given):
    """What check_loss is told unless `given` says something else: log scale, unit rows."""
    given = {"scale": "log", "embeddings": "unit"} | given
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


_right = _wrong

# l_ij = exp(log_scale) x_i.y_j + bias, z_ij = 2 [i = j] - 1, right: L = 1/B sum_ij softplus(-z_ij l_ij),
# G_ij = (sigmoid(l_ij) - [i = j]) / B. "Everything" below: the value and all four gradients.
PROGRAMS = {
    "mean of the matrix": _wrong(
        mean_of_matrix,
        "1/B^2 sum_ij softplus(-z l): mean over all B * B pairs instead of the sum divided by B; everything is 1/B of "
        "the right one (B = 4: 0.25)",
        "divided by B * B instead of B",
        "reduction 'mean' over pairs",
        "value and all gradients are too small by the factor B",
        "the divisor is the number of pairs, not the number of images",
    ),
    "mean, then over n": _wrong(
        mean_then_over_n,
        "1/B^3 sum_ij softplus(-z l): the mean over B * B pairs is once more divided by B; everything is 1/B^2 of the "
        "right one (B = 4: 0.0625)",
        "divided by B^3 instead of B",
        "too small by the factor B^2",
        "mean over pairs and a further division by the batch",
    ),
    "BCE over temperature": _wrong(
        bce_over_temperature,
        "TWO: l_ij = x_i.y_j / exp(log_scale) + bias (divided by the scale instead of multiplied by it: the scale is "
        "exp(-log_scale)), and the mean over B * B pairs (1/B^2 instead of 1/B); gradients are those of this loss, so "
        "d log_scale = -exp(-log_scale) sum_ij G'_ij s_ij with G' = (sigmoid(l) - eye) / B^2",
        "the scale is inverted, t -> 1/t, and the loss is divided by B^2",
        "sign of log_scale is wrong and reduction is 'mean'",
        "similarities are divided by what they should be multiplied with; everything besides 1/B of that loss",
    ),
    "minus bias": _wrong(
        minus_bias,
        "l_ij = exp(log_scale) x_i.y_j - bias: the bias is subtracted; d bias = -sum_ij G_ij of these logits",
        "bias has the wrong sign",
        "-bias in place of bias",
        "bias multiplied by -1",
    ),
    "shifted cosine": _wrong(
        shifted_cosine,
        "l_ij = exp(log_scale) (x_i.y_j + bias): the bias is added before the scale is multiplied, so it counts "
        "exp(log_scale) times; d bias = exp(log_scale) sum_ij G_ij; d log_scale = sum_ij G_ij l_ij",
        "the bias is multiplied by the scale, too",
        "bias inside the bracket: t (s + b) instead of t s + b",
        "effective bias is exp(log_scale) * bias",
    ),
    "sigmoid, then log": _wrong(
        sigmoid_then_log,
        "1/B [sum_i -log(p_ii + 1e-6) - sum_{i != j} log(1 - p_ij + 1e-6)], p = sigmoid(l): 1e-6 is added within the "
        "logarithm. A positive costs at most -log(1e-6) = 13.82, a negative, too, where its logit is large, and there "
        "the gradient goes to 0: dloss/dl_ii = -p (1 - p) / (p + 1e-6) / B, dloss/dl_ij = p (1 - p) / (1 - p + 1e-6) / "
        "B; besides about -1e-6 a pair where it is classified well",
        "epsilon 1e-6 inside the log",
        "losses of single pairs saturate at 13.8 (logits beyond about 13.8 on the wrong side), their gradients vanish",
        "not stable: log of the sigmoid plus a small constant instead of logsigmoid",
    ),
    "scale at most 100": _wrong(
        scale_at_most_100,
        "scale = min(exp(log_scale), 100): right for log_scale <= log 100 = 4.605; above it the logits are 100 s + "
        "bias and d log_scale = 0",
        "log_scale is clamped at log(100) = 4.605 in the forward",
        "for scales above 100 the value is that of scale 100, and log_scale has no gradient there",
        "wrong at large scales only; the scale has an upper limit of 100",
    ),
    "positives and negatives alike": _wrong(
        positives_and_negatives_alike,
        "1/(2B) sum_i softplus(-l_ii) + 1/(2 B (B-1)) sum_{i != j} softplus(l_ij): positives weigh 1/2, negatives "
        "1/(2 (B-1)) of what they weigh in SigLIP's (B = 4: 0.5 and 0.1667); nan "
        "for B = 1",
        "mean over positives and mean over negatives are averaged",
        "class-balanced: positives and negatives together weigh the same",
        "positives count B - 1 times as much as negatives, and the whole is half / (2 (B - 1)) of SigLIP's",
    ),
    "BCE without bias": _wrong(
        bce_without_bias,
        "TWO: no bias, l_ij = exp(log_scale) x_i.y_j (d bias is 0 or none), and the mean over B * B pairs, 1/B^2 "
        "instead of 1/B (the average of both directions changes nothing)",
        "bias is ignored / 0; divided by B^2",
        "1/B^2 sum_ij softplus(-z_ij exp(log_scale) s_ij)",
        "bias is not used and has no gradient; the rest is 1/B of the loss with bias 0",
    ),
    "both ways with default bias": _wrong(
        both_ways_with_default_bias,
        "TWO: the bias is the constant -10 instead of the argument (d bias is 0 or none), and both directions are "
        "added without a half: 2/B sum_ij softplus(-z_ij (exp(log_scale) s_ij - 10)); d image, d text, d log_scale are "
        "twice those of bias -10",
        "twice the loss with bias fixed at -10",
        "factor 2 (image to text plus text to image, not halved), and bias has no effect, -10 is used",
    ),
    "scale as number": _wrong(
        scale_as_number,
        "value, d image, d text and d bias are right; d log_scale is 0 (or none): the scale is taken out of the graph",
        "log_scale is detached",
        "no gradient for the scale / temperature, which is a constant",
    ),
    "eye of each chunk": _wrong(
        eye_of_each_chunk,
        "images in two halves of c = ceil(B/2) and B - c rows; in the second half image c + k has text k as its "
        "positive (z = +1) instead of text c + k, which counts as a negative; the first half is right; divisor B; d bias is right",
        "labels of the second half of the images are not shifted: positives at column k instead of c + k",
        "images c, c+1, ... are matched with the texts 0, 1, ...; their own texts are negatives",
        "half of the positives (floor(B/2) of B) stand at wrong places",
    ),
    "norm of the matrix": _wrong(
        norm_of_matrix,
        "raw embeddings are divided by the Frobenius norm of the whole matrix, not row by row: s_ij = u_i.v_j / "
        "(|U|_F |V|_F); rows are then of length |u_i| / |U|_F, about 1/sqrt(B), and the similarities about 1/B of the "
        "cosines; the gradients are those of this loss (rows are coupled through the norm)",
        "norm without dim: over all entries",
        "rows are not normalised: of both towers all rows are divided by one number, the norm of the matrix",
        "similarity is not the cosine, it is the cosine times |u_i| |v_j| / (|U|_F |V|_F)",
        embeddings="raw",
    ),
    "labels from texts": _wrong(
        labels_from_texts,
        "1/B sum_ij softplus(-z_ij l_ij) with z_ii = |y_i|^2 = +1, z_ij = y_i.y_j - 1 for i != j instead of -1 (a "
        "constant for the gradient): the logit of a negative is multiplied by 1 - y_i.y_j, between 0 and 2, before "
        "the softplus; positives are right",
        "soft labels: negatives have the label cos(text i, text j) - 1 instead of -1",
        "negatives' logits are weighted inside the logsigmoid by one minus the similarity of the two texts",
        "positives right, negatives wrong, by how alike the texts are; no gradient through the labels",
    ),
    "hardest half": _wrong(
        hardest_half,
        "TWO: of each image only the k = max(1, floor((B-1)/2)) negatives with the highest logits count (the other "
        "B - 1 - k have no loss and no gradient), and the sum is divided by the number of pairs that count, B (1 + k), "
        "instead of B: 1/(B (1 + k)) sum_i [softplus(-l_ii) + sum_{j in top k} softplus(l_ij)]",
        "hard negative mining, top k per row with k = (B-1)//2, and mean over the kept pairs",
        "half of the negatives, the easier ones of each row, are missing; the rest is divided by 1 + k besides",
        "positives weigh 1/(1 + k) of right, hard negatives 1/(1 + k), easy negatives 0 (B = 5: 1/3, 1/3, 0)",
    ),
    "jax: mean and frozen scale": _wrong(
        jax_mean_and_frozen_scale,
        "TWO: mean over B * B pairs (1/B^2 instead of 1/B: value, d image, d text, d bias are 1/B of right), and the "
        "scale has a stop_gradient: d log_scale = 0",
        "divided by B^2, log_scale detached",
        "everything is too small by B, and d log_scale is zero",
        framework="jax",
    ),
    "jax: fused kernel": _wrong(
        jax_fused_kernel,
        "value, d image, d text, d bias are right; d log_scale = sum_ij G_ij s_ij, which is d scale: the factor "
        "exp(log_scale) is missing (at scale 10 it is 0.1 of right)",
        "the gradient of the scale is returned for that of its logarithm",
        "d log_scale is too small by exp(log_scale)",
        "chain rule through exp is missing in the hand-written backward",
        framework="jax",
    ),
    "jax: all negatives": _wrong(
        jax_all_negatives,
        "1/B [sum_i softplus(-l_ii) + sum_ij softplus(l_ij)], the second sum over all i, j including i = j: right loss "
        "plus 1/B sum_i softplus(l_ii); each positive pair counts as a negative besides",
        "diagonal is not excluded from the negatives",
        "positives are counted twice, once as positive, once as negative",
        "of a positive the loss is softplus(-l) + softplus(l), its gradient 2 sigmoid(l) - 1 instead of sigmoid(l) - 1",
        framework="jax",
    ),
    "jax: bfloat16 products": _wrong(
        jax_bfloat16_products,
        "embeddings are rounded to bfloat16 (8 bits, up to 2^-9 = 0.002 relative) before the product, also in float64; "
        "the sum is float32, and scale, bias and loss are in the embeddings' dtype; d image, d text are rounded to "
        "bfloat16, too. The formula is SigLIP's; similarities are off by about 1e-3, logits by scale times that",
        "precision: products of bfloat16 inputs",
        "not accurate enough for float32 / float64: errors of bfloat16 rounding (about 1e-3 to 4e-3 relative)",
        "embeddings are cast to a lower precision",
        framework="jax",
    ),
    "jax: scale as stored": _wrong(
        jax_scale_as_stored,
        "l_ij = log_scale x_i.y_j + bias: log_scale is used as the scale, without exp (2.303 instead of 10); "
        "d log_scale = sum_ij G_ij s_ij of these logits",
        "exp is missing: the scale is linear / taken as it is",
        "the scale is log_scale instead of exp(log_scale)",
        "right loss of a scale that is given as a number instead of its logarithm",
        framework="jax",
    ),
    "numpy: untransposed": _wrong(
        numpy_untransposed,
        "value, d image, d log_scale, d bias are right; d text = scale G @ image instead of scale G^T @ image: "
        "d text_j = scale sum_i G_ji x_i",
        "transpose is missing in the gradient of the texts",
        "d text is made of G's rows instead of columns; only its diagonal part is right",
        framework="numpy",
    ),
    "numpy: loop": _wrong(
        numpy_loop,
        "TWO: l_ij = exp(log_scale) s_ij - bias (bias subtracted, wrong sign), and divided by B * B instead of B; "
        "gradients are those of this loss: d bias = -sum G', G' = (sigmoid(l) - eye) / B^2",
        "sign of the bias and 1/B^2",
        "1/B^2 sum_ij softplus(-z_ij (t s_ij - b)): mean over pairs with -bias",
        framework="numpy",
    ),
    "right: both directions": _right(right_both_directions, "SigLIP's own", embeddings="raw"),
    "right: recomputed blocks": _right(right_recomputed_blocks, "SigLIP's own"),
    "right: jax diagonals": _right(right_jax_diagonals, "SigLIP's own", framework="jax"),
    "right: numpy split": _right(right_numpy_split, "SigLIP's own", framework="numpy"),
}
