"""Waking who waits for news: the store rings from its own thread, requests wait on the event loop."""

from __future__ import annotations

import asyncio
import contextlib


class Bell:
    """`wait` ends at the next `ring`, which any thread may do.

    Take `pulled = bell.pulled` before looking whether there is news: a ring in between is then not lost.
    """

    def __init__(self) -> None:
        self.pulled = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def ring(self, _seq: int = 0) -> None:
        """There is news. Safe from any thread, and after the loop has ended."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        pulled, self.pulled = self.pulled, asyncio.Event()
        pulled.set()

    @staticmethod
    async def wait(pulled: asyncio.Event, seconds: float) -> None:
        """Until it rings, `seconds` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await pulled.wait()
