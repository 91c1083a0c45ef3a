"""A store's file: opened with its key, written in commits that are on disk whole or not at all.

One SQLite file, and not segments of our own: its transactions put readings, their ids, the counts and how far
a source was read on disk together or not at all, whatever is killed and when; a full disk leaves the last
commit; ids of repeats are found on disk, however far back, in two megabytes of memory.
"""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..core.errors import StateError
from ..privacy.hazmat.suite import Suite
from ..privacy.vault import Vault
from ..wire.failpoint import hit
from . import labels, place, series
from .seal import Seal

_SCHEMA = """
CREATE TABLE boxes (first INTEGER PRIMARY KEY, n INTEGER, taken REAL, newest REAL, box BLOB);
CREATE TABLE ids (id BLOB PRIMARY KEY, device INTEGER, at REAL) WITHOUT ROWID;
CREATE TABLE devices (device INTEGER PRIMARY KEY, name BLOB UNIQUE, newest REAL);
CREATE TABLE aside (number INTEGER PRIMARY KEY AUTOINCREMENT, taken REAL, box BLOB);
CREATE TABLE places (name BLOB PRIMARY KEY, box BLOB) WITHOUT ROWID;
CREATE TABLE counts (what TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID;
CREATE TABLE about (hash TEXT);
"""


class File:
    """`write`: it is made where there is none. `begun`: called whenever it was opened, at first and where it
    was wiped meanwhile. `turn`: held by who uses `sql`.
    """

    def __init__(
        self, folder: Path, name: str, vault: Vault, *, write: bool, begun: Callable[[], None]
    ) -> None:
        self.path, self._lock = place.files(folder, name)
        self.life = 0  # it begins anew where it is wiped
        self.suite: Suite = vault.suite
        self.turn = threading.RLock()
        self._where, self._vault, self._write, self._begun = (folder, name), vault, write, begun
        self._devices: dict[str, tuple[int, float]] = {}

    def open(self) -> None:
        """Raises Absent where there is none to read, StateError where its key is missing or another's."""
        if not self._write and not place.cut_off(*self._where):
            self._open()
            return
        with place.locked(self._where[0], alone=True):
            self._open()

    def _open(self) -> None:
        key, self._stamp = place.key_of(*self._where, self._vault, make=self._write)
        self.life += 1
        self._devices.clear()
        with self.guarded():
            self.sql = self._connect()
            (hash_,) = self.sql.execute("SELECT hash FROM about").fetchone()
        self.seal = Seal(key, self.suite, hash_, self.path.name)
        self._begun()

    def close(self) -> None:
        """Close it."""
        with self.turn:
            self.sql.close()

    @contextmanager
    def commit(self, points: tuple[str, str]) -> Iterator[None]:
        """What is written in the block is on disk whole after it. `points`: failpoints around the commit."""
        with self.turn, self.guarded(), self._held():
            self.sql.execute("BEGIN IMMEDIATE")  # others may write between its statements else
            yield
            hit(points[0])
            self.sql.commit()
            hit(points[1])

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Its connection, for statements that change nothing."""
        with self.turn, self.guarded():
            yield self.sql

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What the disk will not do is ours to tell; nothing half-done stays, in memory neither."""
        try:
            yield
        except BaseException as error:
            self._devices.clear()
            with suppress(sqlite3.Error, AttributeError):
                self.sql.rollback()
            if not isinstance(error, (sqlite3.Error, OSError)):
                raise
            raise StateError(f"readings cannot be kept or read in {self.path.name}: {error}") from None

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Nobody wipes it meanwhile; if somebody has, it is begun anew."""
        while True:
            with place.locked(self._where[0], alone=False):
                if place.stamp(self._lock) == self._stamp and not place.cut_off(*self._where):
                    yield
                    return
            self.sql.close()
            with place.locked(self._where[0], alone=True):
                self._open()

    def _connect(self) -> sqlite3.Connection:
        if not self._write:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            return sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)
        sql = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        self.path.chmod(0o600)
        sql.executescript("PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
        if not sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            hash_ = self.suite.hash.lower()
            sql.executescript(f"BEGIN; {_SCHEMA} INSERT INTO about VALUES ('{hash_}'); COMMIT;")  # noqa: S608  ours
        sql.executescript(labels.SCHEMA + series.SCHEMA)
        return sql

    # -- what stands in it ------------------------------------------------------------------------

    def device(self, source: str) -> tuple[int, float]:
        """A device's number, and when the newest of its readings was taken: Unix seconds by its own clock."""
        if source not in self._devices:
            name = self.seal.hashed("device", source)
            self.sql.execute("INSERT OR IGNORE INTO devices (name, newest) VALUES (?, ?)", (name, -math.inf))
            row = self.sql.execute("SELECT device, newest FROM devices WHERE name = ?", (name,)).fetchone()
            self._devices[source] = row
        return self._devices[source]

    def moved(self, source: str, at: float) -> None:
        """A newer reading of it is taken; on disk once `settle` was called."""
        self._devices[source] = self.device(source)[0], at

    def settle(self, sources: set[str]) -> None:
        """Write how far these have come."""
        self.sql.executemany(
            "UPDATE devices SET newest = ? WHERE device = ? AND newest < ?",
            [(at, number, at) for number, at in map(self.device, sources)],
        )

    def place(self, name: str) -> Any:
        """What was noted under a name, None where nothing was."""
        key = self.seal.hashed("place", name)
        row = self.sql.execute("SELECT box FROM places WHERE name = ?", (key,)).fetchone()
        return None if row is None else self.seal.opened(row[0], -1)

    def note(self, name: str, value: Any) -> None:
        """Keep a plain value, sealed."""
        row = self.seal.hashed("place", name), self.seal.sealed(value, -1)
        self.sql.execute("INSERT OR REPLACE INTO places VALUES (?, ?)", row)

    def count(self, what: str) -> int:
        """How many there were."""
        row = self.sql.execute("SELECT n FROM counts WHERE what = ?", (what,)).fetchone()
        return 0 if row is None else int(row[0])

    def add(self, said: Mapping[str, int]) -> None:
        """Count so many more."""
        self.sql.executemany(
            "INSERT INTO counts VALUES (?, ?) ON CONFLICT (what) DO UPDATE SET n = n + excluded.n",
            list(said.items()),
        )

    def size(self) -> int:
        """Bytes in use."""
        used, free, size = (
            self.sql.execute(f"PRAGMA {what}").fetchone()[0]
            for what in ("page_count", "freelist_count", "page_size")
        )
        return int((used - free) * size)
