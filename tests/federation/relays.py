"""Bad networks between real processes: relays in front of servers, in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tests.wire.proxy import Aside, Relay


class Rough(Relay):
    """Of each piece a share is lost and sent again, as TCP does: it comes after `again` seconds."""

    loss = 0.0
    again = 0.3

    async def _through(self, direction: str, data: bytes) -> bytes:
        if self._rng.random() < self.loss:
            await asyncio.sleep(self.again)
        return await super()._through(direction, data)

    async def __aexit__(self, *_: object) -> None:
        self.hold(held=False)
        await super().__aexit__()


class Relays(Aside[Rough]):
    """A relay in front of each of these ports; `do` changes them while they run."""

    def __init__(self, to: Sequence[int], seed: int = 0) -> None:
        super().__init__([Rough(port, seed) for port in to])

    def do(self, act: Callable[[Rough], Any]) -> None:
        """For every relay, in their own loop; done when this returns."""
        done = threading.Event()

        def all_of_them() -> None:
            for relay in self.servers:
                act(relay)
            done.set()

        self._loop.call_soon_threadsafe(all_of_them)
        done.wait(30)
