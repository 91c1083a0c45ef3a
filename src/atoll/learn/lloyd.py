"""k-means by Lloyd's algorithm on sums: the steps of the pooled run, to the last bit of the sums.

Lloyd 1982, "Least squares quantization in PCM": each row joins its nearest centre, each centre
moves to the mean of its rows. A site sends, for each centre, how many rows joined it and their
sum; their totals give the means (Dhillon, Modha 2000, "A data-clustering algorithm on distributed
memory multiprocessors", §3). A centre that nobody joined stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.core.message import Contribution, FitContext
from atoll.core.transform import Context, State, Transform, transform
from atoll.core.update import Update

from .table import present

Floats = NDArray[np.float64]
_ROWS = 2.0**36


@dataclass(frozen=True, eq=False)
class Lloyd:
    """A learner of centres; rounds of `exact(lloyd())` until they stand still.

    `start`: (k, d) first centres. Rows are best scaled so that no |x| exceeds 2^10 or so.
    """

    start: Floats

    @property
    def bounds(self) -> Mapping[str, float]:
        """Counts of rows, and sums over rows."""
        return {"count": _ROWS, "sum": _ROWS, "inertia": _ROWS}

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """The first centres (k, d), and the inertia of the centres before these, not yet known."""
        return {"centres": self.start, "inertia": np.zeros(1)}

    def contributes(self, params: Update) -> Update:
        """Zeros: count (k,), sum (k, d), inertia (1,)."""
        k, d = self.start.shape
        return Update.of({"count": np.zeros(k), "sum": np.zeros((k, d)), "inertia": np.zeros(1)})

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """Rows and their sum about the centre they join; sums of differences keep more digits."""
        k, d = self.start.shape
        x, centres = present(data, d), params["centres"]
        joined, distance = nearest(x, centres)
        total = np.zeros((k, d))
        np.add.at(total, joined, x - centres[joined])
        count = np.bincount(joined, minlength=k)
        return Contribution({"count": count, "sum": total, "inertia": np.array([distance.sum()])})

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        """The mean squared distance to the nearest centre."""
        distance = nearest(present(data, self.start.shape[1]), params["centres"])[1]
        return {"loss": float(distance.mean())}


def lloyd() -> Transform:
    """Coming back, each centre's move to the mean of the rows that joined it."""

    def back(sums: Update, state: State, ctx: Context) -> tuple[Update, State]:
        move = sums["sum"] / np.maximum(sums["count"], 1)[:, None]
        return Update.of({"centres": move, "inertia": sums["inertia"] - state}), sums["inertia"]

    return transform("lloyd()", back=back, init=lambda params: np.zeros(1), keeps="back")


def nearest(x: Floats, centres: Floats) -> tuple[NDArray[np.int64], Floats]:
    """For each row of x (n, d) the number of its nearest centre, the first of equals, and the
    squared distance: both (n,).
    """
    cross = (centres * centres).sum(axis=1) - 2 * x @ centres.T  # (n, k), less the row's own square
    joined = cross.argmin(axis=1)
    gap = x - centres[joined]
    return joined, (gap * gap).sum(axis=1)
