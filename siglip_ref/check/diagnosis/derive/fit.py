"""What is measured, fitted: curves of one pair by least squares, numbers over scale, bias and B by expressions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from siglip_ref.check.diagnosis.derive.sets import simple
from siglip_ref.check.diagnosis.derive.shapes import AND, SUMMANDS, Number, Shape, of_number
from siglip_ref.ops.elementary import Array

Residual = Callable[[Array], Array]


@dataclass(frozen=True)
class Fitted:
    """Parameters, the largest residual, and by how much each parameter could differ at this noise."""

    parameters: Array
    worst: float
    loose: Array


def minimise(residual: Residual, start: Array, noise: float, steps: int = 30) -> Fitted:
    """The parameters that make residuals small, from a start. noise: of one residual."""
    p = np.asarray(start, np.float64).copy()
    with np.errstate(all="ignore"):
        r = residual(p)
        cost, damping = _cost(r), 1e-3
        jacobian = _jacobian(residual, p, r)
        for _ in range(steps):
            if not np.isfinite(cost) or np.max(np.abs(r)) <= noise:
                break
            normal, gradient = jacobian.T @ jacobian, jacobian.T @ r
            if not (np.isfinite(normal).all() and np.isfinite(gradient).all()):
                break
            diagonal = np.diag(np.maximum(np.diag(normal), 1e-300))
            try:
                step = np.linalg.solve(normal + damping * diagonal, -gradient)
            except np.linalg.LinAlgError:
                break
            tried = residual(p + step)
            if _cost(tried) < cost:
                small = np.abs(step).max() <= 1e-14 * max(np.abs(p).max(), 1e-3)
                p, r, cost, damping = p + step, tried, _cost(tried), max(damping / 10, 1e-15)
                jacobian = _jacobian(residual, p, r)
                if small:
                    break
            else:
                damping *= 8
                if damping > 1e6:
                    break
        worst = float(np.max(np.abs(r))) if np.isfinite(r).all() else np.inf
        return Fitted(p, worst, _loose(jacobian, max(noise, worst)))


def best_of(
    residual: Residual, starts: Sequence[Array], noise: float, enough: float, most: int | None = None
) -> Fitted | None:
    """Of several starts (of the `most` nearest ones), nearest first, the first fit that is good enough, else the
    best."""
    with np.errstate(all="ignore"):
        ordered = sorted(starts, key=lambda start: _cost(residual(np.asarray(start, np.float64))))
    best: Fitted | None = None
    for start in ordered[:most]:
        found = minimise(residual, start, noise)
        if best is None or found.worst < best.worst:
            best = found
        if best.worst <= enough:
            break
    return best


def sum_of(names: Sequence[str], u: Array, seen: Array, allowed: Array, zero: Array | None = None) -> Shape | None:
    """A multiple of one of these functions, or the sum of two, that gives what was seen, as it is or from `zero` on."""
    with np.errstate(all="ignore"):
        table = np.stack([SUMMANDS[name](u) - (0 if zero is None else SUMMANDS[name](zero)) for name in names])
    table = table / allowed
    for count in (1, 2):
        for chosen in combinations(np.flatnonzero(np.isfinite(table).all(1)).tolist(), count):
            columns = table[list(chosen)].T
            if not (columns.any(0)).all():
                continue
            factors = np.linalg.lstsq(columns, seen / allowed, rcond=1e-12)[0]
            if np.abs(columns @ factors - seen / allowed).max() <= 1:
                tidy = np.array([simple(float(factor), 1e-6) for factor in factors])
                factors = tidy if np.abs(columns @ tidy - seen / allowed).max() <= 1 else factors
                return Shape(AND.join(names[k] for k in chosen), tuple(factors.tolist()))
    return None


def _cost(r: Array) -> float:
    value = float(r @ r)
    return value if np.isfinite(value) else np.inf


def _jacobian(residual: Residual, p: Array, r: Array) -> Array:
    columns = []
    for k in range(len(p)):
        h = 1e-6 * max(abs(p[k]), 1e-2)
        up, down = p.copy(), p.copy()
        up[k] += h
        down[k] -= h
        columns.append((residual(up) - residual(down)) / (2 * h))
    return np.stack(columns, -1)


def _loose(jacobian: Array, noise: float) -> Array:
    """What each parameter could be moved by with residuals that stay in the noise."""
    if not np.isfinite(jacobian).all():
        return np.full(jacobian.shape[1], np.inf)
    with np.errstate(all="ignore"):
        values, vectors = np.linalg.eigh(jacobian.T @ jacobian)
        variances = (vectors**2 / np.maximum(values, 1e-300)).sum(-1)
        return noise * np.sqrt(variances * len(jacobian))


# --- numbers over scale, bias and B

_NEAR = 1e-7


@dataclass(frozen=True)
class Entry:
    """value, measured at a scale (as given), a bias and B, to within `loose`."""

    s: float
    b: float
    pairs: int
    value: float
    loose: float


# In the order in which they are tried.
SCALES = ("exp(s)", "s", "1", "exp(-s)", "1/s", "softplus(s)", "exp(2 s)", "exp(s/2)", "s^2", "sqrt(s)", "log(s)",
          "exp(b)", "b", "exp(-b)", "exp(|s|)", "2^s", "10^s", "sigmoid(s)")  # fmt: skip
OFFSETS = ("b", "exp(s) b", "s b", "exp(-s) b", "b/s", "1", "exp(s)", "s", "exp(-s)", "log(B)", "log(B - 1)", "exp(b)",
           "b^2", "|b|", "softplus(b)", "tanh(b)", "1/B", "B", "1/s", "exp(-b)", "sqrt(s)")  # fmt: skip
EXTRAS = ("1", "softplus(b)", "softplus(-b)", "b", "b^2", "s", "s^2", "exp(s)", "exp(2 s)", "exp(-s)", "|b|", "1/s")
_MANY = 12  # of which three together are tried


def expression(entries: Sequence[Entry], names: Sequence[str], most: int = 3) -> Number | None:
    """The simplest expression in these functions that gives every entry; None where there is none."""
    known = [entry for entry in entries if np.isfinite(entry.value) and np.isfinite(entry.loose)]
    if len(known) < 4:
        return None
    values = np.array([entry.value for entry in known])
    top = float(np.abs(values).max())
    loose = np.array([12 * e.loose + _NEAR * max(abs(e.value), 0.03 * top, 1e-9) for e in known])
    if (np.abs(values) <= np.maximum(loose, 1e-12 * np.abs(values).max(initial=0.0))).all():
        return Number()
    with np.errstate(all="ignore"):
        columns = {name: np.array([of_number(name, 0, e.s, e.b, e.pairs) for e in known]) for name in names}
    columns = {name: column for name, column in columns.items() if np.isfinite(column).all()}
    for name, column in columns.items():
        found = _single(name, column, values, loose)
        if found:
            return found
    for count in range(2, most + 1):
        pool = list(columns) if count == 2 else list(columns)[:_MANY]
        for chosen in combinations(pool, count):
            found = _several(chosen, np.stack([columns[name] for name in chosen], -1), values, loose)
            if found:
                return found
    return None


def _single(name: str, column: Array, values: Array, loose: Array) -> Number | None:
    """A multiple of one function, perhaps kept within a limit."""
    telling = np.abs(column) > 0
    if not telling.any():
        return None
    best = int(np.argmin(np.where(telling, loose / np.maximum(np.abs(column), 1e-300), np.inf)))
    for factor in {1.0, float(values[best] / column[best]), *_typical(column, values)}:
        if factor == 0:
            continue
        plain = factor * column
        right = np.abs(plain - values) <= loose
        if right.all():
            return Number(((name, _simple(factor, column, loose)),))
        if right.sum() < 3 or right.sum() < 0.25 * len(values):
            continue
        of_exp = name == "exp(s)" and factor == 1
        low, high = (
            _limit(values[there], loose[there], of_exp)
            for there in (~right & (plain < values), ~right & (plain > values))
        )
        low, high = -np.inf if low is None else low, np.inf if high is None else high
        inside = right & (values > low + loose) & (values < high - loose)  # a constant is no clamp
        if inside.sum() >= 3 and (np.abs(np.clip(plain, low, high) - values) <= loose).all():
            return Number(((name, _simple(factor, column[right], loose[right])),), low, high)
    return None


def _limit(values: Array, loose: Array, of_exp: bool) -> float | None:
    """The one number that all of these are, or the exponential of a rounder one; None of none."""
    if not len(values):
        return None
    limit, near = float(values[np.argmin(loose)]), float(loose.min())
    if abs(limit) <= near:
        return 0.0
    near = max(near / abs(limit), 1e-9)
    plain = simple(limit, near)
    exponent = simple(float(np.log(limit)), near) if of_exp and limit > 0 else 0.0
    rounder = exponent != 0 and len(f"{abs(exponent):g}") < min(len(f"{plain:g}"), 5)
    return float(np.exp(exponent)) if rounder else plain


def _typical(column: Array, values: Array) -> list[float]:
    """Factors that most entries share."""
    with np.errstate(all="ignore"):
        ratios = values / column
    ratios = ratios[np.isfinite(ratios)]
    return [float(np.median(ratios))] if len(ratios) else []


def _simple(factor: float, column: Array, loose: Array) -> float:
    top = np.abs(factor * column)
    near = float(np.min(loose[top > 0] / top[top > 0], initial=1.0)) if (top > 0).any() else 1e-9
    return simple(factor, min(max(near, 1e-12), 1e-4))


def _several(names: Sequence[str], matrix: Array, values: Array, loose: Array) -> Number | None:
    """A sum of multiples, by least squares in units of what each entry is loose by."""
    weighted, wanted = matrix / loose[:, None], values / loose
    norms = np.sqrt((weighted * weighted).sum(0))
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        return None
    solution, _, rank, _ = np.linalg.lstsq(weighted / norms, wanted, rcond=1e-12)
    if rank < len(names) or np.abs((weighted / norms) @ solution - wanted).max() > 1:
        return None
    factors = solution / norms
    spread = np.sqrt(np.diag(np.linalg.pinv((weighted / norms).T @ (weighted / norms)))) / norms
    near = np.clip(3 * spread / np.maximum(np.abs(factors), 1e-300), 1e-6, 1e-2)
    tidy = np.array([simple(float(f), float(n)) for f, n in zip(factors, near, strict=True)])
    if (np.abs(matrix @ tidy - values) > loose).any():
        tidy = factors
    shares = np.abs(tidy) * np.abs(matrix).max(0)
    if (shares <= max(10 * loose.min(), 1e-5 * np.abs(values).max())).any():
        return None  # one of them does nothing
    return Number(tuple(zip(names, map(float, tidy), strict=True)))
