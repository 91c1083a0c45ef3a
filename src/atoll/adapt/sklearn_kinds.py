"""What a scikit-learn estimator's state is, as leaves that may be averaged between sites.

Averaged   coefficients and intercepts: a plain average, weighted by rows (FedAvg)
Clusters   centres, each weighted by how many rows joined it (MiniBatchKMeans)
Gaussian   shares, sums and squares of each class: exact after one round (GaussianNB)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import ConfigError
from atoll.core.update import Update

if TYPE_CHECKING:
    from .sklearn import SklearnLearner

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
        estimator = self._template(learner)
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


def kind_of(estimator: Any) -> Kind:
    """The kind of a known estimator or a subclass of one. Raises ConfigError for another."""
    found = next((_KINDS[c.__name__] for c in type(estimator).__mro__ if c.__name__ in _KINDS), None)
    if found is None:
        raise ConfigError(
            f"which attributes of {type(estimator).__name__} are its parameters is not known:"
            ' name them, as in averaged=("coef_", "intercept_")'
        )
    return found


def _like(old: Any, new: Array) -> Any:
    """`new` as the type and shape that scikit-learn keeps."""
    if np.ndim(old) == 0:
        return type(old)(np.asarray(new).item())
    return np.array(new, np.asarray(old).dtype, order="C").reshape(np.shape(old))
