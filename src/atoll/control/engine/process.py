"""A process of its own: alone in its folder, runs until it is told to stop, and stops in order."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from ...core.errors import AtollError, StateError

log = logging.getLogger("atoll.member")
ENDS = 10.0  # seconds that an earlier process of the same folder has to end


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


@contextmanager
def alone(folder: Path, ends: float = ENDS) -> Iterator[None]:
    """Keep a member's folder to this process; one that died has let go of it.

    Raises StateError where another one has it for `ends` seconds on.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _take(held.enter_context((folder / ".lock").open("a+")), folder.absolute(), ends)
        except OSError as error:  # a network's folder, or a full disk: whatever needs it most will tell
            log.warning("%s cannot be locked: %s. Start one process only there", folder, error.strerror)
        yield


def holder(folder: Path) -> int | None:
    """The process that keeps a folder (`alone`), None where none does."""
    try:
        with (folder / ".lock").open("r+") as file:
            said = "" if _locked(file) else file.read(20).strip()
    except OSError:
        return None
    return int(said) if said.isdecimal() else None


def _take(file: IO[str], folder: Path, ends: float) -> None:
    until, other = time.monotonic() + ends, ""
    while not _locked(file):
        if not other:
            file.seek(0)
            other = file.read(20).strip() or "?"
            log.warning("process %s uses %s: waiting for its end", other, folder)
        if time.monotonic() > until:
            raise StateError(
                f"{folder} is in use by process {other}: end that one first, or give this one a folder of its"
                " own (--folder)"
            )
        time.sleep(0.1)
    with suppress(OSError):  # it is ours, on a full disk as well
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()


def _locked(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: what we fork does not keep it
    except (BlockingIOError, PermissionError):
        return False
    return True


def until_stopped(
    serve: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    folder: str | Path | None = None,
) -> int:
    """Run `serve` until it ends, or SIGTERM or SIGINT asks for `close`; 0 where it ended in order.

    `folder`: one that no other process may use meanwhile; raises StateError where one does.
    """
    import asyncio

    logged()
    with nullcontext() if folder is None else alone(Path(folder)):
        return asyncio.run(_until_stopped(serve, close))


def program(
    serve: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    folder: str | Path | None = None,
) -> int:
    """`until_stopped` as a command: one of our errors is told on stderr, and 1 is its exit code."""
    try:
        return until_stopped(serve, close, folder)
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
