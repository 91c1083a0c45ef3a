"""How a client's rows are visited: batch by batch, epoch by epoch, at which rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ..core.errors import ConfigError


def batches(n: int, size: int | None, epochs: int) -> Iterator[tuple[int, slice]]:
    """(epoch, rows) of every step; the last short batch is kept."""
    width = min(size or n, n)
    for epoch in range(epochs):
        for start in range(0, n, width):
            yield epoch, slice(start, min(start + width, n))


def step_count(n: int, size: int | None, epochs: int) -> int:
    """How many local steps `batches` makes."""
    return epochs * -(-n // min(size or n, n)) if n else 0


def factor(schedule: str | Callable[[int], float] | None, step: int, steps: int) -> float:
    """What multiplies the rate at local step `step` (from 0) of `steps`."""
    if schedule is None:
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    if schedule == "step":
        return float(0.1 ** (3 * step // steps))
    if callable(schedule):
        return float(schedule(step))
    raise ConfigError(f"no schedule is called {schedule!r}: choose 'cosine', 'step' or a function")
