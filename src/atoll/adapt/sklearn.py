"""scikit-learn's estimators as learners: what `partial_fit` learns, averaged between sites.

Each round a client goes on from the federation's state with `partial_fit` over its own rows. What
the state is, an estimator's kind says:

    Averaged   coefficients and intercepts: a plain average, weighted by rows (FedAvg)
    Clusters   centres, each weighted by how many rows joined it (MiniBatchKMeans)
    Gaussian   shares, sums and squares of each class: exact after one round (GaussianNB)

Other estimators join with `sklearn_learner(estimator, averaged=("coef_", ...))`, the attributes
that a fitted one holds as arrays or lists of arrays. All classes are declared beforehand, so a
site may have one of them only. scikit-learn is imported when a learner is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import ConfigError, DataError, MisuseError
from atoll.core.message import Contribution, FitContext
from atoll.core.registry import nearest, part
from atoll.core.update import Update

from .sklearn_kinds import Array, Averaged, Kind, Leaves, kind_of


@dataclass(frozen=True, eq=False)
class SklearnLearner:
    """See `sklearn_learner`. `features`: columns of x, 0 until the data say."""

    estimator: Any
    kind: Kind
    classes: tuple[Any, ...] | None
    epochs: int
    batch_size: int | None
    features: int = 0

    @property
    def bounds(self) -> Mapping[str, float]:
        """The largest change of each leaf that one site may propose."""
        return self.kind.bounds(self)

    def sized(self, features: int | tuple[int, ...], outputs: int) -> SklearnLearner:
        """The same for data of this width; a classifier without classes gets 0..outputs-1."""
        classes = self.classes
        if classes is None and _is_classifier(self.estimator):
            classes = tuple(range(outputs))
        return replace(self, features=int(np.prod(features)), classes=classes)

    def init(self, rng: np.random.Generator) -> Leaves:
        """The first state. Raises ConfigError where the width of x or the classes are unknown."""
        if self.features < 1:
            raise ConfigError("the width of x is unknown: pass features=, or at.Sites as data", "$.learner")
        if self.classes is None and _is_classifier(self.estimator):
            raise ConfigError("a classifier needs all classes beforehand: pass classes=", "$.learner.classes")
        return self.kind.start(self, rng)

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """`epochs` of partial_fit from the federation's state. Raises DataError for an unknown class."""
        if ctx.pull is not None or ctx.moves is not None:
            raise MisuseError(
                "scikit-learn's own loss takes no extra term: choose an algorithm such as fedavg"
            )
        x, y = self._rows(data)
        if not len(x):
            return Contribution(params.zeros(), 0.0)
        fresh = Update.of(self.kind.learn(self, params, x, y, ctx.rng))
        return Contribution(fresh - params, float(len(x)), steps=self.epochs * self._number(len(x)))

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        """Accuracy of a classifier, mse of a regressor, mean squared distance of clusters."""
        x, y = self._rows(data)
        model = self.model(params)
        if _is_classifier(self.estimator):
            return {"accuracy": float(np.mean(model.predict(x) == y))}
        if hasattr(model, "cluster_centers_"):
            return {"loss": float(np.mean(model.transform(x).min(axis=1) ** 2))}
        return {"mse": float(np.mean((model.predict(x) - y) ** 2))}

    def model(self, params: Leaves) -> Any:
        """A fitted scikit-learn estimator with the federation's state."""
        return self.kind.model(self, params)

    def answers(self, params: Update, x: Any) -> dict[str, Array]:
        """What the exported model answers to rows x, from the estimator itself: see sklearn_graph.py."""
        from . import sklearn_graph

        return sklearn_graph.answers(self.model(params), x)

    def export(self, params: Update, path: str | Path, example: Any) -> None:
        """Write the model as ONNX for rows shaped as those of `example`, in float32.

        Raises ConfigError for an estimator that is not linear, an MLP, GaussianNB or MiniBatchKMeans,
        or without the onnx package; StateError where the file cannot be written.
        """
        from . import sklearn_graph

        sklearn_graph.export(self.model(params), path, np.shape(example)[1:])

    def fresh(self, rng: np.random.Generator) -> Any:
        """An unfitted copy of the estimator on this random stream."""
        from sklearn.base import clone

        estimator = clone(self.estimator)
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=int(rng.integers(2**31)))
        return estimator

    def go_on(self, estimator: Any, x: Array, y: Array, rng: np.random.Generator) -> None:
        """All epochs of partial_fit, rows in a new order each time."""
        more = {} if self.classes is None else {"classes": np.asarray(self.classes)}
        for batch in self.batches(len(x), rng):
            estimator.partial_fit(x[batch], y[batch], **more)

    def batches(self, n: int, rng: np.random.Generator) -> Iterator[Array]:
        """Row numbers of each partial_fit: every epoch all n rows, in a new order."""
        for _ in range(self.epochs):
            yield from np.array_split(rng.permutation(n), self._number(n))

    def _number(self, n: int) -> int:
        return -(-n // self.batch_size) if self.batch_size else 1

    def _rows(self, data: Any) -> tuple[Array, Array]:
        x, y = np.asarray(data.x, np.float64), np.asarray(data.y)
        x = x.reshape(len(x), -1) if len(x) else x.reshape(0, self.features)
        if x.shape[1] != self.features:
            raise DataError(f"expected {self.features} columns, this site has {x.shape[1]}")
        if self.classes is not None and not np.isin(y, np.asarray(self.classes)).all():
            raise DataError("this site has a label that is not declared: add it to classes=")
        return x, y


def sklearn_learner(
    estimator: Any,
    classes: Sequence[Any] | None = None,
    epochs: int = 1,
    batch_size: int | None = None,
    *,
    averaged: Sequence[str] | None = None,
    features: int = 0,
) -> SklearnLearner:
    """A scikit-learn estimator with `partial_fit` as a learner.

    `classes`: all labels of the federation, None for a regressor or 0..k-1 by the data.
    `epochs`: passes over a client's rows in a round. `batch_size`: rows of one partial_fit, None for
    all. `averaged`: the fitted attributes that are its parameters, for an estimator that is not in
    the table. `features`: columns of x where the data are a plain list of sites.
    Raises ConfigError for an estimator that cannot be federated so.
    """
    if not hasattr(estimator, "partial_fit"):
        raise ConfigError(
            f"{type(estimator).__name__} has no partial_fit: it cannot go on from a given state"
        )
    if epochs < 1 or (batch_size is not None and batch_size < 1):
        raise ConfigError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
    if getattr(estimator, "average", False):
        raise ConfigError("average=True averages over steps what rounds average over sites: leave it False")
    kind = Averaged(tuple(averaged)) if averaged else kind_of(estimator)
    return SklearnLearner(
        estimator, kind, None if classes is None else tuple(classes), epochs, batch_size, features
    )


def _named() -> dict[str, Any]:
    """The estimators that a job file may name."""
    from sklearn import cluster, linear_model, naive_bayes, neural_network

    makers = (
        linear_model.SGDClassifier,
        linear_model.SGDRegressor,
        linear_model.Perceptron,
        neural_network.MLPClassifier,
        neural_network.MLPRegressor,
        cluster.MiniBatchKMeans,
        naive_bayes.GaussianNB,
    )
    return {make.__name__: make for make in makers}


@part("learner", "sklearn")
def named(
    estimator: str,
    options: Mapping[str, Any] | None = None,
    classes: list[Any] | None = None,
    epochs: int = 1,
    batch_size: int | None = None,
) -> SklearnLearner:
    """A scikit-learn estimator by its name, with its own parameters in `options`.

    Raises ConfigError for a name that is not among those known here, or for a wrong option.
    """
    makers = _named()
    if estimator not in makers:
        raise ConfigError(
            f"no estimator is called {estimator!r}: {nearest(estimator, makers)}", "$.estimator"
        )
    try:
        made = makers[estimator](**(options or {}))
    except TypeError as error:
        raise ConfigError(str(error), "$.options") from None
    return sklearn_learner(made, classes, epochs, batch_size)


def _is_classifier(estimator: Any) -> bool:
    from sklearn.base import is_classifier

    return bool(is_classifier(estimator))
