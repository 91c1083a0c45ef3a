"""The edge: a server to its children, a member to its parents, and in between the same sum as anywhere.

Its parent's ask becomes an ask to its children, under a journal of its own; their answers are folded
into one partial, which goes up. Killed in between it asks only those that had not answered. The model
it was sent is sent on as it came, fetched once however many children there are.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ...core.edge import Answer
from ...core.errors import ProtocolError
from ...core.rng import Rng
from ...learn import rounds
from ...transport.drive import Drive
from ...transport.pump import brief
from ...wire.failpoint import declare, hit
from ...wire.files import whole
from ..settings import Edge
from .asking import Asking, begun, over, stay
from .homes import Homes
from .host import Host
from .orders import Asked, Orders, write
from .outside import Outside
from .uplink import KEPT, Uplink

ABOVE = ""  # the parent, among those who were told of receipts
OUT = "revoked.json"  # names and serials, as the parent said last
_TAKEN, _SUMMED = declare("edge.taken_in"), declare("edge.summed")
_OVER = declare("edge.over.before"), declare("edge.over.after")


SERVED = 10_000  # models of clients that are remembered
LIVE = 2.0  # seconds between two looks at what members do
SAID = 20  # log entries passed on at each: nobody fills the line with them
TIDY = 600.0  # seconds between two collections of blobs


class EdgeNode:
    """One edge process. `outside`: what it stands on."""

    def __init__(self, settings: Edge, outside: Outside | None = None) -> None:
        self.settings = settings
        self.outside = outside or Outside()
        self.folder = Path(settings.folder)
        self.uplink = Uplink(settings, self.about, self.answer, self._letter, self._over, self.outside)
        self.store: Any
        self.host: Host
        self._orders: Orders
        self._servers: Any
        self._told: Mapping[str, Any] | None = None
        self._start = "", ""  # a run, and the blob of the model that it starts from
        self._doing: Mapping[str, Any] | None = None
        self._said: deque[Mapping[str, Any]] = deque(maxlen=1000)  # log entries, until there is a parent
        self._served: dict[tuple[str, str, str], Mapping[str, Any]] = {}  # what clients said of their models

    def about(self) -> Mapping[str, Any]:
        """Who is below: what the parent plans with."""
        return {"below": self.host.fleet.reachable(), "seats": self.host.seats()}

    async def serve(self) -> None:
        """Join, open the doors for children, answer until told to stop."""
        await self.uplink.join()
        current = self.uplink.current
        assert current is not None  # noqa: S101  joined
        self.store = await asyncio.to_thread(self.outside.store, self.settings.store, self.folder)
        federation = current().member.federation
        self.settings = msgspec.structs.replace(self.settings, name=current().member.name)
        self._orders = Orders(current().roots, federation)
        gate = self.outside.gate(self.folder)
        self.host = Host(
            self.store,
            gate,
            federation,
            current().roots,
            patience=self.settings.patience,
            edge_patience=self.settings.edge_patience,
        )
        servers = self._servers = self.outside.servers(self.settings, current, self.host)
        telling: list[asyncio.Task[None]] = []
        self.uplink.on_open = self._opened
        self.host.on_spent = self._spent
        self.host.on_serving = partial(self._serving, "serving")
        self.host.on_log = self._said.append
        self.host.on_watch = partial(self._serving, "watch")
        try:
            await servers.start()
            await self.host.recall()
            await self.host.expel(self._out())
            jobs = self._tell(), self._tell_live(), self._keep_house()
            telling = [asyncio.get_running_loop().create_task(job) for job in jobs]
            await self.uplink.run()
        finally:
            for task in telling:
                task.cancel()
            await servers.stop()
            await gate.close()
            self.store.close()

    async def close(self) -> None:
        """Say goodbye."""
        await self.uplink.close()

    async def _tell(self) -> None:
        """Report who is below whenever that changes, and to every parent we come to."""
        while True:
            await self.host.changed.wait()
            self.host.changed.clear()
            below = {"clients": self.host.fleet.reachable(), "seats": self.host.seats()}
            if below != self._told and self.uplink.state == "connected":
                self._told = below
                self.uplink.send("below", below)

    async def _tell_live(self) -> None:
        """Say now and then what the members below do, for those who look, and what was logged of them."""
        while True:
            await asyncio.sleep(LIVE)
            for _ in range(min(len(self._said), SAID) if self.uplink.state == "connected" else 0):
                self.uplink.send("log", self._said.popleft())
            doing = {"members": self.host.doing(), "joint": self._servers.counts()}
            if doing != self._doing and self.uplink.state == "connected":
                self._doing = doing
                self.uplink.send("live", doing)

    async def _keep_house(self) -> None:
        """Take away, now and then, what nobody needs."""
        while True:
            await asyncio.sleep(TIDY)
            await self.host.durable(self.store.blobs.collect)

    def _opened(self) -> None:
        self._told = self._doing = None
        self.host.changed.set()
        self.host.receipts.forget(ABOVE)
        self._spent(self.host.fleet.reachable())
        for (kind, *_), said in self._served.items():
            self.uplink.send(kind, said)

    async def _serving(self, kind: str, client: str, said: Mapping[str, Any]) -> None:
        """Pass on how a client is with a model, now and to every parent we come to."""
        key = kind, client, str(said.get("name", ""))[:63]
        self._served[key] = {**said, "node": client}
        while len(self._served) > SERVED:
            del self._served[next(iter(self._served))]
        self.uplink.send(kind, self._served[key])

    def _spent(self, names: Iterable[str]) -> None:
        """Pass on what clients have signed of their budgets."""
        for part in self.host.receipts.untold(ABOVE, names):
            self.uplink.send("spent", {"receipts": part})

    async def answer(self, ask: str, head: Mapping[str, Any], to: Path) -> None:
        """The children's answers to the parent's ask, as one, in a file."""
        read = partial(self._orders.read, head, now=time.time())
        asked = await self.uplink.using(str(head.get("params", "")), partial(_opened, read))
        answer = await self._summed(asked)
        await brief(asked.task.params.buffer.nbytes, write, asked, answer, to)

    async def _summed(self, asked: Asked) -> Answer:
        left = asked.deadline
        deadline = None if left is None else asyncio.get_running_loop().time() + left
        roster = {str(name): int(client) for name, client in asked.names.items()}
        if set(roster.values()) != set(asked.task.clients):
            raise ProtocolError("an edge is told the name of every client it is asked for")
        await self._tidy(asked.id)
        await self._take_in(asked.blob)
        if asked.plan:
            self.host.asks.hold(asked.plan)
        try:
            if asked.plan:
                await self._take_in(asked.plan)
            hit(_TAKEN)
            return await self._driven(asked, roster, deadline)
        finally:
            if asked.plan:
                self.host.asks.release(asked.plan)

    async def _driven(self, asked: Asked, roster: Mapping[str, int], deadline: float | None) -> Answer:
        task, work = asked.task, asked.work
        run, _, scope = asked.id.partition(".")
        names = {client: name for name, client in roster.items()}
        before = self.uplink.models(asked.blob)
        start = await self._begun(asked)
        asking = Asking(self.host, run, scope, asked.job, work.job.trained, names, asked.plan, start, before)
        asking.keep(task.params, asked.blob)
        homes = Homes(self.host.fleet, roster)
        own = work.job.trained.protocol
        make = rounds.edge if own is None or own.edge is None else own.edge
        responder = make(homes, work.job.trained, self._online)
        drive = Drive(
            self.settings.name,
            Rng.of(work.seed).at(self.settings.name),
            lambda p: responder(p, task),  # type: ignore[arg-type,return-value]
            journal=self.store.journal(run, scope),
            net=asking,
            durable=self.host.durable,
            work=self.host.work,
            dump=lambda state: b"",
            load=lambda data: None,
            context=homes.context,
            deadline=deadline,
        )
        asking.drive = homes.drive = drive
        try:
            answer: Answer = await drive.run()
        finally:
            asking.close()
        hit(_SUMMED)
        return answer

    async def _begun(self, asked: Asked) -> str:
        """The blob of the model that the run starts from, made once for all its asks; from then on models
        stay for as long as children may hold them.
        """
        run = asked.work.name
        if self._start[0] != run:
            over(self.host, self._start[1])
            self._start = run, await begun(self.host, asked.work)
            self.uplink.keep = stay(asked.task.params) if self._start[1] else KEPT
        return self._start[1]

    async def _tidy(self, ask: str) -> None:
        """Forget asks that ended while we were away: older ones of the same kind, those of other runs."""
        kind, _, number = ask.rpartition(".")
        for run, scope in await self.host.durable(self.store.scopes):
            other, _, at = f"{run}.{scope}".rpartition(".")
            old = int(at) < int(number) if other == kind else not ask.startswith(f"{run}.")
            if old and not self.uplink.busy(f"{run}.{scope}"):
                await self.host.durable(self.store.journal(run, scope).drop)

    def _online(self, _now: float) -> bool:
        """Whether the parent can be reached: an edge that is cut off may go on by itself."""
        return self.uplink.state == "connected"

    async def _take_in(self, blob: str) -> None:
        """The parent's model among our blobs, for the children; the file itself, not a copy."""
        if not self.store.blobs.exists(blob):
            path = await self.uplink.fetch(blob)
            link = self.store.spool / f"{blob}.{os.getpid()}.parcel"

            def adopt() -> None:
                link.unlink(missing_ok=True)
                os.link(path, link)
                self.store.blobs.adopt(link, blob)

            await self.host.kept(adopt)

    async def _over(self, ask: str) -> None:
        """The parent has our answer, or wants none: what the children sent for it can go."""
        run, _, scope = ask.partition(".")
        hit(_OVER[0])
        await self.host.durable(self.store.journal(run, scope).drop)
        hit(_OVER[1])

    async def _letter(self, kind: str, head: Mapping[str, Any]) -> None:
        match kind:
            case "moved":
                self.host.moved_away(*(str(head.get(key, "")) for key in ("client", "session", "at")))
            case "standing":
                reasons = head.get("reasons", {})
                self.host.tell_standing({str(name): str(why) for name, why in reasons.items()})
            case "model":
                await self._serve(head)
            case "revoked":
                await self._revoked(head)
            case "spent":
                await self.host.receipts.take(head.get("receipts"))
            case _:
                pass

    async def _revoked(self, head: Mapping[str, Any]) -> None:
        """Who is out, kept for a start without a parent."""
        names, serials = head.get("names", ()), head.get("serials", ())
        with whole(self.folder / OUT) as file:
            file.write(json.dumps([*map(str, names), *(int(str(s), 16) for s in serials)]).encode())
        await self.host.expel(self._out())

    def _out(self) -> list[str | int]:
        try:
            found: list[str | int] = json.loads((self.folder / OUT).read_bytes())
        except (OSError, ValueError):
            return []
        return found

    async def _serve(self, head: Mapping[str, Any]) -> None:
        """Pass a model that clients are to serve on to them; they check its signature themselves."""
        for blob in _carried(head):
            await self._take_in(blob)
            self.host.asks.hold(blob)
        for blob in _carried(self.host.serve_model(dict(head))):
            self.host.asks.release(blob)


def _carried(model: Mapping[str, Any]) -> list[str]:
    """The blobs that a letter about a model names."""
    return [str(model[key]) for key in ("blob", "tune") if model.get(key)]


async def _opened(read: Callable[..., Asked], model: Path, sound: bool) -> Asked:  # noqa: FBT001  see `using`
    size = os.stat(model).st_size  # noqa: PTH116  a file we have just written
    return await brief(size, partial(read, model, sound=sound))


def main(settings: Edge) -> int:
    """Run an edge until it is stopped; its exit code."""
    from .process import program

    node = EdgeNode(settings)
    return program(node.serve, node.close, settings.folder)
