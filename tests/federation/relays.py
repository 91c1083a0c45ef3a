"""Bad networks between real processes: relays in front of servers, in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from tests.wire.proxy import Relay


class Rough(Relay):
    """Of each piece a share is lost and sent again, as TCP does: it comes after `again` seconds."""

    loss = 0.0
    again = 0.3

    async def _through(self, direction: str, data: bytes) -> bytes:
        if self._rng.random() < self.loss:
            await asyncio.sleep(self.again)
        return await super()._through(direction, data)


class Relays:
    """A relay in front of each of these ports; `do` changes them while they run."""

    def __init__(self, to: Sequence[int], seed: int = 0) -> None:
        self.relays = [Rough(port, seed) for port in to]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        for relay in self.relays:
            await relay.__aenter__()
        self._ready.set()
        await self._stop.wait()
        for relay in self.relays:
            relay.hold(held=False)
            await relay.__aexit__()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def ports(self) -> list[int]:
        return [relay.port for relay in self.relays]

    def do(self, act: Callable[[Rough], Any]) -> None:
        """For every relay, in their own loop; done when this returns."""
        done = threading.Event()

        def all_of_them() -> None:
            for relay in self.relays:
                act(relay)
            done.set()

        self._loop.call_soon_threadsafe(all_of_them)
        done.wait(30)
