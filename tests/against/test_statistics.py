"""Federated statistics against numpy and pandas on the pooled rows."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

import atoll as at
from atoll import data
from atoll.core.errors import ConfigError, DataError, QuorumError
from atoll.statistics import moments, statistics, tallies

RNG = np.random.default_rng(11)


def table(n=400):
    """Columns far from 0 for their spread, huge, of few values, with a long tail, constant, with gaps."""
    x = np.column_stack(
        [
            RNG.normal(size=n) * 1e-6 + 5,
            RNG.normal(size=n) * 1e150,
            RNG.integers(0, 4, n),
            RNG.lognormal(0, 4, n),
            np.full(n, -0.1),
            RNG.normal(size=n) * 1e-300,
        ]
    )
    x[RNG.random(x.shape) < 0.1] = np.nan
    return x


X = table()
SITES = np.array_split(X, [1, 1, 250, 300])  # one row, none, and more


def exact_moments(column):
    """Mean and variance in exact rational arithmetic, rounded once."""
    values = column[~np.isnan(column)].tolist()
    mean = math.fsum(values) / len(values)
    scale = max(map(abs, values))
    squares = math.fsum(((v - mean) / scale) ** 2 for v in values)
    return mean, squares / (len(values) - 1) * scale**2


def test_moments_are_the_pooled_ones():
    found = statistics(SITES)
    for j, column in enumerate(X.T):
        mean, variance = exact_moments(column)
        np.testing.assert_allclose(found.mean[j], mean, rtol=1e-12)
        np.testing.assert_allclose(found.variance[j], variance, rtol=1e-12, atol=1e-30 if j == 4 else 0)
    assert np.array_equal(found.missing, np.isnan(X).sum(axis=0))
    assert np.array_equal(found.count, (~np.isnan(X)).sum(axis=0))


def test_covariance_and_correlation_are_pairwise_complete():
    x = RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 4)) + [0, 10, 100, 1000]
    x[RNG.random(x.shape) < 0.2] = np.nan
    found, theirs = statistics(np.array_split(x, 7)), pd.DataFrame(x)
    np.testing.assert_allclose(found.covariance, theirs.cov(), rtol=1e-10)
    centred = pd.DataFrame(x - np.nanmean(x, axis=0))
    np.testing.assert_allclose(found.covariance, centred.cov(), rtol=1e-12, atol=1e-14)


def test_correlation_of_complete_columns():
    x = RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 4))
    np.testing.assert_allclose(statistics(np.array_split(x, 3)).correlation, np.corrcoef(x.T), rtol=1e-12)


def test_quantiles_are_exact():
    shares = (0.0, 0.01, 0.25, 0.5, 0.731, 0.99, 1.0)
    found = statistics(SITES, quantiles=shares)
    for share in shares:
        assert np.array_equal(found.quantiles[share], np.nanquantile(X, share, axis=0))
    assert np.array_equal(found.min, np.nanmin(X, axis=0))
    assert np.array_equal(found.max, np.nanmax(X, axis=0))


def test_histograms_are_numpys():
    found = statistics([X[:, :4]], bins=7)
    for j in range(4):
        counts, edges = np.histogram(X[~np.isnan(X[:, j]), j], 7)
        assert np.array_equal(found.histogram[j], counts)
        np.testing.assert_allclose(found.edges[j], edges, rtol=1e-15)


@pytest.mark.parametrize("pieces", [1, 2, 13])
def test_how_the_rows_lie_changes_no_order_statistic(pieces):
    order = RNG.permutation(len(X))
    found = statistics(np.array_split(X[order], pieces))
    assert np.array_equal(found.quantiles[0.5], np.nanmedian(X, axis=0))


def test_the_order_of_sites_changes_nothing():
    forth, back = statistics(SITES), statistics(SITES[::-1])
    assert np.array_equal(forth.covariance, back.covariance, equal_nan=True)
    assert np.array_equal(forth.mean, back.mean)


def test_columns_without_values_are_nan():
    found = statistics([np.array([[np.nan, 1.0]]), np.array([[np.nan, 3.0]])])
    assert np.isnan(found.mean[0])
    assert np.isnan(found.min[0])
    assert found.missing.tolist() == [2, 0]
    assert found.mean[1] == 2
    assert "nan" in str(found)


def test_names_and_a_table_to_read():
    sites = data.Sites.of([(np.eye(3), [0, 1, 0])], columns=["age", "sex", "pulse"])
    text = str(statistics(sites))
    assert [line.split()[0] for line in text.splitlines()] == ["count", "age", "sex", "pulse"]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_standardised_sites_are_scikit_learns():
    rng = np.random.default_rng(3)
    parts = [(rng.normal(5 * k, 1 + k, (20 + k, 4)), np.zeros(20 + k, np.int64)) for k in range(3)]
    sites = at.Sites.of(
        [(np.c_[x, np.ones(len(x))], y) for x, y in parts],
        tests=[(x[:2] @ np.eye(4, 5), y[:2]) for x, y in parts],
    )
    theirs = StandardScaler().fit(sites.pooled().x)
    for ours, before in zip(at.standardise(sites), sites, strict=True):
        np.testing.assert_allclose(ours.x, theirs.transform(before.x), atol=1e-9)
    np.testing.assert_allclose(
        at.standardise(sites).tests[1].x, theirs.transform(sites.tests[1].x), atol=1e-9
    )
    together = at.standardise(sites, by="all")
    np.testing.assert_allclose(together.pooled().x.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(together.pooled().x.var(axis=0).mean(), 1)


def test_a_site_with_other_columns_is_named_as_the_reason():
    with pytest.raises(QuorumError, match="expected 2 columns, this site has 3"):
        statistics([np.ones((4, 2)), np.ones((4, 3))])


def test_infinite_cells_are_refused():
    with pytest.raises(QuorumError, match="infinite"):
        statistics([np.array([[1.0, np.inf]])])


def test_bad_questions_are_refused():
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        statistics(SITES, quantiles=(2,))
    with pytest.raises(DataError, match="names"):
        statistics(SITES, names=["a"])
    with pytest.raises(ConfigError, match="no sites"):
        statistics([])


def test_tallies_count_every_kind_of_value():
    a = np.array([["x", 1], ["y", np.nan], ["x", None]], object)
    b = np.array([["x", 1.0], ["z", True]], object)
    (words, others), _ = tallies([a, b], 2)
    assert words == {"x": 3, "y": 1, "z": 1}
    assert [(repr(k), n) for k, n in others.items()] == [("1", 3), ("None", 1), ("nan", 1)]


def test_moments_of_one_row():
    found, _ = moments([np.array([[2.5, -1.0]])], 2)
    assert found.mean.tolist() == [2.5, -1.0]
    assert found.variance(0).tolist() == [0.0, 0.0]
    assert np.isnan(found.variance()).all()
