"""A relay that keeps every byte of both directions, by connection; it runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Self

from tests.wire.proxy import Server, join


class Tap(Server):
    """Passes on to `to`; `heard`: what each connection said, up and down."""

    def __init__(self, to: int) -> None:
        super().__init__()
        self._to = to
        self.heard: list[tuple[bytearray, bytearray]] = []

    async def serve(self, reader, writer):
        up, down = bytearray(), bytearray()
        self.heard.append((up, down))
        other = await asyncio.open_connection("127.0.0.1", self._to)

        async def through(direction: str, data: bytes) -> bytes:
            (up if direction == "up" else down).extend(data)
            return data

        await join((reader, writer), other, through)


class Recorder:
    """Taps in front of these ports; `ports[i]` stands for to[i]."""

    def __init__(self, to: Sequence[int]) -> None:
        self._taps = [Tap(port) for port in to]
        self._ready = threading.Event()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        for tap in self._taps:
            await tap.__aenter__()
        self._ready.set()
        await self._stop.wait()
        for tap in self._taps:
            await tap.__aexit__()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def ports(self) -> list[int]:
        return [tap.port for tap in self._taps]

    def streams(self) -> list[bytes]:
        """Each direction of each connection."""
        return [bytes(half) for tap in self._taps for pair in tap.heard for half in pair]
