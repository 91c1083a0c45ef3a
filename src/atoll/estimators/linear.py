"""Linear, ridge and logistic regression, equal to the pooled ones (learn/newton.py)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from atoll.data.examples import Examples
from atoll.learn.exact import close
from atoll.learn.newton import Newton, newton
from atoll.statistics import ask, moments

from .sites import Array, Federated


class _Linear(Federated):
    """Linear models fitted by Newton's method on summed gradients and Hessians."""

    coef_: Array
    intercept_: Any

    def _newton(
        self, model: Newton, sites: Sequence[Examples], l2: float, rounds: int, tol: float
    ) -> tuple[Array, Array]:
        """Coefficients (outputs, features) and intercepts (outputs,) at the optimum.

        Sites standardise by the federation's moments. That changes no optimum, since the penalty is
        rescaled along; it keeps the Hessian well conditioned.
        """
        seen, _ = moments(sites, model.features)
        shift = seen.mean if model.intercept else np.zeros_like(seen.mean)
        scale = np.sqrt(seen.variance(0) + (seen.mean - shift) ** 2)
        scale[~(scale > 1e-12 * np.abs(seen.mean))] = 1.0
        learner = replace(model, shift=shift, scale=scale)
        self.run_ = ask(learner, sites, newton(l2 / scale**2), rounds=rounds, still=close(tol))
        self.n_iter_ = len(self.run_.history)
        return learner.plain(self.run_.params)

    def _answers(self, X: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return np.asarray(X @ self.coef_.T + self.intercept_)


class FederatedRidge(RegressorMixin, _Linear):  # type: ignore[misc]
    """Ridge regression on many sites: minimises ||y - Xw - b||² + alpha ||w||², exactly.

    `alpha` >= 0. Where columns are collinear and alpha is 0, one of the optima is found.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"alpha": [Real], "fit_intercept": ["boolean"]}

    def __init__(self, alpha: float = 1.0, *, fit_intercept: bool = True) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d) and targets y (n,), with `groups` (n,) naming the site of each row."""
        return self._solve(X, y, groups, self.alpha)

    def _solve(self, X: Any, y: Any, groups: Any, l2: float) -> Self:
        X, y, rows = self._sites(X, y, groups, dtype=[np.float64, np.float32], y_numeric=True)
        X, y = X.astype(np.float64, copy=False), np.asarray(y, np.float64)
        target, _ = moments([y[site, None] for site in rows], 1)
        mean = float(target.mean[0]) if self.fit_intercept else 0.0
        unit = float(np.sqrt(target.variance(0)[0] + (target.mean[0] - mean) ** 2)) or 1.0
        sites = [Examples(X[site], (y[site] - mean) / unit) for site in rows]
        model = Newton(X.shape[1], 1, "squared", self.fit_intercept)
        w, b = self._newton(model, sites, l2, rounds=2, tol=0.0)
        self.coef_ = w[0] * unit
        self.intercept_ = float(b[0]) * unit + mean
        return self

    def predict(self, X: Any) -> Array:
        """(n,) predictions."""
        return self._answers(X)


class FederatedLinearRegression(FederatedRidge):
    """Least squares on many sites: minimises ||y - Xw - b||², exactly."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"fit_intercept": ["boolean"]}

    def __init__(self, *, fit_intercept: bool = True) -> None:
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d) and targets y (n,), with `groups` (n,) naming the site of each row."""
        return self._solve(X, y, groups, 0.0)


class FederatedLogisticRegression(ClassifierMixin, _Linear):  # type: ignore[misc]
    """Logistic regression on many sites, softmax for more than two classes, exactly.

    Minimises C Σ loss + ½ ||w||², the intercept unpenalised; C = inf for no penalty. `max_iter`:
    rounds; about ten do where an optimum exists. `tol`: the step after which to stop; the error left
    is about its square. Separable classes without a penalty have no optimum: a ConvergenceWarning
    says so.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "C": [Real],
        "fit_intercept": ["boolean"],
        "max_iter": [Integral],
        "tol": [Real],
    }

    def __init__(
        self, C: float = 1.0, *, fit_intercept: bool = True, max_iter: int = 50, tol: float = 1e-5
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d) and labels y (n,), with `groups` (n,) naming the site of each row."""
        if not (isinstance(self.C, Real) and self.C > 0):
            raise ValueError(f"C must be a number above 0, got {self.C!r}")
        X, y, rows = self._sites(X, y, groups, dtype=[np.float64, np.float32])
        y = self._classes(y, rows)
        k = len(self.classes_)
        model = Newton(X.shape[1], 1, "logistic", self.fit_intercept)
        if k > 2:
            model = replace(model, outputs=k, loss="softmax")
        sites = [Examples(X[site].astype(np.float64), y[site]) for site in rows]
        w, b = self._newton(model, sites, 1.0 / self.C, self.max_iter, self.tol)
        self.coef_, self.intercept_ = w, b
        if not self.run_.stopped:
            warnings.warn(
                f"the model still moved after {self.n_iter_} rounds: the classes may be separable (lower C)"
                " or max_iter too small",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def decision_function(self, X: Any) -> Array:
        """Log-odds (n,) of two classes, scores (n, k) of more."""
        answers = self._answers(X)
        return answers[:, 0] if len(self.classes_) == 2 else answers

    def predict_log_proba(self, X: Any) -> Array:
        """(n, k)."""
        answers = self._answers(X)
        if len(self.classes_) == 2:
            answers = np.column_stack([np.zeros(len(answers)), answers])
        return answers - np.logaddexp.reduce(answers, axis=1, keepdims=True)

    def predict_proba(self, X: Any) -> Array:
        """(n, k), columns in the order of `classes_`."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> Array:
        """(n,) labels."""
        best = self.predict_log_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])
