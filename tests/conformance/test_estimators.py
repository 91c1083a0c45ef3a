"""scikit-learn's own checks over every federated estimator, and what a user of it expects besides."""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from atoll import estimators

# LabelEncoder encodes targets, not rows: scikit-learn's checks do not apply to its own either.
NO_ROWS = {"FederatedLabelEncoder"}
# Three starts of k-means are as good for these checks as ten. SGD's checks do not look at how many
# rounds it took, and the data of some are not scaled.
QUICK = {
    "FederatedKMeans": {"n_init": 3},
    "FederatedSGDClassifier": {"rounds": 5},
    "FederatedSGDRegressor": {"rounds": 5},
}
# estimator -> check -> why it may fail. None does: the table is here for the next one.
EXPECTED: dict[str, dict[str, str]] = {}

ALL = [getattr(estimators, name) for name in estimators.__all__ if name not in NO_ROWS]


def quick(kind):
    return kind(**QUICK.get(kind.__name__, {}))


@parametrize_with_checks(
    [quick(kind) for kind in ALL], expected_failed_checks=lambda est: EXPECTED.get(type(est).__name__, {})
)
@pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore::sklearn.exceptions.SkipTestWarning"
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


X = np.random.default_rng(0).normal(size=(60, 3))
Y = (X[:, 0] + 0.3 * X[:, 1] > 0).astype(int)
SITE = np.repeat(["north", "south", "west"], [30, 20, 10])
NEEDS_Y = {"Classifier", "Regressor", "Regression", "Ridge"}


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_groups_and_a_list_of_sites_are_the_same(kind):
    first, second = quick(kind), quick(kind)
    for estimator in (first, second):
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=0)
    if "sparse_output" in first.get_params():
        first.sparse_output = second.sparse_output = False
    needs_y = any(kind.__name__.endswith(end) for end in NEEDS_Y)
    parts = [(X[s == SITE], Y[s == SITE]) for s in ("north", "south", "west")]
    first.fit(X, Y if needs_y else None, groups=SITE)
    second.fit(parts if needs_y else [x for x, _ in parts])
    use = "predict" if hasattr(first, "predict") else "transform"
    assert np.array_equal(getattr(first, use)(X), getattr(second, use)(X))
    assert first.run_.history[-1]["clients"] == 3


def test_groups_reach_a_pipeline_by_fit_params():
    pipe = make_pipeline(estimators.FederatedStandardScaler(), estimators.FederatedLogisticRegression())
    names = list(pipe.named_steps)
    pipe.fit(X, Y, **{f"{name}__groups": SITE for name in names})
    assert pipe[-1].run_.history[-1]["clients"] == 3
    assert pipe.score(X, Y) > 0.9


def test_groups_reach_a_pipeline_by_metadata_routing():
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = make_pipeline(
            estimators.FederatedStandardScaler().set_fit_request(groups=True),
            estimators.FederatedLogisticRegression().set_fit_request(groups=True),
        )
        pipe.fit(X, Y, groups=SITE)
    assert [step.run_.history[-1]["clients"] for step in pipe] == [3, 3]


def test_data_frames_keep_their_names_and_give_them_out():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    scaler = estimators.FederatedStandardScaler().fit(frame, groups=SITE)
    assert list(scaler.feature_names_in_) == ["a", "b", "c"]
    assert list(estimators.FederatedPCA(2).fit(frame, groups=SITE).get_feature_names_out()) == [
        "federatedpca0",
        "federatedpca1",
    ]


def test_sites_of_data_frames_with_categories():
    sites = [pd.DataFrame({"ward": ["a", "b"], "n": [1, 2]}), pd.DataFrame({"ward": ["c"], "n": [2]})]
    encoder = estimators.FederatedOneHotEncoder(sparse_output=False).fit(sites)
    assert [list(found) for found in encoder.categories_] == [["a", "b", "c"], [1, 2]]
    assert encoder.transform(sites[1]).tolist() == [[0, 0, 1, 0, 1]]


def test_a_fitted_estimator_pickles_without_its_run():
    model = estimators.FederatedRidge().fit(X, Y, groups=SITE)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301  scikit-learn's users do; our own code never
    assert np.array_equal(again.predict(X), model.predict(X))
    assert not hasattr(again, "run_")


def test_separable_classes_without_penalty_say_so():
    with pytest.warns(sklearn.exceptions.ConvergenceWarning, match="separable"):
        estimators.FederatedLogisticRegression(C=np.inf, max_iter=5).fit(X[:, :1], (X[:, 0] > 0).astype(int))


def test_groups_of_another_length_are_refused():
    with pytest.raises(ValueError, match="groups must name the site of each of the 60 rows"):
        estimators.FederatedRidge().fit(X, Y, groups=SITE[:-1])


def test_one_class_in_the_whole_federation_is_refused():
    with pytest.raises(ValueError, match="2 classes"):
        estimators.FederatedLogisticRegression().fit(X, np.zeros(len(X), int), groups=SITE)


@pytest.mark.parametrize("kind", ["FederatedLogisticRegression", "FederatedSGDClassifier"])
def test_a_site_with_one_class_takes_part(kind):
    site = np.where(Y == 1, "ill", "healthy")
    model = getattr(estimators, kind)(**({"random_state": 0} if "SGD" in kind else {})).fit(X, Y, groups=site)
    assert model.score(X, Y) > 0.8
    assert model.run_.history[-1]["clients"] == 2
