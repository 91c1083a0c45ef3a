"""scikit-learn's estimators as learners, against the same estimators on the pooled rows."""

import numpy as np
import pytest
from sklearn import cluster, datasets, linear_model, naive_bayes, neural_network, preprocessing, tree
from sklearn.base import BaseEstimator, RegressorMixin

from atoll.adapt.sklearn import sklearn_learner
from atoll.core.errors import ConfigError, MisuseError, QuorumError
from atoll.core.message import FitContext, Pull
from atoll.core.registry import build
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.data import Sites
from atoll.data.examples import Examples
from atoll.job import Job
from atoll.run import simulate
from atoll.statistics import classes

X, Y = datasets.load_iris(return_X_y=True)
X = preprocessing.StandardScaler().fit_transform(X)
RNG = np.random.default_rng(2)
ORDER = RNG.permutation(len(X))
MIXED = [Examples(X[part], Y[part]) for part in np.array_split(ORDER, [20, 60])]
ONE_CLASS = [Examples(X[c == Y], Y[c == Y]) for c in range(3)]


def fit(learner, sites, rounds=1, seed=0):
    run = simulate(Job(learner, rounds=rounds), sites, seed)
    return learner.model(run.params), run


@pytest.mark.parametrize("sites", [MIXED, ONE_CLASS], ids=["mixed", "one class each"])
def test_gaussian_naive_bayes_is_exact_in_one_round(sites):
    ours, _ = fit(sklearn_learner(naive_bayes.GaussianNB(), range(3), features=4), sites)
    theirs = naive_bayes.GaussianNB().fit(X, Y)
    np.testing.assert_allclose(ours.theta_, theirs.theta_, atol=1e-9)
    np.testing.assert_allclose(ours.var_, theirs.var_, atol=1e-9)
    np.testing.assert_allclose(ours.class_prior_, theirs.class_prior_, atol=1e-9)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-7)


def test_it_can_be_evaluated_before_the_first_round():
    sites = Sites.of([(part.x, part.y) for part in MIXED], [(part.x, part.y) for part in MIXED])
    run = simulate(Job(sklearn_learner(naive_bayes.GaussianNB()), rounds=1), sites)
    accuracy = [record["metrics"]["accuracy"] for record in run.history]
    assert accuracy == [pytest.approx(1 / 3, abs=0.1), naive_bayes.GaussianNB().fit(X, Y).score(X, Y)]


def test_a_class_that_no_site_has_gets_no_rows():
    ours, _ = fit(sklearn_learner(naive_bayes.GaussianNB(), range(4), features=4), ONE_CLASS)
    with np.errstate(divide="ignore"):
        assert np.array_equal(ours.predict(X), naive_bayes.GaussianNB().fit(X, Y).predict(X))


def test_centres_weigh_by_the_rows_that_joined_them():
    start = X[[0, 60, 120]]
    ours, _ = fit(sklearn_learner(cluster.MiniBatchKMeans(3, init=start, n_init=1), features=4), MIXED)
    joined = ((X[:, None] - start) ** 2).sum(axis=2).argmin(axis=1)
    means = np.stack([X[joined == k].mean(axis=0) for k in range(3)])  # one step of Lloyd on all rows
    np.testing.assert_allclose(ours.cluster_centers_, means, atol=1e-6)
    assert set(ours.predict(X)) == {0, 1, 2}


def test_clusters_of_one_site_each_are_found():
    start = X[[0, 60, 120]]
    ours, run = fit(
        sklearn_learner(cluster.MiniBatchKMeans(3, init=start, n_init=1), features=4), ONE_CLASS, 20
    )
    theirs = cluster.KMeans(3, init=start, n_init=1).fit(X)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=0.05)
    assert run.params["share"].sum() == pytest.approx(1)


def test_an_empty_cluster_stays_where_it_is():
    start = np.array([[0.0] * 4, [500.0] * 4])
    ours, _ = fit(sklearn_learner(cluster.MiniBatchKMeans(2, init=start, n_init=1), features=4), MIXED)
    np.testing.assert_allclose(ours.cluster_centers_[1], 500, rtol=1e-6)


def test_one_site_alone_is_partial_fit():
    learner = sklearn_learner(
        linear_model.SGDClassifier(loss="log_loss", shuffle=False), range(3), features=4
    )
    ctx = FitContext(Rng.of(0))
    start = Update.of(learner.init(np.random.default_rng(0)))
    given = learner.fit(start, MIXED[0], ctx)
    order = next(learner.batches(len(MIXED[0]), _after_seed(ctx)))
    theirs = linear_model.SGDClassifier(loss="log_loss", shuffle=False)
    theirs.partial_fit(np.zeros((3, 4)), range(3), range(3))
    theirs.coef_[:], theirs.intercept_[:] = 0, 0
    theirs.partial_fit(MIXED[0].x[order], MIXED[0].y[order])
    np.testing.assert_allclose(given.update["coef_"], theirs.coef_)
    np.testing.assert_allclose(given.update["intercept_"], theirs.intercept_)
    assert given.weight == len(MIXED[0])


def _after_seed(ctx):
    rng = ctx.rng
    rng.integers(2**31)  # the estimator's own stream is drawn first
    return rng


MODELS = [
    (linear_model.SGDClassifier(loss="log_loss", alpha=0.01), 0.9),
    (linear_model.Perceptron(), 0.8),
    (neural_network.MLPClassifier((8,), learning_rate_init=0.02, random_state=0), 0.85),
]


@pytest.mark.parametrize(("estimator", "least"), MODELS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("batch_size", [None, 16])
def test_classifiers_learn_and_are_deterministic(estimator, least, batch_size):
    learner = sklearn_learner(estimator, range(3), epochs=2, batch_size=batch_size, features=4)
    model, run = fit(learner, MIXED, rounds=20, seed=3)
    assert model.score(X, Y) >= least
    assert fit(learner, MIXED, rounds=20, seed=3)[1].params == run.params
    assert learner.evaluate(run.params, Examples(X, Y), FitContext(Rng.of(0)))["accuracy"] == model.score(
        X, Y
    )


def test_classes_of_one_site_each_still_learn():
    learner = sklearn_learner(linear_model.SGDClassifier(loss="log_loss", alpha=0.01), range(3), features=4)
    model, _ = fit(learner, ONE_CLASS, rounds=20)
    assert model.score(X, Y) > 0.8


def test_classes_need_not_be_numbers_from_zero():
    sites = [Examples(X[i::2], Y[i::2] * 10 + 5) for i in range(2)]
    model, _ = fit(
        sklearn_learner(linear_model.SGDClassifier(alpha=0.01), (5, 15, 25), features=4), sites, 10
    )
    assert set(model.predict(X)) <= {5, 15, 25}


def test_a_regressor_and_its_intercept():
    y = X @ [1.0, 2.0, 3.0, 4.0] + 10
    sites = [Examples(X[i::3], y[i::3]) for i in range(3)]
    learner = sklearn_learner(
        linear_model.SGDRegressor(penalty=None, learning_rate="constant", eta0=0.02), features=4
    )
    model, run = fit(learner, sites, rounds=40)
    assert model.intercept_[0] == pytest.approx(10, abs=0.1)
    assert learner.evaluate(run.params, sites[0], FitContext(Rng.of(0)))["mse"] < 0.1


def test_classes_can_be_asked_for():
    assert classes([Examples(part.x, part.y * 10 + 5) for part in ONE_CLASS]) == (5, 15, 25)


def test_a_job_file_names_an_estimator():
    learner = build("learner", {"name": "sklearn", "estimator": "SGDClassifier", "options": {"alpha": 0.1}})
    assert learner.estimator.alpha == 0.1
    with pytest.raises(ConfigError, match="did you mean 'GaussianNB'"):
        build("learner", {"name": "sklearn", "estimator": "GaussianNb"})
    with pytest.raises(ConfigError, match=r"\$\.options"):
        build("learner", {"name": "sklearn", "estimator": "SGDClassifier", "options": {"alpa": 0.1}})


def test_sites_say_the_width_and_the_classes():
    sites = Sites.of([(part.x, part.y) for part in MIXED], [(part.x, part.y) for part in MIXED])
    run = simulate(Job(sklearn_learner(linear_model.SGDClassifier()), rounds=3), sites)
    assert run.metrics["accuracy"] > 0.6


def test_another_estimator_by_its_attributes():
    class Mine(RegressorMixin, BaseEstimator):
        rate = 0.1

        def partial_fit(self, x, y):
            if not hasattr(self, "mean_"):
                self.mean_ = np.zeros(x.shape[1])
            self.mean_ = self.mean_ + self.rate * (x.mean(axis=0) - self.mean_)

        def predict(self, x):
            return x @ self.mean_

    model, _ = fit(sklearn_learner(Mine(), averaged=["mean_"], features=4), ONE_CLASS, rounds=100)
    np.testing.assert_allclose(model.mean_, X.mean(axis=0), atol=1e-3)


WRONG = [
    (lambda: sklearn_learner(tree.DecisionTreeClassifier()), "no partial_fit"),
    (lambda: sklearn_learner(cluster.Birch()), "name them"),
    (lambda: sklearn_learner(linear_model.SGDClassifier(average=True)), "leave it False"),
    (lambda: sklearn_learner(linear_model.SGDClassifier(), epochs=0), "at least 1"),
    (lambda: simulate(Job(sklearn_learner(linear_model.SGDClassifier(), range(3))), MIXED), "features="),
    (lambda: simulate(Job(sklearn_learner(linear_model.SGDClassifier(), features=4)), MIXED), "classes="),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_cannot_be_federated_is_refused_with_the_fix(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_undeclared_label_is_refused_without_showing_it():
    learner = sklearn_learner(linear_model.SGDClassifier(), (0, 1), features=4)
    with pytest.raises(QuorumError, match="a label that is not declared") as caught:
        simulate(Job(learner, rounds=3), [ONE_CLASS[2]])
    assert "2" not in str(caught.value).split("DataError")[1]


def test_terms_added_to_the_loss_are_refused():
    learner = sklearn_learner(linear_model.SGDClassifier(), range(3), features=4)
    with pytest.raises(MisuseError, match="fedavg"):
        learner.fit(Update.of(learner.init(RNG)), MIXED[0], FitContext(Rng.of(0), pull=Pull(0.1)))


def test_a_site_without_rows_says_nothing():
    learner = sklearn_learner(linear_model.SGDClassifier(), range(3), features=4)
    given = learner.fit(Update.of(learner.init(RNG)), Examples(X[:0], Y[:0]), FitContext(Rng.of(0)))
    assert given.weight == 0
    assert given.update.norm() == 0
