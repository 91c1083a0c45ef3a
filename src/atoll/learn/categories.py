"""Which categories a federation's columns hold, and how often: one round of merged counts.

Names cannot be summed, so they travel as a metric that merges: a table from category to count.
The coordinator sees every category, and how many rows of the federation hold it; a site with a
rare one is known by it only to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any, ClassVar

import numpy as np

from atoll.core.errors import CodecError, DataError, MisuseError
from atoll.core.message import Contribution, FitContext
from atoll.core.metrics import Plain, metric
from atoll.core.update import Update

MOST = 10_000  # categories of one column: beyond, it is no category but a number or a name


@metric("tally")
@dataclass(frozen=True, init=False)
class Tally:
    """How often each value was seen. Values are text, numbers or None; equal numbers (True, 1,
    1.0) are one value, NaN is one. Raises DataError for more than 10,000 different ones.
    """

    kind: ClassVar[str] = "tally"
    counts: tuple[tuple[Any, int], ...]

    def __init__(self, values: Iterable[Any] = (), counts: Mapping[Any, int] | None = None) -> None:
        seen = dict(counts or {})
        for value in values:
            key = _plain(value)
            seen[key] = seen.get(key, 0) + 1
        if len(seen) > MOST:
            raise DataError(f"a column has more than {MOST} categories: is it one of numbers or names?")
        object.__setattr__(self, "counts", tuple(sorted(seen.items(), key=lambda item: _order(item[0]))))

    @property
    def value(self) -> dict[Any, int]:
        """Counts by value: numbers first, then text, then None and NaN."""
        return dict(self.counts)

    def merge(self, other: Tally) -> Tally:
        """Both together."""
        if type(other) is not Tally:
            raise MisuseError(f"cannot merge tally with {type(other).__name__}: one name, one kind of metric")
        counts = dict(self.counts)
        for key, n in other.counts:
            counts[key] = counts.get(key, 0) + n
        return Tally(counts=counts)

    def to_plain(self) -> Plain:
        """For each value its count and the bytes of its word, as in "int:5" or "str:ward"."""
        return [[n, *_word(key).encode()] for key, n in self.counts]

    @classmethod
    def from_plain(cls, plain: Plain) -> Tally:
        """The inverse. Raises CodecError."""
        if not isinstance(plain, list) or len(plain) > MOST:
            raise CodecError(f"a tally is a list of at most {MOST} values with counts")
        counts: dict[Any, int] = {}
        for entry in plain:
            match entry:
                case [int(n), *word] if type(n) is int and n > 0:
                    counts[_read(word)] = n
                case _:
                    raise CodecError("a tally's entry is a count above 0 and the bytes of a word")
        made = cls(counts=counts)
        if made.to_plain() != plain:
            raise CodecError("a tally's values must be in order, each once")
        return made


@dataclass(frozen=True)
class Categories:
    """A learner that tallies every column: one round of `exact()`. Data: rows of an (n, d) array."""

    columns: int

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """The number of rows, 0."""
        return {"rows": np.zeros(1)}

    @property
    def bounds(self) -> Mapping[str, float]:
        """Counts of rows."""
        return {"rows": 2.0**40}

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """This site's tallies by column number."""
        table = np.asarray(data, object)
        if table.ndim != 2 or table.shape[1] != self.columns:
            raise DataError(f"expected {self.columns} columns: use the same ones everywhere")
        tallies = {str(j): Tally(table[:, j]) for j in range(self.columns)}
        return Contribution({"rows": np.array([float(len(table))])}, metrics=tallies)

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        """Tallies predict nothing."""
        return {}


NAN = float("nan")  # one object, so that it is found again in a table
_READ: dict[str, Callable[[str], Any]] = {
    "none": lambda _: None,
    "nan": lambda _: NAN,
    "int": int,
    "float": float.fromhex,
    "str": str,
}


def _plain(value: Any) -> Any:
    """A python value, the same for equal ones. Raises DataError for anything but text, numbers, None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and isnan(value):
        return NAN
    if isinstance(value, (bool, int, float)):
        return int(value) if value == value // 1 else float(value)
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"a category is text, a number or None, got {type(value).__name__}")


def _order(value: Any) -> tuple[int, Any]:
    """Numbers by size, text by letter, None, NaN."""
    if value is None:
        return 2, 0
    if isinstance(value, str):
        return 1, value
    return (3, 0) if isinstance(value, float) and isnan(value) else (0, value)


def _word(value: Any) -> str:
    if value is None:
        return "none:"
    if isinstance(value, float):
        return "nan:" if isnan(value) else f"float:{value.hex()}"
    return f"{type(value).__name__}:{value}"


def _read(word: list[Any]) -> Any:
    try:
        kind, _, text = bytes(word).decode().partition(":")
        return _plain(_READ[kind](text))
    except (ValueError, TypeError, KeyError, OverflowError):
        raise CodecError("a tally's word does not read as a value") from None
