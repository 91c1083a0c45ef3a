"""Histograms of a federation: counts between agreed edges, summed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.core.message import Contribution, FitContext
from atoll.core.update import Update

from .table import cells


@dataclass(frozen=True, eq=False)
class Bins:
    """A learner that counts rows between `edges` (columns, bins + 1), rising: one round of `exact()`.

    Bins as in numpy.histogram, the last one closed; values outside and missing ones are not counted.
    """

    edges: NDArray[np.float64]

    @property
    def bounds(self) -> Mapping[str, float]:
        """Counts of rows."""
        return {"counts": 2.0**40}

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Zero counts, (columns, bins)."""
        return {"counts": np.zeros((len(self.edges), self.edges.shape[1] - 1))}

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """This site's counts."""
        columns = cells(data, len(self.edges)).T
        counts = [np.histogram(c[~np.isnan(c)], e)[0] for c, e in zip(columns, self.edges, strict=True)]
        return Contribution({"counts": np.asarray(counts, np.float64)})

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        """A histogram predicts nothing."""
        return {}
