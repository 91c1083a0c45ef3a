"""From many hands into the stores: a bounded queue, a commit for many, an acknowledgement once it is on disk.

    feed = Feed(store, most=20_000)
    await feed.put(readings)        # returns once they are on disk; raises StateError where they are not
    async for window in intake.windows("press"): ...

Whoever brings readings acknowledges when `put` returns, and not before: what was not acknowledged comes
again, and the store knows it. Where the disk is full nothing is acknowledged, senders hold what they have,
and it goes on by itself once there is room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, StateError
from ..core.registry import nearest
from .reading import Reading
from .store import Store

if TYPE_CHECKING:
    from .boxes import Kept
    from .source import Span
    from .window import Form, Labelled, Window

log = logging.getLogger("atoll.client")
PAUSE = 0.1  # seconds that a commit waits for company
_LONG = 60.0  # seconds, at most, until a source that failed is tried again
_IDLE = 60.0  # seconds without news, then the store is looked after all the same
_RETRY = 1.0  # seconds before a store that failed is tried again


class Busy(StateError):  # noqa: N818  it says what is
    """There is no room in the queue, or the store is failing: come again later."""


@dataclass(slots=True)
class _Lot:
    readings: Sequence[Reading]
    places: Mapping[str, Any]
    done: asyncio.Future[None]


@dataclass
class Feed:
    """One store's queue. `most`: readings in it, at most. `trouble`: why nothing is stored now, or "".

    `span`, `form`, `late`: of its windows. `of`: this one takes labels, for the readings of that feed. Run
    `run` as a task; methods are for the event loop's thread.
    """

    store: Store
    most: int = 20_000
    span: Span | None = None
    form: Callable[[], Form] | None = None
    late: float = 0.0
    of: Feed | None = None
    clock: Callable[[], float] = time.time
    pause: float = PAUSE
    trouble: str = ""
    refused: int = 0
    _lots: list[_Lot] = field(default_factory=list, repr=False)
    _waiting: int = 0
    _commits: int = 0
    _tried: float = 0.0
    _news: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _room: asyncio.Condition = field(default_factory=asyncio.Condition, repr=False)
    _stored: asyncio.Condition = field(default_factory=asyncio.Condition, repr=False)

    async def put(
        self, readings: Sequence[Reading], places: Mapping[str, Any] | None = None, *, wait: bool = True
    ) -> None:
        """Keep them; they are on disk when this returns. `wait`: for room, or raise Busy where there is none.

        Raises StateError where the store fails: then none of them may be acknowledged.
        """
        failing = self.trouble and time.monotonic() < self._tried + _RETRY
        if not wait and (failing or self._full(len(readings))):
            self.refused += len(readings)
            raise Busy(self.trouble or "too many readings wait to be stored: come again later")
        async with self._room:
            await self._room.wait_for(lambda: not self._full(len(readings)))
            lot = _Lot(readings, places or {}, asyncio.get_running_loop().create_future())
            self._lots.append(lot)
            self._waiting += len(readings)
        self._news.set()
        await lot.done

    async def run(self) -> None:
        """Store what comes, until cancelled."""
        try:
            while True:
                with suppress(TimeoutError):  # what is too old goes also where nothing comes
                    async with asyncio.timeout(_IDLE):
                        await self._news.wait()
                await asyncio.sleep(self.pause)
                self._news.clear()
                lots, self._lots = self._lots, []
                await self._commit(lots)
        finally:
            for lot in self._lots:
                lot.done.cancel()

    async def windows(self, after: int = 0, histories: int = 0) -> AsyncIterator[Window]:
        """The full windows from cursor `after` on, those to come too. Without end.

        `histories`: rows are windows of one device among so many of the newest readings (history.py); 0: they
        are readings. Where labels come by themselves they have none, and `labelled` gives all.
        """
        from .history import Histories
        from .window import Assembler

        if self.span is None or self.form is None:
            raise ConfigError("this source has no window")
        form = self.form()
        span, late = self.span, self.late

        def begun(after: int) -> Assembler | Histories:
            if histories:
                return Histories(span.size, form, after, late, histories)
            return Assembler(span, form, after, late)

        assembler, life = begun(after), self.store.life
        begin, since = assembler.begin
        while True:
            seen = self._commits
            if life != self.store.life or begin > await asyncio.to_thread(self.store.end):  # it was wiped
                life, assembler = self.store.life, begun(0)
                begin, since = assembler.begin
            boxes = self.store.boxes(begin, since)
            while (box := await asyncio.to_thread(next, boxes, None)) is not None:
                name, kept = box
                begin, since = kept[-1].number + 1, float("-inf")
                for window in assembler.add(kept) if name == form.name else ():
                    yield window if self.store.join is None else replace(window, labels=None)
            await self._news_of(seen)

    async def labelled(self, after: int = 0, histories: int = 0) -> AsyncIterator[Labelled]:
        """The readings whose label came after cursor `after`, in that order, those to come too; or, with
        `histories`, the windows that end with them, once they are final. Without end.

        One whose label was corrected comes again.
        """
        from .window import labelled

        if self.form is None or self.span is None:
            raise ConfigError("this source has no window")
        form, life, size = self.form(), self.store.life, self.span.size

        def came(after: int) -> tuple[int, Sequence[Kept] | Sequence[Sequence[Kept]]]:
            return self.store.due(size, after) if histories else self.store.joined(after)

        while True:
            seen = self._commits
            if life != self.store.life:
                life, after = self.store.life, 0
            while True:
                last, kept = await asyncio.to_thread(came, after)
                if last == after:
                    break
                after = last
                if kept and (lot := labelled(kept, form, after)) is not None:
                    yield lot
            await self._news_of(seen)

    async def news(self) -> AsyncIterator[None]:
        """Each time something may have been stored, by this process. Without end."""
        while True:
            seen = self._commits
            yield
            await self._news_of(seen)

    async def told(self) -> None:
        """Another process has stored something, which this one only reads."""
        await self._tell(stored=True)

    async def _news_of(self, seen: int) -> None:
        """Wait until more has been committed than was seen."""
        async with self._stored:
            while self._commits == seen:
                await self._stored.wait()

    def counts(self) -> dict[str, int]:
        """The store's, with `waiting` in the queue and `refused` at it, since this start."""
        return self.store.counts() | {"waiting": self._waiting, "refused": self.refused}

    def _full(self, more: int) -> bool:
        return bool(self._waiting) and self._waiting + more > self.most

    async def _commit(self, lots: list[_Lot]) -> None:
        readings = [reading for lot in lots for reading in lot.readings]
        places = {name: value for lot in lots for name, value in lot.places.items()}
        failed: Exception | None = None
        self._tried = time.monotonic()
        try:
            take = self.store.take if self.of is None else self.store.label
            await asyncio.to_thread(take, readings, self.clock(), places)
        except StateError as error:
            failed = error
            if not self.trouble:
                log.warning("readings are not taken: %s", error)
        except BaseException as error:
            for lot in lots:
                lot.done.cancel()
            if isinstance(error, asyncio.CancelledError):
                raise
            failed = StateError(f"readings cannot be stored: {error}")
            log.exception("readings cannot be stored")
        if failed is None and self.trouble:
            log.warning("readings are taken again")
        self.trouble = "" if failed is None else str(failed)
        for lot in lots:
            if lot.done.done():
                continue
            if failed is None:
                lot.done.set_result(None)
            else:
                lot.done.set_exception(failed)
        async with self._room:
            self._waiting -= len(readings)
            self._room.notify_all()
        await self._tell(stored=failed is None)

    async def _tell(self, *, stored: bool) -> None:
        """Wake who waits for what is stored; labels are news of the readings they are for."""
        self._commits += stored
        async with self._stored:
            self._stored.notify_all()
        if self.of is not None:
            await self.of._tell(stored=stored)


async def stored(feed: Feed, readings: Sequence[Reading], places: Mapping[str, Any] | None = None) -> None:
    """Put them until they are on disk, however long the store fails: for senders that keep what they have."""
    while True:
        try:
            return await feed.put(readings, places)
        except StateError:
            await asyncio.sleep(_RETRY)


class Intake:
    """All sources of a client: their feeds by name, and what brings readings to them.

    `ways`: coroutines that bring, by the name of their source; one that fails is started again, slower each
    time up to a minute.
    """

    def __init__(self, feeds: Mapping[str, Feed], ways: Sequence[tuple[str, Callable[[], Any]]] = ()) -> None:
        self.feeds = dict(feeds)
        self._ways = ways
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to take readings in."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(feed.run()) for feed in self.feeds.values()]
        self._tasks += [loop.create_task(_brought(name, way)) for name, way in self._ways]

    async def stop(self) -> None:
        """End it; what is being written is on disk when this returns."""
        for task in reversed(self._tasks):
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        for feed in self.feeds.values():
            await asyncio.to_thread(feed.store.close)

    def windows(self, source: str, after: int = 0, histories: int = 0) -> AsyncIterator[Window]:
        """The windows of a source from cursor `after` on. Raises ConfigError for an unknown name."""
        return self.feed(source).windows(after, histories)

    def labelled(self, source: str, after: int = 0, histories: int = 0) -> AsyncIterator[Labelled]:
        """The rows of a source whose labels came, from cursor `after` on. Raises as `windows`."""
        return self.feed(source).labelled(after, histories)

    def feed(self, source: str) -> Feed:
        """The feed of that name. Raises ConfigError with the nearest name there is."""
        if source not in self.feeds:
            raise ConfigError(f"there is no source {source!r}: {nearest(source, self.feeds)}")
        return self.feeds[source]


async def _brought(name: str, way: Callable[[], Any]) -> None:
    """Have it bring; a source that cannot be reached stops neither the others nor the client."""
    wait = 1.0
    while True:
        begun = time.monotonic()
        try:
            return await way()  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001  libraries of brokers and databases raise their own
            wait = 1.0 if time.monotonic() > begun + _LONG else wait
            log.warning("source %s: %s; it is tried again in %g s", name, error, wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONG)
