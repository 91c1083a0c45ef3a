"""Readings on disk: encrypted, each once, in the order they came; gone after a while, or at a word.

    folder/sense/engine.db     SQLite: boxes of readings, ids, counts
    folder/sense/engine.key    the store's own key, sealed by the client's vault

One SQLite file, and not segments of our own: its transactions put readings, their ids, the counts and how far
a source was read on disk together or not at all, whatever is killed and when; a full disk leaves the last
commit; ids of repeats are found on disk, however far back, in two megabytes of memory.

A box is one commit's readings, sealed (seal.py) and never written again; a label that comes later has one of
its own (labels.py). Devices and ids lie there as keyed hashes (HMAC) alone. What a disk shows to who has no
key: how many readings and labels came and when, and of each unnamed device the times within `late`, or all
where labels join by time.
"""

from __future__ import annotations

import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..core.errors import MisuseError, StateError
from ..privacy.vault import Vault
from ..wire.failpoint import declare, hit
from . import labels, place
from .aside import Aside, packed, plain, unpacked
from .judge import Judge, Rules
from .labels import Join, Labels
from .reading import Reading
from .seal import Seal

COUNTS = ("stored", "repeated", "late", "aside", "expired", "dropped")
_COMMIT = declare("sense.stored.before"), declare("sense.stored.after")
_LABELLED = declare("sense.labelled.before"), declare("sense.labelled.after")
_REPLAYED = declare("sense.replayed.before"), declare("sense.replayed.after")
_ASIDE = 1000  # readings kept aside, the newest
_RULE = "the rule that labels join by"
_EVERY = 60.0  # seconds between two looks at what may go
_DAY = 86400.0
_SCHEMA = """
CREATE TABLE boxes (first INTEGER PRIMARY KEY, n INTEGER, taken REAL, newest REAL, box BLOB);
CREATE TABLE ids (id BLOB PRIMARY KEY, device INTEGER, at REAL) WITHOUT ROWID;
CREATE TABLE devices (device INTEGER PRIMARY KEY, name BLOB UNIQUE, newest REAL);
CREATE TABLE aside (number INTEGER PRIMARY KEY AUTOINCREMENT, taken REAL, box BLOB);
CREATE TABLE places (name BLOB PRIMARY KEY, box BLOB) WITHOUT ROWID;
CREATE TABLE counts (what TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID;
CREATE TABLE about (hash TEXT);
"""


class Kept(NamedTuple):
    """A stored reading: its number from 0, device, Unix seconds, id, cells in the order of the columns."""

    number: int
    source: str
    at: float
    id: str
    cells: list[Any]


class Store:
    """One source's readings. Make it with `open`; close it, or use it in a `with` block.

    `rules`: what is taken; None to read only, beside the process that writes. `quota`: bytes of its file,
    above which the oldest go; `days`: after which readings go; None: never. `join`: how labels that come by
    themselves find their readings, None where they come with them. Methods may be called from any thread.
    Raise StateError where the disk is full, failing or damaged: nothing of that call is kept then.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        vault: Vault,
        rules: Rules | None,
        quota: int | None,
        days: float | None,
        join: Join | None,
        *,
        owner: bool,
    ) -> None:
        self.path, self._lock = place.files(folder, name)
        self.life = 0  # it begins anew where it is wiped
        self._where, self._vault, self._suite = (folder, name), vault, vault.suite
        self._judge = None if rules is None else Judge(rules)
        self._quota, self._days, self._join, self._owner = quota, days, join, owner
        self._turn = threading.RLock()
        if rules is None and not place.cut_off(folder, name):
            self._begin()
            return
        with place.locked(folder, alone=True):
            self._begin()

    @classmethod
    def open(
        cls,
        folder: Path,
        name: str,
        vault: Vault,
        rules: Rules | None = None,
        *,
        quota: int | None = None,
        days: float | None = None,
        join: Join | None = None,
        owner: bool = True,
    ) -> Store:
        """The store `name` of a client's folder; with `rules` it is made where there is none. `owner`: by the
        client itself; others may write beside it, and change no rule by which it keeps things.

        Raises Absent where there is none to read, StateError where its key is missing or another vault's.
        """
        return cls(folder, name, vault, rules, quota, days, join, owner=owner)

    def _begin(self) -> None:
        write = self._judge is not None
        key, self._stamp = place.key_of(*self._where, self._vault, make=write)
        self.life += 1
        self._looked = -math.inf
        self._devices: dict[str, tuple[int, float]] = {}
        with self._guarded():
            self._sql = self._connect(write=write)
            (hash_,) = self._sql.execute("SELECT hash FROM about").fetchone()
        self._seal = Seal(key, self._suite, hash_, self.path.name)
        self._labels = None
        if self._join is not None and (write or self._has_labels()):
            self._labels = Labels(self._sql, self._join, self._seal.hashed, key, self._suite)
            if write and self.place(_RULE) != self._join.rule:
                if not self._owner:
                    raise StateError(
                        "labels join by another rule than before: start the client with it first"
                    )
                self._rejoin(self._labels)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Nobody wipes it meanwhile; if somebody has, it is begun anew."""
        while True:
            with place.locked(self._where[0], alone=False):
                if place.stamp(self._lock) == self._stamp and not place.cut_off(*self._where):
                    yield
                    return
            self._sql.close()
            with place.locked(self._where[0], alone=True):
                self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its file."""
        with self._turn:
            self._sql.close()

    def take(
        self, readings: Sequence[Reading], now: float, places: Mapping[str, Any] | None = None
    ) -> Counter[str]:
        """Keep what is good, set the bad aside, on disk when this returns; how many were what (COUNTS).

        `places`: plain values by name, kept with them: how far a source has been read.
        """
        with self._written(now, places, _COMMIT) as said:
            good: list[list[Any]] = []
            first = self._count("stored")
            for reading in readings:
                said[self._taken(reading, now, good, first)] += 1
            self._stored(first, good, now)
        return said

    def label(
        self, said: Sequence[Reading], now: float, places: Mapping[str, Any] | None = None
    ) -> Counter[str]:
        """As `take`, with labels that come by themselves: readings that say whose they are, and the label.

        Each is kept once, in place of one with a lower sequence; what is no label here is set aside, and so
        is what no reading came for in time. How many were what (labels.COUNTS).
        """
        if self._labels is None:
            raise MisuseError("this store has no labels of its own: give it a join")
        with self._written(now, places, _LABELLED) as found:
            for one in said:
                found[self._labelled(self._labels, one, now)] += 1
        return found

    @property
    def join(self) -> Join | None:
        """How labels that come by themselves find their readings, None where they come with them."""
        return None if self._labels is None else self._labels.join

    def place(self, name: str) -> Any:
        """How far a source has been read, as `take` was told; None where it was not."""
        with self._turn, self._guarded():
            row = self._sql.execute(
                "SELECT box FROM places WHERE name = ?", (self._seal.hashed("place", name),)
            ).fetchone()
            return None if row is None else self._seal.opened(row[0], -1)

    def readings(self, after: int = 0) -> Iterator[Kept]:
        """The stored readings from number `after` on, in the order they came."""
        for _, kept in self.boxes(after):
            yield from kept

    def boxes(self, after: int = 0, since: float = -math.inf) -> Iterator[tuple[str, list[Kept]]]:
        """As `readings`, a commit's at a time, with their form: so much is in memory. Labels that came by
        themselves are in their cells.

        `since`: Unix seconds; commits that hold nothing as new may be left out.
        """
        while True:
            with self._turn, self._guarded():
                row = self._sql.execute(
                    "SELECT first, box FROM boxes WHERE first + n > ? AND newest >= ? ORDER BY first LIMIT 1",
                    (after, since),
                ).fetchone()
            if row is None:
                return
            first, box = row
            form, rows = self._seal.opened(box, first)
            begin, after = max(after, first), first + len(rows)
            kept = [Kept(first + i, *rows[i]) for i in range(begin - first, len(rows))]
            yield form, self._filled(form, kept)

    def joined(self, after: int = 0, most: int = 1000) -> tuple[int, list[Kept]]:
        """Readings whose label came, or another in its place, after event `after`, in that order; and the
        last event of them. Readings that are here no longer are left out.
        """
        if self._labels is None:
            return after, []
        found: dict[int, Kept] = {}
        with self._turn, self._guarded():
            last, numbers = self._labels.joined(after, most)
            for number in numbers:
                if number in found:
                    continue
                row = self._sql.execute(
                    "SELECT first, box FROM boxes WHERE first <= ? ORDER BY first DESC LIMIT 1", (number,)
                ).fetchone()
                if row is not None:
                    form, rows = self._seal.opened(row[1], row[0])
                    wanted = sorted(n for n in numbers if row[0] <= n < row[0] + len(rows))
                    kept = [Kept(n, *rows[n - row[0]]) for n in wanted]
                    found |= {r.number: r for r in self._filled(form, kept) if form == self._labels.join.form}
        return last, [found[n] for n in numbers if n in found]

    def end(self) -> int:
        """The number that the next reading will have."""
        with self._turn, self._guarded():
            return self._count("stored")

    def since(self, n: int) -> int:
        """The number of the `n`-th last reading, of those with a label where labels come by themselves; 0
        where there are fewer.
        """
        with self._turn, self._guarded():
            if self._labels is not None:
                return self._labels.since(n)
            return max(0, self._count("stored") - n)

    def counts(self) -> dict[str, int]:
        """How many readings were what, since the store was made, and `bytes` of its file now."""
        with self._turn, self._guarded():
            found = dict.fromkeys(COUNTS, 0)
            if self._labels is not None:
                found |= dict.fromkeys(labels.COUNTS, 0) | self._labels.counts()
            found |= dict(self._sql.execute("SELECT what, n FROM counts"))
            return found | {"bytes": self._size()}

    def aside(self) -> list[Aside]:
        """The newest readings and labels that were kept aside, at most 1,000, the oldest first."""
        with self._turn, self._guarded():
            rows = self._sql.execute("SELECT number, taken, box FROM aside ORDER BY number").fetchall()
            return [unpacked(number, taken, *self._seal.opened(box, -2)) for number, taken, box in rows]

    def replay(self, now: float, which: Callable[[Aside], bool] = lambda _: True) -> Counter[str]:
        """Judge again what was set aside, as of when it came: what is good by now is stored, in one commit.

        What is still bad stays aside, and so does what was not kept whole, or could not be read at all.
        """
        found: Counter[str] = Counter()
        with self._written(now, None, _REPLAYED) as said:
            good: list[list[Any]] = []
            first = self._count("stored")
            for aside in filter(which, self.aside()):
                what = self._again(aside, good, first)
                found[what] += 1
                if what not in ("aside", "labels_aside"):
                    self._sql.execute("DELETE FROM aside WHERE number = ?", (aside.number,))
                    said.update({what: 1, "aside" if aside.kind == "reading" else "labels_aside": -1})
            self._stored(first, good, now)
        return found

    def status(self) -> dict[str, Any]:
        """Of what is here now: `readings`, and when the `oldest` and `newest` of them came, Unix seconds or
        None; how many wait `aside` by their reasons; and `counts`.
        """
        with self._turn, self._guarded():
            query = "SELECT coalesce(sum(n), 0), min(taken), max(taken) FROM boxes"
            n, oldest, newest = self._sql.execute(query).fetchone()
            reasons = Counter(aside.reason for aside in self.aside())
            return {
                "readings": n,
                "oldest": oldest,
                "newest": newest,
                "aside": dict(reasons.most_common()),
                "counts": self.counts(),
            }

    @contextmanager
    def _written(
        self, now: float, places: Mapping[str, Any] | None, points: tuple[str, str]
    ) -> Iterator[Counter[str]]:
        """One commit: what is written in the block, how far sources were read, and what was counted."""
        if self._judge is None:
            raise MisuseError("this store was opened to read: give it rules to take readings")
        with self._turn, self._guarded(), self._held():
            said: Counter[str] = Counter()
            self._sql.execute("BEGIN IMMEDIATE")  # others may write between its statements else
            yield said
            for name, value in (places or {}).items():
                self._note(name, value)
            self._add(said)
            self._tidy(now)
            hit(points[0])
            self._sql.commit()
            hit(points[1])

    def _stored(self, first: int, good: list[list[Any]], now: float) -> None:
        """A commit's good readings, from number `first` on."""
        assert self._judge is not None  # noqa: S101  take looked
        self._sql.executemany(
            "UPDATE devices SET newest = ? WHERE device = ? AND newest < ?",
            [(at, number, at) for number, at in self._moved(good).items()],
        )
        if good:
            box = self._seal.sealed([self._judge.rules.form, good], first)
            newest = max(at for _, at, *_ in good)
            self._sql.execute(
                "INSERT INTO boxes VALUES (?, ?, ?, ?, ?)", (first, len(good), now, newest, box)
            )

    def _note(self, name: str, value: Any) -> None:
        row = self._seal.hashed("place", name), self._seal.sealed(value, -1)
        self._sql.execute("INSERT OR REPLACE INTO places VALUES (?, ?)", row)

    def _has_labels(self) -> bool:
        """Whether its file has tables for them: who wrote it last may have known of none."""
        row = self._sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'labels'").fetchone()
        return row is not None

    def _rejoin(self, held: Labels) -> None:
        """Find whose the labels are by another rule than the one before, or by the first."""
        with self._turn, self._guarded():
            self._sql.execute("BEGIN IMMEDIATE")
            held.rebuild(self._unfilled())
            self._note(_RULE, held.join.rule)
            self._sql.commit()

    def _unfilled(self) -> Iterator[tuple[str, list[Kept]]]:
        for first, box in self._sql.execute("SELECT first, box FROM boxes ORDER BY first"):
            form, rows = self._seal.opened(box, first)
            yield form, [Kept(first + i, *row) for i, row in enumerate(rows)]

    def _filled(self, form: str, kept: list[Kept]) -> list[Kept]:
        if self._labels is not None and form == self._labels.join.form:
            with self._turn, self._guarded():
                self._labels.fill(kept)
        return kept

    def _labelled(self, held: Labels, said: Reading, now: float) -> str:
        """What becomes of one label."""
        label, reason = held.join.read(said, now)
        if label is not None:
            return held.put(label, now)
        values = plain(said.values) + said.fault.encode()
        id_ = self._seal.hashed("label", said.source, f"{said.at!r}", said.id, values)
        if self._sql.execute("SELECT 1 FROM ids WHERE id = ?", (id_,)).fetchone() is not None:
            return "labels_repeated"
        number, _ = self._device(said.source)
        self._sql.execute("INSERT INTO ids VALUES (?, ?, ?)", (id_, number, min(said.at, now)))
        self._set_aside(said, reason, now, "label")
        return "labels_aside"

    def _again(self, aside: Aside, good: list[list[Any]], first: int) -> str:
        """What becomes of one that was set aside."""
        assert self._judge is not None  # noqa: S101  replay looked
        still = "aside" if aside.kind == "reading" else "labels_aside"
        if (said := aside.said) is None:
            return still
        if aside.kind == "label":
            label, _ = (None, "") if self._labels is None else self._labels.join.read(said, aside.taken)
            return still if label is None or self._labels is None else self._labels.put(label, aside.taken)
        cells, reason = self._judge.again(said, aside.taken, aside.reason)
        if reason:
            return still
        self._good(said, cells, good, first, self._device(said.source)[1])
        return "stored"

    def _set_aside(self, said: Reading, reason: str, now: float, kind: str = "reading") -> None:
        box = self._seal.sealed(packed(said, reason, kind), -2)
        self._sql.execute("INSERT INTO aside (taken, box) VALUES (?, ?)", (now, box))

    def _taken(self, reading: Reading, now: float, good: list[list[Any]], first: int) -> str:
        """What becomes of one reading."""
        assert self._judge is not None  # noqa: S101  take looked
        values = plain(reading.values)
        number, newest = self._device(reading.source)
        if reading.id:
            id_ = self._seal.hashed(reading.source, reading.id)
        else:
            id_ = self._seal.hashed(reading.source, f"{reading.at!r}", values + reading.fault.encode())
        late = self._judge.rules.late
        if late is not None and reading.at < newest - late:
            return "late"
        known = self._sql.execute("SELECT 1 FROM ids WHERE id = ?", (id_,)).fetchone()
        if known is not None:
            return "repeated"
        cells, reason = self._judge.judge(reading, now)
        self._sql.execute("INSERT INTO ids VALUES (?, ?, ?)", (id_, number, min(reading.at, now)))
        if reason:
            self._set_aside(reading, reason, now)
            return "aside"
        self._good(reading, cells, good, first, newest)
        return "stored"

    def _good(
        self, reading: Reading, cells: list[Any], good: list[list[Any]], first: int, newest: float
    ) -> None:
        if self._labels is not None:
            number, cell = first + len(good), cells[self._labels.join.place]
            self._labels.came(reading.source, reading.at, reading.id, number, cell)
        good.append([reading.source, reading.at, reading.id, cells])
        if reading.at > newest:
            self._devices[reading.source] = self._device(reading.source)[0], reading.at

    def _device(self, source: str) -> tuple[int, float]:
        if source not in self._devices:
            name = self._seal.hashed("device", source)
            self._sql.execute("INSERT OR IGNORE INTO devices (name, newest) VALUES (?, ?)", (name, -math.inf))
            row = self._sql.execute("SELECT device, newest FROM devices WHERE name = ?", (name,)).fetchone()
            self._devices[source] = row
        return self._devices[source]

    def _moved(self, good: list[list[Any]]) -> dict[int, float]:
        return dict(self._devices[source] for source, *_ in good)

    def _tidy(self, now: float) -> None:
        """Let go what is too old or too much, once in a while."""
        if now - self._looked < _EVERY and (self._quota is None or self._size() <= self._quota):
            return
        self._looked = now
        assert self._judge is not None  # noqa: S101  who takes
        if (late := self._judge.rules.late) is not None:
            self._sql.execute(
                "DELETE FROM ids WHERE at < (SELECT newest - ? FROM devices d WHERE d.device = ids.device)",
                (late,),
            )
        if self._labels is not None:
            self._overdue(self._labels, now)
        self._sql.execute("DELETE FROM aside WHERE number <= (SELECT max(number) FROM aside) - ?", (_ASIDE,))
        if self._days is not None:
            oldest = now - self._days * _DAY
            self._sql.execute("DELETE FROM aside WHERE taken < ?", (oldest,))
            self._let_go("taken < ?", oldest, "expired")
        if self._quota is not None and self._size() > self._quota:
            self._shorten(self._quota)
        self._sql.execute("PRAGMA incremental_vacuum").fetchall()

    def _shorten(self, quota: int) -> None:
        """Let the oldest go, and what belongs to them, until there is some room again."""
        held = self._labels
        if held is not None:
            self._add({"labels_dropped": held.shorten(quota)})
        over, room = self._size() - quota, quota // 20  # or the next commit does it again
        if held is not None:  # a reading's mark and label go with it: in bytes of boxes
            (boxes,) = self._sql.execute("SELECT coalesce(sum(length(box)), 0) FROM boxes").fetchone()
            over, room = (part * boxes // self._size() for part in (over, room))
        freed = 0
        for first, n, size in self._sql.execute("SELECT first, n, length(box) FROM boxes ORDER BY first"):
            if over <= 0 or freed > over + room:
                break
            freed += size
            last = first + n
        if freed:
            self._let_go("first < ?", last, "dropped")

    def _let_go(self, which: str, bound: float, why: str) -> None:
        (n,) = self._sql.execute(f"SELECT coalesce(sum(n), 0) FROM boxes WHERE {which}", (bound,)).fetchone()  # noqa: S608  ours
        if n:
            self._sql.execute(f"DELETE FROM boxes WHERE {which}", (bound,))  # noqa: S608  ours
            self._add({why: n})
            if self._labels is not None:
                (first,) = self._sql.execute("SELECT min(first) FROM boxes").fetchone()
                self._labels.forget(self._count("stored") if first is None else first)

    def _overdue(self, held: Labels, now: float) -> None:
        """Labels for which no reading came are set aside."""
        count = 0
        for label in held.overdue(now):
            column, sequence = held.join.column, held.join.sequence
            values = {column: label.value, sequence: label.sequence}
            units = {column: label.unit} if label.unit else {}
            said = Reading(label.source, label.at, label.id, values, units)
            self._set_aside(said, f"no reading came for it in {held.join.wait:g} s", now, "label")
            count += 1
        self._add({"labels_aside": count} if count else {})

    def _size(self) -> int:
        used, free, size = (
            self._sql.execute(f"PRAGMA {what}").fetchone()[0]
            for what in ("page_count", "freelist_count", "page_size")
        )
        return int((used - free) * size)

    def _count(self, what: str) -> int:
        row = self._sql.execute("SELECT n FROM counts WHERE what = ?", (what,)).fetchone()
        return 0 if row is None else int(row[0])

    def _add(self, said: dict[str, int]) -> None:
        self._sql.executemany(
            "INSERT INTO counts VALUES (?, ?) ON CONFLICT (what) DO UPDATE SET n = n + excluded.n",
            list(said.items()),
        )

    def _connect(self, *, write: bool) -> sqlite3.Connection:
        if not write:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            return sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)
        sql = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        self.path.chmod(0o600)
        sql.executescript("PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
        if not sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            hash_ = self._suite.hash.lower()
            sql.executescript(f"BEGIN; {_SCHEMA} INSERT INTO about VALUES ('{hash_}'); COMMIT;")  # noqa: S608  ours
        sql.executescript(labels.SCHEMA)
        return sql

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What the disk will not do is ours to tell; nothing half-done stays, in memory neither."""
        try:
            yield
        except BaseException as error:
            self._devices.clear()
            with suppress(sqlite3.Error, AttributeError):
                self._sql.rollback()
            if not isinstance(error, (sqlite3.Error, OSError)):
                raise
            raise StateError(f"readings cannot be kept or read in {self.path.name}: {error}") from None
