"""Encoders and imputers by the federation's categories, moments and medians.

Each is scikit-learn's own, but for `fit`, which fits it on a stand-in: a table made of sums, with
the same categories and counts (or means, or medians) in each column as all sites' rows together.
So all its parameters work as they do there.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import LabelEncoder, OneHotEncoder, OrdinalEncoder
from sklearn.utils.validation import check_array, column_or_1d

from atoll.run import Run
from atoll.statistics import moments, order_statistics, tallies

from .sites import Array, Federated, pool, rows_of

_CATEGORY = (str, bool, int, float, np.generic, type(None))


class _Tallied(Federated):
    """Encoders of categories."""

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d) of categories, with `groups` (n,) naming the site of each row."""
        X, _, groups = pool(X, None, groups)
        table, self.run_ = standin(X, groups)
        return super().fit(table)  # type: ignore[no-any-return]


class FederatedOneHotEncoder(_Tallied, OneHotEncoder):  # type: ignore[misc]
    """OneHotEncoder by the categories of all sites."""


class FederatedOrdinalEncoder(_Tallied, OrdinalEncoder):  # type: ignore[misc]
    """OrdinalEncoder by the categories of all sites."""


class FederatedLabelEncoder(LabelEncoder):  # type: ignore[misc]
    """LabelEncoder by the labels of all sites."""

    run_: Run

    def fit(self, y: Any, groups: Any = None) -> Self:
        """Fit to labels y (n,), with `groups` (n,) naming the site of each."""
        y = column_or_1d(y, warn=True)
        tally, self.run_ = tallies([y[site, None] for site in rows_of(groups, len(y))], 1)
        super().fit(np.array([*tally[0]], y.dtype))
        return self

    def fit_transform(self, y: Any, groups: Any = None) -> Array:
        """`fit`, then the numbers of the same labels."""
        return np.asarray(self.fit(y, groups).transform(y))


class FederatedSimpleImputer(Federated, SimpleImputer):  # type: ignore[misc]
    """SimpleImputer by the means, medians or most frequent values of all sites."""

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d) with missing cells, with `groups` (n,) naming the site of each row."""
        X, _, groups = pool(X, None, groups)
        self._validate_params()
        checked = self._validate_input(X, in_fit=True)
        if self.strategy != "most_frequent" and checked.dtype.kind in "iuf":
            table = _dressed(self._two_rows(checked, rows_of(groups, len(checked))), X)
        else:
            table, self.run_ = standin(X, groups)
        return super().fit(table)  # type: ignore[no-any-return]

    def _two_rows(self, X: Array, rows: list[Array]) -> Array:
        """Two rows with the federation's means or medians: the second has a gap where a column has."""
        table = np.where(np.equal(X, self.missing_values), np.nan, X)
        sites = [table[site] for site in rows]
        if self.strategy == "median":
            found, self.run_ = order_statistics(sites, X.shape[1], (0.5,))
            middle, count = found[:, 0], self.run_.params["count"]
        else:
            seen, runs = moments(sites, X.shape[1])
            middle, count, self.run_ = seen.mean, seen.count, runs[-1]
        both = np.stack([middle, np.where(count < len(X), np.nan, middle)])
        return np.where(np.isnan(both), self.missing_values, both).astype(X.dtype)


def standin(X: Any, groups: Any) -> tuple[Any, Run]:
    """A table whose columns hold the same values, as often, as X, in no order; and the run that told."""
    columns = _columns(X)
    found, run = tallies([columns[site] for site in rows_of(groups, len(columns))], columns.shape[1])
    table = np.empty(columns.shape, object)
    for j, tally in enumerate(found):
        values = np.empty(len(tally), object)
        values[:] = list(tally)
        table[:, j] = np.repeat(values, [*tally.values()])
    return _dressed(table if hasattr(X, "iloc") else table.astype(columns.dtype), X), run


def _columns(X: Any) -> Array:
    """X as (n, d), in its own dtype where it has one; gaps of data frames become NaN or None."""
    if hasattr(X, "iloc"):
        columns = np.empty(X.shape, object)
        for j in range(X.shape[1]):
            values = X.iloc[:, j].to_numpy(object)
            columns[:, j] = [np.nan if type(v).__name__ in ("NAType", "NaTType") else v for v in values]
        return columns
    array = check_array(X, dtype=None, ensure_all_finite=False)
    text = not hasattr(X, "dtype") and array.dtype.kind == "U"  # a list keeps its numbers among the text
    array = np.asarray(check_array(X, dtype=object, ensure_all_finite=False) if text else array)
    odd = [type(v).__name__ for v in array.flat if array.dtype == object and not isinstance(v, _CATEGORY)]
    if odd:
        raise TypeError(f"argument must be a string or a number, got {odd[0]}")
    return array


def _dressed(table: Array, like: Any) -> Any:
    """The table as a data frame with the columns of `like`, if that is one."""
    if not hasattr(like, "iloc"):
        return table
    from pandas import DataFrame, Series

    columns = {j: Series(table[:, j]).astype(like.dtypes.iloc[j]) for j in range(table.shape[1])}
    frame = DataFrame(columns)
    frame.columns = like.columns
    return frame
