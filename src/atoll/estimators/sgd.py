"""scikit-learn's SGD estimators, averaged between sites (adapt/sklearn.py)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from atoll.adapt.sklearn import sklearn_learner
from atoll.data.examples import Examples
from atoll.job import Job
from atoll.learn.algorithm import Algorithm, fedavg
from atoll.run import simulate

from .sites import Array, Federated


class _Sgd(Federated):
    """scikit-learn's SGD at every site, averaged for some rounds."""

    classes_: Array
    rounds: int
    epochs: int
    batch_size: int | None
    algorithm: Algorithm | None
    random_state: Any

    def _average(self, inner: Any, X: Array, y: Array, rows: Sequence[Array], outputs: int) -> None:
        learner = sklearn_learner(
            inner, range(outputs) if outputs > 1 else None, self.epochs, self.batch_size, features=X.shape[1]
        )
        seed = int(check_random_state(self.random_state).randint(2**31))
        sites = [Examples(X[site], y[site]) for site in rows]
        self.run_ = simulate(Job(learner, self.algorithm or fedavg(), rounds=self.rounds), sites, seed)
        self.model_ = learner.model(self.run_.params)
        self.coef_, self.intercept_, self.n_iter_ = self.model_.coef_, self.model_.intercept_, self.rounds

    def _inner(self, kind: Any) -> Any:
        own = self.get_params(deep=False)
        mine = ("rounds", "epochs", "batch_size", "algorithm", "random_state")
        return kind(**{name: value for name, value in own.items() if name not in mine})

    def _checked(self, X: Any) -> Array:
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, reset=False, dtype=np.float64))


_SGD_CONSTRAINTS: dict[str, list[Any]] = {
    "rounds": [Integral],
    "epochs": [Integral],
    "batch_size": [Integral, None],
    "algorithm": [Algorithm, None],
    "random_state": ["random_state"],
}


class FederatedSGDClassifier(ClassifierMixin, _Sgd):  # type: ignore[misc]
    """SGDClassifier on many sites: every round each site goes on from the average of all.

    `rounds`, `epochs` of a round, `batch_size` (None: all of a site's rows in one partial_fit,
    which still steps row by row), `algorithm`: fedavg() by default. The others are SGDClassifier's.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = _SGD_CONSTRAINTS

    def __init__(
        self,
        loss: str = "hinge",
        *,
        penalty: str | None = "l2",
        alpha: float = 1e-4,
        l1_ratio: float = 0.15,
        fit_intercept: bool = True,
        learning_rate: str = "optimal",
        eta0: float = 0.01,
        power_t: float = 0.5,
        rounds: int = 20,
        epochs: int = 1,
        batch_size: int | None = None,
        algorithm: Algorithm | None = None,
        random_state: Any = None,
    ) -> None:
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.rounds = rounds
        self.epochs = epochs
        self.batch_size = batch_size
        self.algorithm = algorithm
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d) and labels y (n,), with `groups` (n,) naming the site of each row."""
        X, y, rows = self._sites(X, y, groups, dtype=np.float64)
        y = self._classes(y, rows)
        self._average(self._inner(SGDClassifier), X, y, rows, len(self.classes_))
        return self

    def decision_function(self, X: Any) -> Array:
        """Signed distances (n,) of two classes, (n, k) of more."""
        X = self._checked(X)
        return np.asarray(self.model_.decision_function(X))

    @available_if(lambda self: self.loss in ("log_loss", "modified_huber"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """(n, k), for loss="log_loss" or "modified_huber"."""
        X = self._checked(X)
        return np.asarray(self.model_.predict_proba(X))

    def predict(self, X: Any) -> Array:
        """(n,) labels."""
        X = self._checked(X)
        return np.asarray(self.classes_[self.model_.predict(X)])


class FederatedSGDRegressor(RegressorMixin, _Sgd):  # type: ignore[misc]
    """SGDRegressor on many sites: every round each site goes on from the average of all.

    `rounds`, `epochs`, `batch_size`, `algorithm` as in FederatedSGDClassifier.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = _SGD_CONSTRAINTS

    def __init__(
        self,
        loss: str = "squared_error",
        *,
        penalty: str | None = "l2",
        alpha: float = 1e-4,
        l1_ratio: float = 0.15,
        fit_intercept: bool = True,
        epsilon: float = 0.1,
        learning_rate: str = "invscaling",
        eta0: float = 0.01,
        power_t: float = 0.25,
        rounds: int = 20,
        epochs: int = 1,
        batch_size: int | None = None,
        algorithm: Algorithm | None = None,
        random_state: Any = None,
    ) -> None:
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.epsilon = epsilon
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.rounds = rounds
        self.epochs = epochs
        self.batch_size = batch_size
        self.algorithm = algorithm
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit to rows X (n, d) and targets y (n,), with `groups` (n,) naming the site of each row."""
        X, y, rows = self._sites(X, y, groups, dtype=np.float64, y_numeric=True)
        self._average(self._inner(SGDRegressor), X, np.asarray(y, np.float64), rows, 1)
        return self

    def predict(self, X: Any) -> Array:
        """(n,) predictions."""
        X = self._checked(X)
        return np.asarray(self.model_.predict(X))
