"""Rows to learn from: `Examples` (one client's, or one pool) and `Dataset` (a named pool).

Both are values over numpy arrays and never copy them: a slice of Examples shares its memory.
Missing cells are NaN. They may be loaded, counted and partitioned; `Sites.check` refuses them
before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import DataError

Array: TypeAlias = NDArray[Any]
Task: TypeAlias = Literal["classes", "regression"]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows and their targets. `examples[2:5]`, `examples[mask]` and `examples[ids]` are Examples.

    `x`: (n, ...) float32 or float64; other numbers become float32.
    `y`: (n,) integers (class numbers from 0) or floats.
    `names`: one name per column of a two-dimensional `x`, or ().
    Slices share memory; masks and lists of ids copy, as in numpy.
    Raises DataError where the shapes differ or an array holds no numbers.
    """

    x: Array
    y: Array
    names: tuple[str, ...] = ()

    def __init__(self, x: Any, y: Any, names: Any = None) -> None:
        rows, targets = np.asarray(x), np.asarray(y)
        if rows.dtype.kind not in "fiub" or targets.dtype.kind not in "fiub":
            raise DataError(f"x and y must hold numbers, got dtypes {rows.dtype} and {targets.dtype}")
        if rows.ndim < 2 or targets.shape != rows.shape[:1]:
            raise DataError(f"expected x (n, ...) and y (n,), got {rows.shape} and {targets.shape}")
        if rows.dtype not in (np.float32, np.float64):
            rows = rows.astype(np.float32)
        if targets.dtype.kind in "ub":
            targets = targets.astype(np.int64)
        columns = tuple(str(name) for name in (() if names is None else names))
        if columns and (rows.ndim != 2 or len(columns) != rows.shape[1]):
            raise DataError(f"{len(columns)} column names do not fit x of shape {rows.shape}")
        for slot, value in (("x", rows), ("y", targets), ("names", columns)):
            object.__setattr__(self, slot, value)

    def __len__(self) -> int:
        return len(self.y)

    def numbered(self, names: Sequence[str], classes: Sequence[str]) -> Examples:
        """The same rows with classes numbered as in `classes`; so far y numbers `names`, all among these."""
        places = np.array([classes.index(name) for name in names], np.int64)
        return Examples(self.x, places[self.y], self.names)

    def __getitem__(self, rows: Any) -> Examples:
        if isinstance(rows, (int, np.integer)):
            raise DataError(f"one row is not Examples: write [{rows}:{rows + 1}]")
        return Examples(self.x[rows], self.y[rows], self.names)

    def __repr__(self) -> str:
        return f"Examples({len(self)} rows, x {self.x.shape[1:]} {self.x.dtype}, y {self.y.dtype})"


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A pooled set before it is divided among clients.

    `train`, `test`: Examples; `test` is None where the source has no split of its own.
    `task`: "classes" (y counts from 0 in the order of `classes`) or "regression".
    `sites`, `test_sites`: (n,) the natural client of each row, by name, or None.
    `subjects`: (n,) whom or what each training row is about (a patient, a machine), by name, or None: all
    rows of one are on one side of a holdout.
    `source`, `licence`: where the data come from and on what terms.
    Raises DataError where these do not fit together.
    """

    name: str
    train: Examples
    test: Examples | None = None
    task: Task = "classes"
    classes: tuple[str, ...] = ()
    sites: NDArray[np.str_] | None = None
    test_sites: NDArray[np.str_] | None = None
    source: str = ""
    licence: str = ""
    subjects: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        if not len(self.train):
            raise DataError(f"{self.name} has no rows: check the file and the missing-value rule")
        for rows, sites in ((self.train, self.sites), (self.test, self.test_sites)):
            if sites is not None and (rows is None or sites.shape != rows.y.shape):
                raise DataError(f"{self.name}: sites must name the client of every row, once each")
        if self.subjects is not None and self.subjects.shape != self.train.y.shape:
            raise DataError(f"{self.name}: subjects must name whom each training row is about, once each")
        if self.test is not None and self.test.x.shape[1:] != self.train.x.shape[1:]:
            raise DataError(
                f"{self.name}: training rows have shape {self.train.x.shape[1:]},"
                f" test rows {self.test.x.shape[1:]}"
            )
        if self.task == "classes":
            for rows in filter(None, (self.train, self.test)):
                check_labels(rows.y, len(self.classes), self.name)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the columns of x; () for images and other unnamed input."""
        return self.train.names

    @property
    def outputs(self) -> int:
        """How many numbers a model answers: the number of classes, or 1."""
        return len(self.classes) if self.task == "classes" else 1

    def labelled(self, classes: Sequence[str]) -> Dataset:
        """The same rows with classes numbered as in `classes`, which may be more than there are rows of.

        Raises DataError where rows have another one.
        """
        if self.task != "classes":
            raise DataError(f"{self.name} has numbers to predict, and no classes to put in order")
        if len(set(classes)) != len(classes):
            raise DataError("a class is named twice")
        unknown = sum(name not in classes for name in self.classes)
        if unknown:
            raise DataError(f"{unknown} of the {len(self.classes)} classes in {self.name} are not named")
        train, *test = (
            rows.numbered(self.classes, classes) for rows in (self.train, self.test) if rows is not None
        )
        return replace(self, train=train, test=test[0] if test else None, classes=tuple(classes))

    @property
    def missing(self) -> dict[str, int]:
        """NaN cells of train and test by column, columns without any left out."""
        counts: dict[str, int] = {}
        for rows in filter(None, (self.train, self.test)):
            for column, count in gaps(rows).items():
                counts[column] = counts.get(column, 0) + count
        return counts

    def __str__(self) -> str:
        width = "x".join(map(str, self.train.x.shape[1:]))
        lines = [
            f"{self.name}: {len(self.train)} training rows, {len(self.test or ())} test rows",
            f"  input   {width} {self.train.x.dtype}",
            f"  target  {f'{self.outputs} classes' if self.task == 'classes' else 'a number'}",
        ]
        if self.sites is not None:
            lines.append(f"  sites   {len(np.unique(self.sites))}")
        if self.missing:
            cells = ", ".join(f"{name} {count}" for name, count in self.missing.items())
            lines.append(f"  missing {cells}")
        notes = (("source", self.source), ("licence", self.licence))
        return "\n".join(lines + [f"  {key:7s} {text}" for key, text in notes if text])


def gaps(rows: Examples) -> dict[str, int]:
    """NaN or infinite cells by column name (its number where unnamed), clean columns left out."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = rows.x.sum(dtype=np.float64)  # one pass without a temporary settles the usual case
    if np.isfinite(total):
        return {}
    bad = (~np.isfinite(rows.x)).reshape(len(rows), -1).sum(axis=0)
    names = rows.names or tuple(map(str, range(len(bad))))
    return {names[i]: int(bad[i]) for i in np.flatnonzero(bad)}


def check_labels(y: Array, classes: int, where: str) -> None:
    """Raise DataError unless y holds whole numbers from 0 to classes - 1."""
    if y.dtype.kind != "i":
        raise DataError(f"{where}: class labels must be integers, got dtype {y.dtype}")
    if y.size and (y.min() < 0 or y.max() >= classes):
        raise DataError(
            f"{where}: a label lies outside 0..{classes - 1}:"
            " number the classes from 0 the same way at every site"
        )
