"""Rules that look for the middle of all updates at once: geometric median, centred clipping.

Pillutla, Kakade, Harchaoui 2022, "Robust aggregation for federated learning" (RFA), alg. 2, the
smoothed Weiszfeld iteration, with ν > 0:

    w_i = 1 / max(ν, ||v - g_i||);    v <- Σ w_i g_i / Σ w_i;    its limit minimises Σ ||v - g_i||

Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization", §4:

    v <- v + 1/n Σ (g_i - v) min(1, τ / ||g_i - v||)

Their v starts at the last round's answer. A rule here keeps nothing from round to round, and starts at the
geometric median. v always is some Σ c_i g_i, so both iterate on c (n,) with distances from the Gram matrix:
however many steps they take, updates are read twice.
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from ...core.errors import ConfigError
from ...core.registry import part
from ...core.update import Array
from .rule import Rule
from .stack import Stack

NU = 1e-6  # ν, over the median distance
CLOSE = 1e-12
MOST = 200  # iterations


@part("rule")
def geometric_median() -> Rule:
    """The point whose distances to all updates have the smallest sum (Pillutla et al. 2022, alg. 2).

    It needs no f: it withstands any number below one half, less well the nearer to it.
    """
    return Rule("geometric_median", lambda stack: stack.combine(_median(stack)))


@part("rule")
def centred_clipping(tau: float | None = None, steps: int = 3) -> Rule:
    """The mean of updates clipped around a centre that moves (Karimireddy et al. 2021, §4).

    `tau` > 0: how far from the centre an update counts in full; by default the median of the distances at
    each step. `steps` >= 1.
    """
    if tau is not None and not (tau > 0 and isfinite(tau)):
        raise ConfigError(f"tau is a distance above 0, got {tau}")
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")

    def walk(stack: Stack) -> Array:
        c = _median(stack)
        for _ in range(steps):
            far = _far(stack, c)
            within = tau or float(np.median(far))
            keep = np.minimum(1.0, within / np.maximum(far, 1e-300))
            c = c * (1 - keep.mean()) + keep / stack.n
        return stack.combine(c)

    return Rule("centred_clipping", walk, {"tau": tau, "steps": steps})


def _median(stack: Stack) -> Array:
    """Weights c (n,) of the geometric median, from the mean of a majority that lies close together."""
    most = stack.n // 2 + 1
    apart = stack.apart
    middle = np.sort(apart, axis=1)[:, most - 1].argmin()
    c = np.zeros(stack.n)
    c[np.argsort(apart[middle], kind="stable")[:most]] = 1 / most
    nu = NU * float(np.median(_far(stack, c))) or 1.0  # 1 where most updates are one point
    for _ in range(MOST):
        w = 1 / np.maximum(_far(stack, c), nu)
        before, c = c, w / w.sum()
        if np.abs(c - before).max() < CLOSE:
            break
    return c


def _far(stack: Stack, c: Array) -> Array:
    """(n,): distances of all updates from the point c g."""
    across = stack.gram @ c
    return np.asarray(np.sqrt(np.maximum(c @ across - 2 * across + np.diag(stack.gram), 0.0)))
