"""Sums of gradients, each row's clipped, of dense layers: without writing one row's gradient down.

Goodfellow 2015, "Efficient per-example gradient computations": row i's gradient at layer l is h_l(i) δ_l(i)ᵀ,
so that its squared length is Σ_l (‖h_l‖² + 1) ‖δ_l‖², and scaling δ(i) by min(1, C / length) before the
ordinary backward product gives the sum of clipped gradients (Abadi et al. 2016, alg. 1) at its price.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from atoll.core.errors import DataError

from .batched import forward, losses
from .task import Array

BLOCK = 4096  # rows at a time


def clipped_sum(
    dims: tuple[int, ...], loss: str, activation: str, w: Array, x: Array, y: Array, norm: float
) -> Array:
    """Σ over the rows of g min(1, norm / ‖g‖), float64 (size,), at the weights `w` (size,).

    `x` (n, features), `y` as the loss takes it, `norm` > 0. Raises DataError for rows with NaN or infinity.
    """
    total = np.zeros(w.size)
    for at in range(0, len(x), BLOCK):
        total += _block(dims, loss, activation, w, x[at : at + BLOCK], y[at : at + BLOCK], norm)
    return total


def _block(
    dims: tuple[int, ...], loss: str, activation: str, w: Array, x: Array, y: Array, norm: float
) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        h = [layer[0] for layer in forward(dims, activation, w[None], x[None])]
        d, _, _ = losses(loss, h[-1][None], y[None])
    deltas, weights = [d[0]], _weights(dims, w)
    for at in range(len(dims) - 2, 0, -1):
        slope = h[at] > 0 if activation == "relu" else 1 - np.square(h[at])
        deltas.insert(0, (deltas[0] @ weights[at].T) * slope)
    squares = sum(
        (_square(a) + 1) * _square(delta) for a, delta in zip(h[:-1], deltas, strict=True)
    )  # (rows,)
    if not np.isfinite(squares).all():
        raise DataError("rows hold NaN or infinity, or training diverged: fill or drop such rows first")
    factor = np.minimum(1.0, norm / np.maximum(np.sqrt(squares), 1e-30)).astype(w.dtype)[:, None]
    parts = []
    for a, delta in zip(h[:-1], deltas, strict=True):
        scaled = delta * factor
        parts += [(a.T @ scaled).reshape(-1), scaled.sum(axis=0)]
    return np.concatenate(parts).astype(np.float64)


def _square(rows: Array) -> Array:
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def _weights(dims: tuple[int, ...], w: Array) -> list[Array]:
    found, start = [], 0
    for inner, outer in pairwise(dims):
        found.append(w[start : start + inner * outer].reshape(inner, outer))
        start += inner * outer + outer
    return found
