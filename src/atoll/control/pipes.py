"""What a process says to one it has started, and hears from it: records over pipes, a length before each."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    import asyncio

LENGTH = struct.Struct("<I")


def framed(record: bytes) -> bytes:
    """A record as it goes over a pipe."""
    return LENGTH.pack(len(record)) + record


def records(pipe: BinaryIO) -> Iterator[bytes]:
    """Whole records until the pipe ends."""
    while len(prefix := pipe.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(prefix)
        yield pipe.read(length)


async def ended(process: asyncio.subprocess.Process, patience: float = 5.0) -> None:
    """Close its stdin, at which it ends, and wait; kill it only if it does not within `patience` seconds.

    One that is killed as it ends by itself confuses those who wait for it.
    """
    import asyncio  # the started process reads records without it

    stdin = cast("asyncio.StreamWriter", process.stdin)
    stdin.close()
    with suppress(ConnectionError):
        await stdin.wait_closed()
    ending = asyncio.ensure_future(process.wait())
    if not (await asyncio.wait({ending}, timeout=patience))[0]:
        with suppress(ProcessLookupError):
            process.kill()
    await ending
