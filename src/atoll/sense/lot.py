"""What one commit brings: readings and labels, judged one by one; the good readings are a box together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import aside
from .aside import Aside, plain
from .boxes import Boxes
from .file import File
from .judge import Judge
from .labels import Labels
from .reading import Reading


@dataclass
class Lot:
    """Of a commit that is under way. `first`: the number of its first good reading."""

    file: File
    judge: Judge
    labels: Labels | None
    first: int
    _good: list[list[Any]] = field(default_factory=list, repr=False)

    def take(self, reading: Reading, now: float) -> str:
        """What becomes of one reading."""
        values = plain(reading.values)
        number, newest = self.file.device(reading.source)
        if reading.id:
            id_ = self.file.seal.hashed(reading.source, reading.id)
        else:
            id_ = self.file.seal.hashed(reading.source, f"{reading.at!r}", values + reading.fault.encode())
        late = self.judge.rules.late
        if late is not None and reading.at < newest - late:
            return "late"
        if self._known(id_):
            return "repeated"
        cells, reason = self.judge.judge(reading, now)
        self._note(id_, number, min(reading.at, now) if reason else reading.at)  # bad ones may be of any time
        if reason:
            aside.put(self.file, reading, reason, now)
            return "aside"
        self._store(reading, cells)
        return "stored"

    def label(self, held: Labels, said: Reading, now: float) -> str:
        """What becomes of one label."""
        label, reason = held.join.read(said, now)
        if label is not None:
            return held.put(label, now)
        values = plain(said.values) + said.fault.encode()
        id_ = self.file.seal.hashed("label", said.source, f"{said.at!r}", said.id, values)
        if self._known(id_):
            return "labels_repeated"
        number, _ = self.file.device(said.source)
        self._note(id_, number, min(said.at, now) + held.join.wait)  # labels are later than readings
        aside.put(self.file, said, reason, now, "label")
        return "labels_aside"

    def again(self, one: Aside) -> str:
        """What becomes of one that was set aside; where it stays, with the reason as it is by now."""
        still = "aside" if one.kind == "reading" else "labels_aside"
        if (said := one.said) is None:
            return still
        if one.kind == "label":
            label, reason = (None, "") if self.labels is None else self.labels.join.read(said, one.taken)
            if label is not None and self.labels is not None:
                return self.labels.put(label, one.taken)
        else:
            cells, reason = self.judge.again(said, one.taken, one.reason)
            if not reason:
                self._store(said, cells)
                return "stored"
        if reason not in ("", one.reason):
            aside.judged(self.file, one, said, reason)
        return still

    def put(self, boxes: Boxes, now: float) -> None:
        """All are judged: the good ones, in their box."""
        sources = {source for source, *_ in self._good}
        if self.labels is not None and self.labels.series is not None:
            self.labels.series.moved(sources)
        self.file.settle(sources)
        if self._good:
            boxes.put(self.judge.rules.form, self._good, self.first, now)

    def _store(self, reading: Reading, cells: list[Any]) -> None:
        if self.labels is not None:
            number, cell = self.first + len(self._good), cells[self.labels.join.place]
            self.labels.came(reading.source, reading.at, reading.id, number, cell)
        self._good.append([reading.source, reading.at, reading.id, cells])
        if reading.at > self.file.device(reading.source)[1]:
            self.file.moved(reading.source, reading.at)

    def _known(self, id_: bytes) -> bool:
        return self.file.sql.execute("SELECT 1 FROM ids WHERE id = ?", (id_,)).fetchone() is not None

    def _note(self, id_: bytes, device: int, at: float) -> None:
        """It is known from now on, until nothing of that time can come again."""
        self.file.sql.execute("INSERT INTO ids VALUES (?, ?, ?)", (id_, device, at))
