"""The two-sample Kolmogorov-Smirnov test: the largest gap between two distribution functions.

Kolmogorov 1933, "Sulla determinazione empirica di una legge di distribuzione"; Smirnov 1948, "Table for
estimating the goodness of fit of empirical distributions":

    D = sup |F(x) - G(x)|        P(D > d) ~ 2 sum_k (-1)^(k-1) exp(-2 k² z²),  z = d sqrt(n m / (n + m))
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def ks(reference: NDArray[np.floating], values: NDArray[np.floating]) -> float:
    """D, in [0, 1]. Both: one-dimensional, finite, not empty."""
    at = np.concatenate([reference, values])
    f = np.searchsorted(np.sort(reference), at, side="right") / len(reference)
    g = np.searchsorted(np.sort(values), at, side="right") / len(values)
    return float(np.abs(f - g).max())


def p_value(d: float, n: int, m: int) -> float:
    """How often samples of n and m values of one distribution lie this far apart, for many values."""
    z = d * math.sqrt(n * m / (n + m))
    if z < 0.2:  # the series needs ever more terms there, and its sum is 1 to twelve digits
        return 1.0
    total = sum(math.copysign(math.exp(-2.0 * (k * z) ** 2), k % 2 - 0.5) for k in range(1, 101))
    return min(1.0, max(0.0, 2.0 * total))


def threshold(n: int, m: int, alpha: float = 0.01) -> float:
    """The D that samples of one distribution exceed with probability `alpha` in (0, 1), by the first term."""
    return math.sqrt(-math.log(alpha / 2.0) / 2.0 * (n + m) / (n * m))
