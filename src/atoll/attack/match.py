"""Rows whose gradients match what was seen: inversion by optimisation.

Zhu, Liu, Han 2019, "Deep leakage from gradients", alg. 1, with labels that are told first (iDLG), from sums
as from single updates, and for any scale of them, as in Geiping, Bauermeister, Dröge, Moeller 2020,
"Inverting gradients: how easy is it to break privacy in federated learning?", eq. 4. With G(x) the sum of the
rows' gradients at the model w and U the update,

    x* = argmin min_a ½ ‖a G(x) + U‖²

by Adam, each number kept in its range. For softmax models with one hidden layer or none, whose second
derivatives are written out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Layers = list[Array]  # W and b of each layer, one after the other


def matched(
    layers: Layers,
    seen: Layers,
    y: Array,
    start: Array,
    span: tuple[float, float],
    activation: str = "relu",
    steps: int = 200,
) -> Array:
    """Rows (n, features) within `span`, with labels `y` (n,), whose gradients are most like `seen`.

    `layers`, `seen`: the model's W (in, out), b (out,), ... and minus the gradients, to a factor.
    `start`: (n, features). `activation`: relu or tanh, of the hidden layer.
    """
    x, low, high = start.copy(), *span
    m, v, lr = np.zeros_like(x), np.zeros_like(x), 0.05 * (high - low)
    for t in range(1, steps + 1):
        g = slope(layers, seen, y, x, activation)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-30)
        x = np.clip(x - lr * (1 - t / (steps + 1)) * step, low, high)
    return x


def slope(layers: Layers, seen: Layers, y: Array, x: Array, activation: str = "relu") -> Array:
    """The derivative of ½ ‖a G(x) + U‖² by x, (n, features), for the a that fits best."""
    *below, w, b = layers
    z = x @ below[0] + below[1] if below else x
    relu = activation == "relu"
    h = x if not below else np.maximum(z, 0) if relu else np.tanh(z)
    bend = (h > 0).astype(h.dtype) if relu else 1 - h * h
    o = h @ w + b
    p = np.exp(o - o.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    e = p.copy()
    e[np.arange(len(y)), y] -= 1  # (n, outputs)
    back = e @ w.T  # (n, hidden)
    d = back * bend
    found = ([x.T @ d, d.sum(axis=0)] if below else []) + [h.T @ e, e.sum(axis=0)]
    both = -sum(float((g * u).sum()) for g, u in zip(found, seen, strict=True))
    a = both / max(sum(float((g * g).sum()) for g in found), 1e-30)
    rest = [a * (a * g + u) for g, u in zip(found, seen, strict=True)]
    de = h @ rest[-2] + rest[-1]
    dx, dh = np.zeros_like(x), e @ rest[-2].T
    if below:
        dd = x @ rest[0] + rest[1]
        dx += d @ rest[0].T
        de += (dd * bend) @ w
        dh += 0 if relu else -2 * dd * back * h
    dh += (p * (de - (p * de).sum(axis=1, keepdims=True))) @ w.T
    return np.asarray(dx + (dh * bend) @ below[0].T if below else dh)


__all__ = ["matched", "slope"]
