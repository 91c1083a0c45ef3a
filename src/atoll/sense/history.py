"""Windows of each device's own readings as they come: the rows of a data set of windows, each once.

A row is a device's last `size` readings in the order of their time, labelled as its newest is. It is given
when nothing can come any more that belongs into it: once its device has a reading `late` seconds newer, for a
store takes none that is older by more. Who is older than a row that was given (a store that takes any age) is
part of the rows to come and has none of its own.

No state is kept on disk but the cursor. Which readings a device holds and which of them have had their row
follows from the `newest` readings of the store, as a data set's rows do: they are read again at a start (in
1.5 s 100,000 of 24 cells), and a device of which fewer than `size` lie among them waits until they do.
That is the bound of what is in memory, too: each device holds readings of its last `newest`, or is let go.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .boxes import Kept
from .source import NEWEST
from .window import Form, Window, table

log = logging.getLogger("atoll.client")
BATCH = 500  # readings


class _Reading(NamedTuple):
    """Sorts by time, then as it came."""

    at: float
    number: int
    row: NDArray[np.float32]
    label: float


class _Row(NamedTuple):
    source: str
    at: float
    row: NDArray[np.float32]
    label: float


@dataclass(slots=True)
class _Device:
    """Its readings in order; the first `given` have had their row, or never will. `oldest`, `last`: numbers,
    at most the least there is and the one that came last.
    """

    held: list[_Reading] = field(default_factory=list)
    given: int = 0
    oldest: int = 0
    last: int = 0

    def forget(self, number: int) -> int:
        """Let go what is older; how many of these still waited."""
        if self.oldest >= number:
            return 0
        lost = sum(r.number < number for r in self.held[self.given :])
        self.given = sum(r.number >= number for r in self.held[: self.given])
        self.held = [r for r in self.held if r.number >= number]
        self.oldest = min((r.number for r in self.held), default=number)
        return lost

    def add(self, new: _Reading, size: int, late: float) -> list[list[_Reading]]:
        """The windows that are full and final now."""
        place = bisect(self.held, new[:2], key=lambda r: r[:2])
        self.held.insert(place, new)
        self.last = new.number
        self.given += place < self.given
        final, found = self.held[-1].at - late, []
        while self.given < len(self.held) and self.held[self.given].at <= final:
            self.given += 1
            if self.given >= size:
                found.append(self.held[self.given - size : self.given])
        over = max(0, self.given - (size - 1))
        del self.held[:over]
        self.given -= over
        return found


class Histories:
    """Rows (size, *row) in batches of those that a commit's readings complete, at most BATCH of these.

    `after`: the number of the first reading whose batch has not been seen; readings are to be added from
    `begin` on. `newest`: as above, at least the size.
    """

    def __init__(
        self, size: int, form: Form, after: int = 0, late: float = 0.0, newest: int = NEWEST
    ) -> None:
        self._size, self._form, self._after = size, form, after
        self._late, self._newest = late, newest
        self._devices: OrderedDict[str, _Device] = OrderedDict()  # who spoke last is last
        self._told = False

    @property
    def begin(self) -> tuple[int, float]:
        """As an Assembler's: the number, and no time."""
        return max(0, self._after - self._newest), -math.inf

    def add(self, kept: Sequence[Kept]) -> list[Window]:
        """The batches of these readings, the next commit; those without a row are passed over."""
        x, y = table(kept, self._form)
        found, rows, n = [], list[_Row](), 0
        for i, reading in enumerate(kept):
            new = self._added(reading, x[i].copy(), math.nan if y is None else float(y[i]))
            if reading.number < self._after:
                continue
            rows, n = rows + new, n + 1
            if rows and (n % BATCH == 0 or i == len(kept) - 1):
                found.append(_window(rows, reading.number + 1))
                rows = []
        return found

    def _added(self, reading: Kept, row: NDArray[np.float32], label: float) -> list[_Row]:
        first = reading.number - self._newest + 1
        device = self._devices.setdefault(reading.source, _Device())
        if device.forget(first) and not self._told:
            self._told = True
            log.warning("readings left a watch of %d before they were %g s old", self._newest, self._late)
        full = device.add(_Reading(reading.at, reading.number, row, label), self._size, self._late)
        self._devices.move_to_end(reading.source)
        while next(iter(self._devices.values())).last < first:
            self._devices.popitem(last=False)
        return [_Row(reading.source, w[-1].at, np.stack([r.row for r in w]), w[-1].label) for w in full]


def _window(rows: Sequence[_Row], cursor: int) -> Window:
    labels: Any = np.array([r.label for r in rows], np.float64)
    return Window(
        np.stack([r.row for r in rows]),
        max(r.at for r in rows),
        None if np.isnan(labels).all() else labels,
        tuple(r.source for r in rows),
        cursor,
    )
