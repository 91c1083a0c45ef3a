"""Windows of stored readings: by count, or by the readings' own time.

State in, state out: an Assembler is given readings in the order they were stored, and gives the windows that
are full. A window's cursor is where the next one begins: who keeps it goes on there after a restart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boxes import Kept
from .source import Span
from .store import Store


@dataclass(frozen=True)
class Form:
    """What cells are. `name`: the contract's form. `row`: a row's shape. `label`: its place, -1 for none."""

    name: str
    row: tuple[int, ...]
    label: int = -1


@dataclass(frozen=True, eq=False)
class Window:
    """`rows`: (n, *row) float32, NaN for missing cells. `at`: Unix seconds of the newest. `labels`: (n,)
    float64, NaN where none came, or None. `sources`: whose each row is. `cursor`: where the next one begins.
    """

    rows: NDArray[np.float32] = field(repr=False)
    at: float
    labels: NDArray[np.float64] | None = field(repr=False)
    sources: tuple[str, ...] = field(repr=False)
    cursor: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Readings whose labels came, or windows of one device, each a row. `rows`: (n, *row) float32; `labels`:
    (n,) float64. `tickets`: DEVICE/ID of each, a window's newest reading, as who asked for predictions may
    have called it. `cursor`: where the next ones begin.
    """

    rows: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.float64] = field(repr=False)
    tickets: tuple[str, ...] = field(repr=False)
    cursor: int

    def __len__(self) -> int:
        return len(self.rows)


def table(kept: Sequence[Kept], form: Form) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """Rows (n, *row) float32 and labels (n,) or None, of readings of this form."""
    n, label = len(kept), form.label
    labels = None
    if label >= 0:
        labels = np.array([r.cells[label] for r in kept], np.float64)
        if np.isnan(labels).all():
            labels = None
    cells = [[c for i, c in enumerate(r.cells) if i != label] for r in kept]
    if cells and isinstance(cells[0][0], bytes):
        pixels = np.frombuffer(b"".join(c[0] for c in cells), np.uint8)
        return (pixels.astype(np.float32) / np.float32(255)).reshape(n, *form.row), labels
    return np.array(cells, np.float32).reshape(n, *form.row), labels


def labelled(kept: Sequence[Kept] | Sequence[Sequence[Kept]], form: Form, cursor: int) -> Labelled | None:
    """Readings, or windows (n, size, *row) labelled as the last of each; None where the contract knows none
    of their labels.
    """
    windows = [[r] if isinstance(r, Kept) else r for r in kept]
    held = {r.number: r for window in windows for r in window}
    places = {number: i for i, number in enumerate(held)}
    x, y = table([*held.values()], form)
    if y is None:
        return None
    at = np.array([[places[r.number] for r in window] for window in windows], np.int64)  # (n, size)
    newest = [window[-1] for window in windows]
    rows = x[at[:, 0] if newest == kept else at]
    return Labelled(rows, y[at[:, -1]], tuple(f"{r.source}/{r.id}" for r in newest), cursor)


class Assembler:
    """Windows of `span` from cursor `after` on. `late`: seconds that one of time waits for stragglers."""

    def __init__(self, span: Span, form: Form, after: int = 0, late: float = 0.0) -> None:
        self._span, self._form, self._late = span, form, late
        self._after = after
        self._held: list[Kept] = []  # by count
        self._bins: dict[int, list[Kept]] = {}  # by time
        self._newest = -math.inf

    @property
    def begin(self) -> tuple[int, float]:
        """From which number, and since which time, the store's readings are needed."""
        span = self._span
        return (self._after, -math.inf) if span.size else (0, self._after * span.seconds)

    def add(self, kept: Sequence[Kept]) -> list[Window]:
        """The windows that these readings, the next in order, fill."""
        return [*(self._counted if self._span.size else self._timed)(kept)]

    def _counted(self, kept: Sequence[Kept]) -> Iterator[Window]:
        size = self._span.size
        step = self._span.step or size
        self._held += kept
        done = 0
        while len(self._held) - done >= size:
            full = self._held[done : done + size]
            done += step
            yield self._window(full, full[step].number if step < size else full[-1].number + 1)
        del self._held[:done]

    def _timed(self, kept: Sequence[Kept]) -> Iterator[Window]:
        """Who comes after its window's end and `late` is not in it, however the store cut its commits."""
        seconds = self._span.seconds
        for reading in kept:
            self._newest = max(self._newest, reading.at)
            self._after = max(self._after, math.floor((self._newest - self._late) / seconds))
            number = math.floor(reading.at / seconds)
            if number >= self._after:
                self._bins.setdefault(number, []).append(reading)
        for number in sorted(n for n in self._bins if n < self._after):
            yield self._window(sorted(self._bins.pop(number), key=_time), number + 1)

    def _window(self, kept: Sequence[Kept], cursor: int) -> Window:
        rows, labels = table(kept, self._form)
        return Window(rows, max(map(_time, kept)), labels, tuple(r.source for r in kept), cursor)


def windows(store: Store, span: Span, form: Form, after: int = 0, late: float = 0.0) -> Iterator[Window]:
    """The full windows of a store from cursor `after` on; readings of another form are passed over."""
    assembler = Assembler(span, form, after, late)
    for name, kept in store.boxes(*assembler.begin):
        if name == form.name:
            yield from assembler.add(kept)


def _time(reading: Any) -> float:
    return float(reading.at)
