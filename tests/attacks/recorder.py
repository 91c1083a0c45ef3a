"""A relay that keeps every byte of both directions, by connection; it runs in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.wire.proxy import Aside, Server, join


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


class Recorder(Aside[Tap]):
    """Taps in front of these ports; `ports[i]` stands for to[i]."""

    def __init__(self, to: Sequence[int]) -> None:
        super().__init__([Tap(port) for port in to])

    def streams(self) -> list[bytes]:
        """Each direction of each connection."""
        return [bytes(half) for tap in self.servers for pair in tap.heard for half in pair]
