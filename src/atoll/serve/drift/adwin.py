"""ADWIN: a window over a stream that drops its old end where its mean has changed.

Bifet, Gavaldà 2007, "Learning from time-changing data with adaptive windowing", ADWIN2 (§4): the window is
an exponential histogram, at most M buckets of each size 2^i. For each split into n0 old and n1 new values
it is cut where their means lie further apart than

    eps = sqrt(2/m var log(2 ln n / delta)) + 2/(3m) log(2 ln n / delta),   1/m = 1/n0 + 1/n1

Like MOA and river it looks every `CLOCK` values, leaves both sides at least LEAST, and takes n0 - LEAST + 1
and n1 - LEAST + 1 for n0 and n1 in m.
"""

from __future__ import annotations

import math

import msgspec

CLOCK, M, LEAST, GRACE = 32, 5, 5, 10


class Adwin(msgspec.Struct):
    """A window. Values lie in [0, 1]; `delta` in (0, 1): how sure, per split. It is its own record.

    `rows[i]`: the buckets of 2^i values, oldest first, each its sum and its sum of squared deviations.
    """

    delta: float = 0.002
    rows: list[list[tuple[float, float]]] = msgspec.field(default_factory=lambda: [[]])
    seen: int = 0
    n: int = 0
    total: float = 0.0
    spread: float = 0.0  # n times the variance

    @property
    def mean(self) -> float:
        """Of the values in the window, 0 where there are none."""
        return self.total / self.n if self.n else 0.0

    def add(self, x: float) -> bool:
        """Take one value; whether the window was cut, and now holds what is newer."""
        self.seen += 1
        self.n += 1
        if self.n > 1:
            self.spread += (self.n - 1) * (x - self.total / (self.n - 1)) ** 2 / self.n
        self.total += x
        self.rows[0].append((x, 0.0))
        self._compress()
        return self.seen % CLOCK == 0 and self.n > GRACE and self._cut()

    def _compress(self) -> None:
        """Where there are more than M buckets of a size, the two oldest become one of the next."""
        for i, row in enumerate(self.rows):
            if len(row) <= M:
                return
            (u, v), (u2, v2) = row[:2]
            del row[:2]
            if i + 1 == len(self.rows):
                self.rows.append([])
            self.rows[i + 1].append((u + u2, v + v2 + (u - u2) ** 2 / 2 ** (i + 1)))

    def _cut(self) -> bool:
        """Drop oldest buckets while some split shows two means."""
        found = False
        while self._splits():
            found = True
            self._drop()
        return found

    def _splits(self) -> bool:
        n0, u0 = 0, 0.0
        for i in reversed(range(len(self.rows))):
            for u, _ in self.rows[i]:
                n0, u0 = n0 + 2**i, u0 + u
                n1 = self.n - n0
                if n1 < LEAST:
                    return False
                if n0 >= LEAST and abs(u0 / n0 - (self.total - u0) / n1) > self._eps(n0, n1):
                    return True
        return False

    def _eps(self, n0: int, n1: int) -> float:
        log = math.log(2.0 * math.log(self.n) / self.delta)
        m = 1.0 / (n0 - LEAST + 1) + 1.0 / (n1 - LEAST + 1)
        variance = max(0.0, self.spread / self.n)  # of equal values, rounding may leave less than none
        return math.sqrt(2.0 * m * variance * log) + 2.0 / 3.0 * m * log

    def _drop(self) -> None:
        n = 2 ** (len(self.rows) - 1)
        u, v = self.rows[-1].pop(0)
        self.n -= n
        self.total -= u
        self.spread -= v + n * self.n * (u / n - self.total / self.n) ** 2 / (n + self.n)
        while len(self.rows) > 1 and not self.rows[-1]:
            self.rows.pop()
