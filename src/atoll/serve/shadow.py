"""Champion and candidate answer copies of requests, beside the service: one thread of low priority.

Both run here, one after the other and in turns the first, so that their times can be compared; what the
service measured would compare a thread that waits with one that does not. Where more comes than the thread
can take, requests are dropped and counted: the service never waits for it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import StateError
from .evidence import Pair
from .strict import Strict

ROOM = 32  # requests that wait; each holds its rows
ROWS = 64  # of a request are compared
NICE = 10


class Copy(NamedTuple):
    """A request's rows, and by whom they are to be answered once more. `given`: by the candidate, before."""

    name: str
    version: int
    ticket: str
    rows: NDArray[np.float32]
    champion: Strict
    candidate: Strict
    given: bool


class Shadow:
    """`tell(copy, pair)` is called with what came of each, `tell(copy, reason)` where the candidate broke."""

    def __init__(self, tell: Callable[[Copy, Pair | str], None], room: int = ROOM) -> None:
        self._tell = tell
        self._waiting: deque[Copy] = deque()
        self._room = room
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._busy = False
        self._turn = 0
        self._dropped: dict[str, int] = {}

    def offer(self, copy: Copy) -> bool:
        """Have it compared; False where there is no room."""
        with self._wake:
            if self._closed or len(self._waiting) >= self._room:
                self._dropped[copy.name] = self._dropped.get(copy.name, 0) + 1
                return False
            self._waiting.append(copy._replace(rows=copy.rows[:ROWS]))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="atoll-shadow", daemon=True)
                self._thread.start()
            self._wake.notify_all()
        return True

    def dropped(self, name: str) -> int:
        """How many there was no room for since this was asked last."""
        with self._wake:
            return self._dropped.pop(name, 0)

    def settle(self) -> None:
        """Wait until everything that was taken has been compared."""
        with self._wake:
            self._wake.wait_for(lambda: not (self._waiting or self._busy) or self._closed)

    def close(self) -> None:
        """What waits is dropped; what is under way is told."""
        with self._wake:
            self._closed = True
            self._waiting.clear()
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        with suppress(OSError, AttributeError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                copy = self._waiting.popleft()
                self._busy = True
            self._compare(copy)

    def _compare(self, copy: Copy) -> None:
        """Rows that the champion cannot answer say nothing about the candidate."""
        self._turn ^= 1
        try:
            if self._turn:
                was, first = _timed(copy.champion, copy.rows)
            now, second = _timed(copy.candidate, copy.rows)
        except StateError as error:
            with suppress(StateError):
                copy.champion.run(copy.rows)
                self._tell(copy, str(error))
            return
        if not self._turn:
            try:
                was, first = _timed(copy.champion, copy.rows)
            except StateError:
                return
        self._tell(copy, pair(was, now, (first, second), given=copy.given))


def _timed(model: Strict, rows: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], float]:
    began = perf_counter()
    found = model.run(rows)
    return found, perf_counter() - began


def pair(
    was: dict[str, NDArray[Any]], now: dict[str, NDArray[Any]], took: tuple[float, float], *, given: bool
) -> Pair | str:
    """The champion's and the candidate's answers as a Pair; why not, where they cannot be compared."""
    a, labels = plain(was)
    b, same = plain(now)
    if labels != same or a.shape != b.shape:
        return "its answers have another form than the champion's"
    return Pair(a.tolist(), b.tolist(), labels, took, given)


def plain(found: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], bool]:
    """Of each row a label or a number: the output `label`, the largest of several columns, the one column."""
    if "label" in found:
        return found["label"].reshape(-1).astype(np.int64), True
    first = next(iter(found.values()))
    flat = first.reshape(len(first), -1)
    if flat.shape[1] > 1:
        return flat.argmax(axis=1), True
    return flat[:, 0].astype(np.float64), False


def worse(pair: Pair, labels: Sequence[float]) -> float:
    """How much more often the candidate was wrong, from -1 to 1; of numbers: further from the truth.

    `labels`: of the first rows of the request, in order, at least one.
    """
    rows = list(zip(pair.champion, pair.candidate, labels, strict=False))
    if pair.labels:
        signs = [(b != y) - (a != y) for a, b, y in rows]
    else:
        signs = [(abs(b - y) > abs(a - y)) - (abs(b - y) < abs(a - y)) for a, b, y in rows]
    return sum(signs) / len(rows)
