"""Labels that come later than their readings, and whose each of them is.

    id        the label of what its device calls so
    sample    as `id`, whoever says it: ids are one list for all devices, as a laboratory's are
    time      of the same device, the nearest in time: as pandas.merge_asof(readings, labels, by="source",
              on="at", direction=..., tolerance=...) joins them, of two equally near the earlier one

The join is a function of two sets, what readings and what labels are stored, and neither of the order they
came in nor of how often. Of several labels in one place the one with the highest sequence counts; where that
is the same, the one whose bytes are larger, so that everybody's answer is the same.

On disk, in the store's file and commits: `marks` (a reading's place and number), `labels` (a label's place
and box, the newest reading that has it) and `joined` (numbers of readings in the order in which a label came
to them). A place is a keyed hash of device or id, and a time in the open where labels join by time. Windows
of devices and their labels: series.py.
"""

from __future__ import annotations

import math
import os
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from ..core.errors import ProtocolError, StateError
from ..privacy.hazmat.suite import NONCE, SUITES
from .reading import Reading, moment
from .seal import NUMBERS, Seal, number_of
from .series import Series, forget

By: TypeAlias = Literal["id", "sample", "time"]
Direction: TypeAlias = Literal["nearest", "forward", "backward"]
COUNTS = ("labels", "labels_corrected", "labels_repeated", "labels_aside", "labels_dropped")
_ROOM = 10  # labels that wait take at most this part of a quota
_ROUNDED = 1e-3  # seconds: sums of times are rounded one way or the other
_ROW = 64  # bytes of one beside its box, about
SCHEMA = """
CREATE TABLE IF NOT EXISTS marks (who BLOB, at REAL, number INTEGER, PRIMARY KEY (who, at, number))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS labels (who BLOB, at REAL, taken REAL, reading INTEGER, box BLOB,
    PRIMARY KEY (who, at)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS labels_waiting ON labels (taken) WHERE reading IS NULL;
CREATE TABLE IF NOT EXISTS joined (event INTEGER PRIMARY KEY AUTOINCREMENT, reading INTEGER);
CREATE INDEX IF NOT EXISTS joined_readings ON joined (reading);
"""


@dataclass(frozen=True)
class Join:
    """How labels find their readings. `form`, `place`: of readings with a label, and its place among cells.

    `number`: a label's cell by its value and unit, or why it is none, as a contract's column says it.
    `tolerance`: seconds between the two, by time. `wait`: seconds a label waits for its reading. `devices`:
    whose labels are taken, with * and ?; () for all. `column`, `sequence`: what the two are called where
    labels come from. `ahead`: seconds that a label's clock may be. `final`: seconds after which a device's
    window can change no more, where labels of windows are heard; None where they are not.
    """

    form: str
    place: int
    number: Callable[[Any, str], tuple[float, str]]
    column: str
    sequence: str = "sequence"
    by: By = "id"
    tolerance: float = 0.0
    direction: Direction = "nearest"
    wait: float = 7 * 86400.0
    devices: tuple[str, ...] = ()
    ahead: float | None = None
    final: float | None = None

    @property
    def rule(self) -> list[Any]:
        """What the stored places and matches were made by."""
        return [self.by, self.tolerance, self.direction]

    def read(self, said: Reading, now: float) -> tuple[Label | None, str]:
        """A label as it came, or why it is none."""
        if said.fault:
            return None, said.fault
        if self.devices and not any(fnmatchcase(said.source, name) for name in self.devices):
            return None, "labels of this device are not taken: `devices` does not name it"
        if self.by != "time" and not said.id:
            return None, "it names no id, and labels join by it here"
        if self.ahead is not None and said.at > now + self.ahead:
            return None, f"its clock is ahead by more than {self.ahead:g} s"
        value, unit = said.values.get(self.column), said.units.get(self.column, "")
        cell, reason = self.number(value, unit)
        if reason or math.isnan(cell):
            return None, f"column {self.column!r} {reason or 'is missing'}"
        try:
            given = said.values.get(self.sequence)
            sequence = moment(given) if given not in (None, "") else 0.0 if self.by == "time" else said.at
        except (ValueError, TypeError, OverflowError):
            return None, f"column {self.sequence!r} is no number and no time"
        plain = value if isinstance(value, (str, bool)) else float(value)  # type: ignore[arg-type]
        return Label(said.source, said.at, said.id, plain, unit, sequence), ""

    def reach(self, at: float) -> tuple[float, float]:
        """From when to when readings may be that a label of this time can be for, and a little more."""
        before = 0.0 if self.direction == "backward" else self.tolerance
        after = 0.0 if self.direction == "forward" else self.tolerance
        return at - before - _ROUNDED, at + after + _ROUNDED


class Label(NamedTuple):
    """What was said of one reading. `value`: as it came; `sequence`: of two the higher one counts."""

    source: str
    at: float
    id: str
    value: str | bool | float
    unit: str
    sequence: float

    @property
    def rank(self) -> tuple[float, bytes]:
        """Of labels in one place the highest counts."""
        return self.sequence, msgspec.msgpack.encode([self.value, self.unit])


@dataclass
class Labels:
    """The labels of one store, in its file; every commit is the store's."""

    sql: sqlite3.Connection = field(repr=False)
    join: Join
    seal: Seal = field(repr=False)
    series: Series | None = None
    _keys: dict[str, bytes] = field(default_factory=dict, repr=False)

    def came(self, source: str, at: float, id_: str, number: int, cell: float) -> None:
        """A reading is stored as this number; `cell`: the label that came with it, NaN for none."""
        if self.series is not None and self.series.form == self.join.form:
            self.series.came(source, at, number)
        labelled = not math.isnan(cell)
        place = self._place(source, at, id_)
        if place is not None:
            self.sql.execute("INSERT INTO marks VALUES (?, ?, ?)", (*place, number))
            if (found := self._best(*place)) is not None:
                labelled = True
                self.sql.execute(
                    "UPDATE labels SET reading = ? WHERE who = ? AND at = ?", (number, place[0], found[0])
                )
        if labelled:
            self._joined(number)

    def put(self, label: Label, now: float) -> str:
        """Keep a label; what became of it (COUNTS)."""
        place = self._place(label.source, label.at, label.id)
        assert place is not None  # noqa: S101  Join.read has looked
        row = self.sql.execute("SELECT box, taken FROM labels WHERE who = ? AND at = ?", (*place,)).fetchone()
        old = None if row is None else self._opened(row[0], place)
        if old is not None and label.rank <= old.rank:
            return "labels_repeated"
        numbers = self._readings(*place)
        self.sql.execute(
            "INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?)",
            (*place, now if row is None else row[1], None, self._sealed(label, place)),
        )
        mine = [n for n, at in numbers if (found := self._best(place[0], at)) and found[0] == place[1]]
        if mine:
            self.sql.execute("UPDATE labels SET reading = ? WHERE who = ? AND at = ?", (max(mine), *place))
        if old is not None and self._cell(old) == self._cell(label):
            return "labels_repeated"
        for number in mine:
            self._joined(number)
        return "labels" if old is None else "labels_corrected"

    def _joined(self, number: int) -> None:
        self.sql.execute("INSERT INTO joined (reading) VALUES (?)", (number,))
        if self.series is not None:
            self.series.labelled(number)

    def fill(self, kept: Sequence[Any]) -> None:
        """Put the labels that came into the cells of these readings, the lowest number first; a reading's own
        stays where none did.
        """
        span = "SELECT DISTINCT reading FROM joined WHERE reading BETWEEN ? AND ?"
        ends = (kept[0].number, kept[-1].number) if kept else (0, -1)
        some = {number for (number,) in self.sql.execute(span, ends)}
        for reading in (r for r in kept if r.number in some):
            place = self._place(reading.source, reading.at, reading.id)
            if place is not None and (found := self._best(*place)) is not None:
                cell = self._cell(self._opened(found[1], (place[0], found[0])))
                if not math.isnan(cell):
                    reading.cells[self.join.place] = cell

    def rebuild(self, boxes: Iterable[tuple[str, list[Any]]]) -> None:
        """Find all places and matches anew: the rule by which they were made is another now."""
        rows = self.sql.execute("SELECT who, at, box, taken FROM labels").fetchall()
        for table in ("marks", "labels", "joined", "due"):
            self.sql.execute(f"DELETE FROM {table}")  # noqa: S608  ours
        for form, kept in boxes:
            for reading in kept:
                own = reading.cells[self.join.place] if form == self.join.form else math.nan
                self.came(reading.source, reading.at, reading.id, reading.number, own)
        for who, at, box, taken in rows:
            label = self._opened(box, (who, at))
            if self._place(label.source, label.at, label.id) is not None:
                self.put(label, taken)

    def overdue(self, now: float) -> Iterator[Label]:
        """Labels that have waited too long; they are here no longer."""
        late = now - self.join.wait
        which = "FROM labels WHERE reading IS NULL AND taken < ?"
        for who, at, box in self.sql.execute(f"SELECT who, at, box {which}", (late,)).fetchall():
            yield self._opened(box, (who, at))
        self.sql.execute(f"DELETE {which}", (late,))

    def shorten(self, quota: int) -> int:
        """Let the oldest that wait go, where all of them take more than a part of the quota; how many."""
        left, gone = quota // _ROOM, []
        newest = "SELECT who, at, length(box) FROM labels WHERE reading IS NULL ORDER BY taken DESC"
        for who, at, size in self.sql.execute(newest):
            left -= size + _ROW
            if left < 0:
                gone.append((who, at))
        self.sql.executemany("DELETE FROM labels WHERE who = ? AND at = ?", gone)
        return len(gone)

    def forget(self, first: int) -> None:
        """Readings below this number are gone, and so is what belongs to them."""
        self.sql.execute("DELETE FROM marks WHERE number < ?", (first,))
        self.sql.execute("DELETE FROM labels WHERE reading < ?", (first,))
        self.sql.execute("DELETE FROM joined WHERE reading < ?", (first,))
        forget(self.sql, first)

    def joined(self, after: int, most: int, table: str = "joined") -> tuple[int, list[int]]:
        """Numbers of the readings whose label came or changed after this event, each at the last of its own,
        and the last event. One that is to come is of a store that was wiped. `table`: "due" for windows.
        """
        row = self.sql.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        after = 0 if row is None or after > row[0] else after
        rows = self.sql.execute(
            f"SELECT event, reading FROM {table} e WHERE event > ? AND NOT EXISTS"  # noqa: S608  ours
            f" (SELECT 1 FROM {table} o WHERE o.reading = e.reading AND o.event > e.event)"
            " ORDER BY event LIMIT ?",
            (after, most),
        ).fetchall()
        return (rows[-1][0] if rows else after), [reading for _, reading in rows]

    def changed(self, after: int, number: int, table: str = "joined") -> bool:
        """Whether this reading has an event after that one."""
        query = f"SELECT 1 FROM {table} WHERE reading = ? AND event > ?"  # noqa: S608  ours
        return self.sql.execute(query, (number, after)).fetchone() is not None

    def since(self, n: int) -> int:
        """The number of the `n`-th last reading that has a label, 0 where there are fewer."""
        newest = "SELECT DISTINCT reading FROM joined ORDER BY reading DESC LIMIT 1 OFFSET ?"
        row = self.sql.execute(newest, (n - 1,)).fetchone()
        return 0 if row is None else int(row[0])

    def counts(self) -> dict[str, int]:
        """How many stored readings have a label, and how many labels wait for their reading."""
        (labelled,) = self.sql.execute("SELECT count(DISTINCT reading) FROM joined").fetchone()
        (waiting,) = self.sql.execute("SELECT count(*) FROM labels WHERE reading IS NULL").fetchone()
        return {"labelled": labelled, "labels_waiting": waiting}

    # -- places -----------------------------------------------------------------------------------

    def _place(self, source: str, at: float, id_: str) -> tuple[bytes, float] | None:
        """Where a reading and its label meet; None for a reading without an id where they join by it."""
        if self.join.by == "time":
            return self.seal.hashed("label of", source), at
        if not id_:
            return None
        return self.seal.hashed("label of", source if self.join.by == "id" else "", id_), 0.0

    def _readings(self, who: bytes, at: float) -> list[tuple[int, float]]:
        span = (at, at) if self.join.by != "time" else self.join.reach(at)
        rows = self.sql.execute(
            "SELECT number, at FROM marks WHERE who = ? AND at BETWEEN ? AND ?", (who, *span)
        )
        return rows.fetchall()

    def _best(self, who: bytes, at: float) -> tuple[float, bytes] | None:
        """The time and box of the label of a reading here."""
        join = self.join
        far = join.tolerance if join.by == "time" else 0.0
        found: list[tuple[float, bytes]] = []
        if join.direction != "forward" or not far:
            found += self.sql.execute(
                "SELECT at, box FROM labels WHERE who = ? AND at BETWEEN ? AND ? ORDER BY at DESC LIMIT 1",
                (who, at - far, at),
            ).fetchall()
        if join.direction != "backward" and far and not (found and found[0][0] == at):
            found += self.sql.execute(
                "SELECT at, box FROM labels WHERE who = ? AND at BETWEEN ? AND ? ORDER BY at LIMIT 1",
                (who, at, at + far),
            ).fetchall()
        return min(found, key=lambda row: (abs(row[0] - at), row[0]), default=None)

    # -- boxes ------------------------------------------------------------------------------------

    def _cell(self, label: Label) -> float:
        """As the contract reads it now; NaN where it no longer does."""
        return self.join.number(label.value, label.unit)[0]

    def _key(self, name: str) -> bytes:
        if name not in self._keys:
            self._keys[name] = SUITES[name].derived(self.seal.key, "atoll sense labels 1", name)
        return self._keys[name]

    def _sealed(self, label: Label, place: tuple[bytes, float]) -> bytes:
        """Under one key of the store's and a random nonce: small boxes, for 2^32 of them (SP 800-38D)."""
        suite, nonce, text = self.seal.suite, os.urandom(NONCE), msgspec.msgpack.encode(label)
        key = self._key(suite.name)
        return bytes([number_of(suite)]) + nonce + suite.encrypted(key, nonce, text, _bound(place))

    def _opened(self, box: bytes, place: tuple[bytes, float]) -> Label:
        try:
            suite = SUITES[NUMBERS[box[0]]]
            key, nonce = self._key(suite.name), box[1 : 1 + NONCE]
            text = suite.decrypted(key, nonce, box[1 + NONCE :], _bound(place))
        except (ProtocolError, LookupError):
            raise StateError("a label was changed, or is of another key: wipe the store") from None
        return Label(*msgspec.msgpack.decode(text))


def _bound(place: tuple[bytes, float]) -> bytes:
    return place[0] + struct.pack(">d", place[1] + 0.0)  # SQLite knows no -0.0
