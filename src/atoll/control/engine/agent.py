"""The client: dials out, fetches models, has its workplace learn from them, brings the answers.

    folder/client.toml   what it holds and allows        folder/runs/   what stays with it, by run

It needs no numpy: rows, models and learners are the workplace's (learning.py), which is a process of its
own unless Python code has handed over what it holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ...wire.files import whole
from ..settings import Client, answers_at, rests, watched
from .outside import Outside
from .policy import inside
from .safe import opened
from .sensors import metered
from .spent import told
from .upkeep import Upkeep
from .uplink import Uplink
from .workplace import Here, Workplace

if TYPE_CHECKING:
    from ...sense.intake import Intake
    from .datasets import Held

log = logging.getLogger("atoll.member")
QUARANTINED = "quarantined.txt"  # in its folder, while the federation asks it for nothing


class Agent:
    """One client process. `held`: data sets by name that are in it already, with those of the settings."""

    def __init__(
        self, settings: Client, outside: Outside | None = None, held: Mapping[str, Held] | None = None
    ) -> None:
        if not settings.data and not held:
            raise ConfigError(
                "a client needs data: name a data set, as in [data.heart], in client.toml in its folder or "
                "in the file that --config names",
                "$.data",
            )
        if settings.int8 and settings.int8 not in {*settings.data, *(held or ())}:
            raise ConfigError(f"there is no data set {settings.int8!r} to calibrate on", "$.int8")
        if settings.predict:
            answers_at(settings)
        if settings.policy.hours:
            inside(settings.policy.hours, 0)
        if settings.watch is not None:
            watched(settings)
        self.settings = settings
        outside = outside or Outside()
        vault = opened(settings)
        self.workplace: Workplace = (
            outside.workplace(settings, vault) if held is None else Here(settings, vault, held)
        )
        self.uplink = Uplink(
            settings,
            self.about,
            self.answer,
            self._letter,
            outside=outside,
            restore=self.workplace.restore,
            vault=vault,
        )
        self._sensors = outside.sensors(settings.power.link)
        self.upkeep = Upkeep(
            settings.power,
            Path(settings.folder),
            self._sensors,
            outside.clock,
            lambda values: self.uplink.send("power", values),
            settings.policy.hours,
        )
        self.serving: Any = None
        self.intake: Intake | None = None
        self._vault = vault
        self._run = ""  # what was asked last
        self._spent: list[str] = []  # receipts of budgets that the parent has heard of
        self._about: Mapping[str, Any] = {}
        self._greeted: Mapping[str, Any] = {}  # what it said of its power as it came

    def about(self) -> Mapping[str, Any]:
        """What the federation may know of this site: figures and names."""
        if not self.upkeep.needed:
            return self._about
        self._greeted = self.upkeep.about()
        return {**self._about, "power": self._greeted, "busy": self.uplink.asks}

    async def serve(self) -> None:
        """Join, then answer until told to stop."""
        looking: asyncio.Task[None] | None = None
        try:
            self._sense()
            await self._described()
            if self.upkeep.needed:
                await self.upkeep.look()
                looking = asyncio.get_running_loop().create_task(self.upkeep.run())
            await self.uplink.join()
            self.uplink.on_open = self._opened
            if self.settings.predict:
                await self._serve()
            await self.uplink.run()
        finally:
            if looking is not None:
                looking.cancel()
            if self.serving is not None:
                await self.serving.stop()
            await self.workplace.close()
            if self.intake is not None:
                await self.intake.stop()

    def _sense(self) -> None:
        """Take readings in, also while no server is reached."""
        if self.settings.sources:
            from .sensing import intake

            self.intake = intake(self.settings, self._vault)
            self.intake.start()

    async def _serve(self) -> None:
        """Answer requests, and look at every window of a source to renew the model that answers it."""
        settings, watch = self.settings, self.settings.watch
        feed = None if watch is None or self.intake is None else self.intake.feed(watch.source)
        if rests(settings):
            from .resting import Resting

            self.serving = Resting(settings, self.uplink, self._vault, feed, self._tune)
            await self.serving.start()
            return
        from .serving import Serving
        from .watching import watching

        self.serving = Serving(settings, self.uplink, self.workplace, self._vault)
        await self.serving.start()
        if feed is not None:
            send = self.uplink.send
            self.uplink.beside(watching(settings, self._vault, self.serving, send, feed, self._tune))

    async def _tune(self, base: Path, rows: Path, to: Path, values: Mapping[str, Any]) -> Mapping[str, Any]:
        mine = self.uplink.identity
        roots, federation = mine.roots, mine.member.federation
        work = partial(self.workplace.tune, base, rows, to, values, roots=roots, federation=federation)
        return await metered(self._sensors, self.settings.power, work)

    async def answer(self, ask: str, head: Mapping[str, Any], to: Path) -> None:
        """Have the workplace train or evaluate, one ask after the other, unless this node holds back."""
        step = head.get("task", {}).get("want") == "note"
        await self.upkeep.during(partial(self._answered, head, to), step=step)
        self._tell_spent()
        await self._described()

    async def _described(self) -> None:
        """Have it said anew what there is here: readings may have come."""
        serves = {"serves": True} if self.settings.predict else {}
        self._about = {**await self.workplace.about(), **serves}

    async def _answered(self, head: Mapping[str, Any], to: Path) -> None:
        identity = self.uplink.identity
        if head.get("plan"):
            await self.uplink.fetch(str(head["plan"]))
        work = partial(
            self.workplace.answer, head, roots=identity.roots, federation=identity.member.federation
        )

        async def use(model: Path, sound: bool) -> None:  # noqa: FBT001  see `using`
            if sound:  # it was fetched
                self.upkeep.carried(_size(model))
            await work(model=model, to=to, sound=sound, rate=self.uplink.rate)

        await self._begun(head)
        await self.uplink.using(str(head.get("params", "")), use)
        self.upkeep.carried(_size(to))

    async def _begun(self, head: Mapping[str, Any]) -> None:
        """At a run's first ask, make the model that it starts from, where the rest is little to download."""
        start, run = str(head.get("start", "")), str(head.get("run", ""))
        if start and run != self._run and not (path := self.uplink.model_path(start)).exists():
            mine = self.uplink.identity
            await self.workplace.begin(head, path, roots=mine.roots, federation=mine.member.federation)
        self._run = run

    def _opened(self) -> None:
        self._spent = []
        self._tell_spent()
        if self.upkeep.needed and (power := self.upkeep.about()) != self._greeted:
            self.uplink.send("power", power)
        if self.serving is not None:
            self.serving.report()

    def _tell_spent(self) -> None:
        """Give the parent what our ledgers say now, signed, to keep (privacy/receipt.py)."""
        found = told(self.uplink.folder, self._vault)
        if found != self._spent:
            self._spent = found
            self.uplink.send("spent", {"receipts": {self.uplink.identity.member.name: found}})

    async def _letter(self, kind: str, head: Mapping[str, Any]) -> None:
        if kind == "model" and self.serving is not None:
            self.uplink.beside(self.serving.offered(head))
        if kind == "standing":
            await self._stands(str(head.get("reason", "")))

    async def _stands(self, reason: str) -> None:
        """Say what the federation says of us, and leave it where `atoll doctor` finds it."""
        note = self.uplink.folder / QUARANTINED
        if reason == (note.read_text("utf-8") if note.exists() else ""):
            return
        if reason:
            log.warning("%s", reason)
            await asyncio.to_thread(_leave, note, reason)
        else:
            log.warning("an administrator has reinstated this member: it is asked again")
            note.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size


def _leave(note: Path, text: str) -> None:
    with whole(note) as file:
        file.write(text.encode())


def main(settings: Client) -> int:
    """Run a client until it is stopped; its exit code."""
    from .process import program

    agent = Agent(settings)
    return program(agent.serve, agent.uplink.close, settings.folder)
