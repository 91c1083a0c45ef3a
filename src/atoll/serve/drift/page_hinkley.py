"""The Page-Hinkley test: a running sum that says when a stream's mean has risen.

Page 1954, "Continuous inspection schemes"; Hinkley 1971, "Inference about the change-point from
cumulative sum tests"; as a drift detector in Gama et al. 2014, "A survey on concept drift adaptation", §3.2:

    m_t = sum_(i <= t) (x_i - mean_i - delta)        alarm where  m_t - min m > lambda

A false alarm costs m a climb of lambda against a slope of -delta: about exp(-2 delta lambda / var) of its
descents end in one. The values here answer errors in [0, 1]: of a rise from .2 to .35 they hear after some
250 values, and a stationary stream's variance of .16 makes that exp(-15.6).
"""

from __future__ import annotations

import msgspec


class PageHinkley(msgspec.Struct, rename={"lam": "lambda"}):
    """A test. `delta`: the rise that is let pass; `lam`: the paper's lambda; both > 0, in the values' unit.

    `least`: values before the first alarm. It is its own record, and begins anew after an alarm.
    """

    delta: float = 0.05
    lam: float = 25.0
    least: int = 30
    n: int = 0
    mean: float = 0.0
    m: float = 0.0
    lowest: float = 0.0

    def add(self, x: float) -> bool:
        """Take one value; whether the mean has risen."""
        self.n += 1
        self.mean += (x - self.mean) / self.n
        self.m += x - self.mean - self.delta
        self.lowest = min(self.lowest, self.m)
        if self.n < self.least or self.m - self.lowest <= self.lam:
            return False
        self.n, self.mean, self.m, self.lowest = 0, 0.0, 0.0, 0.0
        return True
