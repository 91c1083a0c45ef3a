"""Sets that come with scikit-learn: at hand everywhere, without a download.

Columns stand as published (only the digits' pixels are scaled to 0..1), so standardise them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from atoll.core.errors import DataError
from atoll.core.registry import part

from .examples import Dataset, Examples

_SOURCE = "scikit-learn, from the UCI repository"


@part("data")
def digits() -> Dataset:
    """Handwritten digits, 1797 images of 8 x 8 as 64 columns, values 0..1, ten classes."""
    bunch = _bunch("load_digits")
    rows = Examples((bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64), bunch.feature_names)
    return _classes("digits", bunch, rows)


@part("data")
def breast_cancer() -> Dataset:
    """Wisconsin breast cancer, 569 rows, 30 columns, malignant or benign."""
    return _classes("breast_cancer", _bunch("load_breast_cancer"))


@part("data")
def wine() -> Dataset:
    """Wine recognition, 178 rows, 13 columns, three growers."""
    return _classes("wine", _bunch("load_wine"))


@part("data")
def diabetes() -> Dataset:
    """Diabetes progression after a year, 442 rows, 10 columns, a number to predict."""
    bunch = _bunch("load_diabetes", scaled=False)
    rows = Examples(bunch.data, bunch.target.astype(float), bunch.feature_names)
    source = "scikit-learn, from Efron, Hastie, Johnstone, Tibshirani 2004"
    return Dataset("diabetes", rows, task="regression", source=source)


def _bunch(loader: str, **options: Any) -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError("this dataset comes with scikit-learn: pip install scikit-learn") from error
    return getattr(datasets, loader)(**options)


def _classes(name: str, bunch: Any, rows: Examples | None = None) -> Dataset:
    rows = rows or Examples(bunch.data, bunch.target.astype(np.int64), bunch.feature_names)
    labels = tuple(map(str, bunch.target_names))
    return Dataset(name, rows, classes=labels, source=_SOURCE, licence="CC BY 4.0")
