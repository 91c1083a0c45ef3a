"""The desk behind a service: what a coordinator or an edge does with members, asks and answers.

    drive ─► Asking.ask ─► letter "ask" to the member, again whenever it comes back
    member ─► upload ─► gate ─► blob on disk ─► drive.answered ─► receipt

Nothing a member sends is believed before the gate has looked at it, and nothing is acknowledged before
it is on disk. A member that is away keeps its asks for a while (`patience`), then they fail.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..core.edge import LOST
from ..core.errors import Gone, ProtocolError, Refused, StateError
from ..privacy.keys import Member
from ..transport.drive import Drive
from ..transport.service import Offer, Service
from ..wire.failpoint import declare, hit
from .fleet import Fleet
from .gate import Gate
from .kept import plain_kept
from .store.store import Store
from .want import Want

log = logging.getLogger("atoll.host")
T = TypeVar("T")
_SPOOLED, _GATED = declare("host.spooled"), declare("host.gated")
_ADOPTED, _RECEIPT = declare("host.adopted"), declare("host.receipt")
MOVED = f"{LOST}it moved to another parent"
RECEIPTS = 10_000  # remembered in memory; older ones are looked up


@dataclass(slots=True)
class Sent:
    """An ask that some members have yet to answer: what each was sent, and what it may answer."""

    drive: Drive
    request: int
    run: str
    letters: dict[str, dict[str, Any]] = field(default_factory=dict)
    wants: dict[str, Want] = field(default_factory=dict)
    until: float | None = None


class Host:
    """Implements transport.service.Desk over a store and a gate. `service` is set once it exists.

    `changed`: set whenever members come, go or move. `patience`: seconds a client may be away, an edge.
    """

    service: Service

    def __init__(
        self,
        store: Store,
        gate: Gate,
        federation: str,
        *,
        patience: float = 60.0,
        edge_patience: float = 10.0,
    ) -> None:
        self.store = store
        self.gate = gate
        self.federation = federation
        self.fleet = Fleet()
        self.changed = asyncio.Event()
        self.roles: dict[str, str] = {}
        self.live: dict[str, dict[str, Any]] = {}  # by member, here and below: bytes up and down, phase
        self.models: dict[str, dict[str, Any]] = {}  # letters that say which model to serve, by its name
        self._patience = {"client": patience, "edge": edge_patience}
        self._asks: dict[str, Sent] = {}
        self._receipts: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._admitted: dict[str, dict[str, Any]] = {}
        self._held: Counter[str] = Counter()
        self._promised: dict[str, float] = {}
        self._out: frozenset[str | int] = frozenset()
        self._above: frozenset[str | int] = frozenset()  # of those, the ones a parent told of
        self._elsewhere: set[str] = set()  # clients that have another parent by now

    # -- where slow things run --------------------------------------------------------------

    async def durable(self, run: Callable[[], T]) -> T:
        """`run` in the store's thread. While the disk is full it waits and tries again."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self.store.thread, run)
            except StateError:
                if self.store.health()["ok"]:
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

    # -- members ----------------------------------------------------------------------------

    async def recall(self) -> None:
        """Remember the members of earlier lives of this process, and who is out."""
        for node in await self.durable(self.store.nodes):
            self.roles[node["name"]] = node["role"]
            if node["role"] == "client":
                self.fleet.remembered(node["name"], node["parent"], node["info"])
        until = asyncio.get_running_loop().time() + max(self._patience.values())
        for run, scope, request in await self.durable(self.store.open_asks):
            self._promised[f"{run}.{scope}.{request}"] = until
        await self.expel()

    async def expel(self, above: Iterable[str | int] | None = None) -> None:
        """Cut whoever was revoked since the last look, here or by who stands above; edges hear of them."""
        self._above = self._above if above is None else frozenset(above)
        out = self._above | await self.durable(self.store.revoked)
        if out != self._out:
            self._out = out
            for edge in [name for name, role in self.fleet.children.items() if role == "edge"]:
                self._say_out(edge)
        for name in [name for name in self.fleet.children if name in self._out]:
            await self.service.cut(name, "revoked")

    def _say_out(self, edge: str) -> None:
        names = sorted(name for name in self._out if isinstance(name, str))
        serials = sorted(f"{n:x}" for n in self._out if isinstance(n, int))
        self.service.send(edge, "revoked", {"names": names, "serials": serials})

    async def admit(self, member: Member, hello: Mapping[str, Any]) -> dict[str, Any]:
        """Members of this federation that nobody revoked, in a role that dials out."""
        if member.federation != self.federation:
            raise Refused(f"this is federation {self.federation!r}, the certificate is of another")
        if member.role not in ("client", "edge"):
            raise Refused(f"a {member.role} does not join: only edges and clients do")
        if member.name in self._out or member.serial in self._out:
            raise Refused("this member was revoked: ask an admin to let it enrol again")
        self._admitted[member.name] = _about(hello)
        self.roles[member.name] = member.role
        return {"federation": self.federation}

    async def _remember(self, name: str, role: str, about: Mapping[str, Any]) -> None:
        way = next((s for s in self.service.sessions() if s.get("name") == name), {})
        live = {
            "parent": "",
            "version": str(about.get("version", "")),
            "address": str(way.get("address", "")),
        }
        kept = {k: v for k, v in about.items() if k not in ("below", "version")}
        await self.durable(
            lambda: self.store.node_seen(
                name, role, {**kept, **live, "transport": str(way.get("transport", ""))}
            )
        )
        await self._remember_below(name, about.get("below", {}))

    async def _remember_below(self, edge: str, below: Mapping[str, Any], *, again: bool = False) -> None:
        for name, about in below.items():
            role = "edge" if about.get("role") == "edge" else "client"
            self.roles.setdefault(name, role)
            before = self.fleet.clients.get(name)
            if again or before is None or before.via != edge or not before.present or before.about != about:
                info = {"parent": edge, **{k: v for k, v in about.items() if k != "role"}}
                await self.durable(lambda n=name, r=role, i=info: self.store.node_seen(n, r, i))  # type: ignore[misc]

    async def present(self, name: str) -> None:
        """A member is here: send it what is open. Only now: a seat it had before has ended by then."""
        about = self._admitted.get(name, {})
        await self._remember(name, self.roles[name], about)
        for moved in self.fleet.joined(name, self.roles[name], about):
            self._moved(*moved)
        self._elsewhere.discard(name)
        if self.roles[name] == "edge":
            self._say_out(name)
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        asked = {c for sent in self._asks.values() for c in sent.letters.get(name, {}).get("names", ())}
        self._found([name, *sorted(asked)])
        for ask, sent in list(self._asks.items()):
            if name in sent.letters:
                self._say(ask, sent, name)
        for letter in self.models.values():
            self.service.send(name, "model", letter)
        self.changed.set()

    def _found(self, clients: Iterable[str]) -> None:
        """Clients are here, while edges that were away meanwhile may still be asked for them."""
        for client in clients:
            seen = self.fleet.clients.get(client)
            if seen is not None and seen.present:
                for sent in self._asks.values():
                    for edge, letter in sent.letters.items():
                        if client in letter.get("names", ()) and edge != seen.via:
                            self.service.send(edge, "moved", {"client": client})

    async def absent(self, name: str, reason: str) -> None:
        """It is away: its asks wait for it, but not for ever."""
        before = self.fleet.reachable()
        for moved in self.fleet.left(name):
            self._moved(*moved)
        await self._gone({name, *before} - {*self.fleet.reachable()}, reason)
        if (seen := self.fleet.clients.get(name)) is not None and seen.present:  # under an edge, as before
            await self._remember_below(seen.via, {name: seen.about}, again=True)
        self._await(name)
        self.changed.set()

    def _await(self, name: str) -> None:
        """Begin to lose patience with a member that is not here."""
        if name not in self._timers and name not in self.fleet.children:
            seconds = self._patience.get(self.roles.get(name, "client"), 60.0)
            loop = asyncio.get_running_loop()
            self._timers[name] = loop.call_later(
                seconds, self._lost, name, f"{LOST}away for {seconds:g} seconds"
            )

    def _lost(self, name: str, reason: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        for sent in list(self._asks.values()):
            if name in sent.letters:
                self.spawn(sent.drive.failed(sent.request, name, reason))

    async def letter(self, name: str, kind: str, head: Mapping[str, Any]) -> None:
        """What members say: they refuse an ask, report who is below them, log something."""
        match kind:
            case "refuse":
                await self._refused(name, str(head.get("ask", "")), str(head.get("reason", "")))
            case "below":
                await self._below(name, head)
            case "alert":
                await self._log("", name, "warning", str(head.get("reason", "")))
            case "live":
                self._told(name, head.get("members"))
            case "log":
                level = str(head.get("level", "info"))
                await self._log(str(head.get("run", "")), name, level, str(head.get("text", "")))
            case "serving":
                await self._log("", name, "info", f"serves {head.get('name')} version {head.get('version')}")
            case _:
                pass  # of a later minor version

    def _told(self, edge: str, members: Any) -> None:
        """What an edge says that the members below it do at this moment."""
        if self.fleet.children.get(edge) != "edge" or not isinstance(members, Mapping):
            return
        for name, told in members.items():
            if name in self.fleet.clients and isinstance(told, Mapping):
                up, down = (n if isinstance(n := told.get(k), int) else 0 for k in ("up", "down"))
                phase = "working" if told.get("phase") == "working" else "idle"
                self.live[name] = {
                    "up": up,
                    "down": down,
                    "phase": phase,
                    "run": str(told.get("run", ""))[:64],
                }

    def doing(self) -> dict[str, dict[str, Any]]:
        """What every member, here or below, does at this moment: phase, run, bytes up and down."""
        busy = {peer: sent.run for sent in self._asks.values() for peer in sent.letters}
        found = {name: dict(told) for name, told in self.live.items()}
        for name in self.fleet.children:
            mine = found.setdefault(name, {"up": 0, "down": 0})
            mine |= {"phase": "working" if name in busy else "idle", "run": busy.get(name, "")}
        return found

    def _count(self, name: str, way: str, size: int) -> None:
        told = self.live.setdefault(name, {"up": 0, "down": 0, "phase": "idle", "run": ""})
        told[way] += size

    async def _refused(self, name: str, ask: str, reason: str) -> None:
        sent = self._asks.get(ask)
        if sent is not None and name in sent.letters:
            await self._log(sent.run, name, "error", reason)
            await sent.drive.failed(sent.request, name, reason)

    async def _below(self, edge: str, head: Mapping[str, Any]) -> None:
        below = head.get("clients", {})
        if self.fleet.children.get(edge) != "edge" or not isinstance(below, Mapping):
            return
        await self._remember_below(edge, below)
        before = self.fleet.reachable()
        for moved in self.fleet.below(edge, below):
            self._moved(*moved)
        self._found(below)
        await self._gone(before.keys() - self.fleet.reachable().keys(), f"left {edge}")
        self.changed.set()

    async def _gone(self, names: Collection[str], reason: str) -> None:
        for name in sorted(names):
            await self.durable(lambda name=name: self.store.node_gone(name, reason))  # type: ignore[misc]

    def _moved(self, client: str, before: str) -> None:
        """A client changed its parent: whoever it left need not wait for it."""
        if before == client:
            self.moved_away(client)
        elif self._here(before):
            self.service.send(before, "moved", {"client": client})
        elif self.fleet.deserted(before):
            self._lost(before, f"{LOST}its clients moved to another parent")

    def moved_away(self, client: str) -> None:
        """Another parent has this client now: nothing of it is waited for here, unless it is back."""
        if not self._here(client):
            self._elsewhere.add(client)
            self._lost(client, MOVED)

    def _here(self, name: str) -> bool:
        """Whether it is connected to us at this moment: a seat alone only waits for it."""
        return any(s["name"] == name and s.get("connected") for s in self.service.sessions())

    def serve_model(self, letter: dict[str, Any]) -> None:
        """Tell every member which model to serve, now and whenever one comes."""
        self.models[str(letter.get("name", ""))] = letter
        for name in self.fleet.children:
            self.service.send(name, "model", letter)

    async def _log(self, run: str, node: str, level: str, text: str) -> None:
        await self.durable(lambda: self.store.log_add(run, node, level, text))

    # -- asks and answers -------------------------------------------------------------------

    def sent(self, ask: str, sent: Sent, peer: str, letter: dict[str, Any], asked: Want) -> None:
        """An ask goes out to a member, now or when it comes."""
        self._promised.pop(ask, None)
        self._receipts.pop(self._key(ask, peer), None)  # of the same ask before it was dropped and came again
        kept = self._asks.setdefault(ask, sent)
        kept.letters[peer] = letter
        kept.wants[peer] = asked
        self._say(ask, kept, peer)
        if peer in self._elsewhere and not self._here(peer):
            self.spawn(kept.drive.failed(kept.request, peer, MOVED))
        self._elsewhere.discard(peer)
        self._await(peer)

    def _say(self, ask: str, sent: Sent, peer: str) -> None:
        left = -1.0 if sent.until is None else max(0.0, sent.until - asyncio.get_running_loop().time())
        self.service.send(peer, "ask", {**sent.letters[peer], "ask": ask, "left": left})

    def withdraw(self, ask: str, peers: Sequence[str]) -> None:
        """These members need not answer any more."""
        sent = self._asks.get(ask)
        if sent is None:
            return
        for peer in peers:
            if sent.letters.pop(peer, None) is not None and self._key(ask, peer) not in self._receipts:
                self.service.send(peer, "cancel", {"ask": ask})
            sent.wants.pop(peer, None)
        if not sent.letters:
            del self._asks[ask]

    def hold(self, blob: str) -> None:
        """Somebody may fetch this blob, which no row in SQL names, until it is released as often."""
        self._held[blob] += 1
        self.store.blobs.hold(blob)

    def release(self, blob: str) -> None:
        """It is needed once less; a blob that nobody needs goes."""
        self._held[blob] -= 1
        if self._held[blob] <= 0:
            del self._held[blob]
            self.spawn(self.durable(lambda: self.store.blobs.let_go([blob])))

    def _key(self, ask: str, peer: str) -> str:
        return f"{ask}.{peer}"

    def _find(self, name: str, upload: str) -> tuple[str, Sent]:
        ask = upload.removesuffix(f".{name}")
        sent = self._asks.get(ask)
        if sent is None:
            self._soon(ask)
        if ask == upload or sent is None or name not in sent.wants:
            raise Refused("nobody waits for this answer: its request is over, or was never yours")
        return ask, sent

    def _soon(self, ask: str = "") -> None:
        """Raise Gone if this ask of an earlier life, or any, will be asked again in a moment."""
        now = asyncio.get_running_loop().time()
        self._promised = {a: until for a, until in self._promised.items() if until > now}
        if ask in self._promised or (not ask and self._promised):
            raise Gone("this server has just started and goes on with its runs: try again in a moment")

    async def offered(self, name: str, upload: str) -> Offer:
        """Where an expected answer is spooled, and its largest size."""
        _, sent = self._find(name, upload)
        spooled = self.store.spool / hashlib.sha256(upload.encode()).hexdigest()
        return Offer(spooled, sent.wants[name].size)

    async def uploaded(self, name: str, upload: str, head: bytes, path: Path) -> dict[str, Any]:
        """Through the gate, onto the disk, into the sum; then the receipt."""
        before = await self.receipt(name, upload)
        if before is not None:
            return before
        _, sent = self._find(name, upload)
        hit(_SPOOLED)
        self._count(name, "up", path.stat().st_size + len(head))  # noqa: ASYNC240  no time
        try:
            checked = await self.gate.check(sent.wants[name], head, path)
        except ProtocolError as error:
            await self._log(sent.run, name, "refused", f"its answer was not let in: {error}")
            await sent.drive.failed(sent.request, name, f"its answer was not let in: {error}")
            raise
        hit(_GATED)
        blob = hashlib.sha256(head).hexdigest()
        await self.work(lambda: self.store.blobs.adopt(path, blob, head=False))
        hit(_ADOPTED)
        info = {"checked": plain_kept(checked)}
        counted = await sent.drive.answered(sent.request, name, blob=blob, info=info)
        hit(_RECEIPT)
        return self._keep(upload, counted=counted)

    def _keep(self, upload: str, *, counted: bool) -> dict[str, Any]:
        receipt = {"upload": upload, "counted": counted}
        self._receipts[upload] = receipt
        if len(self._receipts) > RECEIPTS:
            self._receipts.popitem(last=False)
        return receipt

    async def receipt(self, name: str, upload: str) -> dict[str, Any] | None:
        """The receipt of an answer kept before, in this life or an earlier one."""
        known = self._receipts.get(upload)
        if known is not None or not upload.endswith(f".{name}"):
            return known
        ask = upload.removesuffix(f".{name}")
        sent = self._asks.get(ask)
        if sent is not None and sent.drive.waits(sent.request, name):
            return None  # what the journal holds of an open request, its drive knows
        run, _, rest = ask.partition(".")
        scope, _, request = rest.rpartition(".")
        if not request.isdigit():
            return None
        journal = self.store.journal(run, scope)
        kept = await self.durable(lambda: journal.answer(int(request), name))
        return self._keep(upload, counted=True) if kept is not None and kept.blob else None

    def blob(self, name: str, blob: str) -> Path | None:
        """The model of an ask this member has yet to answer, or one it is to serve."""
        mine = {s.letters[name]["params"] for s in self._asks.values() if name in s.letters}
        if blob in mine or blob in {m["blob"] for m in self.models.values()}:
            path = self.store.blobs.path(blob)
            if not path.exists():
                return None
            self._count(name, "down", path.stat().st_size)
            return path
        self._soon()
        return None


def _about(hello: Mapping[str, Any]) -> dict[str, Any]:
    """What a member says about itself. Raises Refused for what is none."""
    about = hello.get("about", {})
    if not isinstance(about, Mapping):
        raise Refused("a hello tells about its member in a table")
    return dict(about)
