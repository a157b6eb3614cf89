"""22 wrong losses by somebody who knew the right formula and had read nothing here: what does check_loss answer?

    python benchmarks/uncatalogued_strangers.py

21 of them are in no catalogue ("log_scale without chain rule" is: dscale-wrt-t); the honest answer is "unknown".
"""

import math

import torch
from torch.nn import functional


def _logits(x, y, t, b):
    return t.exp() * x @ y.T + b


def _lab(z):
    return 2 * torch.eye(z.shape[0], device=z.device, dtype=z.dtype) - 1


def _pairs(x, y, t, b):
    z = _logits(x, y, t, b)
    return -functional.logsigmoid(_lab(z) * z)


def focal(x, y, t, b):
    terms = _pairs(x, y, t, b)
    return ((1 - torch.exp(-terms)) ** 2 * terms).sum() / x.shape[0]


def smooth(x, y, t, b):
    z = _logits(x, y, t, b)
    return -functional.logsigmoid(0.9 * _lab(z) * z).sum() / x.shape[0]


def soft_targets(x, y, t, b):
    z = _logits(x, y, t, b)
    tgt = torch.eye(z.shape[0], device=z.device, dtype=z.dtype) * 0.9 + 0.05
    return functional.binary_cross_entropy_with_logits(z, tgt, reduction="sum") / x.shape[0]


def margin(x, y, t, b):
    s = x @ y.T
    s = s - 0.1 * torch.eye(s.shape[0], device=s.device, dtype=s.dtype)
    z = t.exp() * s + b
    return -functional.logsigmoid(_lab(z) * z).sum() / x.shape[0]


def topk_neg(x, y, t, b):
    terms = _pairs(x, y, t, b)
    pairs = terms.shape[0]
    off = terms.masked_fill(torch.eye(pairs, device=terms.device, dtype=torch.bool), -1.0)
    return (terms.diagonal().sum() + off.topk(max(1, pairs // 2), dim=1).values.sum()) / pairs


def checkerboard(x, y, t, b):
    terms = _pairs(x, y, t, b)
    i = torch.arange(terms.shape[0], device=terms.device)
    m = ((i[:, None] + i[None, :]) % 2 == 0).to(terms.dtype)
    return (terms * m).sum() / x.shape[0]


def upper_twice(x, y, t, b):
    # "symmetric" shortcut: upper triangle doubled, diagonal once
    terms = _pairs(x, y, t, b)
    return (2 * torch.triu(terms, 1).sum() + terms.diagonal().sum()) / x.shape[0]


def bias_diag_only(x, y, t, b):
    z = t.exp() * x @ y.T
    z = z + b * torch.eye(z.shape[0], device=z.device, dtype=z.dtype)
    return -functional.logsigmoid(_lab(z) * z).sum() / x.shape[0]


def bias_inside_scale(x, y, t, b):
    z = t.exp() * (x @ y.T + b)
    return -functional.logsigmoid(_lab(z) * z).sum() / x.shape[0]


def log2_neg(x, y, t, b):
    terms = _pairs(x, y, t, b)
    pos = terms.diagonal().sum()
    return (pos + (terms.sum() - pos) / math.log(2.0)) / x.shape[0]


def softcap(x, y, t, b):
    z = 5.0 * torch.tanh(_logits(x, y, t, b) / 5.0)
    return -functional.logsigmoid(_lab(z) * z).sum() / x.shape[0]


def renorm_eps(x, y, t, b):
    xn = x / (x.norm(dim=-1, keepdim=True) + 5e-2)
    return _pairs(xn, y, t, b).sum() / x.shape[0]


def temp_half_detached(x, y, t, b):
    h = x.shape[0] // 2
    z = torch.cat([t.exp() * x[:h] @ y.T, t.detach().exp() * x[h:] @ y.T]) + b
    return -functional.logsigmoid(_lab(z) * z).sum() / x.shape[0]


def hook_half(x, y, t, b):
    h = x.shape[0] // 2
    z = _logits(x, y, t, b)

    def hook(g):
        g = g.clone()
        g[h:] = g[h:] * 0.5
        return g

    if z.requires_grad:
        z.register_hook(hook)
    return -functional.logsigmoid(_lab(z) * z).sum() / x.shape[0]


def last_row_stale(x, y, t, b):
    # tail tile off by one: last row reads the previous row again
    xi = torch.cat([x[:-1], x[-2:-1]]) + 0 * x
    return _pairs(xi, y, t, b).sum() / x.shape[0]


def block_local_diag(x, y, t, b):
    # chunked columns: every chunk uses chunk-local indices for the positives
    pairs, c = x.shape[0], 4
    tot = 0.0
    for s in range(0, pairs, c):
        z = t.exp() * x @ y[s : s + c].T + b
        lab = -torch.ones_like(z)
        k = torch.arange(z.shape[1], device=z.device)
        lab[k, k] = 1.0
        tot = tot - functional.logsigmoid(lab * z).sum()
    return tot / pairs


class _Base(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, t, b, kind):
        z = t.exp() * x @ y.T + b
        ctx.save_for_backward(x, y, t, b)
        ctx.kind = kind
        return -functional.logsigmoid(_lab(z) * z).sum() / x.shape[0]

    @staticmethod
    def backward(ctx, go):
        x, y, t, b = ctx.saved_tensors
        k = ctx.kind
        pairs = x.shape[0]
        s = x @ y.T
        z = t.exp() * s + b
        lab = _lab(z)
        g = -lab * torch.sigmoid(-lab * z) * go / pairs
        if k == "bf16_g":
            g = (g * 64).round() / 64 + 0.01 * g
        gx = t.exp() * g @ y
        gy = t.exp() * g.T @ x
        gt = (g * s).sum() * t.exp()
        gb = g.sum()
        if k == "t_logits":
            gt = (g * z).sum()  # forgot to take the bias off
        elif k == "t_no_chain":
            gt = (g * s).sum()  # d/d scale, not d/d log_scale
        elif k == "b_rowmean":
            gb = g.mean(1).sum()
        elif k == "tangent_x":
            gx = gx - (gx * x).sum(-1, keepdim=True) * x
        elif k == "y_last_tile":
            gy = t.exp() * g[: pairs - 1].T @ x[: pairs - 1]
        return gx, gy, gt.reshape(t.shape), gb.reshape(b.shape), None


def _wrong(kind):
    return lambda x, y, t, b: _Base.apply(x, y, t, b, kind)


LOSSES = [
    ("focal weighting left in", focal),
    ("logits damped by smoothed labels", smooth),
    ("soft targets 0.95/0.05", soft_targets),
    ("additive margin on positives", margin),
    ("top-k hardest negatives per row", topk_neg),
    ("checkerboard parity mask", checkerboard),
    ("upper triangle doubled", upper_twice),
    ("bias on the diagonal only", bias_diag_only),
    ("bias inside the scale", bias_inside_scale),
    ("log2 for negatives", log2_neg),
    ("tanh soft cap at 5", softcap),
    ("image re-normalised with big eps", renorm_eps),
    ("temperature detached in lower half", temp_half_detached),
    ("hook halves gradient of lower half", hook_half),
    ("last row stale", last_row_stale),
    ("chunk-local diagonal", block_local_diag),
    ("backward: log_scale from biased logits", _wrong("t_logits")),
    ("backward: log_scale without chain rule", _wrong("t_no_chain")),
    ("backward: bias averaged over columns", _wrong("b_rowmean")),
    ("backward: image gradient projected on sphere", _wrong("tangent_x")),
    ("backward: text gradient drops last row", _wrong("y_last_tile")),
    ("backward: logits gradient quantised", _wrong("bf16_g")),
]


def main() -> None:
    """Check each in float32 and float64; a line each, then the sums."""
    import siglip_ref as sr

    reports = [
        (name, sr.check_loss(fn, "torch", dtype, scale="log", embeddings="unit"))
        for name, fn in LOSSES
        for dtype in ("float32", "float64")
    ]
    for name, report in reports:
        wrong = ", ".join(row.name for row in report.rows if row.verdict == "FAIL")
        print(f"{name:<44} {report.verdict:<5} {', '.join(f.id for f in report.findings)}: {wrong}")
    unknown = sum(all(finding.id == "unknown" for finding in report.findings) for _, report in reports)
    print(f"{len(reports)} checks, {sum(not r.passed for _, r in reports)} flagged, {unknown} answered unknown")


if __name__ == "__main__":
    main()
