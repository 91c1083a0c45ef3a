"""The Wasserstein distance of order 1: how far values must be carried to make one sample of the other.

Vallender 1974, "Calculation of the Wasserstein distance between probability distributions on the line":

    W1 = integral |F(x) - G(x)| dx

Over the reference's standard deviation it has no unit: a shift of the mean by d spreads gives d.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def wasserstein(reference: NDArray[np.floating], values: NDArray[np.floating]) -> float:
    """W1 in the values' own unit, at least 0. Both: one-dimensional, finite, not empty."""
    at = np.sort(np.concatenate([reference, values]))
    f = np.searchsorted(np.sort(reference), at[:-1], side="right") / len(reference)
    g = np.searchsorted(np.sort(values), at[:-1], side="right") / len(values)
    return float(np.sum(np.abs(f - g) * np.diff(at)))


def normalised(reference: NDArray[np.floating], values: NDArray[np.floating]) -> float:
    """W1 in standard deviations of the reference, which are not 0."""
    return wasserstein(reference, values) / float(np.std(reference))
