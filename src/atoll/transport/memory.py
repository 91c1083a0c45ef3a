"""A link within one process: for tests of what stands on links, and for their conformance suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..core.errors import Gone
from ..wire.plain import Bytes
from .link import fault
from .service import Service, Way

if TYPE_CHECKING:
    from ..privacy.keys import Member


class MemoryLink:
    """`member`'s link to `service`. `cut()` breaks all that is open, as a failing network does."""

    def __init__(self, service: Service, member: Member, url: str = "memory://") -> None:
        self.url = url
        self._service = service
        self._member = member
        self._name = ""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def session(self, name: str, hello: bytes) -> _Channel:
        """See link.Link."""
        self._name = name
        channel = _Channel()
        await channel.send(hello)
        self._start(self._serve(channel))
        return channel

    async def _serve(self, channel: _Channel) -> None:
        try:
            await self._service.session(
                self._member, Way("memory"), _until_none(channel.up), channel.down.put
            )
        finally:
            await channel.close()

    async def offset(self, upload: str) -> int:
        """See link.Link."""
        frames: int = await self._call(self._service.offset(self._member, self._name, upload))
        return frames

    async def upload(self, upload: str, frames: AsyncIterator[bytes], start: int) -> dict[str, Any]:
        """See link.Link."""
        work = self._service.upload(self._member, self._name, upload, start, frames)
        receipt: dict[str, Any] = await self._call(work)
        return receipt

    async def download(self, blob: str, start: int, have: Sequence[str]) -> AsyncIterator[Bytes]:
        """See link.Link."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(2)

        async def give() -> None:
            try:
                await self._service.download(self._member, self._name, blob, start, have, queue.put)
            finally:
                with suppress(asyncio.QueueFull):
                    queue.put_nowait(None)

        task = self._start(give())
        try:
            while not (task.done() and queue.empty()):
                getting = asyncio.ensure_future(queue.get())
                await asyncio.wait([getting, task], return_when=asyncio.FIRST_COMPLETED)
                if not getting.done() and queue.empty():
                    getting.cancel()
                    break
                frame = await getting
                if frame is None:
                    break
                yield frame
            await self._call(task)
        finally:
            task.cancel()

    async def probe(self) -> None:
        """See link.Link."""

    async def close(self) -> None:
        """See link.Link."""
        self.cut()

    def cut(self) -> None:
        """Break everything that is open."""
        for task in list(self._tasks):
            task.cancel()

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _call(self, work: Any) -> Any:
        """Errors as a network would carry them."""
        task = work if isinstance(work, asyncio.Task) else self._start(work)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.cancelled():
            raise Gone("the connection was cut")
        if (error := task.exception()) is not None:
            raise fault(*self._service.word(error, self._member))
        return task.result()


class _Channel:
    def __init__(self) -> None:
        self.up: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.down: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._over = False

    async def send(self, packet: bytes) -> None:
        if self._over:
            raise Gone("the connection was cut")
        await self.up.put(packet)

    async def recv(self) -> bytes | None:
        if self._over and self.down.empty():
            return None
        return await self.down.get()

    async def close(self) -> None:
        if not self._over:
            self._over = True
            self.up.put_nowait(None)
            self.down.put_nowait(None)


async def _until_none(queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (item := await queue.get()) is not None:
        yield item
