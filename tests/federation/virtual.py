"""An asyncio loop in virtual time: hours pass in no time, and the same seed gives the same trace.

Nothing here waits: when no callback is ready, the clock jumps to the next timer. A loop in which
everybody waits for ever raises instead of hanging.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any


class _Jump(selectors.BaseSelector):
    """Selects nothing, and turns waiting into time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._map: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj, events, data=None):
        self._map[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return self._map[fileobj]

    def unregister(self, fileobj):
        return self._map.pop(fileobj)

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError(f"everybody waits for ever, at {self.now:g} s")
        self.now += max(timeout, 0.0)
        return []

    def get_map(self):
        return self._map


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual, from 0."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now

    def call_at(self, when, callback, *args, context=None):
        """Two timers that go off before their time, within the loop's resolution, would stop the clock."""
        soon = self.time() + self._clock_resolution
        return super().call_at(soon if self.time() < when < soon else when, callback, *args, context=context)

    def run_in_executor(self, executor, func, *args):
        """Threads have no virtual time: what would run in one runs at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future

    def call_soon_threadsafe(self, callback, *args, context=None):
        return self.call_soon(callback, *args, context=context)


class Killed(SystemExit):
    """The process died here: asyncio lets a SystemExit out of any task."""


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """asyncio.run in virtual time; Killed leaves everything as it lies, as a kill does."""
    loop = VirtualLoop()
    loop.set_exception_handler(lambda loop, context: None)
    task = loop.create_task(main)
    try:
        return loop.run_until_complete(task)
    finally:
        asyncio._set_running_loop(loop)
        for left in asyncio.all_tasks(loop):
            left._log_destroy_pending = False
            with suppress(BaseException):
                left.get_coro().close()
        asyncio._set_running_loop(None)
        loop.close()
