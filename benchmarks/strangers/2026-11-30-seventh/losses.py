"""Losses of one process: 22 wrong ones (6 of them twice), 2 right ones. For sr.check_loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812


def _signs(n, like):
    return 2 * torch.eye(n, dtype=like.dtype, device=like.device) - 1


# ---------------------------------------------------------------- torch, one mistake


def normalize_by_position(image, text, log_scale, bias):
    """Raw rows in. The 1 is meant as the dimension; F.normalize takes it as p."""
    image, text = F.normalize(image, 1), F.normalize(text, 1)
    logits = log_scale.exp() * image @ text.T + bias
    return -F.logsigmoid(_signs(len(logits), logits) * logits).sum() / len(logits)


def noise_contrastive_correction(image, text, log_scale, bias):
    """Ported from a noise-contrastive loss: the log of the number of noise samples goes off every logit."""
    n = len(image)
    logits = log_scale.exp() * image @ text.T + bias - math.log(max(n - 1, 1))
    return F.binary_cross_entropy_with_logits(logits, torch.eye(n, dtype=logits.dtype), reduction="sum") / n


def positives_by_row_product(image, text, log_scale, bias):
    """The positives come from a cheap row-wise product, the negatives from the matrix."""
    n = len(image)
    scale = log_scale.exp()
    positive = scale * (image * text).sum(-1)
    logits = scale * image @ text.T + bias
    own = torch.eye(n, dtype=torch.bool)
    negative = F.softplus(logits).masked_fill(own, 0.0)
    return (F.softplus(-positive).sum() + negative.sum()) / n


class _MixedBackward(torch.autograd.Function):
    """Forward in the dtype of the embeddings; the two products of the backward pass on tensor cores."""

    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        scale = log_scale.exp()
        logits = scale * image @ text.T + bias
        signs = _signs(len(logits), logits)
        n = len(logits)
        grad = -signs * torch.sigmoid(-signs * logits) / n
        ctx.save_for_backward(grad, image, text, scale)
        ctx.scalars = (grad * (logits - bias)).sum(), grad.sum()
        ctx.types = log_scale.dtype, bias.dtype
        ctx.shapes = log_scale.shape, bias.shape
        return F.softplus(-signs * logits).sum() / n

    @staticmethod
    def backward(ctx, upstream):
        grad, image, text, scale = ctx.saved_tensors
        low = grad.bfloat16()
        d_image = scale * (low @ text.bfloat16()).to(image.dtype)
        d_text = scale * (low.T @ image.bfloat16()).to(text.dtype)
        d_log_scale, d_bias = (
            (upstream * one).to(dtype).reshape(shape)
            for one, dtype, shape in zip(ctx.scalars, ctx.types, ctx.shapes, strict=True)
        )
        return upstream * d_image, upstream * d_text, d_log_scale, d_bias


def backward_products_in_bfloat16(image, text, log_scale, bias):
    return _MixedBackward.apply(image, text, log_scale, bias)


def nested_prefixes(image, text, log_scale, bias):
    """Matryoshka: the mean over the first half of the features and all of them; the half is not normalised anew."""
    losses = []
    for width in (image.shape[1] // 2, image.shape[1]):
        logits = log_scale.exp() * image[:, :width] @ text[:, :width].T + bias
        losses.append(-F.logsigmoid(_signs(len(logits), logits) * logits).sum() / len(logits))
    return sum(losses) / len(losses)


def epsilon_in_logarithm(image, text, log_scale, bias, eps=1e-5):
    logits = log_scale.exp() * image @ text.T + bias
    probabilities = torch.sigmoid(_signs(len(logits), logits) * logits)
    return -torch.log(probabilities + eps).sum() / len(logits)


class SigmoidHead(torch.nn.Module):
    """Holds scale and bias itself; the bias is handed to the kernel as a number."""

    def __init__(self):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))

    def forward(self, image, text):
        logits = torch.add(self.logit_scale.exp() * image @ text.T, self.logit_bias.item())
        return -F.logsigmoid(_signs(len(logits), logits) * logits).sum() / len(logits)


def captions_averaged(image, text, log_scale, bias):
    """Several captions an image: their mean stands for them."""
    n = len(image)
    text = text.reshape(n, len(text) // n, -1).mean(1)
    logits = log_scale.exp() * image @ text.T + bias
    return -F.logsigmoid(_signs(n, logits) * logits).sum() / n


# ---------------------------------------------------------------- JAX, one mistake


@jax.custom_vjp
def _fused(image, text, log_scale, bias):
    return _fused_forward(image, text, log_scale, bias)[0]


def _fused_forward(image, text, log_scale, bias):
    n = len(image)
    scale = jnp.exp(log_scale)
    logits = scale * image @ text.T + bias
    signs = 2 * jnp.eye(n, dtype=logits.dtype) - 1
    grad = -signs * jax.nn.sigmoid(-signs * logits) / n
    return jax.nn.softplus(-signs * logits).sum() / n, (grad, image, text, scale, (grad * (logits - bias)).sum())


def _fused_backward(residuals, upstream):
    grad, image, text, scale, d_log_scale = residuals
    d_text = scale * grad.T @ image
    d_image = scale * grad @ text
    scalars = (jnp.asarray(upstream * one, scale.dtype).reshape(scale.shape) for one in (d_log_scale, grad.sum()))
    return upstream * d_text, upstream * d_image, *scalars


_fused.defvjp(_fused_forward, _fused_backward)


def jax_cotangents_exchanged(image, text, log_scale, bias):
    return _fused(image, text, log_scale, bias)


@jax.custom_vjp
def _clip_gradient(value, cap):
    return value


_clip_gradient.defvjp(
    lambda value, cap: (value, cap), lambda cap, upstream: (jnp.clip(upstream, -cap, cap), jnp.zeros_like(cap))
)


def jax_logit_gradient_clipped(image, text, log_scale, bias):
    """The clip_gradient of JAX's tutorial, put around the logits against spikes."""
    n = len(image)
    logits = jnp.exp(log_scale) * image @ text.T + bias
    logits = _clip_gradient(logits, jnp.asarray(0.25 / n, logits.dtype))
    signs = 2 * jnp.eye(n, dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / n


def jax_row_sums_set(image, text, log_scale, bias):
    """Two tiles of columns; each writes the sums of its rows."""
    n = len(image)
    half = (n + 1) // 2
    rows = jnp.zeros(n, image.dtype)
    for columns in (np.arange(half), np.arange(half, n)):
        if len(columns):
            logits = jnp.exp(log_scale) * image @ text[columns].T + bias
            signs = 2 * (np.arange(n)[:, None] == columns).astype(logits.dtype) - 1
            rows = rows.at[jnp.arange(n)].set(-jax.nn.log_sigmoid(signs * logits).sum(1).astype(rows.dtype))
    return rows.mean()


def jax_log_of_mean_probability(image, text, log_scale):
    """CLIP, made symmetric by averaging the two probabilities of a pair."""
    logits = jnp.exp(log_scale) * image @ text.T
    by_row = jax.nn.softmax(logits, axis=1).diagonal()
    by_column = jax.nn.softmax(logits, axis=0).diagonal()
    return -jnp.log((by_row + by_column) / 2).mean()


def jax_targets_normalised(image, text, log_scale, bias, ids):
    """Several positives in a row share one unit of target, as they would under a softmax."""
    same = (ids[:, None] == ids[None, :]).astype(image.dtype)
    targets = same / same.sum(1, keepdims=True)
    logits = jnp.exp(log_scale) * image @ text.T + bias
    losses = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
    return losses.sum() / len(image)


# ---------------------------------------------------------------- NumPy, one mistake


def _sigmoid(logits):
    return np.exp(-np.logaddexp(0, -logits))


def _forward(image, text, log_scale, bias):
    """Scale, logits, loss."""
    scale, bias = np.exp(np.asarray(log_scale, image.dtype)), np.asarray(bias, image.dtype)
    logits = scale * (image @ text.T) + bias
    signs = 2 * np.eye(len(logits), dtype=logits.dtype) - 1
    return scale, bias, logits, np.logaddexp(0, -signs * logits).sum() / len(logits)


def numpy_buffer_reused(image, text, log_scale, bias):
    """The scaled images are no longer needed after the logits; their buffer takes the images' gradient."""
    n = len(image)
    scale, bias, logits, loss = _forward(image, text, log_scale, bias)
    scaled = scale * image
    grad = (_sigmoid(logits) - np.eye(n, dtype=logits.dtype)) / n
    d_log_scale = (grad * (logits - bias)).sum()
    d_image = np.matmul(grad, text, out=scaled)
    d_text = grad.T @ scaled
    return loss, scale * d_image, d_text, d_log_scale, grad.sum()


def numpy_one_not_divided(image, text, log_scale, bias):
    n = len(image)
    scale, bias, logits, loss = _forward(image, text, log_scale, bias)
    grad = _sigmoid(logits) / n
    grad[np.arange(n), np.arange(n)] -= 1
    return loss, scale * grad @ text, scale * grad.T @ image, (grad * (logits - bias)).sum(), grad.sum()


def numpy_projection_copied(image, text, log_scale, bias):
    """Raw rows in; the normalisation's backward of the texts is a copy of that of the images."""
    n = len(image)
    image_norm = np.linalg.norm(image, axis=1, keepdims=True)
    text_norm = np.linalg.norm(text, axis=1, keepdims=True)
    x, y = image / image_norm, text / text_norm
    scale, bias, logits, loss = _forward(x, y, log_scale, bias)
    grad = (_sigmoid(logits) - np.eye(n, dtype=logits.dtype)) / n
    d_x, d_y = scale * grad @ y, scale * grad.T @ x
    d_image = (d_x - x * (x * d_x).sum(1, keepdims=True)) / image_norm
    d_text = (d_y - x * (x * d_y).sum(1, keepdims=True)) / text_norm
    return loss, d_image, d_text, (grad * (logits - bias)).sum(), grad.sum()


# ---------------------------------------------------------------- two mistakes


class _TwoPasses(torch.autograd.Function):
    """Rows for the images, columns for the texts; the columns' logits are computed again in the backward pass."""

    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        logits = log_scale.exp() * image @ text.T + bias
        signs = _signs(len(logits), logits)
        ctx.save_for_backward(image, text, log_scale, bias)
        return F.softplus(-signs * logits).sum() / len(logits)

    @staticmethod
    def backward(ctx, upstream):
        image, text, log_scale, bias = ctx.saved_tensors
        n = len(image)
        scale = log_scale.exp()
        eye = torch.eye(n, dtype=image.dtype)
        products = scale * image @ text.T
        rows = torch.sigmoid(products + bias) - eye
        d_image = scale * rows @ text / n
        d_log_scale = (rows * products).sum()
        d_bias = rows.sum() / n
        columns = torch.sigmoid(scale * text @ image.T) - eye
        d_text = scale * columns @ image / n
        return (
            upstream * d_image,
            upstream * d_text,
            (upstream * d_log_scale).to(log_scale.dtype).reshape(log_scale.shape),
            (upstream * d_bias).to(bias.dtype).reshape(bias.shape),
        )


def two_columns_without_bias_scale_not_divided(image, text, log_scale, bias):
    return _TwoPasses.apply(image, text, log_scale, bias)


def two_squared_norm_positives_twice(image, text, log_scale, bias):
    """Raw rows in. The root is missing for the texts; the matrix has the positives already."""
    image = image / image.pow(2).sum(-1, keepdim=True).sqrt()
    text = text / text.pow(2).sum(-1, keepdim=True)
    logits = log_scale.exp() * image @ text.T + bias
    every = F.binary_cross_entropy_with_logits(logits, torch.eye(len(logits), dtype=logits.dtype), reduction="sum")
    return (every - F.logsigmoid(logits.diagonal()).sum()) / len(logits)


def two_jax_temperature_z_loss(image, text, log_scale, bias):
    """exp(log_scale) taken for a temperature; a z-loss of 1e-3 on the logits left in."""
    n = len(image)
    logits = image @ text.T / jnp.exp(log_scale) + bias
    signs = 2 * jnp.eye(n, dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / n + 1e-3 * jnp.square(logits).mean()


def two_jax_root_of_scale_siblings_masked(image, text, log_scale, bias):
    """The root of the scale goes to each tower, but only the images get it; rows 2k and 2k+1 are taken for two views."""
    n = len(image)
    logits = (image * jnp.exp(log_scale / 2)) @ text.T + bias
    place = np.arange(n)
    counted = (place[:, None] // 2 != place // 2) | np.eye(n, dtype=bool)
    signs = 2 * jnp.eye(n, dtype=logits.dtype) - 1
    return -jnp.where(counted, jax.nn.log_sigmoid(signs * logits), 0).sum() / n


def two_jax_expm1_trace_without_bias(image, text, log_scale, bias):
    """log_scale read as log1p(scale); softplus minus the trace of the products, to which no bias was added."""
    products = jnp.expm1(log_scale) * image @ text.T
    return (jax.nn.softplus(products + bias).sum() - jnp.trace(products)) / len(image)


def two_numpy_bias_before_diagonal_trace_untransposed(image, text, log_scale, bias):
    n = len(image)
    scale, bias, logits, loss = _forward(image, text, log_scale, bias)
    similarities = image @ text.T
    grad = _sigmoid(logits) / n
    d_bias = grad.sum()
    grad -= np.eye(n, dtype=grad.dtype) / n
    d_log_scale = scale * np.trace(grad @ similarities)
    return loss, scale * grad @ text, scale * grad.T @ image, d_log_scale, d_bias


# ---------------------------------------------------------------- right


def right_gram_matrix(image, text, log_scale, bias):
    """One Gram matrix of both towers; every pair stands in it twice, with half the weight."""
    n = len(image)
    rows = torch.cat([image, text])
    logits = log_scale.exp() * rows @ rows.T + bias
    labels = torch.eye(n, dtype=rows.dtype).repeat(2, 2)
    across = torch.block_diag(torch.ones(n, n, dtype=rows.dtype), torch.ones(n, n, dtype=rows.dtype)).flip(0) / 2
    return F.binary_cross_entropy_with_logits(logits, labels, weight=across, reduction="sum") / n


def right_jax_shuffled_list(image, text, log_scale, bias):
    """All pairs as one list in random order, summed by image."""
    n = len(image)
    order = np.random.default_rng(n).permutation(n * n)
    row, column = np.divmod(order, n)
    logits = ((jnp.exp(log_scale) * image) @ text.T).ravel()[order] + bias
    losses = jnp.where(row == column, jax.nn.softplus(-logits), jax.nn.softplus(logits))
    return jax.ops.segment_sum(losses, row, n).mean()


# ---------------------------------------------------------------- truths


def _wrong(fn, truth, *same, framework="torch", **given):
    """What check_loss is told unless `given` says something else: log scale, unit rows."""
    given = {"scale": "log", "embeddings": "unit"} | given
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


_right = _wrong

PROGRAMS = {
    "normalize by position": _wrong(
        normalize_by_position,
        "both towers' raw rows are divided by their sum of absolute values (p = 1) instead of their Euclidean length "
        "(p = 2): s_ij = x_i . y_j / (|x_i|_1 |y_j|_1); the rest is SigLIP's; the gradients are those of this loss",
        "L1 normalisation instead of L2, of images and of texts",
        "rows normalised by another norm: each similarity is the cosine times |x|_2 |y|_2 / (|x|_1 |y|_1)",
        "the rows that are multiplied are not of unit length (shorter than 1)",
        embeddings="raw",
    ),
    "noise-contrastive correction": _wrong(
        noise_contrastive_correction,
        "1/B sum softplus(-z (exp(log_scale) s + bias - ln(B - 1))): ln(B - 1) is taken off every logit, positives and "
        "negatives (B = 1: nothing); gradients are those of this loss",
        "the bias is bias - ln(B - 1), a shift that depends on the batch size",
        "logits are shifted by minus the log of the number of negatives of a row",
    ),
    "positives by row product": _wrong(
        positives_by_row_product,
        "the positives' logits have no bias: 1/B [sum_i softplus(-exp(log_scale) s_ii) + sum_{i != j} "
        "softplus(exp(log_scale) s_ij + bias)]; so d bias is that of the negatives only",
        "bias is added to the negatives only",
        "bias is missing on the diagonal",
        "positives' logits are higher by -bias than they should be",
    ),
    "backward products in bfloat16": _wrong(
        backward_products_in_bfloat16,
        "the value, d log_scale and d bias are right; d image = t bf16(bf16(G) bf16(y)) and d text = "
        "t bf16(bf16(G)^T bf16(x)): the logits' gradient and the embeddings are rounded to bfloat16 (8 bits) for these "
        "two products, and their results are bfloat16",
        "d image and d text are computed in bfloat16, relative errors about 2e-3 to 4e-3, in float64 as well",
        "the gradients of both embeddings have the precision of bfloat16, everything else that of the input",
    ),
    "nested prefixes": _wrong(
        nested_prefixes,
        "mean of two losses: 1/2 [L(x[:, :h], y[:, :h]) + L(x, y)], h = floor(D / 2), the first h features not "
        "normalised again; L is SigLIP's with the same scale and bias",
        "Matryoshka loss of the first half of the features and of all, averaged",
        "half of the loss is SigLIP's, the other half sees only the first floor(D/2) features",
        "in the value and in the gradients, features of the second half count only in one of two terms",
    ),
    "epsilon in the logarithm": _wrong(
        epsilon_in_logarithm,
        "-1/B sum log(sigmoid(z l) + 1e-5), l = exp(log_scale) s + bias; gradients are those of this: each pair's is "
        "multiplied by p / (p + 1e-5), p = sigmoid(z l)",
        "1e-5 is added to the probability before the logarithm",
        "a pair's loss cannot exceed -ln(1e-5) = 11.5; pairs of very small probability lose value and gradient",
    ),
    "bias as a number": _wrong(
        SigmoidHead(),
        "a Torch module that holds both numbers itself; value, d image, d text and d log_scale are right, the bias gets "
        "no gradient (None, that is 0), since it is read as self.logit_bias.item()",
        "the bias is detached",
        "d bias is missing or zero",
        "bias is a constant for the gradient and never learns",
        parameters={"logit_scale": "log_scale", "logit_bias": "bias"},
    ),
    "captions averaged": _wrong(
        captions_averaged,
        "the k = 2 captions of an image are replaced by their mean embedding (not normalised again): 1/B sum_ij "
        "softplus(-z_ij (t x_i . m_j + bias)), m_j = (y_{2j} + y_{2j+1}) / 2, z of the B x B identity; right: all "
        "B x 2B pairs, positives (i, 2i) and (i, 2i + 1), divided by B",
        "B x B pairs instead of B x kB: captions of one image are averaged before the loss",
        "the logits of an image's captions are averaged and counted once (the mean of the embeddings gives the mean of "
        "the logits)",
        "d text is the same for the two captions of an image",
        captions_per_image=2,
    ),
    "cotangents exchanged": _wrong(
        jax_cotangents_exchanged,
        "value, d log_scale and d bias are right; what is given as d image is d text, t G^T x, and what is given as "
        "d text is d image, t G y",
        "the gradients of the two embeddings are exchanged",
        framework="jax",
    ),
    "logit gradient clipped": _wrong(
        jax_logit_gradient_clipped,
        "the value is right; the gradient of each logit is clipped: G_ij = clip((sigmoid(l_ij) - delta_ij) / B, "
        "-0.25 / B, 0.25 / B), and all four gradients follow from this G",
        "sigmoid(l) - delta is clipped to [-0.25, 0.25] in the backward pass",
        "pairs whose probability is wrong by more than 0.25 have too small a gradient (that of 0.25)",
        framework="jax",
    ),
    "row sums set": _wrong(
        jax_row_sums_set,
        "only the texts of the last of two column tiles count, j >= ceil(B / 2): 1/B sum_i sum_{j >= ceil(B/2)} "
        "softplus(-z_ij l_ij); the first half of the texts has no gradient, and images i < ceil(B/2) have no positive; "
        "right for B = 1",
        "pairs with the first half of the texts are missing",
        "the second tile of columns overwrites the row sums of the first",
        framework="jax",
    ),
    "log of the mean probability": _wrong(
        jax_log_of_mean_probability,
        "-1/B sum_i log((p_i + q_i) / 2), p_i the softmax over row i and q_i that over column i, at the diagonal; right: "
        "-1/(2B) sum_i (log p_i + log q_i)",
        "the two directions' probabilities are averaged before the logarithm instead of the logarithms",
        "never above CLIP's loss (Jensen); each direction's pair is weighted by its share p/(p+q) or q/(p+q) instead of 1/2",
        framework="jax",
        loss="softmax",
    ),
    "targets normalised": _wrong(
        jax_targets_normalised,
        "targets of equal ids are 1/n_i, n_i the number of texts with the id of row i: 1/B sum_ij [softplus(l_ij) - "
        "l_ij [id_i = id_j] / n_i]; right: target 1 for each",
        "the positives of a row share one unit of target: rows of the label matrix are normalised to sum one",
        "positives have soft labels 1/(number of positives of the row), and (1 - 1/n) of a negative",
        "right where all ids differ",
        framework="jax",
        positives="ids",
    ),
    "buffer taken twice": _wrong(
        numpy_buffer_reused,
        "value and all gradients but d text are right; d text = G^T (G y) (G = dL/dlogits, with 1/B) instead of "
        "t G^T x: the buffer of t x holds G y by then",
        "d text is built from the images' (unscaled) gradient instead of from the scaled images",
        "d text is wrong: G^T d_image / t",
        framework="numpy",
    ),
    "one not divided": _wrong(
        numpy_one_not_divided,
        "the value is right; all four gradients use G_ij = sigmoid(l_ij) / B - delta_ij instead of "
        "(sigmoid(l_ij) - delta_ij) / B",
        "the 1 that is taken off on the diagonal is not divided by B",
        "the label is B in the gradient: G = (sigmoid(l) - B delta) / B",
        "the gradient of each positive's logit is too low by 1 - 1/B; negatives are right",
        framework="numpy",
    ),
    "projection copied": _wrong(
        numpy_projection_copied,
        "raw rows; value, d image, d log_scale, d bias are right; d text_j = (g_j - x_j (x_j . g_j)) / |v_j| with x_j "
        "the unit image of the same row instead of y_j = v_j / |v_j|; g = t G^T x",
        "the backward of the texts' normalisation projects along the image of the pair instead of along the text",
        "d text is not orthogonal to the text, but to the image of its row",
        framework="numpy",
        embeddings="raw",
    ),
    "two: columns without bias, scale not divided": _wrong(
        two_columns_without_bias_scale_not_divided,
        "the value, d image, d bias are right. d text = (t/B) (sigmoid(t s) - I)^T x, from logits without bias; "
        "d log_scale = sum (sigmoid(l) - delta) t s, B times too large",
        "d text is that of bias 0; d log_scale lacks 1/B",
    ),
    "two: squared norm, positives twice": _wrong(
        two_squared_norm_positives_twice,
        "raw rows; the texts are divided by their squared length: l = t cos_ij / |v_j| + bias; and the positives count "
        "twice: 1/B [sum softplus(-z l) + sum_i softplus(-l_ii)]; gradients are those of this loss",
        "texts are normalised by |v|^2 instead of |v|; positives have weight 2",
        embeddings="raw",
    ),
    "two: temperature, z-loss": _wrong(
        two_jax_temperature_z_loss,
        "l = exp(-log_scale) s + bias, divided by instead of multiplied with exp(log_scale); plus 1e-3 / B^2 sum l^2: "
        "1/B sum softplus(-z l) + 1e-3 mean(l^2)",
        "the scale is 1 / exp(log_scale); 0.001 times the mean square of the logits is added",
        framework="jax",
    ),
    "two: root of the scale, siblings masked": _wrong(
        two_jax_root_of_scale_siblings_masked,
        "l = exp(log_scale / 2) s + bias; and the negatives (2k, 2k + 1), (2k + 1, 2k) are left out of the sum "
        "(counted from row 0; of an odd B the last row keeps all): 1/B sum over all other pairs of softplus(-z l)",
        "the square root of the scale is used; the two negatives within rows 2k and 2k + 1 are missing",
        framework="jax",
    ),
    "two: expm1, trace without bias": _wrong(
        two_jax_expm1_trace_without_bias,
        "l = (exp(log_scale) - 1) s + bias; 1/B [sum softplus(l) - sum_i (l_ii - bias)], which is the "
        "sigmoid loss of that scale + bias; d bias = 1/B sum sigmoid(l), without the -1 of the positives",
        "the scale is exp(log_scale) - 1; the bias is missing in the term of the positives: the loss has + bias added "
        "(value + bias, d bias + 1)",
        framework="jax",
    ),
    "two: bias before the diagonal, trace untransposed": _wrong(
        two_numpy_bias_before_diagonal_trace_untransposed,
        "value, d image, d text are right. d bias = 1/B sum sigmoid(l), without the positives' -1 (too large by 1); "
        "d log_scale = t sum_ij G_ij s_ji, with the similarities transposed",
        "d bias lacks -1; d log_scale = t trace(G S) instead of t trace(G S^T)",
        framework="numpy",
    ),
    "right: Gram matrix": _right(right_gram_matrix, "SigLIP's own"),
    "right: shuffled list": _right(right_jax_shuffled_list, "SigLIP's own", framework="jax"),
}
