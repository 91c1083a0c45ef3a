"""The coordinator: takes runs from the queue, one after the other, and brings each to its end.

queued ─► roster (who holds the data) ─► rounds, driven durably ─► model, signed and registered
      ▲ killed at any point, the next life goes on with the same run, roster and cohort

folder/pki/        the authority and this server's identity      folder/atoll.db, blobs/   the store
folder/admin.json  the first start's operator token, 0600        folder/ports.json         where it listens
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ...core.errors import AtollError, ConfigError, QuorumError, StateError
from ...core.registry import nearest
from ...core.rng import Rng
from ...data.pipeline import Pipeline
from ...learn import rounds
from ...learn.rounds import COORDINATOR, Plan, Progress
from ...privacy.keys import Current
from ...privacy.report import report, sign_report, trust
from ...run import RECORDS
from ...transport.drive import Drive
from ...wire.failpoint import declare, hit
from ...wire.heap import leave_code
from .. import config
from ..desk import desk
from ..desk.bell import Bell
from ..settings import Rerun, Server
from ..store.disk import AwayError
from ..store.store import Store
from . import finished, fitting, plans, rollouts, standing, watched
from .asking import Asking, begun, over
from .datasets import agree
from .homes import Homes
from .host import Host
from .outside import Outside
from .standing import Roster
from .work import Work, data_name, signed

log = logging.getLogger("atoll.coordinator")
_LEASED = declare("coordinator.leased")
_BEGUN = declare("coordinator.begun.before"), declare("coordinator.begun.after")
_ROSTER = declare("coordinator.roster.before"), declare("coordinator.roster.after")
_TRAINED, _REGISTERED = declare("coordinator.trained"), declare("coordinator.registered")
_JUDGED = declare("coordinator.judged.before"), declare("coordinator.judged.after")
_DONE = declare("coordinator.done.before"), declare("coordinator.done.after")
LEASE = 30.0  # seconds; prolonged while a run is worked on
TIDY = 600.0  # seconds between two collections of what nobody needs
LOOK = 30.0  # seconds between two looks at what is to be kept or renewed
KEPT_RUNS = 100  # ended runs that stay whatever their age
PAUSE = 0.2  # seconds between two looks where it rings all the time
AWAY = 120.0  # seconds that a database is waited for at the start
AGAIN = 2.0  # seconds between two tries of it
TICK = 5.0  # seconds between two looks at the store where nothing rings


class Coordinator:
    """One coordinator process. `outside`: what it stands on; a test gives it something else."""

    def __init__(self, settings: Server, outside: Outside | None = None) -> None:
        self.settings = settings
        self.outside = outside or Outside()
        self.folder = Path(settings.folder)
        self.store: Store
        self.host: Host
        self.current: Current
        self._closing = asyncio.Event()
        self._rosters: dict[str, Roster] = {}
        self._watches: dict[str, dict[str, Any]] = {}  # what members said last of their watch
        self._noticed: dict[str, int] = {}  # the last event of theirs that is in the log
        self._renewing = asyncio.Lock()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._homes: dict[str, Homes] = {}  # of runs at work
        self._coming: dict[str, float] = {}  # runs whose clients have yet to come, and since when

    async def serve(self) -> None:
        """Open the doors, then work through the queue until told to stop."""
        store = await self._opened()
        if store is None:
            return
        self.store = store
        registrar, self.current = self.outside.authority(self.settings, self.store)
        gate = self.outside.gate(self.folder)
        self.host = Host(
            self.store,
            gate,
            self.settings.federation,
            self.current().roots,
            patience=self.settings.patience,
            edge_patience=self.settings.edge_patience,
        )
        servers = self.outside.servers(self.settings, self.current, self.host, registrar)
        api = self.outside.api(self, registrar)
        self.host.on_serving = self._serving
        self.host.on_watch = self._watch
        bell = Bell()
        self.store.changed.append(bell.ring)
        keeping = asyncio.get_running_loop().create_task(self._keep_house())
        try:
            await servers.start()
            await self.host.recall()
            await self._tell_models()
            if api is not None:
                await api.start()
                servers.announce({"api": api.url})
            await self._work(bell)
        finally:
            keeping.cancel()
            for task in list(self._running.values()):
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            if api is not None:
                await api.stop()
            await servers.stop()
            await gate.close()
            self.store.close()

    async def close(self) -> None:
        """Finish: runs stay where they are, the next life goes on with them."""
        self._closing.set()

    async def _opened(self) -> Store | None:
        """The store; a database that does not answer yet is waited for. None where we are to close first.

        Raises StateError where it does not in AWAY seconds.
        """
        until = time.monotonic() + AWAY
        while True:
            try:
                return await asyncio.to_thread(self.outside.store, self.settings.store, self.folder)
            except AwayError as error:
                left = until - time.monotonic()
                if left <= 0:
                    raise StateError(f"{error}. It was waited for {AWAY:.0f} seconds") from None
                log.warning("%s. It is tried again, for another %.0f seconds", error, left)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), AGAIN)
            if self._closing.is_set():
                return None

    async def _keep_house(self) -> None:
        """Renew our own certificate at half of its life; forget what nobody needs, once an hour."""
        pruned = 0.0
        while True:
            mine = self.current()
            await asyncio.sleep(min(LOOK, (mine.member.until - mine.since) / 8))
            loop = asyncio.get_running_loop()
            if self.current().renew_due(time.time()):
                await self.host.durable(lambda: self.outside.authority(self.settings, self.store))
            if loop.time() - pruned > TIDY:
                pruned = loop.time()
                await self.host.durable(lambda: self.store.prune(self.settings.keep_days, KEPT_RUNS))

    # -- the queue --------------------------------------------------------------------------

    async def _work(self, bell: Bell) -> None:
        """Start what waits, end what is to stop, until closed."""
        closing, clock = asyncio.ensure_future(self._closing.wait()), asyncio.get_running_loop().time
        seen, due = 0, 0.0
        while not self._closing.is_set():
            pulled = bell.pulled
            seen, news = await self.host.durable(lambda seen=seen: self.store.news(seen))  # type: ignore[misc]
            if news or clock() >= due:  # steps of rounds, which ring most, are none of our business
                due = clock() + TICK
                await self._look()
            await asyncio.wait({closing}, timeout=PAUSE)  # a round rings several times
            waiting = asyncio.ensure_future(Bell.wait(pulled, TICK))
            await asyncio.wait({closing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        closing.cancel()

    async def _look(self) -> None:
        await self.host.expel()
        self.host.stand(await self.host.durable(lambda: standing.quarantined(self.store)))
        await self._roll_out()
        for run in await self.host.durable(lambda: self.store.runs(state="stopping")):
            await self._stop(run)
        if self._running:
            return
        record = await self.host.durable(self._next)
        if record is not None:
            self._begin(record)

    def _next(self) -> Mapping[str, Any] | None:
        """The run to work on: one that an earlier life left, else the one that waits longest."""
        for left in self.store.runs(state="running"):
            return left
        queued = self.store.next_queued()
        return None if queued is None else self.store.run(queued)

    def _begin(self, record: Mapping[str, Any]) -> None:
        run = str(record["id"])
        task = asyncio.get_running_loop().create_task(self._one(record))
        self._running[run] = task
        task.add_done_callback(lambda _: self._running.pop(run, None))

    async def _stop(self, record: Mapping[str, Any]) -> None:
        run, reason = str(record["id"]), str(record["reason"])
        task = self._running.get(run)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._judged(record)
        await self._end(record, "stopped", "stopping", reason)

    async def _one(self, record: Mapping[str, Any]) -> None:
        """One run to its end; what goes wrong becomes its reason."""
        run = str(record["id"])
        durable = self.host.durable
        holder = self.settings.name
        if not await durable(lambda: self.store.run_lease(run, holder, time.time() + LEASE)):
            return
        hit(_LEASED)
        hit(_BEGUN[0])
        await durable(lambda: self.store.move(run, "running", frm=("queued",), actor=COORDINATOR))
        hit(_BEGUN[1])
        prolonging = asyncio.get_running_loop().create_task(self._prolong(run, holder))
        try:
            size = await self._train(record)
            await self._judged(record)
            hit(_DONE[0])
            await self._end(record, "done", "running", size=size)
            hit(_DONE[1])
        except AtollError as error:
            reason = f"{type(error).__name__}: {error}"
            await durable(lambda: self.store.log_add(run, COORDINATOR, "error", reason))
            await self._judged(record)
            await self._end(record, "failed", "running", reason[:500])
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("run %s failed", run)
            reason = f"a bug of the coordinator: {type(error).__name__}: {error}"
            await self._end(record, "failed", "running", reason[:500])
        finally:
            prolonging.cancel()

    async def _end(
        self, record: Mapping[str, Any], state: str, frm: str, reason: str = "", size: int = 0
    ) -> None:
        """Bring a run to its end, its signed report into the log with it. `size`: numbers of its model."""
        run, signed = str(record["id"]), ""
        try:
            signed = await self._report(record, state, size)
        except AtollError as error:
            text = f"it has no signed report: {error}"
            await self.host.durable(lambda: self.store.log_add(run, COORDINATOR, "error", text))
        except Exception:
            log.exception("run %s has no signed report", run)

        def ended() -> None:
            with self.store.batch():
                if signed and self.store.run(run)["state"] == frm:
                    self.store.run_reported(run, signed)
                self.store.move(run, state, frm=(frm,), reason=reason, actor=COORDINATOR)

        await self.host.durable(ended)

    async def _judged(self, record: Mapping[str, Any]) -> None:
        """Keep what the run has shown of its members; it ends as it ends, even where that cannot be read."""
        run = str(record["id"])
        hit(_JUDGED[0])
        try:
            await self.host.kept(lambda: standing.keep(self.store, run, record["table"]))
        except AtollError as error:
            reason = f"what it showed of its members was not kept: {error}"
            await self.host.durable(lambda: self.store.log_add(run, COORDINATOR, "error", reason))
        hit(_JUDGED[1])

    async def _prolong(self, run: str, holder: str) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            await self.host.durable(lambda: self.store.run_lease(run, holder, time.time() + LEASE))

    # -- one run ----------------------------------------------------------------------------

    async def _train(self, record: Mapping[str, Any]) -> int:
        """Train its model, and keep it; how many numbers that has."""
        run, table = str(record["id"]), dict(record["table"])
        roster = await self._roster(run, data_name(table), config.parse(table).job.wait)
        plan, blob = await self.host.kept(lambda: plans.sent(self.store, table))
        letter = self._signed(record, table, roster)
        work = Work(letter["text"])
        await self._offered(run, work.job.crypto, roster.clients)
        if work.fits:
            pipeline = await self._fitted(work, letter, roster)
            letter = self._signed(record, fitting.frozen(table, pipeline), roster)
        work = Work(letter["text"], plan)
        sizes = roster.sizes
        work.job.fits(len(roster.clients))
        if work.job.privacy is not None:
            work.job.privacy.holds(len(roster.clients), sum(sizes or ()), work.job.cohort)
        secret = await self._secret(run) if work.job.trained.private else b""
        if blob:
            self.host.asks.hold(blob)
        leave_code()  # what starting has loaded: rounds run a third of it, and need the room
        try:
            last = await self._driven(work, letter, roster, "main", blob=blob, secret=secret)
        finally:
            if blob:
                self.host.asks.release(blob)
        hit(_TRAINED)
        await self._finish(run, work, last)
        return last.params.layout.size

    def _signed(self, record: Mapping[str, Any], table: Mapping[str, Any], roster: Roster) -> dict[str, Any]:
        """A run's job as letters carry it."""
        values = {
            "run": str(record["id"]),
            "table": table,
            "seed": int(record["seed"]),
            "data": data_name(table),
            "features": roster.shared["features"],
            "outputs": roster.shared["outputs"],
            "classes": roster.shared["classes"],
            "federation": self.settings.federation,
        }
        return signed(values, self.current())

    async def _fitted(self, work: Work, letter: Mapping[str, Any], roster: Roster) -> Pipeline:
        """The pipeline's figures: as frozen, else found by looking at all members' rows."""
        before = await self.host.durable(lambda: fitting.kept(self.store, work.run))
        if before is not None:
            return before
        last = await self._driven(work, letter, roster, fitting.SCOPE)
        return await self.host.kept(lambda: fitting.freeze(self.store, work, last, roster.names))

    async def _driven(
        self,
        work: Work,
        letter: Mapping[str, Any],
        roster: Roster,
        scope: str,
        *,
        blob: str = "",
        secret: bytes = b"",
    ) -> Progress:
        """What its algorithm comes to, durably: `scope` names its journal, `blob` its learner's plan."""
        start = await begun(self.host, work)
        asking = Asking(self.host, work.run, scope, letter, work.job.trained, roster.names, blob, start)
        homes = self._homes[work.run] = Homes(self.host.fleet, roster.clients, self.outside.clock)
        rules = _plan(work, homes, roster, self.host.rehome, secret)
        roles = work.job.trained.protocol or rounds.ROLES
        drive = Drive(
            COORDINATOR,
            Rng.of(work.seed).at(COORDINATOR),
            lambda p: roles.coordinator(p, rules),
            journal=self.store.journal(work.run, scope),
            net=asking,
            durable=self.host.durable,
            work=self.host.kept,  # checkpoints are blobs
            dump=lambda state: asking.dump(state, RECORDS),
            load=lambda data: asking.load(data, RECORDS),
            context=homes.context,
        )
        asking.drive = homes.drive = drive
        try:
            last: Progress = await drive.run()
        finally:
            asking.close()
            over(self.host, start)
            self._homes.pop(work.run, None)
        return last

    async def _offered(self, run: str, crypto: str, clients: Iterable[str]) -> None:
        """Say in the run's log who does not offer its suite, and will refuse. Raises ConfigError where that
        is everybody.
        """
        said = {name: tuple(self.host.fleet.offers(name)) for name in clients}
        without = sorted(name for name, suites in said.items() if crypto not in suites)
        if len(without) == len(said):
            raise ConfigError(f"no client offers crypto = {crypto!r}: ask their operators", "$.crypto")
        for name in without:
            text = f"{name} offers crypto {', '.join(said[name]) or 'none'}: it takes no part in {crypto}"
            await self.host.durable(lambda text=text: self.store.log_add(run, COORDINATOR, "warning", text))  # type: ignore[misc]

    async def _secret(self, run: str) -> bytes:
        """What keys of a run's noise are made of: drawn once, on disk before it is used, told to nobody."""
        journal = self.store.journal(run, "secret")
        kept = (await self.host.durable(journal.resume)).state
        if kept is None:
            kept = secrets.token_bytes(32)
            made = kept
            await self.host.durable(lambda: journal.checkpoint(made, 0, 0))
        return kept

    async def _roster(self, run: str, data: str, wait: float | None) -> Roster:
        """The clients that hold the data: as recorded, else those that are here once all known ones are,
        or patience ends. Raises ConfigError where nobody does by then, of clients that are here; QuorumError
        where there is none after `wait` seconds.
        """
        journal = self.store.journal(run, "roster")
        before = (await self.host.durable(journal.resume)).state
        if before is not None:
            return Roster.load(before)
        loop = asyncio.get_running_loop()
        began = loop.time()
        until, self._coming[run] = began + self.settings.patience, self.outside.clock()
        try:
            found = await self._found(data, began, until, wait)
        finally:
            del self._coming[run]
        shared = agree(found, data)
        records = await self.host.durable(lambda: standing.known(self.store, found))
        roster = Roster({name: i for i, name in enumerate(sorted(found))}, shared, records)
        hit(_ROSTER[0])
        await self.host.durable(lambda: journal.checkpoint(roster.dump(), 0, 0))
        hit(_ROSTER[1])
        return roster

    async def _found(
        self, data: str, began: float, until: float, wait: float | None
    ) -> dict[str, Mapping[str, Any]]:
        """Who offers the data, once they are here."""
        loop = asyncio.get_running_loop()
        while True:
            self.host.changed.clear()
            found, missing = await self._offering(data)
            if found and (not missing or loop.time() > until):
                return found
            if not found and wait is not None and loop.time() >= began + wait:
                raise QuorumError(
                    f"no client that offers data called {data!r} came in {wait:g} seconds, as long as the job"
                    " waits"
                )
            if not found and not missing and loop.time() > until and (offered := self.host.fleet.offered()):
                raise ConfigError(
                    f"no site offers data called {data!r}: {nearest(data, offered)}", "$.data.name"
                )
            try:
                async with asyncio.timeout(1.0):
                    await self.host.changed.wait()
            except TimeoutError:
                continue

    async def _offering(self, data: str) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
        """Who offers the data now, and which known members that once did are not here."""
        nodes = await self.host.durable(self.store.nodes)
        out = {n["name"] for n in nodes if n["drained"] or n["revoked"] or n["quarantined"]}
        found = self.host.fleet.offering(data, without=out)
        known = {n["name"] for n in nodes if n["role"] == "client" and data in n["info"].get("data", {})}
        return found, sorted(known - out - found.keys())

    async def _finish(self, run: str, work: Work, last: Progress) -> None:
        """Keep the model, sign it, tell clients to serve it, or roll it out as was settled."""
        served = getattr(work.learner, "served", lambda params: params)
        params = served(last.best[2] if last.best is not None else last.params)
        history = await self.host.durable(lambda: self.store.history(run))
        how = work.values["table"].get("rollout", self.settings.rollout)
        await self.host.kept(
            lambda: finished.register(self.store, self.current(), run, work, params, history, how)
        )
        hit(_REGISTERED)
        await self._tell_models()

    async def _report(self, record: Mapping[str, Any], state: str, size: int) -> str:
        """What the run promised, what it has spent of that and who saw what, signed; "" where it ended before
        it asked anybody. `size`: numbers of its model, 0 where it has none.
        """
        run, job, mine = str(record["id"]), config.parse(dict(record["table"])).job, self.current()
        history, asking = await self.host.durable(lambda: self._begun(run))
        ran = max((int(r["round"]) for r in history), default=0)
        begun = min(ran + asking, job.rounds)
        if not begun and state != "done":
            return ""
        plan = None if job.privacy is None else await asyncio.to_thread(job.epsilon)
        spent = plan
        if job.privacy is not None and begun != job.rounds:
            spent = await asyncio.to_thread(job.privacy.cost, job.cohort, begun) if begun else None
        asked = max((r.get("clients", 0) + len(r.get("failed", ())) for r in history), default=0)
        values = report(
            job.privacy,
            plan,
            shows=job.exchange.shows,
            run=run,
            federation=mine.member.federation,
            rounds=ran,
            ended=time.time(),
            label=getattr(job.exchange, "label", ""),
            crypto=job.crypto if job.exchange.shows == "sum" else "",
            integers=job.exchange.integers(job.trained, asked, size) if size else "",
            buffers=job.trained.buffer is not None,
            state=state,
            spent=spent,
            trust=trust(mine.chain),
        )
        return sign_report(mine.key, mine.chain, values)

    def _begun(self, run: str) -> tuple[list[dict[str, Any]], bool]:
        """The records of its rounds, and whether one more had begun."""
        return self.store.history(run), bool(self.store.journal(run).resume().asked)

    async def _roll_out(self) -> None:
        """Go on with what is being rolled out."""
        if await self.host.durable(lambda: rollouts.due(self.store)):
            await self.host.durable(lambda: rollouts.follow(self.store, self.current()))
            await self._tell_models()

    async def _tell_models(self) -> None:
        """Which version of every model is for whom, to clients that serve."""
        self.host.serve_models(await self.host.durable(lambda: rollouts.letters(self.store)))

    async def _serving(self, member: str, said: Mapping[str, Any]) -> None:
        """Keep how far a member is with a model."""
        if (found := rollouts.read(said)) is None:
            return
        name, kept = found
        if await self.host.durable(lambda: self.store.staged(member, name, kept)):
            text = f"serves {name} version {kept['version']}"
            if kept["trial"]:
                text += f", version {kept['trial']}: {kept['stage']} {kept['reason']}".rstrip()
            level = "warning" if kept["stage"] == "back" else "info"
            await self.host.log("", member, level, text)

    async def _watch(self, member: str, said: Mapping[str, Any]) -> None:
        """Keep what a member's watch noticed; begin a federated run where enough ask for one."""
        if (found := watched.read(said)) is None:
            return
        for number, kind, body in found.pop("events"):
            if number > self._noticed.get(member, 0):
                await self.host.durable(partial(self.store.noticed, member, number, kind, body))
                self._noticed[member] = number
        self._watches[member] = found
        if (rule := self.settings.renew.get(found["model"])) is not None:
            async with self._renewing:
                await self._rerun(found["model"], rule)

    async def _rerun(self, model: str, rule: Rerun) -> None:
        told = dict(self._watches)
        if not await self.host.durable(lambda: watched.due(rule, model, told, self.store, time.time())):
            return
        try:
            table = config.read(Path(self.settings.folder) / rule.job).table
            await self.host.durable(lambda: desk.submit(self.store, table, None, f"renew {model}"))
        except AtollError as error:
            await self.host.log("", COORDINATOR, "error", f"the run that renews {model}: {error}")

    def live(self) -> Mapping[str, Mapping[str, Any]]:
        """What each connected member does at this moment."""
        sessions = {str(session["name"]): session for session in self.host.service.sessions()}
        watches = {name: {"watch": said} for name, said in self._watches.items()}
        doing = self.host.doing().items()
        return {name: {**sessions.get(name, {}), **told, **watches.get(name, {})} for name, told in doing}

    def about(self, run: str) -> Mapping[str, Any]:
        """What a run's data have in common, its clients' names by number, and what it waits for."""
        roster = self._rosters.get(run)
        if roster is None:
            state = self.store.journal(run, "roster").resume().state
            if state is None:
                return self.waiting(run)
            roster = self._rosters[run] = Roster.load(state)
        names = {str(client): name for name, client in roster.clients.items()}
        pipeline = fitting.kept(self.store, run)
        fitted = {} if pipeline is None else {"pipeline": pipeline.table()}
        return {**roster.shared, "names": names, **fitted, **self.waiting(run)}

    def waiting(self, run: str) -> dict[str, Any]:
        """{"waiting": since when, of how many clients how many hold back, by which rules} of a run that waits
        for clients that it may ask; `of` 0 before any has come.
        """
        homes = self._homes.get(run)
        if homes is not None and homes.waiting:
            rules = homes.rules()
            told = {"since": homes.waiting, "of": homes.many, "held": sum(rules.values()), "rules": rules}
            return {"waiting": told}
        if run in self._coming:
            return {"waiting": {"since": self._coming[run], "of": 0, "held": 0, "rules": {}}}
        return {}


def _plan(
    work: Work,
    homes: Homes,
    roster: Roster,
    rehome: float,
    secret: bytes,
) -> Plan:
    job = work.job
    return Plan(
        work.learner,
        job.trained,
        homes,
        job.rounds,
        job.cohort,
        sizes=roster.sizes,
        every=job.every,
        sites=job.sites,
        stop=job.stop,
        deadline=job.deadline,
        wait=job.wait,
        max_weight=job.max_weight,
        roster=range(len(roster.clients)),
        rehome=rehome,
        secret=secret,
        label=(str(work.values["federation"]), work.name),
        records=roster.records,
    )


def main(settings: Server) -> int:
    """Run a coordinator until it is stopped; its exit code."""
    from .process import program

    node = Coordinator(settings)
    return program(node.serve, node.close, settings.folder)
