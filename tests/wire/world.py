"""A server and its members over any transport, as the tests of faults and proxies need them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from atoll.privacy.keys import Authority, Identity, Member
from atoll.transport.conformance import Desk
from atoll.transport.dial import Dial, Patience
from atoll.transport.open import listen, open_link
from atoll.transport.service import Limits, Service
from tests.wire.pki import NOW
from tests.wire.pki import member as certified

FAST = Patience(first=0.02, longest=0.2, welcome=5, home=0.05)
LIMITS = Limits(takeover=1, heartbeat=0.2, grace=30)
SCHEMES = ("grpcs", "https", "https+poll", "wss")


@cache
def authority(federation: str = "lab") -> Authority:
    return Authority.new(federation, now=NOW)


@cache
def hub() -> Identity:
    return certified(authority(), "coordinator", "hub", hosts=["127.0.0.1", "localhost"])


@cache
def identity(name: str = "ann", role: str = "client") -> Identity:
    return certified(authority(), role, name)


def claim(name: str) -> Member:
    return Member("lab", "client", name, 1, 1e12)


@asynccontextmanager
async def serving(
    scheme: str, folder: Path, limits: Limits = LIMITS, source: Any = hub, **more: Any
) -> AsyncIterator[tuple[Service, Desk, int]]:
    """A service with a remembering desk; the port it listens at."""
    desk = Desk(folder)
    service = Service(desk, limits, federation="lab", **more)
    await service.start()
    address = f"{'grpcs' if scheme.startswith('grpc') else 'https'}://127.0.0.1:0"
    server = await listen(service, address, source, federation="lab")
    try:
        yield service, desk, server.port
    finally:
        await service.close()
        await server.close()


class Side:
    """What a member hears, in order."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self._news = asyncio.Condition()

    async def letter(self, kind: str, head: Mapping[str, Any]) -> None:
        await self.note((kind, dict(head)))

    async def open(self, welcome: Mapping[str, Any], fresh: bool) -> None:
        await self.note(("open", welcome["url"], fresh))

    async def lost(self, reason: str) -> None:
        await self.note(("lost",))

    async def note(self, what: Any) -> None:
        async with self._news:
            self.heard.append(what)
            self._news.notify_all()

    async def until(self, found: Callable[[list[Any]], Any]) -> None:
        async with asyncio.timeout(60), self._news:
            await self._news.wait_for(lambda: found(self.heard))


@asynccontextmanager
async def dialled(
    urls: list[str], *, who: Identity | None = None, patience: Patience = FAST, make: Any = None, **link: Any
) -> AsyncIterator[tuple[Dial, Side]]:
    """A member that stays connected."""
    side = Side()
    make = make or (lambda url: open_link(url, who or identity(), **link))
    dial = Dial(
        urls, make, lambda: {"version": "test"}, on_letter=side.letter, on_open=side.open,
        on_lost=side.lost, patience=patience, draw=random.Random(0),
    )  # fmt: skip
    running = asyncio.ensure_future(dial.run())
    try:
        yield dial, side
    finally:
        await dial.close()
        await asyncio.wait([running])
        running.exception()


def run(story: Any, seconds: float = 120) -> None:
    """Run a coroutine, a minute or two at most."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await story

    asyncio.run(limited())


def blob_file(folder: Path, frames: list[bytes], name: str = "blob") -> Path:
    """A message's frames as a file."""
    path = folder / name
    path.write_bytes(b"".join(frames))
    return path
