"""Lanes: chunks of clients trained at once on the cores of this machine.

Which clients form a chunk follows from the job; which core takes it does not matter, because
partial sums merge exactly. Threads are enough where the learner computes outside the
interpreter's lock (`learner.parallel == "threads"`); other learners run one chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


@contextmanager
def lanes(workers: int, parallel: str | None) -> Iterator[Spread]:
    """A way to run chunks: over `workers` threads if that helps this learner, else in turn."""
    if workers > 1 and parallel == "threads":
        with ThreadPoolExecutor(workers, "lane") as pool:
            yield lambda work, chunks: pool.map(work, chunks) if len(chunks) > 1 else map(work, chunks)
    else:
        yield map
