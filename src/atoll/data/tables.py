"""Your own data: CSV and Parquet files, or arrays, with the column that names the sites.

The three end in the same Dataset. What counts as a class: a `target` that is text, or at most 20
different whole numbers, unless `task` says otherwise; classes are numbered in sorted order.
"""

from __future__ import annotations

import glob as globbing
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atoll.core.errors import ConfigError, DataError
from atoll.core.registry import nearest, part

from .columns import number_column, read_csv, read_parquet, text_column
from .examples import Array, Dataset, Examples, Task

_FEW = 20  # different whole numbers up to which a target is taken for classes
_RULES = ("keep", "drop", "mean")


class Named(NamedTuple):
    """Columns by what they are; see `csv`."""

    target: str
    site: str | None
    subject: str | None
    features: Sequence[str] | None


@part("data")
def csv(
    path: str | PathLike[str],
    *,
    target: str,
    site: str | None = None,
    subject: str | None = None,
    features: Sequence[str] | None = None,
    task: str | None = None,
    missing: str = "keep",
    delimiter: str = ",",
) -> Dataset:
    """Your CSV file, folder of `*.csv` or glob, with a header line.

    `target`: the column to predict. `site`: the column that names each row's client, or "file" for
    one client per file (the default where there are several files). `subject`: the column that names
    whom or what a row is about, as a patient: all rows of one are on one side of a holdout. `features`: the
    columns to learn from, by default all the others; they must be numbers.
    `missing`: "keep" NaN and infinite cells (training then refuses), "drop" their rows, or put the "mean" of
    that column at the row's own site, so that no site learns from another by it.
    Raises DataError, naming file, column and line and never a cell, if the data do not fit;
    ConfigError for an unknown option.
    """
    named = Named(target, site, subject, features)
    return _load(path, "*.csv", lambda p, w: read_csv(p, w, delimiter), named, task, missing)


@part("data")
def parquet(
    path: str | PathLike[str],
    *,
    target: str,
    site: str | None = None,
    subject: str | None = None,
    features: Sequence[str] | None = None,
    task: str | None = None,
    missing: str = "keep",
) -> Dataset:
    """Your Parquet file, folder of `*.parquet` or glob; options as in csv. Needs polars or pyarrow."""
    return _load(path, "*.parquet", read_parquet, Named(target, site, subject, features), task, missing)


def arrays(
    x: Any,
    y: Any,
    groups: Any = None,
    *,
    names: Sequence[str] = (),
    task: str | None = None,
    missing: str = "keep",
) -> Dataset:
    """Your arrays: `x` (n, ...) numbers, `y` (n,) numbers or text, `groups` (n,) the site of each row.

    Raises DataError for shapes that do not fit or an unknown rule.
    """
    rows, target = np.asarray(x), np.asarray(y)
    if rows.ndim < 2 or target.shape != rows.shape[:1]:
        raise DataError(f"expected x (n, ...) and y (n,), got {rows.shape} and {target.shape}")
    sites = None if groups is None else np.array([str(g) for g in np.asarray(groups)], dtype=np.str_)
    target = target.astype(np.float64) if target.dtype.kind in "fiub" else np.array([str(v) for v in target])
    return _dataset("arrays", rows, target, sites, tuple(names), task, missing)


def _load(
    path: str | PathLike[str],
    pattern: str,
    read: Callable[[Path, Sequence[str] | None], Mapping[str, Array]],
    named: Named,
    task: str | None,
    missing: str,
) -> Dataset:
    files = _files(path, pattern)
    target, site, subject, features = named
    by_file = site == "file" or (site is None and len(files) > 1)
    extra = [target, *([] if site is None or by_file else [site]), *([] if subject is None else [subject])]
    wanted = None if features is None else [*dict.fromkeys([*features, *extra])]
    tables = [read(file, wanted) for file in files]
    for file, table in zip(files, tables, strict=True):
        _same_columns(file, table, files[0], tables[0], extra)
    columns = tuple(name for name in (features or tables[0]) if name not in extra)
    if not columns:
        raise DataError(f"{files[0].name} has no column to learn from beside {', '.join(map(repr, extra))}")
    parts = [
        np.column_stack([number_column(table[name], name, file.name) for name in columns])
        for file, table in zip(files, tables, strict=True)
    ]
    targets = [table[target] for table in tables]
    if any(column.dtype.kind != "f" for column in targets):
        targets = [text_column(column) for column in targets]
    whose = None if subject is None else np.concatenate([text_column(table[subject]) for table in tables])
    sites = None
    if by_file:
        sites = np.repeat(_stems(files), [len(rows) for rows in parts])
    elif site is not None:
        sites = np.concatenate([text_column(table[site]) for table in tables])
    name = Path(path).stem if len(files) == 1 else Path(path).name
    x, y = np.concatenate(parts), np.concatenate(targets)
    return _dataset(name, x, y, sites, columns, task, missing, whose)


def _files(path: str | PathLike[str], pattern: str) -> list[Path]:
    place = Path(path).expanduser()
    files = [place]
    if place.is_dir():
        files = sorted(place.glob(pattern))
    elif not place.is_file() and globbing.has_magic(str(place)):
        files = sorted(map(Path, globbing.glob(str(place))))  # noqa: PTH207  absolute patterns too
    elif not place.is_file():
        raise DataError(f"{place}: no such file or folder")
    if not files:
        raise DataError(f"{place}: nothing there matches {pattern}")
    return files


def _stems(files: Sequence[Path]) -> list[str]:
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else [str(file) for file in files]


def _same_columns(
    file: Path, table: Mapping[str, Array], first: Path, model: Mapping[str, Array], needed: Sequence[str]
) -> None:
    for name in needed:
        if name not in table:
            raise DataError(f"{file.name} has no column {name!r}: {nearest(name, table)}")
    for name in [*model, *table]:
        if (name in model) != (name in table):
            has, lacks = (first, file) if name in model else (file, first)
            raise DataError(f"{has.name} has a column {name!r} that {lacks.name} lacks: name features=[...]")


def _dataset(
    name: str,
    x: Array,
    target: Array,
    sites: Array | None,
    columns: tuple[str, ...],
    task: str | None,
    missing: str,
    subjects: Array | None = None,
) -> Dataset:
    if missing not in _RULES:
        raise ConfigError(
            f"no rule for missing cells is called {missing!r}: choose from {', '.join(_RULES)}", "$.missing"
        )
    if task not in (None, "classes", "regression"):
        raise ConfigError(f'task is "classes" or "regression", got {task!r}', "$.task")
    if sites is not None:
        _known(name, sites != "", "site", drop=False)
    if subjects is not None:
        _known(name, subjects != "", "subject", drop=False)
    here = target != "" if target.dtype.kind == "U" else np.isfinite(target)
    _known(name, here, "target", drop=missing == "drop")
    if missing == "drop":
        here = here & np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    elif missing == "mean":
        x = _mean_filled(x, np.zeros(len(x), np.str_) if sites is None else sites, columns)
    if not here.all():
        x, target = x[here], target[here]
        sites, subjects = (None if own is None else own[here] for own in (sites, subjects))
    kind, classes, y = _target(target, task)
    rows = Examples(x, y, columns)
    return Dataset(name, rows, task=kind, classes=classes, sites=sites, subjects=subjects)


def _known(name: str, here: Array, what: str, *, drop: bool) -> None:
    if not drop and not here.all():
        advice = (
            ', fill it in or load with missing="drop"' if what == "target" else f", name a {what} in each row"
        )
        raise DataError(f"{name}: {int((~here).sum())} rows have no {what}{advice}")


def _target(target: Array, task: str | None) -> tuple[Task, tuple[str, ...], Array]:
    text = target.dtype.kind == "U"
    if text and task == "regression":
        raise DataError('the target holds text and a regression needs numbers: use task="classes"')
    if task != "regression" and (text or task == "classes" or _few_whole(target)):
        values, y = np.unique(target, return_inverse=True)
        return "classes", tuple(str(v) if text else f"{v:g}" for v in values), y.astype(np.int64)
    return "regression", (), target


def _few_whole(target: Array) -> bool:
    return bool((target == np.round(target)).all()) and len(np.unique(target)) <= _FEW


def _mean_filled(x: Array, sites: Array, columns: Sequence[str]) -> Array:
    """A copy of x (n, d) with each NaN or infinity replaced by its column's finite mean at its own site."""
    if x.ndim != 2:
        raise DataError('missing="mean" needs x of two dimensions: fill images in yourself')
    filled = x.astype(np.float64 if x.dtype != np.float32 else np.float32)
    for site in np.unique(sites):
        here = np.flatnonzero(sites == site)
        gaps = ~np.isfinite(filled[here])
        for j in np.flatnonzero(gaps.any(axis=0)):
            column = columns[int(j)] if columns else str(j)
            if gaps[:, j].all():
                raise DataError(
                    f"site {str(site)!r} has no value in column {column!r}: leave that column out"
                )
            filled[here[gaps[:, j]], j] = filled[here[~gaps[:, j]], j].mean()
    return filled
