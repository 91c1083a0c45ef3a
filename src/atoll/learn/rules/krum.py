"""Krum and Multi-Krum: use the updates that have many others near them.

Blanchard, El Mhamdi, Guerraoui, Stainer 2017, "Machine learning with adversaries: Byzantine tolerant
gradient descent", §4 and §5. Of n updates, f malicious, n >= 2f + 3:

    s(i) = Σ_{i → j} ||g_i - g_j||²      over the n - f - 2 updates nearest to g_i
    Krum:         g_i with the smallest s(i)
    Multi-Krum:   the mean of the m updates with the smallest s

All from the distances between updates, which one walk over their numbers gives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...core.errors import ConfigError
from ...core.registry import part
from ...core.update import Array
from .rule import Rule, checked, malicious, surely
from .stack import Stack


@part("rule")
def krum(f: float) -> Rule:
    """The one update whose neighbours are nearest (Blanchard et al. 2017, §4).

    `f`: how many clients may be malicious, a count or a share below 0.5. Needs n >= 2f + 3. Of equal scores
    the client with the lowest id.
    """

    def walk(stack: Stack) -> Array:
        return stack.combine(_best(_scores(stack, f), 1))

    return Rule("krum", walk, {"f": f}, _least(f))


@part("rule")
def multi_krum(f: float, m: int | None = None) -> Rule:
    """The mean of the `m` updates whose neighbours are nearest (Blanchard et al. 2017, §5).

    `f`: how many clients may be malicious, a count or a share below 0.5. Needs n >= 2f + 3. `m`: at most
    n - f, which is also the default.
    """
    if m is not None and m < 1:
        raise ConfigError(f"m is how many updates are averaged, at least 1, got {m}")

    def walk(stack: Stack) -> Array:
        most = stack.n - malicious(f, stack, _most(stack.n))
        return stack.combine(_best(_scores(stack, f), min(m or most, most)))

    return Rule("multi_krum", walk, {"f": f, "m": m}, _least(f))


def _least(f: float) -> Callable[[int], int]:
    checked(f)

    def least(clients: int) -> int:
        count = surely(f, clients)
        return 2 * count + 3 if count else 1

    return least


def _most(n: int) -> int:
    return max((n - 3) // 2, 0)


def _scores(stack: Stack, f: float) -> Array:
    """s (n,); the nearest to each is itself, at distance 0."""
    near = max(stack.n - malicious(f, stack, _most(stack.n)) - 2, 1)
    return np.asarray(np.sort(stack.apart, axis=1)[:, 1 : 1 + near].sum(axis=1))


def _best(scores: Array, m: int) -> Array:
    """Equal weights for the m of the smallest scores."""
    w = np.zeros(len(scores))
    w[np.argsort(scores, kind="stable")[:m]] = 1 / m
    return w
