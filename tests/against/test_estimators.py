"""Federated estimators against scikit-learn's on the pooled rows."""

import warnings

import numpy as np
import pytest
from sklearn import cluster, datasets, decomposition, impute, linear_model, preprocessing

from atoll import estimators

RNG = np.random.default_rng(7)


def uneven(n, sites=5):
    """Sites of very different sizes, one with a single row."""
    site = RNG.choice(sites, n, p=np.array([0.5, 0.3, 0.1, 0.07, 0.03]))
    site[0] = 9
    return site


def rough(n=300, d=4):
    """Columns of very different scale and place, some far from 0 for their spread."""
    return RNG.normal(size=(n, d)) * [1e-5, 1.0, 1e6, 3.0] + [1.0, -2.0, 0.0, 4000.0]


def with_gaps(x, share=0.1):
    x = x.copy()
    x[RNG.random(x.shape) < share] = np.nan
    return x


@pytest.mark.parametrize("intercept", [True, False])
def test_linear_regression(intercept):
    x, y = datasets.load_diabetes(return_X_y=True)
    ours = estimators.FederatedLinearRegression(fit_intercept=intercept).fit(x, y, groups=uneven(len(x)))
    theirs = linear_model.LinearRegression(fit_intercept=intercept).fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-9)
    assert ours.n_iter_ <= 2


def test_linear_regression_on_columns_of_any_scale():
    x = rough()
    y = x @ [1e5, 2.0, 1e-6, 3.0] + RNG.normal(size=len(x))
    ours = estimators.FederatedLinearRegression().fit(x, y, groups=uneven(len(x)))
    scale = preprocessing.StandardScaler().fit(x)  # on x as it is, theirs takes the small column for noise
    theirs = linear_model.LinearRegression().fit(scale.transform(x), y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_ / scale.scale_, rtol=1e-6)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
def test_ridge(alpha, intercept):
    x, y = datasets.load_diabetes(return_X_y=True)
    ours = estimators.FederatedRidge(alpha=alpha, fit_intercept=intercept).fit(x, y, groups=uneven(len(x)))
    theirs = linear_model.Ridge(alpha=alpha, fit_intercept=intercept, solver="svd").fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_logistic_regression_of_two_classes(C, intercept):
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = preprocessing.StandardScaler().fit_transform(x)
    ours = estimators.FederatedLogisticRegression(C=C, fit_intercept=intercept).fit(
        x, y, groups=uneven(len(x))
    )
    theirs = linear_model.LogisticRegression(
        C=C, fit_intercept=intercept, solver="newton-cholesky", tol=1e-12
    ).fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)


def test_logistic_regression_of_unscaled_columns_bears_the_penalty_of_those_columns():
    x, y = datasets.load_wine(return_X_y=True)
    ours = estimators.FederatedLogisticRegression().fit(x, y == 1, groups=uneven(len(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their optimiser complains about the same columns
        theirs = linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(
            x, y == 1
        )
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)


def test_logistic_regression_of_three_classes():
    x, y = datasets.load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    ours = estimators.FederatedLogisticRegression().fit(x, names, groups=names)  # each site has one class
    theirs = linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(x, names)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)
    assert list(ours.classes_) == list(theirs.classes_)


@pytest.mark.parametrize("n_components", [None, 2, 0.9])
@pytest.mark.parametrize("whiten", [False, True])
def test_pca(n_components, whiten):
    x, _ = datasets.load_wine(return_X_y=True)
    x = preprocessing.StandardScaler().fit_transform(x) + 3.0
    ours = estimators.FederatedPCA(n_components, whiten=whiten).fit(x, groups=uneven(len(x)))
    theirs = decomposition.PCA(n_components, whiten=whiten, svd_solver="full").fit(x)
    for name in (
        "components_",
        "explained_variance_",
        "explained_variance_ratio_",
        "singular_values_",
        "mean_",
    ):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-8, err_msg=name)
    np.testing.assert_allclose(ours.noise_variance_, theirs.noise_variance_, atol=1e-8)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), atol=1e-8)
    np.testing.assert_allclose(
        ours.inverse_transform(ours.transform(x)), theirs.inverse_transform(theirs.transform(x))
    )


@pytest.mark.parametrize("tol", [0.0, 1e-4])
def test_kmeans_takes_lloyds_steps(tol):
    x, _ = datasets.load_iris(return_X_y=True)
    start = x[[0, 60, 120]]
    ours = estimators.FederatedKMeans(3, init=start, tol=tol).fit(x, groups=uneven(len(x)))
    theirs = cluster.KMeans(3, init=start, n_init=1, tol=tol, algorithm="lloyd").fit(x)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-9)
    assert np.array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.inertia_, theirs.inertia_)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), atol=1e-9)


def test_kmeans_finds_the_clusters_by_itself():
    x, y = datasets.make_blobs(400, centers=5, cluster_std=0.3, random_state=3)
    ours = estimators.FederatedKMeans(5, random_state=0).fit(x, groups=y)  # each site has one cluster
    theirs = cluster.KMeans(5, n_init=10, random_state=0).fit(x)
    np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol=1e-6)


SCALERS = [
    ("StandardScaler", {}),
    ("StandardScaler", {"with_mean": False}),
    ("StandardScaler", {"with_std": False}),
    ("MinMaxScaler", {"feature_range": (-1, 2)}),
    ("MaxAbsScaler", {}),
    ("RobustScaler", {}),
    ("RobustScaler", {"quantile_range": (10.0, 80.0), "unit_variance": True}),
]


@pytest.mark.parametrize(("name", "values"), SCALERS, ids=str)
@pytest.mark.parametrize("gaps", [False, True])
def test_scalers(name, values, gaps):
    x = with_gaps(rough()) if gaps else rough()
    x = np.column_stack([x, np.full(len(x), 0.1)])  # and one that does not vary
    ours = getattr(estimators, f"Federated{name}")(**values).fit(x, groups=uneven(len(x)))
    theirs = getattr(preprocessing, name)(**values).fit(x)
    for attribute in (a for a in vars(theirs) if a.endswith("_") and not a.startswith("n_features")):
        mine, other = getattr(ours, attribute), getattr(theirs, attribute)
        assert (mine is None) == (other is None), attribute
        if other is not None:
            np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-18, err_msg=attribute)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), rtol=1e-9, atol=1e-9)


WORDS = np.array([["b", 2], ["a", 1], ["b", 1], ["c", 3], ["a", 2], ["b", 2], [None, 2], ["d", 1]], object)
ENCODERS = [
    ("OneHotEncoder", {"sparse_output": False}),
    ("OneHotEncoder", {"sparse_output": False, "drop": "first"}),
    ("OneHotEncoder", {"sparse_output": False, "min_frequency": 2}),
    ("OneHotEncoder", {"sparse_output": False, "max_categories": 3, "handle_unknown": "infrequent_if_exist"}),
    ("OrdinalEncoder", {}),
    ("OrdinalEncoder", {"min_frequency": 2}),
]


@pytest.mark.parametrize(("name", "values"), ENCODERS, ids=str)
def test_encoders(name, values):
    ours = getattr(estimators, f"Federated{name}")(**values).fit(WORDS, groups=np.arange(len(WORDS)) % 3)
    theirs = getattr(preprocessing, name)(**values).fit(WORDS)
    assert [list(c) for c in ours.categories_] == [list(c) for c in theirs.categories_]
    assert np.array_equal(ours.transform(WORDS), theirs.transform(WORDS), equal_nan=True)
    assert list(ours.get_feature_names_out()) == list(theirs.get_feature_names_out())


def test_encoders_of_numbers_with_gaps():
    x = with_gaps(RNG.integers(0, 4, (40, 2)).astype(float))
    ours = estimators.FederatedOneHotEncoder(sparse_output=False).fit(x, groups=uneven(40))
    theirs = preprocessing.OneHotEncoder(sparse_output=False).fit(x)
    assert np.array_equal(ours.transform(x), theirs.transform(x))


def test_label_encoder():
    labels = np.array(["b", "a", "c", "a"])
    ours = estimators.FederatedLabelEncoder()
    assert np.array_equal(ours.fit_transform(labels, groups=[0, 0, 1, 1]), [1, 0, 2, 0])
    assert list(ours.inverse_transform([2, 0])) == ["c", "a"]


@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent", "constant"])
@pytest.mark.parametrize("add_indicator", [False, True])
def test_imputer_of_numbers(strategy, add_indicator):
    x = with_gaps(np.round(rough(), 1))
    values = {"strategy": strategy, "add_indicator": add_indicator}
    ours = estimators.FederatedSimpleImputer(**values).fit(x, groups=uneven(len(x)))
    theirs = impute.SimpleImputer(**values).fit(x)
    np.testing.assert_allclose(ours.statistics_.astype(float), theirs.statistics_.astype(float), rtol=1e-12)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), rtol=1e-12)


def test_imputer_of_words():
    x = np.array([["a"], ["b"], [np.nan], ["b"]], object)
    ours = estimators.FederatedSimpleImputer(strategy="most_frequent").fit(x, groups=[0, 0, 1, 1])
    assert ours.transform(x)[2, 0] == "b"


@pytest.mark.parametrize("loss", ["log_loss", "hinge", "modified_huber"])
def test_sgd_classifier_comes_near_the_pooled_one(loss):
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = preprocessing.StandardScaler().fit_transform(x)
    ours = estimators.FederatedSGDClassifier(loss, alpha=0.01, random_state=0).fit(
        x, y, groups=uneven(len(x))
    )
    theirs = linear_model.SGDClassifier(loss=loss, alpha=0.01, random_state=0).fit(x, y)
    assert ours.score(x, y) > theirs.score(x, y) - 0.02
    assert ours.coef_.shape == theirs.coef_.shape
    assert np.abs(ours.intercept_).max() > 0  # intercepts are averaged too


def test_sgd_regressor_comes_near_the_pooled_one():
    x, y = datasets.load_diabetes(return_X_y=True)
    x = preprocessing.StandardScaler().fit_transform(x)
    ours = estimators.FederatedSGDRegressor(random_state=0).fit(x, y, groups=uneven(len(x)))
    theirs = linear_model.SGDRegressor(random_state=0).fit(x, y)
    assert ours.score(x, y) > theirs.score(x, y) - 0.02
