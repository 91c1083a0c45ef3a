"""Quantiles, smallest and largest values of a federation, exactly, by counting.

Radix selection (Knuth, The Art of Computer Programming vol. 3, §5.2.5, turned from sorting to
selecting): a float64 is eight digits of base 256 whose order is the numbers' order. In round r
every site counts, for each wanted rank, how its values that share the r digits found so far
divide over the next digit; the summed counts tell the digit. After eight rounds the order
statistic is known to the last bit, from sums alone: no site shows a value.

The error in rank is 0. Quantiles are interpolated as numpy's "linear" ones, type 7 of Hyndman
and Fan 1996, "Sample quantiles in statistical packages".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import ConfigError
from atoll.core.message import Contribution, FitContext
from atoll.core.transform import Context, State, Transform, transform
from atoll.core.update import Update

from .table import cells

DIGITS, BASE = 8, 256
_TOP = np.uint64(1 << 63)
_ROWS = 2.0**40  # more than any site has

Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Order:
    """A learner of order statistics: eight rounds with `exact(descend(quantiles))`.

    `columns`: width of x. `quantiles`: shares in 0..1; 0 and 1 are the smallest and largest.
    Data: anything with `x` (n, columns); NaN is missing and counts as such.
    """

    columns: int
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        for q in self.quantiles:
            if not 0 <= q <= 1:
                raise ConfigError(f"a quantile is a share in 0..1, got {q}")

    @property
    def bounds(self) -> Mapping[str, float]:
        """Counts of rows."""
        return {"counts": _ROWS, "missing": _ROWS}

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """No digit known yet."""
        wanted = (DIGITS, self.columns, 2 * len(self.quantiles))
        return {
            "digits": np.zeros(wanted),
            "count": np.zeros(self.columns),
            "missing": np.zeros(self.columns),
        }

    def contributes(self, params: Update) -> Update:
        """Counts (columns, wanted ranks, 256), and missing cells by column."""
        shape = (self.columns, 2 * len(self.quantiles), BASE)
        return Update.of({"counts": np.zeros(shape), "missing": np.zeros(self.columns)})

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """How this site's values divide over the next digit of each wanted rank."""
        x = cells(data, self.columns)
        prefixes = _prefixes(params["digits"], ctx.round)
        counts = np.zeros((self.columns, 2 * len(self.quantiles), BASE))
        for j, column in enumerate(x.T):
            keys = _keys(column[~np.isnan(column)])
            for i, prefix in enumerate(prefixes[j]):
                if i and prefix == prefixes[j, i - 1]:
                    counts[j, i] = counts[j, i - 1]  # neighbours mostly share their digits
                else:
                    counts[j, i] = _divide(keys, prefix, ctx.round)
        return Contribution({"counts": counts, "missing": np.isnan(x).sum(axis=0)})

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        """Order statistics predict nothing."""
        return {}

    def values(self, params: Mapping[str, Any]) -> Floats:
        """The quantiles, (columns, quantiles); NaN for a column without values."""
        ends = _floats(_prefixes(np.asarray(params["digits"]), DIGITS)).reshape(self.columns, -1, 2)
        low, high = ends[..., 0], ends[..., 1]
        n = np.asarray(params["count"])[:, None]
        share = _rank(n, self.quantiles)
        share = share - np.floor(share)
        gap = high - low  # numpy's own way to interpolate, to the last bit
        value = np.where(share < 0.5, low + gap * share, high - gap * (1 - share))
        return np.asarray(np.where(n > 0, value, np.nan))


def descend(quantiles: Sequence[float]) -> Transform:
    """Coming back, the next digit of each wanted rank from the summed counts."""

    def back(sums: Update, state: State, ctx: Context) -> tuple[Update, State]:
        counts = sums["counts"]  # (columns, wanted, 256)
        still, rank = state
        step = {name: np.array(zeros) for name, zeros in still.items()}
        if rank is None:
            step["count"], step["missing"] = counts[:, 0].sum(axis=-1), sums["missing"]
            rank = ranks(step["count"], quantiles)
        step["digits"][ctx.round], rank = chosen(counts, rank)
        return Update.of(step), (still, rank)

    return transform("descend()", back=back, init=lambda params: (params.zeros(), None), keeps="back")


def ranks(count: Floats, quantiles: Sequence[float]) -> Floats:
    """Places from 0 in sorted order, two for each quantile: (columns, wanted)."""
    wanted = _rank(count[:, None], quantiles)
    return np.stack([np.floor(wanted), np.ceil(wanted)], axis=-1).reshape(len(count), -1)


def chosen(counts: Floats, rank: Floats) -> tuple[Floats, Floats]:
    """The next digit of each wanted rank from counts (columns, wanted, 256); the rank among its values."""
    upto = counts.cumsum(axis=-1)
    digit = np.minimum((upto <= rank[..., None]).sum(axis=-1), BASE - 1)
    below = np.take_along_axis(upto - counts, digit[..., None], axis=-1)[..., 0]
    return digit, rank - below


def _rank(n: Floats, quantiles: Sequence[float]) -> Floats:
    """Places from 0 in sorted order, between whole ones where it falls between: (columns, quantiles)."""
    return np.maximum(n - 1, 0) * np.asarray(quantiles, np.float64)


def _keys(values: Floats) -> Keys:
    """Whole numbers in the order of the floats: negative ones turned, the sign on top."""
    bits = (np.ascontiguousarray(values) + 0.0).view(np.uint64)
    return np.where(bits & _TOP, ~bits, bits | _TOP)


def _floats(keys: Keys) -> Floats:
    """The inverse of `_keys`."""
    return np.where(keys & _TOP, keys & ~_TOP, ~keys).view(np.float64)


def _prefixes(digits: Floats, known: int) -> Keys:
    """The first `known` digits as one whole number: (columns, wanted)."""
    prefix = np.zeros(digits.shape[1:], np.uint64)
    for digit in digits[:known]:
        prefix = (prefix << np.uint64(8)) | digit.astype(np.uint64)
    return prefix


def _divide(keys: Keys, prefix: np.uint64, known: int) -> NDArray[np.int64]:
    """How many keys with this prefix have each next digit, (256,)."""
    if known:
        keys = keys[keys >> np.uint64(8 * (DIGITS - known)) == prefix]
    digits = keys >> np.uint64(8 * (DIGITS - 1 - known)) & np.uint64(BASE - 1)
    return np.bincount(digits.astype(np.int64), minlength=BASE)
