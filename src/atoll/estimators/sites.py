"""What every federated estimator does first: turn (X, y, groups) into the rows of each site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from atoll.run import Run
from atoll.statistics import tallies

Array: TypeAlias = NDArray[Any]


class Federated(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """From (X, y, groups) to the rows of each site, checked as scikit-learn checks them."""

    run_: Run

    def __getstate__(self) -> dict[str, Any]:
        """Without the Run: its job holds functions, which do not pickle."""
        return {name: value for name, value in super().__getstate__().items() if name != "run_"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags

    def _sites(self, X: Any, y: Any, groups: Any, **checks: Any) -> tuple[Array, Array, list[Array]]:
        """X, y and the row numbers of each site."""
        self._validate_params()
        X, y, groups = pool(X, y, groups)
        X, y = validate_data(self, X, y, **checks)
        return X, y, rows_of(groups, len(X))

    def _rows(self, X: Any, groups: Any, **checks: Any) -> tuple[Array, list[Array]]:
        """X and the row numbers of each site, for what takes no y."""
        self._validate_params()
        X, _, groups = pool(X, None, groups)
        X = validate_data(self, X, **checks)
        return X, rows_of(groups, len(X))

    def _classes(self, y: Array, rows: Sequence[Array]) -> Array:
        """Every label of the federation, told by a first tally; y as numbers of them."""
        check_classification_targets(y)
        tally, _ = tallies([y[site, None] for site in rows], 1)
        self.classes_ = np.sort(np.array([*tally[0]], y.dtype))
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs rows of at least 2 classes, got 1 class")
        return np.searchsorted(self.classes_, y)


def pool(X: Any, y: Any, groups: Any) -> tuple[Any, Any, Any]:
    """A list of sites as X, y and one label for each row; anything else as it is.

    Sites are (X, y) pairs or, for what takes no y, two-dimensional arrays or data frames.
    """
    if y is not None or groups is not None or not isinstance(X, (list, tuple)) or not X:
        return X, y, groups
    if all(isinstance(site, tuple) and len(site) == 2 and np.ndim(site[0]) == 2 for site in X):
        tables, targets = zip(*X, strict=True)
        y = np.concatenate([np.asarray(target) for target in targets])
    elif all(getattr(site, "ndim", 0) == 2 for site in X):
        tables = tuple(X)
    else:
        return X, y, groups
    return _stack(tables), y, np.repeat(np.arange(len(tables)), [len(table) for table in tables])


def _stack(tables: Sequence[Any]) -> Any:
    if all(hasattr(table, "iloc") for table in tables):
        from pandas import concat

        return concat(tables, ignore_index=True)
    return np.concatenate([np.asarray(table) for table in tables])


def rows_of(groups: Any, n: int) -> list[Array]:
    """The row numbers of each site, in the order of the sites' labels."""
    if groups is None:
        return [np.arange(n)]
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups must name the site of each of the {n} rows, got shape {labels.shape}")
    _, site = np.unique(labels, return_inverse=True)
    return [np.flatnonzero(site == k) for k in range(int(site.max()) + 1)]
