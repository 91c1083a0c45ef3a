"""What a served model's answers come to: figures to watch, errors, losses. Answers: learn/dense_graph.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 8  # answers of one row that are watched one by one; of more, the largest


def said(answers: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """(n, k): a classifier's scores, else the values."""
    found = next((a for a in answers.values() if a.dtype.kind == "f"), None)
    if found is None:
        found = next(iter(answers.values()))
    table = np.asarray(found, np.float32).reshape(len(found), -1)
    return table if table.shape[1] <= MOST else table.max(axis=1, keepdims=True)


def errors(answers: Mapping[str, NDArray[Any]], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): 1 for a wrong class and 0 for the right one, else how far a value is off; NaN without a label."""
    if "label" in answers:
        wrong = (np.asarray(answers["label"], np.float64) != labels).astype(np.float64)
        return np.where(np.isnan(labels), np.nan, wrong)
    return np.abs(said(answers)[:, 0].astype(np.float64) - labels)


def losses(answers: Mapping[str, NDArray[Any]], labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): the log loss of the label where there are probabilities, else 0 or 1; a value's squared error."""
    if "label" not in answers:
        return np.square(errors(answers, labels))
    if "probabilities" not in answers:
        return errors(answers, labels)
    p = np.asarray(answers["probabilities"], np.float64)
    at = labels.astype(np.intp)
    known = (at >= 0) & (at < p.shape[1])
    return np.where(known, -np.log(np.clip(p[np.arange(len(p)), np.where(known, at, 0)], 1e-7, 1.0)), np.nan)
