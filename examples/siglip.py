"""SigLIP in one file: two towers, the sigmoid loss, and the gradient of every parameter, by hand, in NumPy.

    python siglip.py            # trains for 60 steps on eight pairs, and proves one gradient by a complex step

Legend: B pairs, N tokens, C width, F hidden width of the MLP, D embedding, H heads, h = C / H, P numbers in a patch.
Read from top to bottom: every layer is a forward and its backward. A forward returns `out, cache`. Its backward takes
`d_out`, the gradient of the loss by `out`, quotes the forward lines that it undoes, and returns the gradient by the
layer's input; gradients of parameters go into `d`, under the parameters' own names. Nothing names a dtype: what comes
in as float64, float32 or complex128 is computed in that.

Source: Zhai et al. 2023 (arXiv 2303.15343); sizes, names and conventions as in big_vision.
"""

import math

import numpy as np

# --- layers ---------------------------------------------------------------------------------------------------------


def linear(x, w, name):
    """out = x W + b: x (..., C), W (C, D), b (D,)."""
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"], x


def d_linear(d_out, x, w, name, d):
    # out = x W + b
    rows, d_rows = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
    d[f"{name}/kernel"] = rows.T @ d_rows
    d[f"{name}/bias"] = d_rows.sum(0)
    return d_out @ w[f"{name}/kernel"].T


def layer_norm(x, w, name):
    """out = gamma (x - mean) / sqrt(variance + 1e-6) + beta, over each token's width: x (..., C)."""
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-6)  # (..., 1)
    xhat = centred * rstd
    return w[f"{name}/gamma"] * xhat + w[f"{name}/beta"], (xhat, rstd)


def d_layer_norm(d_out, cache, w, name, d):
    xhat, rstd = cache
    # out = gamma xhat + beta
    tokens = tuple(range(d_out.ndim - 1))
    d[f"{name}/gamma"], d[f"{name}/beta"] = (d_out * xhat).sum(tokens), d_out.sum(tokens)
    d_xhat = d_out * w[f"{name}/gamma"]
    # xhat does not change when x moves along 1 or along xhat: both parts are taken out of the gradient
    along_xhat = (d_xhat * xhat).mean(-1, keepdims=True)
    return (d_xhat - d_xhat.mean(-1, keepdims=True) - xhat * along_xhat) * rstd


def gelu(x):
    """out = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x / 2 * (1 + tanh), (x, tanh)


def d_gelu(d_out, cache):
    x, tanh = cache
    # out = x/2 (1 + tanh(u)), and tanh' = 1 - tanh^2
    d_u = x / 2 * (1 - tanh**2)
    return d_out * ((1 + tanh) / 2 + d_u * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2))


def mlp(x, w, name):
    """out = gelu(x W_in + b_in) W_out + b_out."""
    hidden, x_in = linear(x, w, f"{name}/in")  # (..., F)
    active, gelu_cache = gelu(hidden)
    out, x_out = linear(active, w, f"{name}/out")
    return out, (x_in, gelu_cache, x_out)


def d_mlp(d_out, cache, w, name, d):
    x_in, gelu_cache, x_out = cache
    d_active = d_linear(d_out, x_out, w, f"{name}/out", d)
    return d_linear(d_gelu(d_active, gelu_cache), x_in, w, f"{name}/in", d)


def split(x, heads):
    """(B, N, C) to (B, H, N, h): head i owns features i h to (i + 1) h."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def join(x):
    """(B, H, N, h) back to (B, N, C)."""
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)


def attention(x_query, x_key, w, name, heads):
    """out = join(softmax(q k^T / sqrt(h)) v) W_out + b_out: q from x_query (B, N, C); k and v from x_key (B, M, C)."""
    q = split(linear(x_query, w, f"{name}/q")[0], heads)  # (B, H, N, h)
    k, v = (split(linear(x_key, w, f"{name}/{part}")[0], heads) for part in "kv")  # (B, H, M, h)
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, N, M)
    weight = np.exp(scores - scores.real.max(-1, keepdims=True))
    p = weight / weight.sum(-1, keepdims=True)
    joined = join(p @ v)
    return linear(joined, w, f"{name}/out")[0], (x_query, x_key, q, k, v, p, joined)


def d_attention(d_out, cache, w, name, d):
    x_query, x_key, q, k, v, p, joined = cache
    heads, root = q.shape[1], math.sqrt(q.shape[-1])
    # joined = join(p v)
    d_mixed = split(d_linear(d_out, joined, w, f"{name}/out", d), heads)
    d_v = p.swapaxes(-1, -2) @ d_mixed
    d_p = d_mixed @ v.swapaxes(-1, -2)
    # p = softmax(scores): d p_i / d s_j = p_i (1[i = j] - p_j)
    d_scores = p * (d_p - (d_p * p).sum(-1, keepdims=True))
    # scores = q k^T / sqrt(h)
    d_q, d_k = d_scores @ k / root, d_scores.swapaxes(-1, -2) @ q / root
    # q, k and v are linear in the tokens
    d_query = d_linear(join(d_q), x_query, w, f"{name}/q", d)
    d_key = d_linear(join(d_k), x_key, w, f"{name}/k", d) + d_linear(join(d_v), x_key, w, f"{name}/v", d)
    return d_query, d_key


def encoder(x, w, name, depth, heads):
    """depth blocks, x <- x + attention(norm1(x)), x <- x + mlp(norm2(x)); then a last norm: x (B, N, C)."""
    caches = []
    for i in range(depth):
        block = f"{name}/block{i:02d}"
        normed, norm1 = layer_norm(x, w, f"{block}/norm1")
        step, attn = attention(normed, normed, w, f"{block}/attn", heads)
        x = x + step
        normed, norm2 = layer_norm(x, w, f"{block}/norm2")
        step, mlp_cache = mlp(normed, w, f"{block}/mlp")
        x = x + step
        caches.append((norm1, attn, norm2, mlp_cache))
    out, last = layer_norm(x, w, f"{name}/norm")
    return out, (caches, last)


def d_encoder(d_out, cache, w, name, d):
    caches, last = cache
    d_x = d_layer_norm(d_out, last, w, f"{name}/norm", d)
    for i in reversed(range(len(caches))):
        block, (norm1, attn, norm2, mlp_cache) = f"{name}/block{i:02d}", caches[i]
        # x <- x + mlp(norm2(x)): the gradient goes both ways
        d_normed = d_mlp(d_x, mlp_cache, w, f"{block}/mlp", d)
        d_x = d_x + d_layer_norm(d_normed, norm2, w, f"{block}/norm2", d)
        # x <- x + attention(norm1(x), norm1(x))
        d_query, d_key = d_attention(d_x, attn, w, f"{block}/attn", d)
        d_x = d_x + d_layer_norm(d_query + d_key, norm1, w, f"{block}/norm1", d)
    return d_x


# --- the two towers -------------------------------------------------------------------------------------------------


def image_tower(images, w, cfg):
    """Images (B, height, width, 3) in [-1, 1] to vectors (B, D): patches, positions, encoder, attention pooling."""
    side = cfg["patch"]
    rows, columns = images.shape[1] // side, images.shape[2] // side
    grid = images[:, : rows * side, : columns * side].reshape(len(images), rows, side, columns, side, 3)
    patches = grid.swapaxes(2, 3).reshape(len(images), rows * columns, -1)  # (B, N, P)
    stem = linear(patches, w, "image/patch")[0] + w["image/position"]
    tokens, encoder_cache = encoder(stem, w, "image", cfg["image depth"], cfg["heads"])
    # the MAP head: read = attention(probe, tokens), out = read + mlp(norm(read))
    probe = np.broadcast_to(w["image/pool/probe"], (len(images), 1, stem.shape[-1]))
    read, attn = attention(probe, tokens, w, "image/pool/attn", cfg["heads"])
    normed, norm = layer_norm(read, w, "image/pool/norm")
    step, mlp_cache = mlp(normed, w, "image/pool/mlp")
    return (read + step)[:, 0], (patches, encoder_cache, attn, norm, mlp_cache)


def d_image_tower(d_out, cache, w, d):
    patches, encoder_cache, attn, norm, mlp_cache = cache
    # out = read + mlp(norm(read))
    d_read = d_out[:, None]
    d_normed = d_mlp(d_read, mlp_cache, w, "image/pool/mlp", d)
    d_read = d_read + d_layer_norm(d_normed, norm, w, "image/pool/norm", d)
    # read = attention(probe, tokens): every image is asked by the same probe
    d_probe, d_tokens = d_attention(d_read, attn, w, "image/pool/attn", d)
    d["image/pool/probe"] = d_probe.sum((0, 1))
    # stem = patches W + b + position
    d_stem = d_encoder(d_tokens, encoder_cache, w, "image", d)
    d["image/position"] = d_stem.sum(0)
    d_linear(d_stem, patches, w, "image/patch", d)


def text_tower(tokens, w, cfg):
    """Token ids (B, N) to vectors (B, D): lookup, positions, encoder without a mask, the last token, a linear layer."""
    stem = w["text/token"][tokens] + w["text/position"][: tokens.shape[1]]
    states, encoder_cache = encoder(stem, w, "text", cfg["text depth"], cfg["heads"])
    out, last = linear(states[:, -1], w, "text/head")
    return out, (tokens, states, encoder_cache, last)


def d_text_tower(d_out, cache, w, d):
    tokens, states, encoder_cache, last = cache
    # out = (the last token of states) W + b: the other tokens get nothing
    d_states = np.zeros_like(states)
    d_states[:, -1] = d_linear(d_out, last, w, "text/head", d)
    # stem = token[tokens] + position: a token that occurs twice collects both
    d_stem = d_encoder(d_states, encoder_cache, w, "text", d)
    d["text/position"] = np.zeros_like(w["text/position"])
    d["text/position"][: tokens.shape[1]] = d_stem.sum(0)
    d["text/token"] = np.zeros_like(w["text/token"])
    np.add.at(d["text/token"], tokens, d_stem)


# --- the loss -------------------------------------------------------------------------------------------------------


def normalize(x):
    """out = x / (|x| + 1e-8), row by row: x (B, D)."""
    length = np.sqrt((x * x).sum(-1, keepdims=True))
    return x / (length + 1e-8), (x, length)


def d_normalize(d_out, cache):
    x, length = cache
    # out = x / (length + 1e-8), length = sqrt(sum x^2)
    d_length = -(d_out * x).sum(-1, keepdims=True) / (length + 1e-8) ** 2
    return d_out / (length + 1e-8) + d_length * x / length


def sigmoid_loss(image_embed, text_embed, log_scale, bias):
    """L = 1/B sum_ij softplus(-z_ij l_ij), l = exp(log_scale) image_embed text_embed^T + bias, z = 1 if i = j, else -1.

    Returns the loss and its gradients by the four arguments. softplus(a) = log(1 + exp(a)), softplus' = sigmoid.
    """
    z = 2 * np.eye(len(image_embed)) - 1
    similarity = image_embed @ text_embed.T  # (B, B)
    a = -z * (np.exp(log_scale) * similarity + bias)
    small = np.exp(np.where(a.real > 0, -a, a))  # at most 1, so nothing overflows
    loss = (np.where(a.real > 0, a, 0) + np.log1p(small)).sum() / len(z)
    # L = 1/B sum softplus(a), a = -z l: each pair's gradient needs only its own logit, no sum over a row
    d_logits = -z * np.where(a.real > 0, 1, small) / (1 + small) / len(z)
    # l = exp(log_scale) similarity + bias
    d_similarity = np.exp(log_scale) * d_logits
    d_log_scale = (d_similarity * similarity).sum()
    # similarity = image_embed text_embed^T
    return loss, d_similarity @ text_embed, d_similarity.T @ image_embed, d_log_scale, d_logits.sum()


def loss_and_grads(w, images, tokens, cfg):
    """The loss of B pairs (image i belongs to text i), and its gradient by every parameter in `w`."""
    d = {}
    image_pooled, image_cache = image_tower(images, w, cfg)
    text_pooled, text_cache = text_tower(tokens, w, cfg)
    image_embed, image_norm = normalize(image_pooled)
    text_embed, text_norm = normalize(text_pooled)
    loss, d_image_embed, d_text_embed, d["log_scale"], d["bias"] = sigmoid_loss(
        image_embed, text_embed, w["log_scale"], w["bias"]
    )
    d_image_tower(d_normalize(d_image_embed, image_norm), image_cache, w, d)
    d_text_tower(d_normalize(d_text_embed, text_norm), text_cache, w, d)
    return loss, d


# --- parameters, and a training of a few lines ------------------------------------------------------------------------

TINY = {"patch": 4, "image depth": 2, "text depth": 2, "heads": 2}
# pixels, C, F, D as in the package's "tiny": pairwise different, so that no mix-up of two of them goes unseen
HEIGHT, WIDTH, VOCABULARY, LENGTH, EMBED = 12, 28, 29, 9, 10
TOWERS = {"image": (10, 13), "text": (12, 17)}  # C and F; the image tower has no last layer, so its C is D


def init(cfg, seed=0):
    """Random kernels and tables; ones and zeros where a layer starts neutral; log_scale = log 10, bias = -10."""
    patches, numbers = (HEIGHT // cfg["patch"]) * (WIDTH // cfg["patch"]), cfg["patch"] ** 2 * 3
    rng, w = np.random.default_rng(seed), {}

    def draw(name, *shape):
        w[name] = rng.normal(size=shape) / math.sqrt(shape[0])
        if name.endswith("kernel"):
            w[name.replace("kernel", "bias")] = np.zeros(shape[-1])

    for tower, (width, hidden) in TOWERS.items():
        blocks = [f"{tower}/block{i:02d}" for i in range(cfg[f"{tower} depth"])]
        pool = ["image/pool"] if tower == "image" else []
        for name in blocks + pool:
            for part in ("q", "k", "v", "out"):
                draw(f"{name}/attn/{part}/kernel", width, width)
            draw(f"{name}/mlp/in/kernel", width, hidden)
            draw(f"{name}/mlp/out/kernel", hidden, width)
        norms = [f"{block}/norm{k}" for block in blocks for k in (1, 2)]
        for name in [*norms, f"{tower}/norm", *(f"{part}/norm" for part in pool)]:
            w[f"{name}/gamma"], w[f"{name}/beta"] = np.ones(width), np.zeros(width)
    (image_width, _), (text_width, _) = TOWERS["image"], TOWERS["text"]
    draw("image/patch/kernel", numbers, image_width)
    draw("image/position", patches, image_width)
    draw("image/pool/probe", image_width)
    draw("text/token", VOCABULARY, text_width)
    draw("text/position", LENGTH, text_width)
    draw("text/head/kernel", text_width, EMBED)
    return w | {"log_scale": np.array(math.log(10.0)), "bias": np.array(-10.0)}


def main():
    """A gradient beside a complex step; then Adam on eight pairs, until every image finds its text."""
    rng = np.random.default_rng(1)
    images, tokens = rng.uniform(-1, 1, (8, HEIGHT, WIDTH, 3)), rng.integers(0, VOCABULARY, (8, LENGTH))
    w = init(TINY)
    # f(x + i e) = f(x) + i e f'(x): with e = 1e-30 the derivative stands in the imaginary part, to the last digit
    moved = {name: value.astype(complex) for name, value in w.items()}
    moved["image/block00/attn/q/kernel"][3, 4] += 1e-30j
    by_step = loss_and_grads(moved, images, tokens, TINY)[0].imag / 1e-30
    by_hand = loss_and_grads(w, images, tokens, TINY)[1]["image/block00/attn/q/kernel"][3, 4]
    print(f"one gradient by hand {by_hand:.15e}, by complex step {by_step:.15e}")
    mean, square = ({name: np.zeros_like(value) for name, value in w.items()} for _ in range(2))
    for step in range(1, 61):
        loss, d = loss_and_grads(w, images, tokens, TINY)
        if step % 20 == 1:
            print(f"step {step:2}  loss {loss:.4f}")
        for name, g in d.items():
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.95 * square[name] + 0.05 * g * g
            update = mean[name] / (1 - 0.9**step) / (np.sqrt(square[name] / (1 - 0.95**step)) + 1e-8)
            w[name] = w[name] - 0.01 * update
    image_embed, text_embed = image_tower(images, w, TINY)[0], text_tower(tokens, w, TINY)[0]
    found = (normalize(image_embed)[0] @ normalize(text_embed)[0].T).argmax(1)
    print(f"step 60  loss {loss:.4f}; {(found == np.arange(8)).sum()} of 8 images find their own text")


if __name__ == "__main__":
    main()
