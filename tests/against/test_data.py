"""Our data and measures against scikit-learn's and scipy's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from atoll.data import breast_cancer, diabetes, digits, dirichlet, heterogeneity, partition, wine
from atoll.data.heart import _COMPLETE, _held_out, complete_rows


def test_builtin_sets_equal_scikit_learns() -> None:
    sets = pytest.importorskip("sklearn.datasets")
    for ours, theirs, scale in (
        (digits(), sets.load_digits(), 16),
        (breast_cancer(), sets.load_breast_cancer(), 1),
        (wine(), sets.load_wine(), 1),
        (diabetes(), sets.load_diabetes(scaled=False), 1),
    ):
        np.testing.assert_array_equal(ours.train.x * scale, theirs.data)
        np.testing.assert_array_equal(ours.train.y, theirs.target)
        assert ours.features == tuple(theirs.feature_names)


def test_label_distances_equal_scipys() -> None:
    pytest.importorskip("sklearn")
    distance = pytest.importorskip("scipy.spatial.distance")
    found = heterogeneity(partition(digits(), 20, dirichlet(0.3), seed=1))
    p = found.counts / found.counts.sum(axis=1, keepdims=True)
    g = found.counts.sum(axis=0) / found.counts.sum()
    assert found.label_tv == pytest.approx(np.mean([distance.cityblock(q, g) / 2 for q in p]), abs=1e-12)
    js = [distance.jensenshannon(q, g, base=2) ** 2 for q in p]
    assert found.label_js == pytest.approx(np.mean(js), abs=1e-12)


@pytest.mark.skipif(not os.environ.get("ATOLL_DATA"), reason="set ATOLL_DATA to the folder of datasets")
def test_the_recorded_heart_split_is_scikit_learns() -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    for hospital, n in _COMPLETE.items():
        table = complete_rows(Path(os.environ["ATOLL_DATA"]) / "heart_disease" / f"processed.{hospital}.data")
        y = table[:, -1] > 0
        stratify = y if min(y.sum(), n - y.sum()) > 2 else None
        _, test = selection.train_test_split(
            np.arange(n), train_size=0.66, test_size=1 - 0.66, random_state=43, stratify=stratify
        )
        assert np.flatnonzero(_held_out(hospital)).tolist() == sorted(test)
