"""Counts, means, variances and covariances of a federation from summed products.

Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance": sums of squares lose
digits unless the data are shifted near their mean, so three questions are asked, each one sum:

    1. how large are the columns, to within 2^8?      Magnitude
    2. sums and squares in those units                 Moments(cross=False)
    3. products about that mean, in units of the       Moments(shift, scale)
       spread; now nothing cancels

Units are powers of two, so scaling rounds nothing, and the fixed point has bits to spare.
Missing cells (NaN) are left out pair by pair, as pandas does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.core.message import Contribution, FitContext
from atoll.core.update import Update

from .table import cells

Floats = NDArray[np.float64]
_ROWS = 2.0**36  # more than any site has
_STEP, _LOW, _BINS = 8, -1080, 264  # powers of two between bins, below the smallest float64, and bins


@dataclass(frozen=True)
class Magnitude:
    """A learner that learns how large each column's numbers are: one round of `exact()`.

    A site marks, by column, the power of two just above its largest magnitude, in steps of 2^8.
    """

    columns: int

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """No mark, (columns, 264)."""
        return {"marks": np.zeros((self.columns, _BINS))}

    @property
    def bounds(self) -> Mapping[str, float]:
        """Marks are 0 or 1."""
        return {"marks": 1.0}

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """This site's marks; none for a column that is empty or all zero."""
        largest = np.nan_to_num(np.abs(cells(data, self.columns))).max(axis=0, initial=0.0)
        marks = np.zeros((self.columns, _BINS))
        some = np.flatnonzero(largest)
        marks[some, (np.frexp(largest[some])[1] - _LOW) // _STEP] = 1
        return Contribution({"marks": marks})

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        """Magnitudes predict nothing."""
        return {}

    @staticmethod
    def scale(params: Mapping[str, Any]) -> Floats:
        """A power of two at least as large as any number of the column, (columns,); 1 without any."""
        marks = np.asarray(params["marks"]) > 0
        top = _BINS - 1 - marks[:, ::-1].argmax(axis=1)
        exponent = np.where(marks.any(axis=1), _LOW + _STEP * (top + 1), 0)
        return np.exp2(np.minimum(exponent, 1023).astype(np.float64))


@dataclass(frozen=True, eq=False)
class Moments:
    """A learner of summed products of z = (x - shift) / scale: one round of `exact()`.

    `shift`, `scale`: (columns,), best near the mean and above the spread; None for 0 and 1.
    `cross`: every pair of columns, or each column with itself only. |z| may be up to 1.
    """

    columns: int
    shift: Floats | None = None
    scale: Floats | None = None
    cross: bool = True

    @property
    def bounds(self) -> Mapping[str, float]:
        """Counts of rows, and sums over rows of numbers up to 1."""
        return {"pairs": _ROWS, "half": _ROWS, "product": _ROWS}

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Zero sums: (columns, columns) each, or (columns,) without cross."""
        shape = (self.columns, self.columns) if self.cross else (self.columns,)
        return {name: np.zeros(shape) for name in ("pairs", "half", "product")}

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """This site's sums: for each pair the rows that have both, the first's sum, the products'."""
        z = (cells(data, self.columns) - (0 if self.shift is None else self.shift)) / (
            1 if self.scale is None else self.scale
        )
        there = (~np.isnan(z)).astype(np.float64)
        z = np.nan_to_num(z)
        if self.cross:
            return Contribution({"pairs": there.T @ there, "half": z.T @ there, "product": z.T @ z})
        return Contribution(
            {"pairs": there.sum(axis=0), "half": z.sum(axis=0), "product": (z * z).sum(axis=0)}
        )

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        """Moments predict nothing."""
        return {}

    def spread(self, params: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """A shift and a scale for a better look, from a look without cross products.

        The shift is the mean; the scale a power of two that no |x - mean| exceeds, since none
        exceeds the root of the sum of their squares.
        """
        n, half, product = (np.asarray(params[name]) for name in ("pairs", "half", "product"))
        mean = half / np.maximum(n, 1)
        rounding = 2.0**-40 * np.maximum(product, 2.0**-100)  # of this look, generously
        root = np.sqrt(np.maximum(product - n * mean**2, 0) + rounding)
        unit = np.ones(self.columns) if self.scale is None else self.scale
        return mean * unit, unit * np.exp2(np.ceil(np.log2(root)))

    def each(self, params: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """Each column's pooled mean and standard deviation (over n), from a look without cross products."""
        n, half, product = (np.asarray(params[name]) for name in ("pairs", "half", "product"))
        unit = np.ones(self.columns) if self.scale is None else self.scale
        shift = np.zeros(self.columns) if self.shift is None else self.shift
        mean = half / np.maximum(n, 1)
        variance = np.maximum(product / np.maximum(n, 1) - mean**2, 0)
        return shift + unit * mean, unit * np.sqrt(variance)

    def pooled(self, params: Mapping[str, Any]) -> Pooled:
        """The federation's moments from a look with cross products."""
        n, half, product = (np.asarray(params[name]) for name in ("pairs", "half", "product"))
        unit = np.ones(self.columns) if self.scale is None else self.scale
        shift = np.zeros(self.columns) if self.shift is None else self.shift
        scatter = product - half * half.T / np.maximum(n, 1)
        np.fill_diagonal(scatter, np.maximum(scatter.diagonal(), 0))  # rounding of a constant column
        scatter = scatter * unit[:, None] * unit
        mean = shift + unit * half.diagonal() / np.maximum(n.diagonal(), 1)
        return Pooled(n, np.where(n.diagonal() > 0, mean, np.nan), scatter)


@dataclass(frozen=True, eq=False)
class Pooled:
    """`pairs` (d, d): rows that have both columns; `mean` (d,), NaN for a column without values;
    `scatter` (d, d): sums of products about the mean over those rows.
    """

    pairs: Floats
    mean: Floats
    scatter: Floats

    @property
    def count(self) -> Floats:
        """Rows that have the column, (d,)."""
        return self.pairs.diagonal()

    def covariance(self, ddof: int = 1) -> Floats:
        """(d, d), over the rows that have both columns; NaN where there are `ddof` or fewer."""
        rest = self.pairs - ddof
        return np.asarray(np.where(rest > 0, self.scatter / np.where(rest > 0, rest, 1), np.nan))

    def variance(self, ddof: int = 1) -> Floats:
        """(d,), NaN for a column with `ddof` values or fewer."""
        return self.covariance(ddof).diagonal()
