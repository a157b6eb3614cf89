"""Losses as they could come out of a year of pull requests. `PROGRAMS` says of each what it computes.

In the truths: B pairs, s_ij = image_embed_i . text_embed_j, t = exp(log_scale), l_ij = t s_ij + bias, z_ij = +1 if
i = j, else -1, p = sigmoid(l), G_ij = -z_ij sigmoid(-z_ij l_ij) / B. SigLIP's own loss is 1/B sum softplus(-z l).
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.optimize import linear_sum_assignment
from torch.utils.checkpoint import checkpoint

# ---------------------------------------------------------------- torch


def torch_padded_tiles(image_embed, text_embed, log_scale, bias, tile=32):
    """Tiles of a fixed size as in the Triton kernel."""
    pairs = len(image_embed)
    pad = -pairs % tile
    x = F.pad(image_embed, (0, 0, 0, pad)) * log_scale.exp()
    y = F.pad(text_embed, (0, 0, 0, pad))
    index = torch.arange(pairs + pad, device=x.device)
    total = 0
    for i in range(0, pairs + pad, tile):
        for j in range(0, pairs + pad, tile):
            logits = x[i : i + tile] @ y[j : j + tile].T + bias
            match = index[i : i + tile, None] == index[None, j : j + tile]
            total = total + F.softplus(torch.where(match, -logits, logits)).sum()
    return total / pairs


def torch_constant_shift(image_embed, text_embed, log_scale, bias):
    """softplus that cannot overflow; the shift is a constant, as in logsumexp."""
    logits = log_scale.exp() * (image_embed @ text_embed.T) + bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    x = -signs * logits
    with torch.no_grad():
        shift = x.clamp(min=0)
    return (shift + torch.log1p(torch.exp(-x.abs()))).sum() / len(x)


class _Fused(torch.autograd.Function):
    """Loss with a backward pass of its own: only the probabilities' part of the logits is stored."""

    @staticmethod
    def forward(ctx, image_embed, text_embed, log_scale, bias):
        scaled = image_embed * log_scale.exp()
        logits = scaled @ text_embed.T + bias
        signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        ctx.save_for_backward(image_embed, text_embed, logits, signs, log_scale, bias)
        return -F.logsigmoid(signs * logits).sum() / len(logits)

    @staticmethod
    def backward(ctx, grad):
        image_embed, text_embed, logits, signs, log_scale, bias = ctx.saved_tensors
        g = -signs * torch.sigmoid(-signs * logits) * (grad / len(logits))
        d_image = (g @ text_embed) * log_scale.exp()
        d_text = g.T @ image_embed
        d_log_scale = (g * logits).sum().reshape(log_scale.shape).to(log_scale.dtype)
        d_bias = g.sum().reshape(bias.shape).to(bias.dtype)
        return d_image.to(image_embed.dtype), d_text.to(text_embed.dtype), d_log_scale, d_bias


def torch_fused_backward(image_embed, text_embed, log_scale, bias):
    return _Fused.apply(image_embed, text_embed, log_scale, bias)


def torch_asymmetric(image_embed, text_embed, log_scale, bias, clip=0.05):
    """Asymmetric loss for many negatives: easy negatives are let go."""
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    match = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    not_p = (torch.sigmoid(-logits) + clip).clamp(max=1)
    return torch.where(match, F.softplus(-logits), -not_p.log()).sum() / len(logits)


def torch_supcon_views(image_embed, text_embed, log_scale, bias):
    """Image and text as the two views of SupCon."""
    views = torch.cat([image_embed, text_embed])
    count = len(image_embed)
    logits = log_scale.exp() * views @ views.T + bias
    index = torch.arange(2 * count, device=logits.device)
    own = index[:, None] == index
    match = index[:, None] % count == index % count
    terms = F.softplus(torch.where(match, -logits, logits))
    return terms.masked_fill(own, 0).sum() / len(views)


def torch_cached_chunks(image_embed, text_embed, log_scale, bias, chunk=16):
    """Chunks with gradients, against cached embeddings of all others, in both directions."""
    count = len(image_embed)
    cached_image, cached_text = image_embed.detach(), text_embed.detach()
    index = torch.arange(count, device=image_embed.device)
    scale = log_scale.exp()

    def pair_sum(x, y, rows, columns):
        logits = scale * x @ y.T + bias
        match = rows[:, None] == columns
        return F.softplus(torch.where(match, -logits, logits)).sum()

    total = 0
    for k in range(0, count, chunk):
        own = slice(k, min(k + chunk, count))
        images = torch.cat([cached_image[: own.start], image_embed[own], cached_image[own.stop :]])
        texts = torch.cat([cached_text[: own.start], text_embed[own], cached_text[own.stop :]])
        total = total + pair_sum(image_embed[own], texts, index[own], index)
        total = total + pair_sum(images, text_embed[own], index, index[own])
    return total / (2 * count)


def torch_detr_focal(image_embed, text_embed, log_scale, bias, alpha=0.25, gamma=2):
    """sigmoid_focal_loss of DETR's criterion, num_boxes = number of images."""
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    targets = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    prob = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = prob * targets + (1 - prob) * (1 - targets)
    loss = ce * (1 - p_t) ** gamma
    loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss.mean(1).sum() / len(logits)


def torch_hungarian(image_embed, text_embed, log_scale, bias):
    """Targets from the bipartite matcher, so that shuffled captions in a batch do no harm."""
    logits = log_scale.exp() * image_embed @ text_embed.T + bias
    with torch.no_grad():
        similarity = (image_embed.detach().double() @ text_embed.detach().double().T).cpu().numpy()
        rows, columns = linear_sum_assignment(similarity, maximize=True)
    signs = torch.full_like(logits, -1)
    signs[torch.as_tensor(rows), torch.as_tensor(columns)] = 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def torch_soft_targets(image_embed, text_embed, log_scale, bias):
    """Targets from the similarities within each modality, as in the well-known tutorial's simple CLIP."""
    scale = log_scale.exp()
    logits = scale * image_embed @ text_embed.T + bias
    within = (image_embed @ image_embed.T + text_embed @ text_embed.T) / 2
    targets = F.softmax(scale * within, dim=-1)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def torch_half_the_tiles(image_embed, text_embed, log_scale, bias, tile=8):
    """The matrix of tiles is symmetric: half of them is enough."""
    count = len(image_embed)
    scaled = image_embed * log_scale.exp()
    total = 0
    for i in range(0, count, tile):
        for j in range(i, count, tile):
            logits = scaled[i : i + tile] @ text_embed[j : j + tile].T + bias
            if i == j:
                signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
                total = total - F.logsigmoid(signs * logits).sum()
            else:
                total = total - 2 * F.logsigmoid(-logits).sum()
    return total / count


# ---------------------------------------------------------------- jax


def jax_soft_cap(image_embed, text_embed, log_scale, bias, cap=30.0):
    """Logits are capped softly, as in the language model's head."""
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    logits = cap * jnp.tanh(logits / cap)
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)


def jax_ranking(image_embed, text_embed, log_scale, bias):
    """Pairwise: each negative against the positive of its row."""
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    margin = jnp.diagonal(logits)[:, None] - logits
    terms = -jax.nn.log_sigmoid(margin)
    return jnp.where(jnp.eye(len(logits), dtype=bool), 0, terms).sum() / len(logits)


def jax_signed_targets(image_embed, text_embed, log_scale, bias):
    """The hand-written loss is replaced by the library's sigmoid_binary_cross_entropy."""
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    targets = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return (-targets * log_p - (1 - targets) * log_not_p).sum() / len(logits)


def jax_diagonals(image_embed, text_embed, log_scale, bias):
    """A wrapped diagonal of the logits at a time: memory for B logits only."""
    count = len(image_embed)
    scale = jnp.exp(log_scale)

    def diagonal(hop):
        return scale * (image_embed * jnp.roll(text_embed, -hop, axis=0)).sum(axis=1) + bias

    def body(hop, total):
        return total + jax.nn.softplus(diagonal(hop)).sum()

    total = jax.nn.softplus(-diagonal(0)).sum()
    return jax.lax.fori_loop(1, count - 1, body, total) / count


def jax_int8_texts(image_embed, text_embed, log_scale, bias):
    """Texts travel between devices as int8; the gradient goes straight through."""
    sent = jnp.clip(jnp.round(text_embed * 127), -127, 127) / 127
    texts = text_embed + jax.lax.stop_gradient(sent - text_embed)
    logits = jnp.exp(log_scale) * image_embed @ texts.T + bias
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)


def jax_softplus_scale(image_embed, text_embed, log_scale, bias):
    """A positive scale without exp; each row is averaged over its negatives."""
    count = len(image_embed)
    logits = jax.nn.softplus(log_scale) * image_embed @ text_embed.T + bias
    signs = 2 * jnp.eye(count, dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / max(count - 1, 1)


def jax_two_means(image_embed, text_embed, log_scale, bias):
    """Attraction and repulsion as two terms that are logged separately."""
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + bias
    attraction = jax.nn.softplus(-jnp.diagonal(logits)).mean()
    repulsion = jax.nn.softplus(logits).mean()
    return attraction + repulsion


def jax_slow_scale(image_embed, text_embed, log_scale, bias, multiplier=0.1):
    """The scale learns slower, the bias stays at its initial value."""
    log_scale = multiplier * log_scale + jax.lax.stop_gradient((1 - multiplier) * log_scale)
    logits = jnp.exp(log_scale) * image_embed @ text_embed.T + jax.lax.stop_gradient(bias)
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)


# ---------------------------------------------------------------- numpy


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def numpy_chain_rule(image_embed, text_embed, log_scale, bias):
    """Backpropagation step by step: error of the output, derivative of the activation, then the product."""
    count = len(image_embed)
    scale = np.exp(log_scale)
    similarity = image_embed @ text_embed.T
    logits = scale * similarity + bias
    labels = np.eye(count, dtype=logits.dtype)
    loss = _softplus(np.where(labels > 0, -logits, logits)).sum() / count
    p, q = _sigmoid(logits), _sigmoid(-logits)
    error = np.where(labels > 0, -q, p) / count
    delta = error * p * q
    d_similarity = scale * delta
    return loss, d_similarity @ text_embed, d_similarity.T @ image_embed, (d_similarity * similarity).sum(), delta.sum()


def numpy_in_place(image_embed, text_embed, log_scale, bias):
    """One buffer of B x B for the logits."""
    count = len(image_embed)
    scale = np.exp(log_scale)
    logits = image_embed @ text_embed.T
    logits *= scale
    logits += bias
    signs = 2 * np.eye(count, dtype=logits.dtype) - 1
    signed = np.multiply(signs, logits, out=logits)
    loss = _softplus(-signed).sum() / count
    g = -signs * _sigmoid(-signed) / count
    d_log_scale = (g * (logits - bias)).sum()
    return loss, scale * (g @ text_embed), scale * (g.T @ image_embed), d_log_scale, g.sum()


def numpy_row_tiles(image_embed, text_embed, log_scale, bias, tile=32):
    """Rows of images at a time."""
    count = len(image_embed)
    scale = np.exp(log_scale)
    d_image, d_text = np.zeros_like(image_embed), np.zeros_like(text_embed)
    losses, d_log_scale, d_bias = [], 0, 0
    for i in range(0, count, tile):
        x = image_embed[i : i + tile]
        similarity = x @ text_embed.T
        logits = scale * similarity + bias
        signs = np.full_like(logits, -1)
        signs[np.arange(len(x)), i + np.arange(len(x))] = 1
        losses.append(_softplus(-signs * logits).sum() / len(x))
        g = -signs * _sigmoid(-signs * logits) / count
        d_image[i : i + tile] = scale * (g @ text_embed)
        d_text[:] = scale * (g.T @ x)
        d_log_scale = d_log_scale + scale * (g * similarity).sum()
        d_bias = d_bias + g.sum()
    return np.mean(losses, dtype=losses[0].dtype), d_image, d_text, d_log_scale, d_bias


def numpy_symmetric(image_embed, text_embed, log_scale, bias):
    """Gradient of a similarity matrix, as derived for one set of embeddings."""
    count = len(image_embed)
    scale = np.exp(log_scale)
    similarity = image_embed @ text_embed.T
    logits = scale * similarity + bias
    signs = 2 * np.eye(count, dtype=logits.dtype) - 1
    loss = _softplus(-signs * logits).sum() / count
    g = -signs * _sigmoid(-signs * logits) / count
    both = scale * (g + g.T) / 2
    return loss, both @ text_embed, both @ image_embed, scale * (g * similarity).sum(), g.sum()


# ---------------------------------------------------------------- right


def torch_right_ring(image_embed, text_embed, log_scale, bias, ranks=3):
    """A ring of virtual ranks with recomputation: texts go to lower ranks, hop by hop."""
    count = len(image_embed)
    index = torch.arange(count, device=image_embed.device)
    images, texts, owners = (torch.tensor_split(rows, ranks) for rows in (image_embed, text_embed, index))

    def block(x, y, rows, columns, log_scale, bias):
        logits = torch.addmm(bias.to(x.dtype).expand(len(x), len(y)), x, y.T * log_scale.exp().to(x.dtype))
        cost = torch.where(rows[:, None] == columns, -logits, logits)
        return torch.logaddexp(cost, torch.zeros_like(cost)).sum()

    total = 0
    for hop in range(ranks):
        for rank in range(ranks):
            other = (rank + hop) % ranks
            if len(images[rank]) and len(texts[other]):
                inputs = images[rank], texts[other], owners[rank], owners[other], log_scale, bias
                total = total + checkpoint(block, *inputs, use_reentrant=False)
    return total / count


def jax_right_homogeneous(image_embed, text_embed, log_scale, bias):
    """The bias is one more coordinate; half of the sum by rows, half by columns."""
    count = len(image_embed)
    one = jnp.ones((count, 1), image_embed.dtype)
    x = jnp.concatenate([jnp.exp(log_scale).astype(one.dtype) * image_embed, bias.astype(one.dtype) * one], axis=1)
    y = jnp.concatenate([text_embed, one], axis=1)

    def row(index, own, others):
        logits = others @ own
        return jnp.logaddexp(0.0, jnp.where(jnp.arange(count) == index, -logits, logits)).sum()

    rows = jax.vmap(row, (0, 0, None))
    index = jnp.arange(count)
    return 0.5 * (rows(index, x, y) + rows(index, y, x)).mean()


def _program(fn, framework, truth, same):
    return {"fn": fn, "framework": framework, "given": {}, "truth": truth, "same": same}


OWN_VALUE = "the value is SigLIP's own; "

PROGRAMS = {
    "padding of the tiles is counted": _program(
        torch_padded_tiles,
        "torch",
        "1/B [sum softplus(-z l) + P softplus(-bias) + ((B + P)^2 - B^2 - P) softplus(bias)], P = -B mod 32",
        [
            "images and texts are padded with rows of zeros to a multiple of 32, and the padded pairs count (divided by "
            "the true B), the padded diagonal as positives",
            "right if B is a multiple of 32; d image and d text are always right; d log_scale is right; d bias has "
            "(1/B) [((B + P)^2 - B^2 - P) sigmoid(bias) - P sigmoid(-bias)] too much",
        ],
    ),
    "the shift of softplus is detached": _program(
        torch_constant_shift,
        "torch",
        OWN_VALUE + "every gradient is that of 1/B sum log(1 + exp(-|l|)): dL/dl = -z (sigmoid(-z l) - [z l < 0]) / B",
        [
            "no gradient flows through max(-z l, 0) in softplus(-z l) = max(-z l, 0) + log1p(exp(-|l|))",
            "pairs on the wrong side (z l < 0) get the gradient z sigmoid(z l) / B instead of -z sigmoid(-z l) / B: of "
            "the other sign, and of size sigmoid(-|l|)",
        ],
    ),
    "two: fused backward without scale in d text, bias in d log_scale": _program(
        torch_fused_backward,
        "torch",
        OWN_VALUE + "d image and d bias right; d text = G^T image (not t G^T image); d log_scale = sum G l (not sum G "
        "(l - bias))",
        [
            "two mistakes in a hand-written backward: d text is too small by the factor t = exp(log_scale), and d "
            "log_scale has bias * d bias too much",
            "d text is 1/t of the right one; d log_scale multiplies with the logits including the bias",
        ],
    ),
    "asymmetric loss with probability shift 0.05": _program(
        torch_asymmetric,
        "torch",
        "1/B [sum_i softplus(-l_ii) - sum_{i != j} log(min(1 - p_ij + 0.05, 1))]",
        [
            "asymmetric loss (ASL) of gamma 0 and clip 0.05: a negative costs -log(1 - max(p - 0.05, 0))",
            "negatives with probability below 0.05 cost nothing and have no gradient; the others cost less",
        ],
    ),
    "the two views of SupCon": _program(
        torch_supcon_views,
        "torch",
        "1/(2B) [2 sum_ij softplus(-z l_ij) + sum_{i != j} softplus(t x_i.x_j + bias) + sum_{i != j} softplus(t "
        "y_i.y_j + bias)], x images, y texts",
        [
            "SigLIP's own loss plus half of 1/B sum over i != j of the image-image and of the text-text pairs as "
            "negatives",
            "images and texts are stacked to 2B rows, all pairs of two different rows count, divided by 2B",
        ],
    ),
    "cached embeddings, in both directions": _program(
        torch_cached_chunks,
        "torch",
        OWN_VALUE + "d log_scale and d bias right; in d image and d text, pairs of different chunks of 16 (i // 16 != j "
        "// 16) count half",
        [
            "d image_i = t sum_j w_ij G_ij text_j, d text_j = t sum_i w_ij G_ij image_i, w = 1 if i // 16 == j // 16 "
            "else 1/2",
            "half of the gradient of the negatives from other chunks is lost by detaching; right if B <= 16",
        ],
    ),
    "two: focal loss of DETR, divided by B twice": _program(
        torch_detr_focal,
        "torch",
        "1/B^2 sum a (1 - sigmoid(z l))^2 softplus(-z l), a = 0.25 of positives, 0.75 of negatives",
        [
            "focal loss with alpha 0.25 and gamma 2 (with the gradient of the modulating factor), averaged over all B x "
            "B pairs",
            "two mistakes: focal weighting, and the mean over all pairs instead of the sum divided by B",
        ],
    ),
    "positives by Hungarian matching": _program(
        torch_hungarian,
        "torch",
        "1/B sum softplus(-z l), z_ij = +1 if j = m(i), else -1; m is the permutation with the largest sum_i s_i,m(i)",
        [
            "positives are chosen by the optimal assignment on the similarities instead of the diagonal",
            "the labels depend on the embeddings (bipartite matching); right where the own pairs are the best assignment",
        ],
    ),
    "soft targets from similarities within each modality": _program(
        torch_soft_targets,
        "torch",
        "1/B sum (softplus(l_ij) - q_ij l_ij), q_i. = softmax_j(t (x_i.x_j + y_i.y_j) / 2), gradients flow through q",
        [
            "binary cross-entropy whose labels are the softmax over a row of the mean of image-image and text-text "
            "similarities times the scale, instead of the identity; the labels are not detached",
        ],
    ),
    "only the upper half of the tiles, twice": _program(
        torch_half_the_tiles,
        "torch",
        "1/B sum w_ij softplus(-z l_ij), w = 1 if i // 8 == j // 8, 2 if i // 8 < j // 8, 0 if i // 8 > j // 8",
        [
            "off-diagonal tiles of 8 x 8 above the diagonal count twice, those below not at all",
            "the logits are taken for symmetric; right if B <= 8",
        ],
    ),
    "soft cap of the logits": _program(
        jax_soft_cap,
        "jax",
        "1/B sum softplus(-z 30 tanh(l / 30))",
        ["the logits, bias included, are capped softly at 30"],
    ),
    "ranking against the positive of the row": _program(
        jax_ranking,
        "jax",
        "1/B sum_{i != j} softplus(l_ij - l_ii) = 1/B sum_{i != j} softplus(t (s_ij - s_ii))",
        [
            "pairwise ranking (BPR): each negative against the positive of its image",
            "the bias cancels: its gradient is 0; no positive term of its own",
        ],
    ),
    "signs as targets of the binary cross-entropy": _program(
        jax_signed_targets,
        "jax",
        "1/B [sum_i softplus(-l_ii) + sum_{i != j} (softplus(l_ij) + l_ij)]",
        [
            "binary cross-entropy with targets +1 and -1 instead of 1 and 0",
            "SigLIP's own loss plus 1/B sum_{i != j} l_ij",
        ],
    ),
    "the last hop of the ring is missing": _program(
        jax_diagonals,
        "jax",
        "1/B sum w_ij softplus(-z l_ij), w = 0 if j = i - 1 mod B (and j != i), else 1",
        [
            "each image is not compared with the text just before its own (the first image: not with the last text)",
            "one wrapped diagonal of negatives is left out: B - 2 instead of B - 1 negatives an image (of B = 2: none)",
        ],
    ),
    "texts rounded to int8": _program(
        jax_int8_texts,
        "jax",
        "1/B sum softplus(-z (t x_i.q_j + bias)), q = round(127 y) / 127 of the texts y; straight-through: d image, d "
        "log_scale with q, d text = t G^T x as if dq/dy = 1",
        ["text embeddings are rounded to multiples of 1/127 before the product, gradient straight through"],
    ),
    "two: softplus instead of exp, and division by B - 1": _program(
        jax_softplus_scale,
        "jax",
        "1/max(B - 1, 1) sum softplus(-z (softplus(log_scale) s + bias))",
        [
            "the scale is log(1 + exp(log_scale)) instead of exp(log_scale), and the sum over all pairs is divided by B "
            "- 1 instead of B",
            "two mistakes: the scale's function and the divisor",
        ],
    ),
    "two: negatives averaged over B^2, diagonal among them": _program(
        jax_two_means,
        "jax",
        "1/B sum_i softplus(-l_ii) + 1/B^2 sum_ij softplus(l_ij)",
        [
            "positives: mean over B; negatives: mean over all B x B pairs, the own pairs included as negatives",
            "two mistakes: the diagonal counts as a negative too, and the negatives are divided by B^2 instead of B",
        ],
    ),
    "two: gradient of log_scale times 0.1, none of the bias": _program(
        jax_slow_scale,
        "jax",
        OWN_VALUE + "d image and d text right; d log_scale is 0.1 of the right one; d bias = 0",
        ["the bias is detached, and the gradient of log_scale is scaled by 0.1"],
    ),
    "derivative of the sigmoid once too often": _program(
        numpy_chain_rule,
        "numpy",
        OWN_VALUE + "in all four gradients G_ij is multiplied by p_ij (1 - p_ij), p = sigmoid(l)",
        [
            "the gradient of the logits is (p - y) p (1 - p) / B instead of (p - y) / B: as of a squared error",
            "gradients are those of 1/(2B) sum (p - y)^2, y = 1 on the diagonal, else 0",
        ],
    ),
    "d log_scale from the signed logits": _program(
        numpy_in_place,
        "numpy",
        OWN_VALUE + "d image, d text and d bias right; d log_scale = sum G_ij (z_ij l_ij - bias) instead of sum G_ij "
        "(l_ij - bias)",
        [
            "the logits were overwritten by z l before d log_scale was computed from them",
            "d log_scale has -2 sum_{i != j} G_ij l_ij too much",
        ],
    ),
    "two: d text of the last tile only, mean of the tiles' means": _program(
        numpy_row_tiles,
        "numpy",
        "value: 1/T sum over the T tiles of 32 images of [1/n sum over the tile's n images and all texts of softplus(-z "
        "l)]; gradients of SigLIP's own loss, but d text_j = t sum over i of the last tile of G_ij image_i",
        [
            "two mistakes: d text is overwritten by each tile of 32 images instead of added up, and a short last tile "
            "weighs as much as a full one in the value (only there)",
            "right if B <= 32; the value is right if B is a multiple of 32",
        ],
    ),
    "gradient of the similarities made symmetric": _program(
        numpy_symmetric,
        "numpy",
        OWN_VALUE + "d log_scale and d bias right; d image = t (G + G^T)/2 text, d text = t (G + G^T)/2 image",
        ["G is replaced by the mean of itself and its transpose, in d image and d text"],
    ),
    "right: ring of three virtual ranks with recomputation": _program(
        torch_right_ring, "torch", "SigLIP's own", ["1/B sum softplus(-z (exp(log_scale) sim + bias))"]
    ),
    "right: the bias as a coordinate, by rows and by columns": _program(
        jax_right_homogeneous, "jax", "SigLIP's own", ["1/B sum softplus(-z (exp(log_scale) sim + bias))"]
    ),
}
