"""A process of its own: runs until it is told to stop, and stops in order."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ...core.errors import AtollError


def logged() -> None:
    """Log to stderr, from the level in $ATOLL_LOG on; without one our messages and the warnings of others."""
    said = os.environ.get("ATOLL_LOG", "").upper()
    logging.basicConfig(
        level=said or "WARNING",
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if not said:
        logging.getLogger("atoll").setLevel("INFO")


def until_stopped(serve: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]) -> int:
    """Run `serve` until it ends, or SIGTERM or SIGINT asks for `close`; 0 where it ended in order."""
    import asyncio

    logged()
    return asyncio.run(_until_stopped(serve, close))


def program(serve: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]) -> int:
    """`until_stopped` as a command: one of our errors is told on stderr, and 1 is its exit code."""
    try:
        return until_stopped(serve, close)
    except AtollError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


async def _until_stopped(serve: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]) -> int:
    import asyncio

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.ensure_future(serve())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stopping.done() and not serving.done():
        await close()
        await asyncio.wait({serving}, timeout=10)
        serving.cancel()
    stopping.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    return 0
