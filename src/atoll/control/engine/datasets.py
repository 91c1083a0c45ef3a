"""A site's own data: what its `client.toml` names, loaded here and described to nobody but in figures.

    [data.heart]
    train = "heart.csv"     a file, a folder or a built-in name, as in a job file
    target = "num"
    holdout = 0.25          or test = "later.csv"
    classes = ["no", "yes"] where a site may not have rows of every class; else those it has
    budget = "heart-2026"   what all jobs may spend of its privacy (privacy/ledger.py); without, any job may

or, for what its sources have stored, `source` in place of files (readings.py).
Others learn of it: the number of rows, the shape of a row, the names of columns and classes. Of rows with a
budget nobody learns how many there are, nor which classes they have: only those that are named here are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.registry import nearest
from ...data.contract import Contract
from ...data.divide import partition
from ...data.examples import Dataset, Examples, gaps
from ...data.load import load_data
from ...privacy.vault import Vault
from ..settings import Client
from .readings import rows as readings

_OWN = ("train", "test", "holdout", "classes", "budget")


@dataclass(frozen=True)
class Held:
    """One data set of this site: training rows, test rows or None, the names of its classes, the id of its
    budget, "" for none, and the contract that its rows keep, if they were taken in by one. `named`: whether
    its classes are those that its owner named, and not those that its rows have.
    """

    train: Examples
    test: Examples | None
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    budget: str = ""
    contract: Contract | None = None
    named: bool = True

    def about(self) -> dict[str, Any]:
        """What others may know: figures and names, no cell. None for what is withheld where every job's
        promise counts: what single rows would change.
        """
        shape, told = [int(n) for n in self.train.x.shape[1:]], not self.budget
        return {
            "rows": len(self.train) if told else None,
            "test_rows": (len(self.test) if self.test is not None else 0) if told else None,
            "shape": shape,
            "classes": list(self.classes) if told or self.named or not self.classes else None,
            "columns": list(self.columns),
        }

    def labelled(self, classes: tuple[str, ...]) -> Held:
        """The same rows with classes numbered as in `classes`, the whole federation's."""
        if classes in ((), self.classes):
            return self
        missing = [name for name in self.classes if name not in classes]
        if missing:
            raise DataError(f"{len(missing)} of this site's classes are unknown to the job")
        test = None if self.test is None else self.test.numbered(self.classes, classes)
        return replace(self, train=self.train.numbered(self.classes, classes), test=test, classes=classes)


def hold(name: str, table: Mapping[str, Any], folder: Path) -> Held:
    """Load the data set `name` of a site; files are relative to `folder`.

    Raises ConfigError for a wrong key or an unknown name, DataError for rows that cannot be trained on.
    """
    path = f"$.data.{name}"
    if not isinstance(table.get("train"), str):
        raise ConfigError('name the training rows, as in train = "rows.csv", or a source', f"{path}.train")
    options = {k: v for k, v in table.items() if k not in _OWN}
    try:
        pool = load_data(_place(table["train"], folder), **options)
        other = load_data(_place(table["test"], folder), **options) if "test" in table else None
        classes = _classes(table, pool, other, path)
        if other is None:
            sites = partition(pool, clients=1, holdout=table.get("holdout"))
            train, test = sites[0], sites.tests[0] if sites.tests else pool.test
            if test is not None and classes:
                test = test.numbered(pool.classes, classes)
        else:
            if other.features != pool.features:
                raise DataError(f"the test rows of {name!r} have other columns than its training rows")
            train, test = pool.train, other.train
            test = test.numbered(other.classes, classes) if classes else test
        train = train.numbered(pool.classes, classes) if classes else train
    except ConfigError as error:
        text = _advised(str(error).removeprefix(f"{error.path}: "), error.path.removeprefix("$."))
        raise ConfigError(text, path + error.path.removeprefix("$")) from None
    kept = table.get("missing") == "keep"
    for rows in filter(None, (train, test)):
        if not np.isfinite(rows.y).all() or (np.isinf(rows.x).any() if kept else gaps(rows)):
            raise DataError(
                f'data set {name!r} has missing or infinite cells: add missing = "mean" (or "drop") to it;'
                ' "keep" leaves missing ones to the pipelines of jobs'
            )
    named = "classes" in table
    return Held(train, test, classes, tuple(pool.features), _budget(table, path), named=named)


def _advised(text: str, key: str) -> str:
    """What a reader says of a key, which knows its own keys only, with ours."""
    if text.startswith("unknown key") and "did you mean" not in text:
        ours = nearest(key, _OWN)
        return f"unknown key {key!r}: {ours}" if "mean" in ours else f"{text}, {', '.join(_OWN)}"
    return text


def sensed(name: str, table: Mapping[str, Any], settings: Client, vault: Vault) -> Held:
    """The data set `name` of a site as its sources have stored it now. Raises as `hold`."""
    train, test, contract = readings(name, table, settings, vault)
    columns = contract.features if train.names else ()
    return Held(train, test, contract.classes, columns, _budget(table, f"$.data.{name}"), contract)


def _budget(table: Mapping[str, Any], path: str) -> str:
    budget = table.get("budget", "")
    if not isinstance(budget, str):
        raise ConfigError('a budget is named by its id, as in budget = "heart-2026"', f"{path}.budget")
    return budget


def _place(text: str, folder: Path) -> str:
    beside = folder / text
    return str(beside) if beside.exists() else text


def _classes(table: Mapping[str, Any], pool: Dataset, other: Dataset | None, path: str) -> tuple[str, ...]:
    """The names of all classes here, in order: as the table says, else those that rows have."""
    seen = (pool.classes, *([] if other is None else [other.classes]))
    said = table.get("classes")
    if said is None:
        return _union(seen)
    if not isinstance(said, list) or not said or not all(isinstance(name, str) for name in said):
        raise ConfigError('classes is a list of names, as in ["no", "yes"]', f"{path}.classes")
    if any(name not in said for names in seen for name in names):
        raise DataError("some rows have a class that `classes` does not name")
    return tuple(said)


def agree(found: Mapping[str, Mapping[str, Any]], data: str) -> dict[str, Any]:
    """What all sites' descriptions of one data set come to: features, outputs, classes, rows by site, None of
    one that withholds them.

    Raises DataError, naming two sites, where their rows have other shapes or columns, and where none of them
    tells the classes.
    """
    if not found:
        raise ConfigError(f"no site offers data called {data!r}", "$.data.name")
    (first, model), *others = found.items()
    for site, about in others:
        for what in ("shape", "columns"):
            if about[what] != model[what]:
                raise DataError(f"sites {first!r} and {site!r} describe {data!r} differently: other {what}")
    shape = [int(n) for n in model["shape"]]
    classes = _union(tuple(about["classes"] or ()) for about in found.values())
    if not classes and any(about["classes"] is None for about in found.values()):
        raise DataError(
            f"no site tells which classes {data!r} has, since budgets cover what rows show: name them all at"
            f' one site or more, as in classes = ["no", "yes"] under [data.{data}] in its client.toml'
        )
    return {
        "features": shape[0] if len(shape) == 1 else shape,
        "outputs": len(classes) or 1,
        "classes": list(classes),
        "columns": list(model["columns"]),
        "rows": {site: about["rows"] for site, about in found.items()},
    }


def _union(lists: Any) -> tuple[str, ...]:
    """Every class name once: numbers in their order, else text in its order, as one pool would have them."""
    names = {name for classes in lists for name in classes}
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(sorted(names))


def pick(held: Mapping[str, Held], name: str) -> Held:
    """The data set of that name. Raises ConfigError with the nearest name there is."""
    if name not in held:
        raise ConfigError(
            f"this site offers no data called {name!r}: {nearest(name, held) if held else 'none'}"
        )
    return held[name]
