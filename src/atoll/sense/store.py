"""Readings on disk: encrypted, each once, in the order they came; gone after a while, or at a word.

    folder/sense/engine.db     SQLite (file.py): boxes of readings, ids, counts
    folder/sense/engine.key    the store's own key, sealed by the client's vault

A box is one commit's readings, sealed (seal.py) and never written again; a label that comes later has one of
its own (labels.py). Devices and ids lie there as keyed hashes (HMAC) alone. What a disk shows to who has no
key: how many readings and labels came and when, and of each unnamed device the times within `late`, or all
where labels join by time or are heard of windows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from ..core.errors import MisuseError
from ..privacy.vault import Vault
from ..wire.failpoint import declare
from . import aside, labels
from .aside import Aside
from .boxes import Boxes, Kept
from .file import File
from .joining import joining
from .judge import Judge, Rules
from .labels import Join
from .lot import Lot
from .reading import Reading
from .retention import Retention

COUNTS = ("stored", "repeated", "late", "aside", "expired", "dropped")
_COMMIT = declare("sense.stored.before"), declare("sense.stored.after")
_LABELLED = declare("sense.labelled.before"), declare("sense.labelled.after")
_REPLAYED = declare("sense.replayed.before"), declare("sense.replayed.after")


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
        self._judge = None if rules is None else Judge(rules)
        self._limits, self._join, self._owner = (quota, days), join, owner
        self._file = File(folder, name, vault, write=rules is not None, begun=self._begun)
        self._file.open()

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

    def _begun(self) -> None:
        """A life of its file begins."""
        taking = self._judge is not None
        self._labels = joining(self._file, self._join, taking=taking, owner=self._owner)
        self._boxes = Boxes(self._file, self._labels)
        late = None if self._judge is None else self._judge.rules.late
        self._retention = Retention(self._file, self._labels, *self._limits, late)

    @property
    def path(self) -> Path:
        """Its file."""
        return self._file.path

    @property
    def life(self) -> int:
        """How often it has begun: at first, and anew whenever it was wiped."""
        return self._file.life

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its file."""
        self._file.close()

    def take(
        self, readings: Sequence[Reading], now: float, places: Mapping[str, Any] | None = None
    ) -> Counter[str]:
        """Keep what is good, set the bad aside, on disk when this returns; how many were what (COUNTS).

        `places`: plain values by name, kept with them: how far a source has been read.
        """
        with self._written(now, places, _COMMIT) as (said, lot):
            for reading in readings:
                said[lot.take(reading, now)] += 1
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
        with self._written(now, places, _LABELLED) as (found, lot):
            for one in said:
                found[lot.label(self._labels, one, now)] += 1
        return found

    @property
    def join(self) -> Join | None:
        """How labels that come by themselves find their readings, None where they come with them."""
        return None if self._labels is None else self._labels.join

    def place(self, name: str) -> Any:
        """How far a source has been read, as `take` was told; None where it was not."""
        with self._file.reading():
            return self._file.place(name)

    def readings(self, after: int = 0) -> Iterator[Kept]:
        """The stored readings from number `after` on, in the order they came."""
        for _, kept in self.boxes(after):
            yield from kept

    def boxes(self, after: int = 0, since: float = -math.inf) -> Iterator[tuple[str, list[Kept]]]:
        """As `readings`, a commit's at a time, with their form: so much is in memory. Labels that came by
        themselves are in their cells.

        `since`: Unix seconds; commits that hold nothing as new may be left out.
        """
        while (found := self._boxes.next(after, since)) is not None:
            after = found[1][-1].number + 1
            yield found

    def joined(self, after: int = 0, most: int = 1000) -> tuple[int, list[Kept]]:
        """Readings whose label came, or another in its place, after event `after`, in that order; and the
        last event of them. Readings that are here no longer are left out.
        """
        if self._labels is None:
            return after, []
        with self._file.reading():
            last, numbers = self._labels.joined(after, most)
        found = self._boxes.of(numbers, self._labels.join.form)
        with self._file.reading():  # a label that another took the place of meanwhile is that one's event
            return last, [found[n] for n in numbers if n in found and not self._labels.changed(last, n)]

    def due(self, size: int, after: int = 0, most: int = 100) -> tuple[int, list[list[Kept]]]:
        """As `joined`, windows of one device that can change no more: `size` readings in the order of their
        time, the newest of which has the label. Without where some are here no longer, or are too few.
        """
        if self._labels is None or (series := self._labels.series) is None:
            return after, []
        with self._file.reading():
            last, numbers = self._labels.joined(after, most, "due")
            windows = [series.window(number, size) for number in numbers]
        found = self._boxes.of({n for window in windows for n in window}, series.form)
        with self._file.reading():  # as above
            windows = [w for w in windows if w and not self._labels.changed(last, w[-1], "due")]
        return last, [[found[n] for n in w] for w in windows if all(n in found for n in w)]

    def end(self) -> int:
        """The number that the next reading will have."""
        with self._file.reading():
            return self._file.count("stored")

    def since(self, n: int) -> int:
        """The number of the `n`-th last reading, of those with a label where labels come by themselves; 0
        where there are fewer.
        """
        with self._file.reading():
            if self._labels is not None:
                return self._labels.since(n)
            return max(0, self._file.count("stored") - n)

    def counts(self) -> dict[str, int]:
        """How many readings were what, since the store was made, and `bytes` of its file now."""
        with self._file.reading():
            found = dict.fromkeys(COUNTS, 0)
            if self._labels is not None:
                found |= dict.fromkeys(labels.COUNTS, 0) | self._labels.counts()
            found |= dict(self._file.sql.execute("SELECT what, n FROM counts"))
            return found | {"bytes": self._file.size()}

    def aside(self) -> list[Aside]:
        """The newest readings and labels that were kept aside, at most 1,000, the oldest first."""
        with self._file.reading():
            return aside.kept(self._file)

    def replay(self, now: float, which: Callable[[Aside], bool] = lambda _: True) -> Counter[str]:
        """Judge again what was set aside, as of when it came: what is good by now is stored, in one commit.

        What is still bad stays aside, for the reason that it has by now; so does what was not kept whole, or
        could not be read at all.
        """
        found: Counter[str] = Counter()
        with self._written(now, None, _REPLAYED) as (said, lot):
            for one in filter(which, self.aside()):
                what = lot.again(one)
                found[what] += 1
                if what not in ("aside", "labels_aside"):
                    self._file.sql.execute("DELETE FROM aside WHERE number = ?", (one.number,))
                    said.update({what: 1, "aside" if one.kind == "reading" else "labels_aside": -1})
        return found

    def status(self) -> dict[str, Any]:
        """Of what is here now: `readings`, and when the `oldest` and `newest` of them came, Unix seconds or
        None; how many wait `aside` by their reasons; and `counts`.
        """
        with self._file.reading():
            query = "SELECT coalesce(sum(n), 0), min(taken), max(taken) FROM boxes"
            n, oldest, newest = self._file.sql.execute(query).fetchone()
            reasons = Counter(one.reason for one in self.aside())
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
    ) -> Iterator[tuple[Counter[str], Lot]]:
        """One commit: what is counted in the block, what it brings, and how far sources were read."""
        if self._judge is None:
            raise MisuseError("this store was opened to read: give it rules to take readings")
        with self._file.commit(points):
            said: Counter[str] = Counter()
            lot = Lot(self._file, self._judge, self._labels, self._file.count("stored"))
            yield said, lot
            lot.put(self._boxes, now)
            for name, value in (places or {}).items():
                self._file.note(name, value)
            self._file.add(said)
            self._retention.tidy(now)
