"""Where slow things run: the store's thread, threads for heavy work, tasks beside everything else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ...core.errors import StateError
from ..store.disk import HEALS
from ..store.store import Store

log = logging.getLogger("atoll.host")
T = TypeVar("T")


class Errands:
    """What the event loop must not do itself, for the owner of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._tasks: set[asyncio.Task[Any]] = set()

    async def durable(self, run: Callable[[], T]) -> T:
        """`run` in the store's thread. What passes by itself, such as a full disk, is waited out."""
        loop = asyncio.get_running_loop()
        return await self._with_room(lambda: loop.run_in_executor(self.store.thread, run))

    async def kept(self, run: Callable[[], T]) -> T:
        """`run` in a thread of its own, for what writes much; it waits as `durable` does."""
        return await self._with_room(lambda: asyncio.to_thread(run))

    async def _with_room(self, begin: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await begin()
            except StateError as error:
                if HEALS not in str(error):
                    raise
                await asyncio.sleep(1.0)

    async def work(self, run: Callable[[], T]) -> T:
        """`run` in a thread of its own: heavy, and not for the event loop."""
        return await asyncio.to_thread(run)

    def spawn(self, job: Any) -> None:
        """Run a coroutine beside everything else; what goes wrong in it is logged."""
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the host failed", exc_info=task.exception())

    async def log(self, run: str, node: str, level: str, text: str) -> None:
        """Keep what a member said, or what is to be said about it."""
        await self.durable(lambda: self.store.log_add(run, node, level, text))
