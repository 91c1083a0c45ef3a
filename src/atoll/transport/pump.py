"""Frames from a connection to a file: read on the event loop, worked off in a thread, many at a time.

One worker call takes all frames that came while the one before was running. Whatever ends the
reading, frames that came are written first: what arrived once need not be sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import TypeVar

from ..core.errors import Gone
from ..wire.plain import Bytes, payload
from .frames import announced, number

T = TypeVar("T")

_SHORT = 1 << 16  # bytes of a head that is read while it is not written yet
SMALL = 1 << 20  # bytes that are read, written or hashed in a millisecond or two
AHEAD = 4  # frames of one transfer in memory, beyond those being written


async def thread(pool: Executor | None, call: Callable[..., T], *args: object) -> T:
    """Call it in a worker thread."""
    return await asyncio.get_running_loop().run_in_executor(pool, call, *args)


async def brief(size: int, call: Callable[..., T], *args: object) -> T:
    """Call it in a worker thread, or here where it deals with so few bytes that waking one takes longer."""
    return call(*args) if size <= SMALL else await thread(None, call, *args)


async def pump(
    incoming: AsyncIterator[Bytes],
    write: Callable[[list[Bytes]], None],
    total: Callable[[], int | None],
    *,
    have: int,
    pool: Executor | None,
    window: float,
    moved: Callable[[], None],
    ahead: Callable[[], int] = lambda: AHEAD,
) -> None:
    """Write frames as they come, until number `total() - 1` is written or they end.

    `total`: frames of the message, None until its head is written. `have`: frames there already.
    `moved` is called for each frame. `ahead`: how many may wait in memory to be written. Raises what
    `write` raises, and Gone after `window` seconds without a frame.
    """
    writer = _Writer(write, pool)
    latest = have - 1
    said: int | None = None
    try:
        while True:
            end = total() or said
            if end is not None and latest + 1 >= end:
                return
            if writer.waiting >= ahead() or (end is None and writer.busy):
                await writer.progress()
                continue
            frame = await _next(incoming, window)
            if frame is None:
                return
            moved()
            latest = max(latest, number(frame))
            if latest == 0 and len(frame) <= _SHORT:  # need not be written before its message goes on
                said = announced(payload(frame, 0)).frames
            writer.put(frame, alone=said is None or latest > 0)
    finally:
        await writer.finish()


async def _next(incoming: AsyncIterator[Bytes], window: float) -> Bytes | None:
    try:
        async with asyncio.timeout(window):
            return await anext(incoming)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise Gone(f"no frame came for {window:g} seconds") from None


class _Writer:
    """Hands frames to one worker call at a time; after an error it takes no more."""

    def __init__(self, write: Callable[[list[Bytes]], None], pool: Executor | None) -> None:
        self._write = write
        self._pool = pool
        self._frames: list[Bytes] = []
        self._job: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    @property
    def waiting(self) -> int:
        """Frames not handed over yet."""
        return len(self._frames)

    @property
    def busy(self) -> bool:
        """Some frame is not written yet."""
        return self._job is not None or bool(self._frames)

    def put(self, frame: Bytes, *, alone: bool = True) -> None:
        """Write it after those before it; not `alone`: with the next one, or at the end. Raises what went
        wrong with those before.
        """
        if self._error is not None:
            raise self._error
        self._frames.append(frame)
        if alone:
            self._kick()

    def _kick(self) -> None:
        if self._job is None and self._frames and self._error is None:
            frames, self._frames = self._frames, []
            if sum(map(len, frames)) <= SMALL:
                self._here(frames)
                return
            loop = asyncio.get_running_loop()
            self._job = loop.run_in_executor(self._pool, self._write, frames)
            self._job.add_done_callback(self._done)

    def _here(self, frames: list[Bytes]) -> None:
        try:
            self._write(frames)
        except Exception as error:  # noqa: BLE001  raised by `put` or `finish`, as a worker's is
            self._error = error

    def _done(self, job: asyncio.Future[None]) -> None:
        self._job, self._error = None, job.exception()
        self._kick()

    async def progress(self) -> None:
        """Until the call under way, or the next one, has ended. Raises what went wrong."""
        self._kick()
        if self._job is not None:
            await asyncio.wait([self._job])
        if self._error is not None:
            raise self._error

    async def finish(self) -> None:
        """Until all is written, even if this task is cancelled more than once: then another may write."""
        self._kick()
        cancelled = False
        while self._job is not None:
            try:
                await asyncio.wait([self._job])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
        if self._error is not None:
            raise self._error
