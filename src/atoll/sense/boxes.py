"""Boxes of stored readings: a commit's together, sealed once and never written again.

Labels that came by themselves lie elsewhere (labels.py); who reads a box finds them in the readings' cells.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from .file import File
from .labels import Labels


class Kept(NamedTuple):
    """A stored reading: its number from 0, device, Unix seconds, id, cells in the order of the columns."""

    number: int
    source: str
    at: float
    id: str
    cells: list[Any]


@dataclass
class Boxes:
    """Of one life of a store."""

    file: File
    labels: Labels | None

    def put(self, form: str, good: list[list[Any]], first: int, now: float) -> None:
        """A commit's readings, from number `first` on, at least one."""
        box = self.file.seal.sealed([form, good], first)
        newest = max(at for _, at, *_ in good)
        self.file.sql.execute(
            "INSERT INTO boxes VALUES (?, ?, ?, ?, ?)", (first, len(good), now, newest, box)
        )

    def bare(self) -> Iterator[tuple[str, list[Kept]]]:
        """All, with the cells that came with them."""
        for first, box in self.file.sql.execute("SELECT first, box FROM boxes ORDER BY first"):
            yield self._opened(first, box)

    def next(self, after: int, since: float) -> tuple[str, list[Kept]] | None:
        """The readings of one box from number `after` on, with their form; None where there are none.

        `since`: boxes that hold nothing as new may be left out.
        """
        with self.file.reading() as sql:
            row = sql.execute(
                "SELECT first, box FROM boxes WHERE first + n > ? AND newest >= ? ORDER BY first LIMIT 1",
                (after, since),
            ).fetchone()
        if row is None:
            return None
        form, kept = self._opened(*row)
        return form, self._filled(form, [r for r in kept if r.number >= after])

    def of(self, numbers: Collection[int], form: str) -> dict[int, Kept]:
        """The readings of these numbers and this form that are here; each box is opened once."""
        wanted, found = sorted(numbers), dict[int, Kept]()
        while wanted:
            with self.file.reading() as sql:
                row = sql.execute(
                    "SELECT first, box FROM boxes WHERE first <= ? ORDER BY first DESC LIMIT 1", wanted[-1:]
                ).fetchone()
            if row is None:
                break
            at = bisect_left(wanted, row[0])
            wanted, mine = wanted[:at], set(wanted[at:])
            said, kept = self._opened(*row)
            if said == form:
                found |= {r.number: r for r in self._filled(form, [r for r in kept if r.number in mine])}
        return found

    def _opened(self, first: int, box: bytes) -> tuple[str, list[Kept]]:
        form, rows = self.file.seal.opened(box, first)
        return form, [Kept(first + i, *row) for i, row in enumerate(rows)]

    def _filled(self, form: str, kept: list[Kept]) -> list[Kept]:
        if self.labels is not None and form == self.labels.join.form:
            with self.file.reading():
                self.labels.fill(kept)
        return kept
