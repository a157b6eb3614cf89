"""Losses of one process: 22 wrong ones, 2 right ones. For sr.check_loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812


def _signs(n, like):
    return 2 * torch.eye(n, dtype=like.dtype, device=like.device) - 1


# ---------------------------------------------------------------- torch, one mistake


def norm_without_gradient(image, text, log_scale, bias):
    """Raw rows in; the lengths are computed under no_grad to save memory."""
    with torch.no_grad():
        image_norm = image.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        text_norm = text.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    logits = log_scale.exp() * (image / image_norm) @ (text / text_norm).T + bias
    return -F.logsigmoid(_signs(len(logits), logits) * logits).sum() / len(logits)


def softplus_exp2(image, text, log_scale, bias):
    """As in a Triton kernel: exp2 is the fast instruction."""
    logits = log_scale.exp() * image @ text.T + bias
    x = -_signs(len(logits), logits) * logits
    return (x.clamp_min(0) + torch.log1p(torch.exp2(-x.abs()))).sum() / len(logits)


def eye_in_each_chunk(image, text, log_scale, bias, chunk=4):
    """Rows in chunks; each chunk makes its own labels."""
    total, scale = image.new_zeros(()), log_scale.exp()
    for rows in image.split(chunk):
        logits = scale * rows @ text.T + bias
        labels = 2 * torch.eye(len(rows), len(text), dtype=logits.dtype, device=logits.device) - 1
        total = total - F.logsigmoid(labels * logits).sum()
    return total / len(image)


class _FusedPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, log_scale, bias):
        scale = log_scale.exp()
        sims = image @ text.T
        logits = scale * sims + bias
        signs = _signs(len(image), logits)
        ctx.save_for_backward(image, text, scale, sims, -signs * torch.sigmoid(-signs * logits) / len(image))
        ctx.shapes = log_scale.shape, bias.shape
        return F.softplus(-signs * logits).sum() / len(image)

    @staticmethod
    def backward(ctx, d_loss):
        image, text, scale, sims, g = ctx.saved_tensors
        g = d_loss * g
        d_log_scale = (scale * (g * sims).sum()).reshape(ctx.shapes[0])
        return scale * (g @ text), scale * (g @ image), d_log_scale, g.sum().reshape(ctx.shapes[1])


def fused_backward_not_transposed(image, text, log_scale, bias):
    return _FusedPairs.apply(image, text, log_scale, bias)


def negatives_as_queue(image, text, log_scale, bias):
    """The negatives' texts as in a memory bank: constants."""
    scale, n = log_scale.exp(), len(image)
    positive = scale * (image * text).sum(-1) + bias
    negative = scale * image @ text.detach().T + bias
    off = ~torch.eye(n, dtype=torch.bool, device=image.device)
    return (F.softplus(-positive).sum() + F.softplus(negative)[off].sum()) / n


def additive_margin(image, text, log_scale, bias, margin=0.2):
    """The additive margin of bilingual sentence encoders: positives lose 0.2."""
    n = len(image)
    sims = image @ text.T - margin * torch.eye(n, dtype=image.dtype, device=image.device)
    logits = log_scale.exp() * sims + bias
    return -F.logsigmoid(_signs(n, logits) * logits).sum() / n


def rolled_negative(image, text, log_scale, bias):
    """A positive and one negative for each image: the next text of the batch."""
    scale = log_scale.exp()
    positive = scale * (image * text).sum(-1) + bias
    negative = scale * (image * text.roll(-1, dims=0)).sum(-1) + bias
    logits = torch.cat([positive, negative])
    labels = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def clamp_in_place(image, text, log_scale, bias):
    """CLIP's clamp of the parameter, moved from the training loop into the loss."""
    log_scale.data.clamp_(0.0, math.log(100.0))
    logits = log_scale.exp() * image @ text.T + bias
    return -F.logsigmoid(_signs(len(logits), logits) * logits).sum() / len(logits)


def weights_broadcast(image, text, log_scale, bias, weights):
    """Weights of images, (B,); they should have been weights[:, None]."""
    logits = log_scale.exp() * image @ text.T + bias
    per_pair = -F.logsigmoid(_signs(len(logits), logits) * logits)
    return (per_pair * weights).sum() / len(image)


def captions_tiled(image, text, log_scale, bias):
    """Several captions of an image; labels made with repeat instead of repeat_interleave."""
    each = len(text) // len(image)
    logits = log_scale.exp() * image @ text.T + bias
    labels = torch.eye(len(image), dtype=logits.dtype, device=logits.device).repeat(1, each)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def duplicates_ignored(image, text, log_scale, bias, ids):
    """Other pairs of the same id are left out of the sum instead of being positives."""
    logits = log_scale.exp() * image @ text.T + bias
    own = torch.eye(len(image), dtype=torch.bool, device=logits.device)
    duplicate = (ids[:, None] == ids[None, :]) & ~own
    per_pair = F.softplus(torch.where(own, -logits, logits))
    return per_pair.masked_fill(duplicate, 0.0).sum() / len(image)


def cross_entropy_twice_on_rows(image, text, log_scale):
    """CLIP's loss; the second logits are not transposed."""
    logits_per_image = log_scale.exp() * image @ text.T
    logits_per_text = log_scale.exp() * image @ text.T
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels)) / 2


# ---------------------------------------------------------------- JAX, one mistake


def jax_optax_focal(image, text, log_scale, bias):
    logits = jnp.exp(log_scale) * image @ text.T + bias
    return optax.sigmoid_focal_loss(logits, jnp.eye(len(image), dtype=logits.dtype)).sum() / len(image)


def jax_slice_clamped(image, text, log_scale, bias):
    """Texts in chunks of 8 under scan; dynamic_slice moves the last chunk back when it would run over the end."""
    n = len(text)
    size = min(8, n)
    labels = 2 * jnp.eye(n, dtype=image.dtype) - 1

    def one(total, k):
        part = jax.lax.dynamic_slice_in_dim(text, k * size, size, axis=0)
        sign = jax.lax.dynamic_slice_in_dim(labels, k * size, size, axis=1)
        logits = jnp.exp(log_scale) * image @ part.T + bias
        return total - jax.nn.log_sigmoid(sign * logits).sum(), None

    total, _ = jax.lax.scan(one, jnp.zeros((), image.dtype), jnp.arange(-(-n // size)))
    return total / n


def jax_padding_counts(image, text, log_scale, bias):
    """Texts are padded with zero rows to a multiple of 16, for the matrix unit; the padding is not masked."""
    n = len(text)
    padded = jnp.pad(text, ((0, -n % 16), (0, 0)))
    logits = jnp.exp(log_scale) * image @ padded.T + bias
    signs = 2 * jnp.eye(n, len(padded), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / n


def jax_balanced_means(image, text, log_scale, bias):
    """The mean of the positives and the mean of the negatives, added."""
    logits = jnp.exp(log_scale) * image @ text.T + bias
    n = len(image)
    match = jnp.eye(n, dtype=bool)
    positive = jnp.where(match, jax.nn.softplus(-logits), 0).sum() / n
    negative = jnp.where(match, 0, jax.nn.softplus(logits)).sum() / max(n * (n - 1), 1)
    return positive + negative


# ---------------------------------------------------------------- NumPy, one mistake


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid(x):
    return np.exp(-_softplus(-x))


def numpy_scale_gradient_of_logits(image, text, log_scale, bias):
    """d_log_scale from the saved logits, in which the bias has been added already."""
    n, scale = len(image), np.exp(log_scale)
    logits = scale * (image @ text.T) + bias
    signs = 2 * np.eye(n, dtype=logits.dtype) - 1
    g = -signs * _sigmoid(-signs * logits) / n
    loss = _softplus(-signs * logits).sum() / n
    return loss, scale * (g @ text), scale * (g.T @ image), (g * logits).sum(), g.sum()


# ---------------------------------------------------------------- two mistakes at once


def focal_defaults_and_mean(image, text, log_scale, bias, alpha=0.25, gamma=0.0):
    """torchvision's sigmoid_focal_loss with gamma 0, but alpha left at its default, and reduction="mean"."""
    logits = log_scale.exp() * image @ text.T + bias
    targets = torch.eye(len(image), dtype=logits.dtype, device=logits.device)
    p = torch.sigmoid(logits)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    loss = loss * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma if gamma else loss
    return ((alpha * targets + (1 - alpha) * (1 - targets)) * loss).mean()


def softplus_beta(image, text, log_scale, bias):
    """The scale handed to softplus as its beta, a Python number; softplus divides by it again."""
    scale = log_scale.exp().item()
    x = -_signs(len(image), image) * (image @ text.T + bias / scale)
    return F.softplus(x, beta=scale).sum() / len(image)


def locked_image_and_smoothing(image, text, log_scale, bias, epsilon=0.1):
    """The image tower of a locked recipe stays detached, and the label smoothing of an old classifier stays in."""
    logits = log_scale.exp() * image.detach() @ text.T + bias
    targets = torch.eye(len(image), dtype=logits.dtype, device=logits.device) * (1 - epsilon) + epsilon / 2
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1).mean()


def jax_whole_norm_and_bias_sign(image, text, log_scale, bias):
    """jnp.linalg.norm without an axis, and the sign of the bias as the paper's displayed equation has it."""
    image, text = image / jnp.linalg.norm(image), text / jnp.linalg.norm(text)
    logits = jnp.exp(log_scale) * image @ text.T - bias
    signs = 2 * jnp.eye(len(image), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(image)


def numpy_clip_and_mean_bias(image, text, log_scale, bias):
    """Logits clipped "for stability", which the gradients do not know; d_bias as a mean over the pairs."""
    n, scale = len(image), np.exp(log_scale)
    logits = np.clip(scale * (image @ text.T) + bias, -10, 10)
    signs = 2 * np.eye(n, dtype=logits.dtype) - 1
    g = -signs * _sigmoid(-signs * logits) / n
    loss = _softplus(-signs * logits).sum() / n
    return loss, scale * (g @ text), scale * (g.T @ image), scale * (g * (image @ text.T)).sum(), g.mean()


# ---------------------------------------------------------------- right


def log_cosh(image, text, log_scale, bias):
    """softplus(-z l) = log(2 cosh(l / 2)) - z l / 2, and the even part needs no labels."""
    logits = torch.addmm(bias.to(image).expand(len(text)), image * log_scale.exp().to(image), text.T)
    half = logits / 2
    odd = 2 * torch.diag_embed(half.diagonal()) - half
    return ((half.abs() - odd) + torch.log1p(torch.exp(-logits.abs()))).sum(0).div(len(image)).sum()


def jax_reversed_columns(image, text, log_scale, bias):
    """The batch from its end, one text at a time, the bias carried as one more dimension."""
    n = len(image)
    rows = jnp.concatenate([image * jnp.exp(log_scale), jnp.broadcast_to(bias, (n, 1)).astype(image.dtype)], axis=1)
    columns = jnp.concatenate([text, jnp.ones((n, 1), text.dtype)], axis=1)

    def one_text(pair):
        j, column = pair
        logits = rows[::-1] @ column
        return jnp.logaddexp(0, jnp.where(jnp.arange(n) == j, -logits, logits)).sum()

    return jax.lax.map(one_text, (jnp.arange(n), columns[::-1])).sum() / n


def _wrong(fn, truth, *same, framework="torch", **given):
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "norm under no_grad": _wrong(
        norm_without_gradient,
        "the value is SigLIP's on normalised rows; the gradient treats the rows' lengths as constants: "
        "d image is (d L / d unit row) / length, without taking away its part along the row, and so is d text",
        "the backward of the normalisation lacks the projection: d u = g / n instead of (g - x (x . g)) / n",
        "the norm is detached",
        embeddings="raw",
    ),
    "exp2 in softplus": _wrong(
        softplus_exp2,
        "1/B sum [max(x, 0) + ln(1 + 2^-|x|)] with x = -z (exp(log_scale) sim + bias)",
        "softplus is computed with powers of 2 in place of e, without the factor log2(e)",
    ),
    "eye in each chunk": _wrong(
        eye_in_each_chunk,
        "1/B sum softplus(-z l), where the positive of image i is text i mod 4 (rows are worked in chunks of 4 and "
        "every chunk labels its first columns); each other pair, own pairs of i >= 4 among them, is a negative",
        "labels of a row chunk lack the offset of the chunk (chunks of 4 rows)",
    ),
    "fused backward not transposed": _wrong(
        fused_backward_not_transposed,
        "value, d image, d log_scale and d bias are SigLIP's; d text = exp(log_scale) G image instead of "
        "exp(log_scale) G^T image, with G = dL/dlogits",
        "the gradient of the texts uses dL/dlogits without transposing it",
    ),
    "negatives from a queue": _wrong(
        negatives_as_queue,
        "the value is SigLIP's; texts receive gradient from their positive pair only (texts of negatives are detached);"
        " d image, d log_scale and d bias are right",
        "stop-gradient on the texts of negative pairs",
    ),
    "additive margin": _wrong(
        additive_margin,
        "1/B sum softplus(-z (exp(log_scale) (sim - 0.2 [i = j]) + bias))",
        "the similarity of positive pairs is lowered by a margin of 0.2 before the scale",
    ),
    "one rolled negative": _wrong(
        rolled_negative,
        "1/B sum_i [softplus(-l_ii) + softplus(l_i,i+1)], i+1 modulo B",
        "each image has one negative only, the next text of the batch; the other negatives are missing",
    ),
    "clamp in place": _wrong(
        clamp_in_place,
        "1/B sum softplus(-z (clip(exp(log_scale), 1, 100) sim + bias)); the caller's log_scale is overwritten by its "
        "value clamped to [0, ln 100], and d log_scale is the gradient at the clamped value, not 0",
        "the scale is clamped to 1..100, straight through; an input is changed in place",
    ),
    "weights along the wrong axis": _wrong(
        weights_broadcast,
        "1/B sum_ij w_j softplus(-z_ij l_ij): the images' weights are applied to the texts (columns)",
        "weights of rows are broadcast over columns",
        weights="rows",
    ),
    "captions tiled": _wrong(
        captions_tiled,
        "1/B sum softplus(-z l), with texts i and B + i as positives of image i instead of texts 2 i and 2 i + 1",
        "the labels assume that captions are stacked as whole batches: repeat in place of repeat_interleave",
        captions_per_image=2,
    ),
    "duplicates ignored": _wrong(
        duplicates_ignored,
        "1/B of the sum over pairs; own pairs are positive, pairs of unequal ids negative, and other pairs of equal ids "
        "have no term at all (they should be positives)",
        "pairs of the same id off the diagonal are masked out",
        positives="ids",
    ),
    "cross entropy of rows twice": _wrong(
        cross_entropy_twice_on_rows,
        "CLIP's loss from image to text only: 1/B sum_i [logsumexp_j l_ij - l_ii]; the text-to-image half is missing "
        "and the image-to-text half counts twice",
        "the logits of the second direction are not transposed",
        loss="softmax",
    ),
    "optax focal": _wrong(
        jax_optax_focal,
        "1/B sum (1 - p)^2 softplus(-z l), with p = sigmoid(z l)",
        "focal loss with gamma 2 and no alpha, the factor differentiated",
        framework="jax",
    ),
    "last slice clamped": _wrong(
        jax_slice_clamped,
        "SigLIP's where B is a multiple of 8 or below 8; otherwise the last -B mod 8 texts of the last whole chunk of 8 "
        "(texts B-8 to 8 floor(B/8) - 1) are counted twice, against all images, with their right labels; divisor B",
        "the last chunk of texts overlaps with the one before; the overlap counts twice",
        framework="jax",
    ),
    "padding counts": _wrong(
        jax_padding_counts,
        "SigLIP's + ((-B) mod 16) softplus(bias): each image has one more negative of logit = bias for every zero row "
        "that pads the texts to a multiple of 16",
        "zero rows of padding are counted as negatives",
        framework="jax",
    ),
    "balanced means": _wrong(
        jax_balanced_means,
        "1/B sum over positives softplus(-l) + 1/(B (B-1)) sum over negatives softplus(l)",
        "negatives are weighted 1/(B-1): mean of positives plus mean of negatives",
        framework="jax",
    ),
    "d_log_scale from logits": _wrong(
        numpy_scale_gradient_of_logits,
        "all is SigLIP's but d log_scale = sum G l instead of sum G (l - bias): it is too large by bias * d bias",
        "the gradient of log_scale uses the logits with the bias",
        framework="numpy",
    ),
    "two: alpha and mean": _wrong(
        focal_defaults_and_mean,
        "1/B^2 sum w softplus(-z l), with w = 0.25 for positives and 0.75 for negatives",
        "positives weighted 0.25, negatives 0.75; and the mean over all B * B pairs in place of the sum over B",
    ),
    "two: softplus beta": _wrong(
        softplus_beta,
        "1/B sum softplus(-z l) / exp(log_scale), the scale a constant: no gradient reaches log_scale; every other "
        "gradient is SigLIP's divided by exp(log_scale)",
        "loss divided by the scale; and the scale is detached (no gradient, or zero)",
    ),
    "two: locked image and smoothing": _wrong(
        locked_image_and_smoothing,
        "1/B sum [y softplus(-l) + (1-y) softplus(l)], with y = 0.95 for own pairs and 0.05 for others; and d image = 0 "
        "(the images are detached)",
        "label smoothing 0.1; and no gradient for the images",
    ),
    "two: whole norm and sign of bias": _wrong(
        jax_whole_norm_and_bias_sign,
        "1/B sum softplus(-z (exp(log_scale) x.y / (|X| |Y|) - bias)), where |X|, |Y| are the norms of the whole "
        "matrices (sqrt(B) for unit rows, so the similarity is divided by B), differentiated; and the bias is subtracted",
        "similarity divided by B (normalised by the Frobenius norm of the batch); and bias with the wrong sign",
        framework="jax",
    ),
    "two: clip and mean d_bias": _wrong(
        numpy_clip_and_mean_bias,
        "1/B sum softplus(-z clip(l, -10, 10)), with gradients of embeddings and log_scale that pass through the clip as"
        " if it were the identity (G taken at the clipped logits); and d bias = sum(G) / B^2",
        "logits are clipped to [-10, 10], straight through; and the gradient of the bias is the mean over the B * B pairs",
        framework="numpy",
    ),
    "right: log cosh": _wrong(log_cosh, "SigLIP's own"),
    "right: reversed columns": _wrong(jax_reversed_columns, "SigLIP's own", framework="jax"),
}
