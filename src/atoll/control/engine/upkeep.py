"""A node keeps to its [power]: it looks now and then, says upward when it holds back, works and rests.

    upkeep = Upkeep(power, folder, sensors, clock, say)
    await upkeep.during(work)      raises Refused where it holds back, or begins to meanwhile

What it has spent stands in power.json, written while it works as well: a node that is killed rests as if it
had stopped then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ...core.errors import Refused
from ...learn.failure import HELD
from ...wire.files import whole
from ..settings import Power
from .policy import closed
from .power import Held, Seen, Spent, carried, checked, held, rested
from .sensors import Energy, Meter, Sensors

log = logging.getLogger("atoll.member")
FILE = "power.json"
T = TypeVar("T")


class Upkeep:
    """`sensors()`: what they say now. `clock()`: Unix seconds. `say(values)`: tells the parent. `hours`:
    of the site's policy.
    """

    def __init__(
        self,
        power: Power,
        folder: Path,
        sensors: Sensors,
        clock: Callable[[], float],
        say: Callable[[Mapping[str, Any]], None],
        hours: str = "",
    ) -> None:
        self.power = checked(power)
        self.held = Held()
        self.energy: Energy | None = None  # of the last task
        self._path = folder / FILE
        self._sensors, self._clock, self._say, self._hours = sensors, clock, say, hours
        self._seen = Seen()
        self._since = 0.0  # when it began to hold back
        self._spent = self._read()
        self._began: float | None = None
        self._holds = asyncio.Event()
        self._turn = asyncio.Lock()

    @property
    def needed(self) -> bool:
        """Whether the settings ask for any of it."""
        return self.power != Power() or bool(self._hours)

    def about(self) -> dict[str, Any]:
        """What the federation may know: why we hold back, since and until when; what the last task took."""
        told: dict[str, Any] = {"held": self.held.reason, "rule": self.held.rule, "until": self.held.until}
        told |= {"since": self._since} if self.held.reason else {}
        if self.energy is not None:
            told |= {"joules": round(self.energy.joules, 3), "source": self.energy.source}
        return told

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await self.look()
            await asyncio.sleep(self.power.every)

    async def look(self) -> None:
        """What the sensors say now, and what follows; those above hear of it where it is news."""
        self._seen = await asyncio.to_thread(self._sensors)
        if self._began is not None:  # should it be killed
            self._write(rested(self.power, self._spent, self._began, self._clock()))
        self._decide()

    def _decide(self) -> None:
        before, now = self.held, self._clock()
        local = time.localtime(now)
        minutes = closed(self._hours, local.tm_hour * 60 + local.tm_min)
        opens = now + 60.0 * minutes - local.tm_sec if minutes else None
        self.held = held(self.power, self._seen, self._spent, before, now, opens)
        (self._holds.set if self.held.reason else self._holds.clear)()
        if not before.reason:
            self._since = now
        if self.held != before:
            log.info("%s", f"{HELD}{self.held.reason}" if self.held.reason else "it takes part again")
            self._say(self.about())
            if self.held.until:
                wait = max(self.held.until - now, 0.0) + 0.001
                asyncio.get_running_loop().call_later(wait, self._decide)

    async def during(self, work: Callable[[], Coroutine[Any, Any, T]], *, step: bool = False) -> T:
        """What `work()` gives, one after the other. Raises Refused where this node holds back before it or
        while it lasts: then it is cancelled. `step`: it is one of an exchange, which takes a moment: it is no
        work to rest from, and is done while it rests.
        """
        if not self.needed:
            return await work()
        async with self._turn:
            await self.look()
            if self.held.reason and not (step and self.held.rule == "duty"):
                raise Refused(f"{HELD}{self.held.reason}")
            if step:
                return await work()
            return await self._worked(work())

    async def _worked(self, work: Coroutine[Any, Any, T]) -> T:
        self._began, meter = self._clock(), Meter(self._sensors, self.power)
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._holds.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Refused(f"{HELD}{self.held.reason}")
            return task.result()
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            self._ended(meter)

    def carried(self, count: int) -> None:
        """So many bytes went over the link."""
        if self._seen.metered:
            self._spent = carried(self._spent, count, self._clock())
            self._write(self._spent)

    def _ended(self, meter: Meter) -> None:
        began, now = self._began or self._clock(), self._clock()
        self._began = None
        self.energy = meter.used(now - began)
        self._spent = rested(self.power, self._spent, began, now)
        self._write(self._spent)
        before = self.held
        self._decide()
        if self.energy is not None and self.held == before:
            self._say(self.about())

    def _read(self) -> Spent:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Spent)
        except (OSError, msgspec.DecodeError):
            return Spent()

    def _write(self, spent: Spent) -> None:
        with whole(self._path) as file:
            file.write(msgspec.json.encode(spent))
