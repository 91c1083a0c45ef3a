"""Windows of one device whose label came: each once, when nothing can come any more that belongs into it.

A window is what a data set has as a row, and history.py gives as readings come: a device's last `size` by
their own time, labelled as the newest of them is. The label may come at any time after, or before the window
is final; whichever is last makes the event. A label that takes another's place makes one more.

On disk, in the store's file and commits: `series` (of each reading of the contract's form: its device's
number, its time) and `due` (numbers of readings in the order of their events). So a window is found again
however long ago it was, and nobody need hold readings for labels to come; a disk shows of each unnamed device
the times of its readings.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS series (number INTEGER PRIMARY KEY, device INTEGER, at REAL);
CREATE INDEX IF NOT EXISTS series_times ON series (device, at);
CREATE TABLE IF NOT EXISTS due (event INTEGER PRIMARY KEY AUTOINCREMENT, reading INTEGER);
CREATE INDEX IF NOT EXISTS due_readings ON due (reading);
"""


@dataclass
class Series:
    """Of one store. `form`: of the readings that have windows. `late`: seconds that a device's newest reading
    is newer than the last of a final window. `device`: its number, and the time of its newest reading.
    """

    sql: sqlite3.Connection = field(repr=False)
    form: str
    late: float
    device: Callable[[str], tuple[int, float]] = field(repr=False)

    @property
    def rule(self) -> list[Any]:
        """What the stored events were made by."""
        return [self.form, self.late]

    def came(self, source: str, at: float, number: int) -> None:
        """A reading of this form is stored as this number."""
        self.sql.execute("INSERT INTO series VALUES (?, ?, ?)", (number, self.device(source)[0], at))

    def labelled(self, number: int) -> None:
        """A label came for a stored reading, or another in its place."""
        query = "SELECT at, newest FROM series JOIN devices USING (device) WHERE number = ?"
        row = self.sql.execute(query, (number,)).fetchone()
        if row is not None and row[0] <= row[1] - self.late:
            self.sql.execute("INSERT INTO due (reading) VALUES (?)", (number,))

    def moved(self, sources: Iterable[str]) -> None:
        """Newer readings of these came, not yet settled: windows are final by them."""
        for source in sources:
            number, newest = self.device(source)
            query = "SELECT newest FROM devices WHERE device = ?"
            (before,) = self.sql.execute(query, (number,)).fetchone()
            self.sql.execute(
                "INSERT INTO due (reading) SELECT number FROM series WHERE device = ? AND at > ? AND at <= ?"
                " AND EXISTS (SELECT 1 FROM joined WHERE reading = number) ORDER BY at, number",
                (number, before - self.late, newest - self.late),
            )

    def rebuild(self, boxes: Iterable[tuple[str, list[Any]]]) -> None:
        """Find them anew: the form is another, or `late` is, or there were none; what was an event is none
        again.
        """
        self.sql.execute("DELETE FROM series")
        for form, kept in boxes:
            for reading in kept if form == self.form else ():
                self.came(reading.source, reading.at, reading.number)
        self.sql.execute(
            "INSERT INTO due (reading) SELECT number FROM series JOIN devices USING (device)"
            " WHERE at <= newest - ? AND number IN (SELECT reading FROM joined)"
            " AND number NOT IN (SELECT reading FROM due) ORDER BY number",
            (self.late,),
        )

    def window(self, number: int, size: int) -> list[int]:
        """The readings of the window that ends with this one, the oldest first; [] where they are too few."""
        rows = self.sql.execute(
            "SELECT s.number FROM series s JOIN series r ON s.device = r.device WHERE r.number = ?"
            " AND (s.at, s.number) <= (r.at, r.number) ORDER BY s.at DESC, s.number DESC LIMIT ?",
            (number, size),
        ).fetchall()
        return [n for (n,) in reversed(rows)] if len(rows) == size else []


def forget(sql: sqlite3.Connection, first: int) -> None:
    """Readings below this number are gone."""
    sql.execute("DELETE FROM series WHERE number < ?", (first,))
    sql.execute("DELETE FROM due WHERE reading < ?", (first,))
