"""Sites: the training rows of every client, in one base array, client after client.

`sites[k]` is a view of rows offsets[k]:offsets[k+1] of `sites.x` and `sites.y`, so an engine can
take one client, a run of clients or everything without copying a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import ConfigError, DataError
from atoll.core.registry import nearest

from .examples import Array, Examples, Task, check_labels, gaps

Rows: TypeAlias = Examples | tuple[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Sites(Sequence[Examples]):
    """What a federation trains on; a sequence of per-client Examples, by number or by name.

    `x`: (N, ...) floats and `y`: (N,), all clients' training rows in client order.
    `offsets`: (clients + 1,) int64, rising from 0 to N; equal neighbours mean an empty client.
    `names`: one per client. `task`, `outputs`: as in Dataset. `columns`: feature names or ().
    `tests`: each client's own test rows, or (). `test`: the pooled test rows, or None.
    Raises DataError where these do not fit together.
    """

    x: Array
    y: Array
    offsets: NDArray[np.int64]
    names: tuple[str, ...]
    task: Task = "classes"
    outputs: int = 1
    columns: tuple[str, ...] = ()
    tests: tuple[Examples, ...] = ()
    test: Examples | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        steps = np.diff(self.offsets)
        if len(steps) != len(self.names) or not len(steps):
            raise DataError(f"{len(self.names)} site names for {len(steps)} clients")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.y) or steps.min() < 0:
            raise DataError(f"offsets must rise from 0 to the number of rows, {len(self.y)}")
        if len(self.x) != len(self.y) or (self.tests and len(self.tests) != len(steps)):
            raise DataError("x, y and tests must cover the same clients: one test set per client, or none")
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise DataError(f"two sites are called {twice!r}: give each its own name")

    @classmethod
    def of(
        cls,
        sites: Sequence[Rows] | Mapping[str, Rows],
        tests: Sequence[Rows] | Mapping[str, Rows] | None = None,
        *,
        test: Rows | None = None,
        outputs: int | None = None,
        columns: Sequence[str] = (),
        empty: bool = False,
    ) -> Sites:
        """Your own clients: a list of (x, y), or a mapping of site names to them.

        The rows are copied once, into one array. Integer targets mean classes 0..outputs-1
        (`outputs` defaults to the largest label seen plus one), floats mean regression.
        `test`: pooled test rows; None joins the `tests`. `empty`: allow clients without rows.
        Raises DataError, with the site's name, for a client that does not fit the others.
        """
        named = _named(sites, columns)
        own = _named(tests, columns) if tests else {}
        if own and own.keys() != named.keys():
            raise DataError("tests must name the same sites as the training rows")
        if not named:
            raise DataError("a federation needs at least one site")
        first = next((rows for rows in named.values() if len(rows)), None)
        if first is None:
            raise DataError("every site is empty: at least one needs rows")
        for name, rows in [*named.items(), *own.items()]:
            _fits(name, rows, first)
        for name, rows in named.items():
            if not len(rows) and not empty:
                raise DataError(f"site {name!r} has no rows: leave it out, or pass empty=True")
        parts = [rows for rows in named.values() if len(rows)]
        pool = join(parts)
        pooled = _examples(test, columns) if test is not None else join(list(own.values())) if own else None
        classes = pool.y.dtype.kind == "i"
        width = (outputs or max(int(pool.y.max()), 0) + 1) if classes else 1
        if classes:
            for name, rows in [*named.items(), *own.items(), *([("test", pooled)] if pooled else [])]:
                check_labels(rows.y, width, f"site {name!r}")
        return cls(
            pool.x,
            pool.y,
            np.cumsum([0, *(len(rows) for rows in named.values())], dtype=np.int64),
            tuple(named),
            task="classes" if classes else "regression",
            outputs=width,
            columns=pool.names,
            tests=tuple(own.values()),
            test=pooled,
            classes=tuple(map(str, range(width))) if classes else (),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, client: int | str) -> Examples:  # type: ignore[override]  # no slices: a list will do
        k = self._number(client)
        rows = slice(self.offsets[k], self.offsets[k + 1])
        return Examples(self.x[rows], self.y[rows], self.columns)

    def __iter__(self) -> Iterator[Examples]:
        return (self[k] for k in range(len(self)))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(clients,) training rows of each client."""
        return np.diff(self.offsets)

    @property
    def features(self) -> int | tuple[int, ...]:
        """The input's width, or its shape where a row is not a flat vector."""
        shape = self.x.shape[1:]
        return int(shape[0]) if len(shape) == 1 else tuple(map(int, shape))

    def pooled(self) -> Examples:
        """All clients' training rows as one set, for baselines; a view."""
        return Examples(self.x, self.y, self.columns)

    def check(self) -> None:
        """Raise DataError, naming site and column, if a cell is NaN or infinite.

        Engines call this before training: one such cell would spread to the whole model.
        """
        pool = self.pooled()
        if not gaps(pool) and np.isfinite(pool.y).all():
            return
        for name, rows in zip(self.names, self, strict=True):
            for column, count in gaps(rows).items():
                raise DataError(
                    f"site {name!r}, column {column!r}: {count} cells are missing or infinite;"
                    ' load with missing="mean" or missing="drop", or leave the column out'
                )
            if not np.isfinite(rows.y).all():
                raise DataError(f"site {name!r}: some targets are missing or infinite; drop those rows")

    def __repr__(self) -> str:
        return f"Sites({len(self)} clients, {len(self.y)} rows, input {self.features}, {self.task})"

    def _number(self, client: int | str) -> int:
        if isinstance(client, str):
            if client not in self.names:
                raise ConfigError(f"no site is called {client!r}: {nearest(client, self.names)}")
            return self.names.index(client)
        if not -len(self) <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")  # ends plain iteration, as in a list
        return int(client) % len(self)


def join(parts: Sequence[Examples]) -> Examples:
    """All rows of several Examples, copied into one."""
    return Examples(
        np.concatenate([rows.x for rows in parts]), np.concatenate([rows.y for rows in parts]), parts[0].names
    )


def _named(sites: Sequence[Rows] | Mapping[str, Rows], columns: Sequence[str]) -> dict[str, Examples]:
    pairs = sites.items() if isinstance(sites, Mapping) else ((f"site {k}", s) for k, s in enumerate(sites))
    named = {}
    for name, rows in pairs:
        try:
            named[str(name)] = _examples(rows, columns)
        except DataError as error:
            raise DataError(f"site {str(name)!r}: {error}") from None
    return named


def _examples(rows: Rows, columns: Sequence[str]) -> Examples:
    return rows if isinstance(rows, Examples) else Examples(*rows, columns)


def _fits(name: str, rows: Examples, first: Examples) -> None:
    if len(rows) and rows.x.shape[1:] != first.x.shape[1:]:
        raise DataError(f"site {name!r} has rows of shape {rows.x.shape[1:]}, the others {first.x.shape[1:]}")
    if rows.names != first.names:
        odd = next((a for a, b in zip(rows.names, first.names, strict=False) if a != b), "")
        raise DataError(f"site {name!r} names its columns differently{f', from {odd!r} on' if odd else ''}")
    if len(rows) and rows.y.dtype.kind != first.y.dtype.kind:
        raise DataError(
            f"site {name!r} has {rows.y.dtype} targets, the others {first.y.dtype}:"
            " integers mean classes, floats numbers"
        )
