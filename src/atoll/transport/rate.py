"""How often somebody may come: a token bucket for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Rate:
    """How often a key may come: `burst` at once, then `rate` a second (a token bucket for each).

    `wait(key, now)` takes one and answers 0, or the seconds to wait. At most `keys` are kept, the
    longest unseen go first: a flood of new keys cannot fill the memory.
    """

    rate: float
    burst: float
    keys: int = 4096
    _left: dict[Any, tuple[float, float]] = field(default_factory=dict)

    def wait(self, key: Any, now: float, cost: float = 1.0) -> float:
        """Seconds until `key` may come again; 0.0 means now, and one is taken."""
        left, seen = self._left.pop(key, (self.burst, now))
        left = min(self.burst, left + max(0.0, now - seen) * self.rate)
        short = cost - left
        self._left[key] = (left if short > 0 else left - cost, now)
        while len(self._left) > self.keys:
            del self._left[next(iter(self._left))]
        return max(0.0, short / self.rate)

    def spent(self, key: Any, now: float) -> float:
        """Seconds until `key` has one to take, taking none."""
        left, seen = self._left.get(key, (self.burst, now))
        return max(0.0, (1.0 - left - max(0.0, now - seen) * self.rate) / self.rate)
