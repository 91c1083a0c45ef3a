"""The client: trains on its own rows what its policy allows, and says no to the rest, with the reason.

    folder/client.toml   what it holds and allows        folder/runs/   what stays with it, by run

It dials out only. What an algorithm keeps at the client (error feedback, control variates, a personal
head) is on disk before the answer leaves, and is committed only once the next task says it was used.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.edge import Answer
from ...core.errors import ConfigError, Refused, StateError
from ...learn.local import Held as State
from ...learn.local import Local
from ...learn.wrapped import Kept
from ...wire import checkpoint
from ...wire.failpoint import declare, hit
from ...wire.files import whole
from ..settings import Client
from .datasets import Held, hold, pick
from .outside import Outside
from .policy import Asked as Question
from .policy import inside, refusal
from .uplink import Asked, Uplink
from .work import Work, belongs

log = logging.getLogger("atoll.client")
RECORDS = (State, Kept)
_TRAINED = declare("agent.trained")
_KEPT = declare("agent.kept.before"), declare("agent.kept.after")


class Agent:
    """One client process. `held`: its data sets by name, those of the settings and others given."""

    def __init__(
        self, settings: Client, outside: Outside | None = None, held: Mapping[str, Held] | None = None
    ) -> None:
        if not settings.data and not held:
            raise ConfigError("a client needs data: name a data set, as in [data.heart]", "$.data")
        if settings.policy.hours:
            inside(settings.policy.hours, 0)
        self.settings = settings
        self.folder = Path(settings.folder)
        self.held: dict[str, Held] = dict(held or {})
        self.held |= {n: hold(n, t, self.folder) for n, t in settings.data.items()}
        self.uplink = Uplink(settings, self.about, self.answer, self._letter, outside=outside)
        self.serving: Any = None
        self._locals: dict[str, Local] = {}
        self._turn = asyncio.Lock()

    def about(self) -> Mapping[str, Any]:
        """What the federation may know of this site: figures and names."""
        return {"data": {name: held.about() for name, held in self.held.items()}}

    async def serve(self) -> None:
        """Join, then answer until told to stop."""
        await self.uplink.join()
        if self.settings.predict:
            from .serving import Serving

            self.serving = Serving(self.settings, self.uplink)
            await self.serving.start()
        try:
            await self.uplink.run()
        finally:
            if self.serving is not None:
                await self.serving.stop()

    async def answer(self, asked: Asked) -> Answer:
        """Train or evaluate, one ask after the other, off the event loop."""
        (client,) = asked.task.clients or (-1,)
        belongs(asked.task, client)
        self._allowed(asked)
        async with self._turn:
            answer = await asyncio.to_thread(self._trained, asked, client)
        failed = answer.failed.get(client)
        if failed is not None:
            raise Refused(failed)
        return answer

    def _trained(self, asked: Asked, client: int) -> Answer:
        """The answer, once what the algorithm keeps here is on disk."""
        local = self._local(asked.work, client)
        answer = local.answer(asked.task)
        hit(_TRAINED)
        if asked.task.want == "fit":
            self._keep(asked.work, local)
        return answer

    def _allowed(self, asked: Asked) -> None:
        """Raise Refused where this site's policy says no."""
        work, task = asked.work, asked.task
        held = pick(self.held, work.data)
        table, clock = work.values["table"], time.localtime()
        question = Question(
            job=work.job.name,
            learner=_name(table.get("learner")),
            algorithm=_name(table.get("algorithm", "fedavg")),
            cohort=len(task.cohort),
            rows=len(held.train),
            round=task.round,
            minute=clock.tm_hour * 60 + clock.tm_min,
            evaluate=task.want == "evaluate",
        )
        reason = refusal(self.settings.policy, question)
        if reason:
            raise Refused(reason)

    def _local(self, work: Work, client: int) -> Local:
        """This run's learner over our rows, with what it kept from earlier rounds."""
        local = self._locals.get(work.run)
        if local is None:
            local = work.local(pick(self.held, work.data), client)
            path = self._state(work)
            if path.exists():
                try:
                    kept = checkpoint.load(path.read_bytes(), RECORDS)
                    local.committed, local.staged = dict(kept["committed"]), dict(kept["staged"])
                except StateError as error:
                    log.warning("%s: what this client kept for the run is lost: %s", work.run, error)
            self._locals = {work.run: local}
        return local

    def _keep(self, work: Work, local: Local) -> None:
        if not local.committed and not local.staged:
            return
        state = {"committed": dict(local.committed), "staged": dict(local.staged)}
        hit(_KEPT[0])
        with whole(self._state(work)) as file:
            file.write(checkpoint.dump(state, RECORDS))
        hit(_KEPT[1])

    def _state(self, work: Work) -> Path:
        return self.folder / "runs" / f"{work.run}.state"

    async def _letter(self, kind: str, head: Mapping[str, Any]) -> None:
        if kind == "model" and self.serving is not None:
            self.uplink.beside(self.serving.offered(head))


def _name(part: Any) -> str:
    return str(part.get("name", "")) if isinstance(part, Mapping) else str(part)


def main(settings: Client) -> int:
    """Run a client until it is stopped; its exit code."""
    from .process import program

    if settings.parts:
        from ..config import own_parts

        own_parts(Path(settings.parts))
    agent = Agent(settings)
    return program(agent.serve, agent.uplink.close)
