"""How unsure a classifier is of a row, and the doubt that only a share of local rows is above."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from .batch import Answers
from .model import Model

MEASURES = ("margin", "entropy")
BATCH = 256


class Doubt(NamedTuple):
    """Rows go up whose doubt by `measure` is above `threshold`; `share` of the held-out rows were."""

    measure: str
    threshold: float
    share: float


def doubt(answers: Answers, measure: str = "margin") -> NDArray[np.float64]:
    """How unsure a classifier is of each row, (n,) in [0, 1].

    "margin": 1 less the gap of the two best probabilities; "entropy": -Σ p log p over log(classes). Logits
    go through a softmax first. Raises DataError for answers that are no scores of two classes or more.
    """
    if measure not in MEASURES:
        raise ConfigError(f"doubt is measured by margin or entropy, got {measure!r}")
    p = answers.get("probabilities")
    if p is None:
        p = next((v for v in answers.values() if v.dtype.kind == "f"), np.empty(0))
    if p.ndim != 2 or p.shape[1] < 2:
        raise DataError("doubt needs a model that gives scores (n, classes) of two classes or more")
    p = p.astype(np.float64)
    if "probabilities" not in answers:
        p = np.exp(p - p.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
    if measure == "entropy":
        return np.clip(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=1) / np.log(p.shape[1]), 0, 1)  # type: ignore[no-any-return]
    best = np.partition(p, -2, axis=1)[:, -2:]
    return np.clip(1 - (best[:, 1] - best[:, 0]), 0, 1)  # type: ignore[no-any-return]


def calibrate(model: Model, rows: Any, share: float = 0.15, measure: str = "margin") -> Doubt:
    """The least threshold that at most `share` of the rows (n, ...) are above."""
    if not 0 < share <= 1:
        raise ConfigError(f"share is in (0, 1], got {share}")
    x = np.ascontiguousarray(rows, np.float32)
    found = np.sort(
        np.concatenate([doubt(model.run(x[at : at + BATCH]), measure) for at in range(0, len(x), BATCH)])
    )
    threshold = float(found[len(found) - 1 - int(share * len(found))]) if share < 1 else 0.0
    return Doubt(measure, threshold, float(np.mean(found > threshold)))
