"""k-means by Lloyd's algorithm on sums (learn/lloyd.py)."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from atoll.core.update import Update
from atoll.learn.lloyd import Lloyd, lloyd, nearest
from atoll.learn.moments import Pooled
from atoll.run import Run
from atoll.statistics import ask, moments

from .sites import Array, Federated

_ROUNDING = 1e-24  # a squared move below this, in units of the spread, is no move


class FederatedKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, Federated):  # type: ignore[misc]
    """k-means on many sites: the steps of Lloyd's algorithm on the pooled rows.

    `init`: "normal" draws the first centres from a normal distribution with the federation's
    mean and covariance, so that no row leaves its site; or an array (n_clusters, d). `n_init`:
    starts, of which the best is kept; one for an array. `max_iter`: rounds of a start. `tol`: as in
    KMeans, 0 for until nothing moves. A cluster that nobody joins stays where it is.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Integral],
        "init": ["array-like", str],
        "n_init": [Integral],
        "max_iter": [Integral],
        "tol": [Real],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "normal",
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d), with `groups` (n,) naming the site of each row."""
        X, rows = self._rows(X, groups, dtype=[np.float64, np.float32])
        if len(X) < self.n_clusters:
            raise ValueError(f"n_samples={len(X)} should be >= n_clusters={self.n_clusters}")
        seen, _ = moments([X[site] for site in rows], X.shape[1])
        spread = np.sqrt(seen.scatter.diagonal().max())
        unit = (
            float(np.exp2(np.ceil(np.log2(spread)))) if spread > 0 else 1.0
        )  # a power of two rounds nothing
        sites = [(X[site].astype(np.float64) - seen.mean) / unit for site in rows]
        tol = max(self.tol * float(seen.variance(0).mean()) / unit**2, _ROUNDING)
        starts = [(start - seen.mean) / unit for start in self._starts(seen)]
        runs = [self._lloyd(start, sites, tol) for start in starts]
        self.run_ = min(runs, key=lambda run: float(run.params["inertia"][0]))
        if not self.run_.stopped:
            warnings.warn(
                f"centres still moved after {self.max_iter} rounds", ConvergenceWarning, stacklevel=2
            )
        self.n_iter_ = len(self.run_.history)
        self.cluster_centers_ = (self.run_.params["centres"] * unit + seen.mean).astype(X.dtype)
        labels, distance = nearest(X, self.cluster_centers_)
        self.labels_, self.inertia_ = labels.astype(np.int32), float(distance.sum())
        return self

    def predict(self, X: Any) -> Array:
        """(n,) numbers of the nearest centres."""
        return nearest(self._checked(X), self.cluster_centers_)[0].astype(np.int32)

    def transform(self, X: Any) -> Array:
        """(n, n_clusters) distances to all centres."""
        X = self._checked(X)
        return np.stack([np.linalg.norm(X - centre, axis=1) for centre in self.cluster_centers_], axis=1)

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the sum of squared distances to the nearest centres."""
        return -float(nearest(self._checked(X), self.cluster_centers_)[1].sum())

    def _starts(self, seen: Pooled) -> list[Array]:
        """First centres: the array given, or draws from the federation's normal distribution."""
        k, d = self.n_clusters, len(seen.mean)
        if not isinstance(self.init, str):
            start = np.asarray(self.init, np.float64)
            if start.shape != (k, d):
                raise ValueError(f"init must hold {k} centres of {d} features, got shape {start.shape}")
            return [start]
        if self.init != "normal":
            raise ValueError(f'init is "normal" or an array of centres, got {self.init!r}')
        values, vectors = np.linalg.eigh(seen.covariance(0))
        root = vectors * np.sqrt(np.maximum(values, 0))
        random = check_random_state(self.random_state)
        return [seen.mean + random.standard_normal((k, d)) @ root.T for _ in range(self.n_init)]

    def _lloyd(self, start: Array, sites: list[Array], tol: float) -> Run:
        def still(before: Update, after: Update) -> bool:
            return bool(((after["centres"] - before["centres"]) ** 2).sum() <= tol)

        return ask(Lloyd(start), sites, lloyd(), rounds=self.max_iter, still=still)

    def _checked(self, X: Any) -> Array:
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, reset=False, dtype=[np.float64, np.float32]))

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)
