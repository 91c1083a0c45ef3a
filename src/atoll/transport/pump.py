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
from .frames import number

T = TypeVar("T")

AHEAD = 8  # frames in memory, beyond those being written


async def thread(pool: Executor | None, call: Callable[..., T], *args: object) -> T:
    """Call it in a worker thread."""
    return await asyncio.get_running_loop().run_in_executor(pool, call, *args)


async def pump(
    incoming: AsyncIterator[bytes],
    write: Callable[[list[bytes]], None],
    total: Callable[[], int | None],
    *,
    have: int,
    pool: Executor | None,
    window: float,
    moved: Callable[[], None],
) -> None:
    """Write frames as they come, until number `total() - 1` is written or they end.

    `total`: frames of the message, None until its head is written. `have`: frames there already.
    `moved` is called for each frame. Raises what `write` raises, and Gone after `window` seconds
    without a frame.
    """
    waiting: list[bytes] = []
    latest = have - 1
    job: asyncio.Future[None] | None = None
    try:
        while True:
            end = total()
            all_came = end is not None and latest + 1 >= end
            if job is not None and (job.done() or all_came or end is None or len(waiting) >= AHEAD):
                await asyncio.shield(job)  # raises what was wrong with the frames
                job = None
            elif waiting and job is None:
                job, waiting = asyncio.ensure_future(thread(pool, write, waiting)), []
            elif all_came and job is None:
                return
            else:
                frame = await _next(incoming, window)
                if frame is None:
                    return
                moved()
                latest = max(latest, number(frame))
                waiting.append(frame)
    finally:
        await _flush(pool, write, job, waiting)


async def _next(incoming: AsyncIterator[bytes], window: float) -> bytes | None:
    try:
        async with asyncio.timeout(window):
            return await anext(incoming)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise Gone(f"no frame came for {window:g} seconds") from None


async def _flush(
    pool: Executor | None,
    write: Callable[[list[bytes]], None],
    job: asyncio.Future[None] | None,
    waiting: list[bytes],
) -> None:
    """Write what is left, even if this task is cancelled more than once: nobody else may write before."""

    async def rest() -> None:
        if job is not None:
            await job
        if waiting:
            await thread(pool, write, waiting)

    if job is None and not waiting:
        return
    todo = asyncio.ensure_future(rest())
    cancelled = False
    while not todo.done():
        try:
            await asyncio.wait([todo])
        except asyncio.CancelledError:
            cancelled = True
    error = todo.exception()
    if cancelled:
        raise asyncio.CancelledError
    if error is not None:
        raise error
