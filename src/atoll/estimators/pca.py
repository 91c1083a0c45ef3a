"""Principal components of the federation's covariance (learn/moments.py).

Pearson 1901, "On lines and planes of closest fit to systems of points in space": the eigenvectors of
the summed covariance are the pooled ones. Squaring costs digits that an SVD keeps: components
whose variance is below 1e-12 of the largest are noise.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.decomposition import PCA

from atoll.statistics import moments

from .sites import Array, Federated


class FederatedPCA(Federated, PCA):  # type: ignore[misc]  # scikit-learn has no types
    """PCA on many sites: what `PCA` gives on the pooled rows, signs as there.

    `n_components`: how many, a share of the variance in (0, 1), or None for all.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Integral, Real, None],
        "whiten": ["boolean"],
    }

    svd_solver = "covariance_eigh"  # what this is, for scikit-learn's tags

    def __init__(self, n_components: float | None = None, *, whiten: bool = False) -> None:
        self.n_components = n_components
        self.whiten = whiten

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d), with `groups` (n,) naming the site of each row."""
        X, rows = self._rows(X, groups, dtype=[np.float64, np.float32], ensure_min_samples=2)
        seen, runs = moments([X[site] for site in rows], X.shape[1])
        self.run_ = runs[-1]
        variances, vectors = np.linalg.eigh(seen.covariance())
        variances, components = np.maximum(variances[::-1], 0), vectors.T[::-1]
        most = np.abs(components).argmax(axis=1)  # signs as scikit-learn's: the largest entry is positive
        components = components * np.sign(np.take_along_axis(components, most[:, None], axis=1))
        rank = min(X.shape)
        k = self._number(variances[:rank])
        self.n_samples_, self.n_components_, self.mean_ = len(X), k, seen.mean.astype(X.dtype)
        self.components_ = components[:k].astype(X.dtype)
        self.explained_variance_ = variances[:k].astype(X.dtype)
        self.explained_variance_ratio_ = (variances[:k] / (variances.sum() or 1.0)).astype(X.dtype)
        self.singular_values_ = np.sqrt(variances[:k] * (len(X) - 1)).astype(X.dtype)
        self.noise_variance_ = float(variances[k:rank].mean()) if k < rank else 0.0
        return self

    def fit_transform(self, X: Any, y: Any = None, groups: Any = None) -> Array:
        """`fit`, then the components' scores (n, n_components) of the same rows."""
        from .sites import pool

        return np.asarray(self.fit(X, y, groups).transform(pool(X, None, groups)[0]))

    def _number(self, variances: Array) -> int:
        """How many components are wanted of those with these variances, falling."""
        wanted = len(variances) if self.n_components is None else self.n_components
        whole = float(wanted).is_integer()
        if whole and 1 <= wanted <= len(variances):
            return int(wanted)
        if not whole and 0 < wanted < 1:
            share = variances.cumsum() / variances.sum()
            return int(np.searchsorted(share, wanted, side="right")) + 1
        raise ValueError(
            f"n_components={wanted!r} must be between 1 and min(n_samples, n_features)={len(variances)},"
            " or a share of the variance in (0, 1)"
        )
