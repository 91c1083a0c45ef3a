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
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import ConfigError, DataError, MisuseError
from atoll.core.message import Contribution, FitContext
from atoll.core.registry import nearest, part
from atoll.core.update import Update

Array: TypeAlias = NDArray[Any]
Leaves: TypeAlias = Mapping[str, Array]


class Kind(Protocol):
    """How one kind of estimator starts, learns and is made again from its leaves.

    `bounds`: the largest change of each leaf. `start`: the first leaves. `learn`: the leaves after
    training on x and y from `params`. `model`: a fitted estimator with these leaves.
    """

    def bounds(self, learner: SklearnLearner) -> Mapping[str, float]: ...

    def start(self, learner: SklearnLearner, rng: np.random.Generator) -> Leaves: ...

    def learn(
        self, learner: SklearnLearner, params: Update, x: Array, y: Array, rng: np.random.Generator
    ) -> Leaves: ...

    def model(self, learner: SklearnLearner, params: Leaves) -> Any: ...


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

    def sized(self, features: int, outputs: int) -> SklearnLearner:
        """The same for data of this width; a classifier without classes gets 0..outputs-1."""
        classes = self.classes
        if classes is None and _is_classifier(self.estimator):
            classes = tuple(range(outputs))
        return replace(self, features=features, classes=classes)

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


@dataclass(frozen=True)
class Averaged:
    """Attributes that are parameters. `zero`: those that start at zero, the others as a first fit
    leaves them.
    """

    names: tuple[str, ...]
    zero: tuple[str, ...] = ()

    def bounds(self, learner: SklearnLearner) -> Mapping[str, float]:
        """Wide: the first steps on rows that are not scaled are long, and coefficients pass through 0."""
        return dict.fromkeys(self._read(self._template(learner)), 2.0**40)

    def start(self, learner: SklearnLearner, rng: np.random.Generator) -> Leaves:
        """The leaves of a template: an estimator that saw one blank row of each class."""
        leaves = self._read(self._template(learner))
        return {n: np.zeros_like(a) if n in self.zero else a for n, a in leaves.items()}

    def learn(
        self, learner: SklearnLearner, params: Update, x: Array, y: Array, rng: np.random.Generator
    ) -> Leaves:
        """The leaves after training from `params`."""
        estimator = self.model(learner, params)
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=int(rng.integers(2**31)))
        learner.go_on(estimator, x, y, rng)
        return self._read(estimator)

    def model(self, learner: SklearnLearner, params: Leaves) -> Any:
        """The template with these leaves in place."""
        estimator = deepcopy(self._template(learner))
        for name in self.names:
            old = getattr(estimator, name)
            if isinstance(old, list):
                setattr(estimator, name, [np.array(params[f"{name}.{i}"]) for i in range(len(old))])
            else:
                setattr(estimator, name, _like(old, params[name]))
        return estimator

    def _template(self, learner: SklearnLearner) -> Any:
        estimator = learner.fresh(np.random.default_rng(0))
        blank = np.zeros((len(learner.classes or (0,)), learner.features))
        more = {} if learner.classes is None else {"classes": np.asarray(learner.classes)}
        estimator.partial_fit(blank, np.asarray(learner.classes or (0.0,)), **more)
        return estimator

    def _read(self, estimator: Any) -> Leaves:
        leaves: dict[str, Array] = {}
        for name in self.names:
            value = getattr(estimator, name)
            if isinstance(value, list):
                leaves |= {f"{name}.{i}": np.asarray(v, np.float64) for i, v in enumerate(value)}
            else:
                leaves[name] = np.array(value, np.float64)
        return leaves


@dataclass(frozen=True)
class Clusters:
    """Centres weighted by rows: leaves are each cluster's share of all rows, and share x centre.

    Their averages by rows are sums over the federation, so centre = moment / share is the mean of
    all rows that joined. `_KEEP` rows at the old centre let an empty cluster stay where it is.
    """

    _KEEP = 2.0**-30

    def bounds(self, learner: SklearnLearner) -> Mapping[str, float]:
        """Shares, and means over rows."""
        return {"share": 2.0, "moment": 2.0**30}

    def start(self, learner: SklearnLearner, rng: np.random.Generator) -> Leaves:
        """The estimator's own `init` where it is an array, else standard normal: standardise first."""
        k, given = learner.estimator.n_clusters, learner.estimator.init
        centres = (
            rng.standard_normal((k, learner.features))
            if isinstance(given, str)
            else np.asarray(given, np.float64)
        )
        if centres.shape != (k, learner.features):
            raise ConfigError(
                f"init must hold {k} centres of {learner.features} columns, got shape {centres.shape}"
            )
        return {"share": np.full(k, 1.0 / k), "moment": centres / k}

    def learn(
        self, learner: SklearnLearner, params: Update, x: Array, y: Array, rng: np.random.Generator
    ) -> Leaves:
        """Shares and moments after partial_fit from the federation's centres."""
        old = params["moment"] / params["share"][:, None]
        estimator = learner.fresh(rng).set_params(init=old, n_init=1, reassignment_ratio=0.0)
        for batch in learner.batches(len(x), rng):
            estimator.partial_fit(x[batch])
        share = np.asarray(estimator._counts, np.float64)
        share = share / share.sum()
        moment = share[:, None] * estimator.cluster_centers_ + self._KEEP * old
        return {"share": share + self._KEEP, "moment": moment}

    def model(self, learner: SklearnLearner, params: Leaves) -> Any:
        """A fitted estimator with the federation's centres."""
        centres = np.array(params["moment"] / np.asarray(params["share"])[:, None])
        estimator = learner.fresh(np.random.default_rng(0)).set_params(init=centres, n_init=1)
        estimator.partial_fit(centres)  # every centre is the mean of itself
        estimator.cluster_centers_ = centres
        return estimator


@dataclass(frozen=True)
class Gaussian:
    """Naive Bayes from sufficient statistics: leaves are means over rows of 1, x and x² of each
    class, so their averages by rows are the pooled ones.
    """

    def bounds(self, learner: SklearnLearner) -> Mapping[str, float]:
        """Shares, and means over rows of x and x²: |x| up to 10^6."""
        return {"share": 2.0, "first": 2.0**20, "second": 2.0**40}

    def start(self, learner: SklearnLearner, rng: np.random.Generator) -> Leaves:
        """No row seen."""
        k = len(learner.classes or ())
        return {
            "share": np.zeros(k),
            "first": np.zeros((k, learner.features)),
            "second": np.zeros((k, learner.features)),
        }

    def learn(
        self, learner: SklearnLearner, params: Update, x: Array, y: Array, rng: np.random.Generator
    ) -> Leaves:
        """This site's means; they do not depend on `params`."""
        member = (y[:, None] == np.asarray(learner.classes)).astype(np.float64) / len(y)  # (n, k)
        return {"share": member.sum(axis=0), "first": member.T @ x, "second": member.T @ (x * x)}

    def model(self, learner: SklearnLearner, params: Leaves) -> Any:
        """GaussianNB as if fitted on the pooled rows; classes nobody has get no share.

        Before the first round all classes are alike.
        """
        seen = bool(np.any(params["share"]))
        share = np.array(params["share"]) if seen else np.ones(len(params["share"]))
        rows = np.maximum(share, np.finfo(np.float64).tiny)[:, None]
        estimator = learner.fresh(np.random.default_rng(0))
        overall = params["second"].sum(axis=0) - params["first"].sum(axis=0) ** 2
        estimator.epsilon_ = estimator.var_smoothing * max(float(overall.max()), 0.0) if seen else 1.0
        estimator.classes_ = np.asarray(learner.classes)
        estimator.n_features_in_ = learner.features
        estimator.class_count_ = share
        estimator.theta_ = params["first"] / rows
        estimator.var_ = np.maximum(params["second"] / rows - estimator.theta_**2, 0.0) + estimator.epsilon_
        estimator.class_prior_ = (
            share / share.sum() if estimator.priors is None else np.asarray(estimator.priors)
        )
        return estimator


# t_ counts steps and sets the learning rate: averaged, so that rates fall as they do in one place
_LINEAR = Averaged(("coef_", "intercept_", "t_"), zero=("coef_", "intercept_"))
_KINDS: dict[str, Kind] = {
    "BaseSGD": _LINEAR,  # SGDClassifier, SGDRegressor, Perceptron, PassiveAggressive...
    "MLPClassifier": Averaged(("coefs_", "intercepts_")),
    "MLPRegressor": Averaged(("coefs_", "intercepts_")),
    "MiniBatchKMeans": Clusters(),
    "GaussianNB": Gaussian(),
}


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
    kind = Averaged(tuple(averaged)) if averaged else _kind(estimator)
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


def _kind(estimator: Any) -> Kind:
    found = next((_KINDS[c.__name__] for c in type(estimator).__mro__ if c.__name__ in _KINDS), None)
    if found is None:
        raise ConfigError(
            f"which attributes of {type(estimator).__name__} are its parameters is not known:"
            ' name them, as in averaged=("coef_", "intercept_")'
        )
    return found


def _is_classifier(estimator: Any) -> bool:
    from sklearn.base import is_classifier

    return bool(is_classifier(estimator))


def _like(old: Any, new: Array) -> Any:
    """`new` as the type and shape that scikit-learn keeps."""
    if np.ndim(old) == 0:
        return type(old)(np.asarray(new).item())
    return np.array(new, np.asarray(old).dtype, order="C").reshape(np.shape(old))
