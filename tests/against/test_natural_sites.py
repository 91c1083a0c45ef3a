"""Four hospitals and three qualities of product: exact federated models are the pooled ones."""

import os

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from atoll import data
from atoll.data.examples import Examples
from atoll.estimators import FederatedLogisticRegression, FederatedStandardScaler
from atoll.job import Job
from atoll.learn.newton import exact_newton, newton_learner
from atoll.run import simulate
from atoll.statistics import statistics

pytestmark = pytest.mark.skipif(
    not os.environ.get("ATOLL_DATA"), reason="set ATOLL_DATA to the folder of datasets"
)


def test_heart_disease_reaches_the_pooled_optimum_in_ten_rounds():
    heart = data.heart_disease()
    sites = [heart.train.x[heart.sites == hospital] for hospital in np.unique(heart.sites)]
    seen = statistics(sites)  # every hospital standardises by the federation's mean and deviation
    mean, std = seen.mean, np.sqrt(seen.variance * (seen.count - 1) / seen.count)
    x, held = (heart.train.x - mean) / std, (heart.test.x - mean) / std
    parts = [Examples(x[heart.sites == h], heart.train.y[heart.sites == h]) for h in np.unique(heart.sites)]

    job = Job(newton_learner("logistic", 13), exact_newton(l2=1.0), rounds=10, max_weight=1.0)
    run = simulate(job, parts)
    pooled = StandardScaler().fit(heart.train.x)
    best = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12).fit(
        pooled.transform(heart.train.x), heart.train.y
    )

    assert len(run.history) <= 10
    assert run.stopped
    np.testing.assert_allclose(run.params["w"], best.coef_, atol=1e-6)
    np.testing.assert_allclose(run.params["b"], best.intercept_, atol=1e-6)
    accuracy = np.mean((held @ run.params["w"][0] + run.params["b"][0] > 0) == heart.test.y)
    assert accuracy == pytest.approx(0.795, abs=0.005)


@pytest.mark.parametrize("C", [1.0, np.inf])
def test_heart_disease_by_the_estimators(C):
    heart = data.heart_disease()
    scaler = FederatedStandardScaler().fit(heart.train.x, groups=heart.sites)
    model = FederatedLogisticRegression(C=C).fit(
        scaler.transform(heart.train.x), heart.train.y, groups=heart.sites
    )
    assert model.n_iter_ <= 10
    assert model.score(scaler.transform(heart.test.x), heart.test.y) == pytest.approx(0.795, abs=0.005)


def test_ai4i_has_the_auc_of_the_pooled_model():
    rows = data.ai4i2020()
    scores = {"federated": np.zeros(len(rows.train)), "pooled": np.zeros(len(rows.train))}
    for fit, held in StratifiedKFold(5, shuffle=True, random_state=0).split(rows.train.x, rows.train.y):
        x, y, site = rows.train.x[fit], rows.train.y[fit], rows.sites[fit]
        scaler = FederatedStandardScaler().fit(x, groups=site)
        ours = FederatedLogisticRegression().fit(scaler.transform(x), y, groups=site)
        pooled = StandardScaler().fit(x)
        theirs = LogisticRegression().fit(pooled.transform(x), y)
        scores["federated"][held] = ours.decision_function(scaler.transform(rows.train.x[held]))
        scores["pooled"][held] = theirs.decision_function(pooled.transform(rows.train.x[held]))
    federated, central = (roc_auc_score(rows.train.y, score) for score in scores.values())
    assert federated == pytest.approx(central, abs=0.005)
    assert federated > 0.89
