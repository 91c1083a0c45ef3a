"""Exact methods on natural sites, against scikit-learn on the pooled rows: `python -m bench.exact`.

Needs ATOLL_DATA. Prints one JSON object a line: name, value, unit, against.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from atoll import data
from atoll.estimators import FederatedLogisticRegression, FederatedStandardScaler
from atoll.statistics import statistics


def heart() -> Iterator[dict[str, Any]]:
    """Four hospitals: accuracy on the pooled test rows, rounds, and the distance to the pooled optimum."""
    rows = data.heart_disease()
    test = rows.test or rows.train  # it has a split of its own
    scaler = FederatedStandardScaler().fit(rows.train.x, groups=rows.sites)
    x = scaler.transform(rows.train.x)
    ours = FederatedLogisticRegression().fit(x, rows.train.y, groups=rows.sites)
    theirs = LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(x, rows.train.y)
    held = scaler.transform(test.x)
    yield row("heart accuracy", ours.score(held, test.y), "share", theirs.score(held, test.y))
    yield row("heart rounds", ours.n_iter_, "rounds", 10)
    yield row("heart coefficient gap", float(np.abs(ours.coef_ - theirs.coef_).max()), "largest", 1e-6)


def ai4i() -> Iterator[dict[str, Any]]:
    """Three qualities of product: AUC on every fifth row."""
    rows = data.ai4i2020()
    held = np.arange(len(rows.train)) % 5 == 0
    x, y, site = rows.train.x[~held], rows.train.y[~held], np.asarray(rows.sites)[~held]
    scaler = FederatedStandardScaler().fit(x, groups=site)
    ours = FederatedLogisticRegression().fit(scaler.transform(x), y, groups=site)
    pooled = StandardScaler().fit(x)
    theirs = LogisticRegression().fit(pooled.transform(x), y)
    auc = [
        float(roc_auc_score(rows.train.y[held], model.decision_function(scale.transform(rows.train.x[held]))))
        for model, scale in ((ours, scaler), (theirs, pooled))
    ]
    yield row("ai4i auc", auc[0], "auc", auc[1])


def wide() -> Iterator[dict[str, Any]]:
    """How long all statistics of 100,000 rows of 30 columns on 20 sites take."""
    x = np.random.default_rng(0).normal(size=(100_000, 30))
    began = time.perf_counter()
    statistics(np.array_split(x, 20))
    took = time.perf_counter() - began
    began = time.perf_counter()
    np.quantile(x, (0, 0.25, 0.5, 0.75, 1), axis=0), np.cov(x.T)
    yield row("statistics of 100000 x 30", took, "s", time.perf_counter() - began)


def row(name: str, value: float, unit: str, against: float) -> dict[str, Any]:
    """One line of the table; `against`: the pooled figure, or the limit."""
    return {"name": name, "value": value, "unit": unit, "against": against}


if __name__ == "__main__":
    for measure in (heart, ai4i, wide):
        for line in measure():
            print(json.dumps(line))
