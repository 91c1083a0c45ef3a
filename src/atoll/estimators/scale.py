"""Scalers by the federation's exact moments and order statistics.

Each is scikit-learn's own, but for `fit`: what it does to rows, its parameters and attributes are
unchanged. `partial_fit`, where it has one, goes on with rows at hand and asks no other site.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Self

import numpy as np
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from atoll.statistics import moments, order_statistics

from .sites import Array, Federated

_FLOATS: dict[str, Any] = {"dtype": [np.float64, np.float32], "ensure_all_finite": "allow-nan"}


class FederatedStandardScaler(Federated, StandardScaler):  # type: ignore[misc]  # scikit-learn has no types
    """StandardScaler by the mean and variance of all sites."""

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d), NaN missing, with `groups` (n,) naming the site of each row."""
        X, rows = self._rows(X, groups, **_FLOATS)
        seen, runs = moments([X[site] for site in rows], X.shape[1])
        self.run_ = runs[-1]
        n = seen.count.astype(np.int64)
        self.n_samples_seen_ = n if np.ptp(n) else n[0]
        self.mean_ = seen.mean if self.with_mean or self.with_std else None
        self.var_ = seen.variance(0) if self.with_std else None
        self.scale_ = None
        if self.var_ is not None:
            rounding = np.finfo(np.float64).eps * n  # of a constant column's variance
            same = ~(self.var_ > rounding * self.var_ + (rounding * seen.mean) ** 2)
            self.scale_ = np.where(same, 1.0, np.sqrt(self.var_))
        return self


class FederatedMinMaxScaler(Federated, MinMaxScaler):  # type: ignore[misc]
    """MinMaxScaler by the smallest and largest values of all sites."""

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d), NaN missing, with `groups` (n,) naming the site of each row."""
        low, high = self.feature_range
        if low >= high:
            raise ValueError(f"feature_range must rise, got {self.feature_range}")
        X, rows = self._rows(X, groups, **_FLOATS)
        ends, self.run_ = order_statistics([X[site] for site in rows], X.shape[1], (0.0, 1.0))
        self.data_min_, self.data_max_ = ends[:, 0], ends[:, 1]
        self.data_range_ = self.data_max_ - self.data_min_
        self.scale_ = (high - low) / _divisor(self.data_range_)
        self.min_ = low - self.data_min_ * self.scale_
        self.n_samples_seen_ = len(X)
        return self


class FederatedMaxAbsScaler(Federated, MaxAbsScaler):  # type: ignore[misc]
    """MaxAbsScaler by the largest magnitude of all sites."""

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d), NaN missing, with `groups` (n,) naming the site of each row."""
        X, rows = self._rows(X, groups, **_FLOATS)
        ends, self.run_ = order_statistics([X[site] for site in rows], X.shape[1], (0.0, 1.0))
        self.max_abs_ = np.abs(ends).max(axis=1)
        self.scale_ = _divisor(self.max_abs_)
        self.n_samples_seen_ = len(X)
        return self


class FederatedRobustScaler(Federated, RobustScaler):  # type: ignore[misc]
    """RobustScaler by the median and the quantiles of all sites."""

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d), NaN missing, with `groups` (n,) naming the site of each row."""
        low, high = self.quantile_range
        if not 0 <= low <= high <= 100:
            raise ValueError(f"Invalid quantile range: {self.quantile_range}")
        X, rows = self._rows(X, groups, **_FLOATS)
        shares = (low / 100, 0.5, high / 100)
        found, self.run_ = order_statistics([X[site] for site in rows], X.shape[1], shares)
        self.center_ = found[:, 1] if self.with_centering else None
        self.scale_ = None
        if self.with_scaling:
            self.scale_ = _divisor(found[:, 2] - found[:, 0])
            if self.unit_variance:
                normal = NormalDist()
                self.scale_ = self.scale_ / (normal.inv_cdf(high / 100) - normal.inv_cdf(low / 100))
        return self


def _divisor(scale: Array) -> Array:
    """1 where the column does not vary."""
    return np.where(scale < 10 * np.finfo(np.float64).eps, 1.0, scale)
