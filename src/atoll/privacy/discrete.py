"""Noise of whole numbers, which clients add themselves and masks do not round away.

Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian mechanism for federated learning with secure
aggregation", thm 1: the sum of n clients' discrete Gaussians, each of variance s², hides a vector of whole
numbers of L2 norm at most B as well as concentrated differential privacy (ε²/2) with

    ε² = B² / (n s²) + τ d / 2,    τ = 10 Σ_{k=1}^{n-1} exp(-2 π² s² k / (k + 1)) <= 10 n exp(-π² s²)

does, d numbers long: a Gaussian's cost, and a blur that is nothing once s is a few units. `BLUR` is what the
accountant counts for it, and `spread` refuses an s for which it would be more.

Numbers are drawn by Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential privacy", alg. 3,
from a cipher's keystream; exponentials are float64's, which moves a probability by a few parts in 1e15.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, floor, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, MisuseError
from .hazmat.suite import INTL
from .noise import KEY, uniforms

BLUR = 1e-6  # of ε², for sums of any number of clients
_MOST = 2.0**38  # a larger s would show the grid of the uniforms


def gaussian(
    key: bytes, size: int, s: float, stream: Callable[[bytes], Any] = INTL.stream
) -> NDArray[np.int64]:
    """`size` whole numbers, each k with a probability in proportion to exp(-k² / (2 s²)); the key's own.

    `stream(key)`: the cipher that they are drawn from, a suite's (hazmat/suite.py).

    Raises MisuseError for another length of key or an s that is not from 0.5 to 2**38.
    """
    if len(key) != KEY or not 0.5 <= s <= _MOST:
        raise MisuseError(f"noise needs a key of {KEY} bytes and s from 0.5 to 2**38, got s = {s:g}")
    t, made, done = floor(s) + 1, np.empty(size, np.int64), 0
    draws = uniforms(key, stream)
    while done < size:
        first, second, coins = next(draws)
        y = np.floor(-t * np.log(first)).astype(np.int64)  # |Y| of a discrete Laplace of scale t
        fits = second <= np.exp(-np.square(y - s * s / t) / (2 * s * s))
        fits &= ~((y == 0) & coins)  # zero has one sign
        found = np.where(coins, -y, y)[fits][: size - done]
        made[done : done + len(found)] = found
        done += len(found)
    return made


def spread(sigma: float, bound: float, clients: int, size: int) -> float:
    """The s of each client's noise, so that that of `clients` of them together is `sigma` times `bound`.

    `bound`: the L2 norm of what one client adds, whole numbers. `size`: numbers in it. Raises ConfigError
    where s is so small that the sum would not be as good as a Gaussian.
    """
    s = sigma * bound / sqrt(clients)
    if not s >= 0.5 or 10 * clients * exp(-((pi * s) ** 2)) * size / 2 > BLUR:
        raise ConfigError(
            f"each of {clients} clients would add noise of {s:.3g} units, too little to be sure of: take more"
            " bits, or a smaller `largest` or clip"
        )
    return s
