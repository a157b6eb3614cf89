"""Curves of one pair fitted by a function of its logit: least squares, by Gauss and Newton with a guard."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

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


def best_of(residual: Residual, starts: Sequence[Array], noise: float, enough: float) -> Fitted | None:
    """Of several starts, nearest first, the first fit that is good enough, else the best."""
    with np.errstate(all="ignore"):
        ordered = sorted(starts, key=lambda start: _cost(residual(np.asarray(start, np.float64))))
    best: Fitted | None = None
    for start in ordered:
        found = minimise(residual, start, noise)
        if best is None or found.worst < best.worst:
            best = found
        if best.worst <= enough:
            break
    return best


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
