"""Requests on their way to models: those that wait for one together run together.

Nothing waits for company. A request runs at once where a thread is free; those of one model that come while
all threads are busy are one batch as soon as one is not. So a lone request takes as long as it always did,
a batch is as large as the load makes it, and none waits longer than the run before it. Clipper (Crankshaw
et al. 2017, "Clipper: a low-latency online prediction serving system", NSDI, section 4.3.2) also lets
batches wait a little to grow; with models of a few milliseconds that delay is most of what a caller sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..core.errors import StateError
from .model import Model
from .strict import Strict

ROWS = 256  # of a run that several requests share; what is larger runs by itself

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K", bound=Hashable)
Answers: TypeAlias = Mapping[str, NDArray[Any]]


class Batches(Generic[K, T, R]):
    """`run(key, items)`, in a thread, answers each item with a result or the exception to raise for it.

    `threads` >= 1: runs at once. `most` >= 1: items of one run; 1 keeps every item by itself.
    """

    def __init__(
        self, run: Callable[[K, list[T]], Sequence[R | Exception]], threads: int = 2, most: int = 32
    ) -> None:
        self._run, self._most = run, most
        self._pool = ThreadPoolExecutor(threads, "atoll-predict")
        self._free = threads
        self._waiting: dict[tuple[K, int], list[tuple[T, asyncio.Future[R]]]] = {}
        self._numbers = count(1)
        self.items = self.runs = 0  # so far

    @property
    def waiting(self) -> int:
        """Items that no thread has taken yet."""
        return sum(map(len, self._waiting.values()))

    async def answer(self, key: K, item: T, *, alone: bool = False) -> R:
        """The item's result, or its exception raised; `alone`: in a run of its own."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        place = (key, next(self._numbers) if alone else 0)
        self._waiting.setdefault(place, []).append((item, future))
        self._next()
        return await future

    def close(self) -> None:
        """Take nothing more; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        """Give waiting items to free threads, the key that waits longest first."""
        loop = asyncio.get_running_loop()
        while self._free and self._waiting:
            place = next(iter(self._waiting))
            asked = self._waiting.pop(place)
            if asked[self._most :]:
                self._waiting[place] = asked[self._most :]  # behind the others
            asked = asked[: self._most]
            self._free -= 1
            self.items, self.runs = self.items + len(asked), self.runs + 1
            work = loop.run_in_executor(self._pool, self._run, place[0], [item for item, _ in asked])
            work.add_done_callback(partial(self._done, [future for _, future in asked]))

    def _done(self, futures: list[asyncio.Future[R]], work: asyncio.Future[Sequence[R | Exception]]) -> None:
        self._free += 1
        if work.cancelled():
            for future in futures:
                future.cancel()
            return
        self._next()
        bug = work.exception()
        for future, found in zip(futures, [bug] * len(futures) if bug else work.result(), strict=True):
            if future.done():  # its caller has gone
                continue
            if isinstance(found, BaseException):
                future.set_exception(found)
            else:
                future.set_result(found)


def together(model: Model | Strict, xs: Sequence[NDArray[np.float32]]) -> list[Answers | StateError]:
    """The model's answers to each of xs (n, ...), as if it ran by itself, in as few runs as may be.

    A model that fails on one of them fails on that one alone.
    """
    found: list[Answers | StateError | None] = [None] * len(xs)
    for places in _groups(model, xs):
        joined = _joined(model, [xs[at] for at in places]) if len(places) > 1 else None
        for k, at in enumerate(places):
            found[at] = joined[k] if joined is not None else _alone(model, xs[at])
    return [one for one in found if one is not None]


def _groups(model: Model | Strict, xs: Sequence[NDArray[Any]]) -> list[list[int]]:
    """Places of xs that may share a run: rows of one shape, at most ROWS together."""
    groups: list[list[int]] = []
    open_: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for at, x in enumerate(xs):
        places, rows = open_.get(x.shape[1:], ([], ROWS))
        if not model.many or rows + len(x) > ROWS:
            places, rows = [], 0
            groups.append(places)
        places.append(at)
        open_[x.shape[1:]] = (places, rows + len(x))
    return groups


def _joined(model: Model | Strict, xs: Sequence[NDArray[np.float32]]) -> list[Answers] | None:
    """Answers of one run over all rows, or None where they cannot be told apart again."""
    try:
        found = model.run(np.concatenate(xs))
    except StateError:
        return None
    ends = np.cumsum([len(x) for x in xs])
    if any(not value.ndim or len(value) != ends[-1] for value in found.values()):
        return None
    parts = {name: np.split(value, ends[:-1]) for name, value in found.items()}
    return [{name: part[k] for name, part in parts.items()} for k in range(len(xs))]


def _alone(model: Model | Strict, x: NDArray[np.float32]) -> Answers | StateError:
    try:
        return model.run(x)
    except StateError as error:
        return error
