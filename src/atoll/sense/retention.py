"""What goes from a store, and when: by age, by its file's size, and what nobody waits for any more.

What belongs to a reading goes with it. Everything is let go within somebody's commit, and looked after once
in a while: a commit costs no more for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import aside
from .file import File
from .labels import Labels
from .reading import Reading

_ASIDE = 1000  # readings kept aside, the newest
_EVERY = 60.0  # seconds between two looks at what may go
_DAY = 86400.0


@dataclass
class Retention:
    """Of one life of a store. `quota`: bytes of its file; `days`: after which readings go; `late`: seconds
    after which no id can come again. None: never.
    """

    file: File
    labels: Labels | None
    quota: int | None
    days: float | None
    late: float | None
    _looked: float = -math.inf

    def tidy(self, now: float) -> None:
        """Let go what is too old or too much, once in a while."""
        file, sql = self.file, self.file.sql
        if now - self._looked < _EVERY and (self.quota is None or file.size() <= self.quota):
            return
        self._looked = now
        if self.late is not None:
            sql.execute(
                "DELETE FROM ids WHERE at < (SELECT newest - ? FROM devices d WHERE d.device = ids.device)",
                (self.late,),
            )
        if self.labels is not None:
            self._overdue(self.labels, now)
        sql.execute("DELETE FROM aside WHERE number <= (SELECT max(number) FROM aside) - ?", (_ASIDE,))
        if self.days is not None:
            oldest = now - self.days * _DAY
            sql.execute("DELETE FROM aside WHERE taken < ?", (oldest,))
            self._let_go("taken < ?", oldest, "expired")
        if self.quota is not None and file.size() > self.quota:
            self._shorten(self.quota)
        sql.execute("PRAGMA incremental_vacuum").fetchall()

    def _shorten(self, quota: int) -> None:
        """Let the oldest go, and what belongs to them, until there is some room again."""
        file, held = self.file, self.labels
        if held is not None:
            file.add({"labels_dropped": held.shorten(quota)})
        over, room = file.size() - quota, quota // 20  # or the next commit does it again
        if held is not None:  # a reading's mark and label go with it: in bytes of boxes
            (boxes,) = file.sql.execute("SELECT coalesce(sum(length(box)), 0) FROM boxes").fetchone()
            over, room = (part * boxes // file.size() for part in (over, room))
        freed = 0
        for first, n, size in file.sql.execute("SELECT first, n, length(box) FROM boxes ORDER BY first"):
            if over <= 0 or freed > over + room:
                break
            freed += size
            last = first + n
        if freed:
            self._let_go("first < ?", last, "dropped")

    def _let_go(self, which: str, bound: float, why: str) -> None:
        sql = self.file.sql
        (n,) = sql.execute(f"SELECT coalesce(sum(n), 0) FROM boxes WHERE {which}", (bound,)).fetchone()  # noqa: S608  ours
        if n:
            sql.execute(f"DELETE FROM boxes WHERE {which}", (bound,))  # noqa: S608  ours
            self.file.add({why: n})
            if self.labels is not None:
                (first,) = sql.execute("SELECT min(first) FROM boxes").fetchone()
                self.labels.forget(self.file.count("stored") if first is None else first)

    def _overdue(self, held: Labels, now: float) -> None:
        """Labels for which no reading came are set aside."""
        count = 0
        for label in held.overdue(now):
            column, sequence = held.join.column, held.join.sequence
            values = {column: label.value, sequence: label.sequence}
            units = {column: label.unit} if label.unit else {}
            said = Reading(label.source, label.at, label.id, values, units)
            aside.put(self.file, said, f"no reading came for it in {held.join.wait:g} s", now, "label")
            count += 1
        self.file.add({"labels_aside": count} if count else {})
