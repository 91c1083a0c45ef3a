"""The desk behind a service: who is there, who left, who moved; what they have to answer is asks.py's.

    drive ─► Asking.ask ─► letter "ask" to the member, again whenever it comes back

A member that is away keeps its asks for a while (`patience`), then they fail. A client that has moved to
another parent is not waited for where it was.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ...core.edge import LOST
from ...core.errors import Refused
from ...learn.failure import HELD
from ...privacy.keys import Member
from ...transport.link import REPLACED
from ...transport.service import Offer, Service
from ..gate.gate import Gate
from ..gate.want import Want
from ..store.store import Store
from .asks import Asks, Sent
from .errands import Errands
from .fleet import Fleet
from .receipts import Receipts

OnServing: TypeAlias = Callable[[str, Mapping[str, Any]], Awaitable[None]]
MOVED = f"{LOST}it moved to another parent"
SAID = 8192  # characters of a log entry that an edge passes on
JOINT = ("asked", "answered", "passed", "carried", "late", "failed")  # rows of children's questions


class Host(Errands):
    """Implements transport.service.Desk over a store and a gate. `service` is set once it exists.

    `changed`: set whenever members come, go or move. `patience`: seconds a client may be away, an edge.
    """

    service: Service

    def __init__(
        self,
        store: Store,
        gate: Gate,
        federation: str,
        roots: bytes = b"",
        *,
        patience: float = 60.0,
        edge_patience: float = 10.0,
    ) -> None:
        super().__init__(store)
        self.federation = federation
        self.asks = Asks(self, gate, self._send)
        self.fleet = Fleet()
        self.receipts = Receipts(self, roots, federation)
        self.changed = asyncio.Event()
        self.on_spent: Callable[[Iterable[str]], None] = lambda names: None
        self.on_serving: OnServing = _unheard
        self.on_watch: OnServing = _unheard
        self.on_log: Callable[[Mapping[str, Any]], None] = lambda said: None
        self.roles: dict[str, str] = {}
        self._patience = {"client": patience, "edge": edge_patience}
        self.rehome = edge_patience  # seconds for a client on its way to another parent
        self._lenient = 0.0  # until then whoever was here before this process came back may be away
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._sessions: dict[str, str] = {}  # of our members: two of one identity are two processes
        self._seats: dict[str, dict[str, str]] = {}  # of members below our edges, as each edge says
        self._ways: dict[str, dict[str, Any]] = {}  # how our members came
        self._admitted: dict[str, dict[str, Any]] = {}
        self._out: frozenset[str | int] = frozenset()
        self._above: frozenset[str | int] = frozenset()  # of those, the ones a parent told of
        self._elsewhere: set[str] = set()  # clients that have another parent by now
        self._standing: dict[str, str] | None = None  # who is in quarantine, and why; an edge does not know
        self._heard: dict[str, str] = {}  # what clients of ours were told of it

    # -- members ----------------------------------------------------------------------------

    def _send(self, name: str, kind: str, head: Mapping[str, Any], along: str = "") -> None:
        self.service.send(name, kind, head, along)

    async def recall(self) -> None:
        """Remember the members of earlier lives of this process, and who is out."""
        nodes = {node["name"]: node for node in await self.durable(self.store.nodes)}
        for name, node in nodes.items():
            self.roles[name] = node["role"]
            if node["role"] == "client":
                self.fleet.remembered(name, _topmost(name, nodes), node["info"])
        longest = max(self._patience.values())
        if await self.asks.recall(longest):
            self.rehome = longest
            self._lenient = asyncio.get_running_loop().time() + longest
        await self.receipts.recall()
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

    def stand(self, quarantined: Mapping[str, str]) -> None:
        """Who is in quarantine by now, and why: those for whom that is news are told."""
        before, self._standing = self._standing, dict(quarantined)
        news = {name for name, _ in (before or {}).items() ^ quarantined.items()}
        self._say_standing(self.fleet.clients if before is None else news)

    def _say_standing(self, names: Iterable[str]) -> None:
        if self._standing is not None:
            self.tell_standing({name: self._standing.get(name, "") for name in names})

    def tell_standing(self, reasons: Mapping[str, str]) -> None:
        """Tell clients why they are in quarantine, "" where they are not; those below an edge by it."""
        below: dict[str, dict[str, str]] = {}
        for name, reason in reasons.items():
            seen = self.fleet.clients.get(name)
            if seen is None or seen.via not in self.fleet.children:
                continue  # it is told when it comes
            if seen.via != name:
                below.setdefault(seen.via, {})[name] = reason
            elif self.fleet.children[name] != "edge":
                self._heard[name] = reason
                self.service.send(name, "standing", {"reason": reason})
        for edge, some in below.items():
            self.service.send(edge, "standing", {"reasons": some})

    async def admit(self, member: Member, hello: Mapping[str, Any]) -> dict[str, Any]:
        """Members of this federation that nobody revoked, in a role that dials out."""
        if member.federation != self.federation:
            raise Refused(f"this is federation {self.federation!r}, the certificate is of another")
        if member.role not in ("client", "edge"):
            raise Refused(f"a {member.role} does not join: only edges and clients do")
        if self.out(member):
            raise Refused("this member was revoked: ask an admin to let it enrol again")
        self._admitted[member.name] = _about(hello)
        self._sessions[member.name] = hashlib.sha256(str(hello.get("session")).encode()).hexdigest()[:16]
        self.roles[member.name] = member.role
        return {"federation": self.federation}

    def out(self, member: Member) -> bool:
        """Whether it was revoked."""
        return member.name in self._out or member.serial in self._out

    async def _remember(self, name: str, role: str, about: Mapping[str, Any]) -> None:
        way = self._ways[name] = _way(next((s for s in self.service.sessions() if s.get("name") == name), {}))
        live = {"parent": "", "version": str(about.get("version", "")), "address": "", "transport": "", **way}
        live.pop("sealed", None)
        kept = {k: v for k, v in about.items() if k not in ("below", "seats", "busy", "version")}
        await self.durable(lambda: self.store.node_seen(name, role, {**kept, **live}))
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
        self._seats[name] = _named(about.get("seats"))
        for moved in self.fleet.joined(name, self.roles[name], about):
            self._moved(*moved)
        self._elsewhere.discard(name)
        self._strays(about.get("below", {}))
        if self.roles[name] == "edge":
            self.receipts.forget(name)
            self._say_out(name)
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        asked = {c for _, sent in self.asks.of(name) for c in sent.letters[name].get("names", ())}
        self._found([name, *sorted(asked)])
        for ask, sent in self.asks.of(name):
            if ask in about.get("busy", ()) or not self._holds_back(sent, name, sent.letters[name]):
                self.asks.say(ask, sent, name)
        self._say_standing([name, *about.get("below", {})])
        if self._standing is None and name in self._heard:  # who is above us takes it for the one that left
            self.tell_standing({name: self._heard[name]})
        for letter in self.asks.models.values():
            self.service.send(name, "model", letter)
        self.changed.set()

    def _holds_back(self, sent: Sent, name: str, letter: Mapping[str, Any]) -> bool:
        """Whether a member holds back by its own policy: then this is not asked of it."""
        seen = self.fleet.clients.get(name)
        if seen is None or not seen.held or (seen.rests and letter.get("task", {}).get("want") == "note"):
            return False
        self.spawn(sent.drive.failed(sent.request, name, f"{HELD}{seen.held}"))
        return True

    def _found(self, clients: Iterable[str]) -> None:
        """Clients are here, while edges that were away meanwhile may still be asked for them."""
        for client in clients:
            seen = self.fleet.clients.get(client)
            if seen is not None and seen.present:
                for sent in self.asks.open.values():
                    for edge, letter in sent.letters.items():
                        if client in letter.get("names", ()) and edge != seen.via:
                            self.service.send(edge, "moved", {"client": client})

    async def absent(self, name: str, reason: str) -> None:
        """It is away: its asks wait for it, but not for ever."""
        before = self.fleet.reachable()
        self._seats.pop(name, None)
        for moved in self.fleet.left(name):
            self._moved(*moved, newer=False)
        await self._gone({name, *before} - {*self.fleet.reachable()}, reason)
        if (seen := self.fleet.clients.get(name)) is not None and seen.present:  # under an edge, as before
            await self._remember_below(seen.via, {name: seen.about}, again=True)
        self._await(name)
        self.changed.set()

    def _await(self, name: str) -> None:
        """Begin to lose patience with a member that is not here."""
        if name not in self._timers and name not in self.fleet.children:
            loop = asyncio.get_running_loop()
            left = self._lenient - loop.time()
            seconds = max(left, self._patience.get(self.roles.get(name, "client"), 60.0))
            self._timers[name] = loop.call_later(
                seconds, self._lost, name, f"{LOST}away for {seconds:.3g} seconds"
            )

    def _lost(self, name: str, reason: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        self.asks.fail(name, reason)

    async def letter(self, name: str, kind: str, head: Mapping[str, Any]) -> None:
        """What members say: they refuse an ask, report who is below them, log something."""
        match kind:
            case "refuse":
                said = (str(head.get(key, "")) for key in ("ask", "reason", "life"))
                await self.asks.refused(name, *said)
            case "below":
                await self._below(name, head)
            case "alert":
                await self._note("", name, "warning", str(head.get("reason", "")))
            case "spent":
                await self._spent(name, head.get("receipts"))
            case "power":
                await self._power(name, head)
            case "live":
                self._told(name, head.get("members"))
                self._joint(name, head.get("joint"))
            case "log":
                level = str(head.get("level", "info"))
                below = str(head.get("node", "")) if self.roles.get(name) == "edge" else ""
                node = below if below in self.fleet.clients else name
                await self._note(str(head.get("run", "")), node, level, str(head.get("text", "")))
            case "serving":
                await self._serving(name, head, self.on_serving)
            case "watch":
                await self._serving(name, head, self.on_watch)
            case _:
                pass  # of a later minor version

    async def _note(self, run: str, node: str, level: str, text: str) -> None:
        """Log what a member said or what is said of it, here and at whoever is above us."""
        await self.log(run, node, level, text)
        self.on_log({"run": run[:64], "node": node, "level": level[:32], "text": text[-SAID:]})

    async def _spent(self, name: str, said: Any) -> None:
        """Receipts of a client here, or of clients below an edge, which its parent hears of as well."""
        allowed = {name: None} if self.roles.get(name) == "client" else self.fleet.clients
        if new := await self.receipts.take(said, allowed):
            self.on_spent(new)

    async def _serving(self, name: str, head: Mapping[str, Any], tell: OnServing) -> None:
        """How a client here, or below an edge as the edge says, is with its models."""
        member = str(head.get("node") or name)
        seen = self.fleet.clients.get(member)
        elsewhere = seen is not None and seen.present and seen.via != name
        if member == name or (self.roles.get(name) == "edge" and not elsewhere):
            await tell(member, head)

    async def _power(self, name: str, head: Mapping[str, Any]) -> None:
        """A client says that it holds back, or does so no more."""
        if self.roles.get(name) == "client" and self.fleet.told(name, _power(head)):
            await self._remember(name, "client", self.fleet.clients[name].about)
            self.changed.set()

    def _told(self, edge: str, members: Any) -> None:
        """What an edge says that the members below it do at this moment."""
        if self.fleet.children.get(edge) != "edge" or not isinstance(members, Mapping):
            return
        for name, told in members.items():
            seen = self.fleet.clients.get(name)
            if seen is not None and seen.via == edge and isinstance(told, Mapping):
                up, down = (n if isinstance(n := told.get(k), int) else 0 for k in ("up", "down"))
                phase = "working" if told.get("phase") == "working" else "idle"
                self.asks.live[name] = {
                    "up": up,
                    "down": down,
                    "phase": phase,
                    "run": str(told.get("run", ""))[:64],
                    **_way(told),
                    **({"joint": found} if (found := _counts(told.get("joint"))) else {}),
                }

    def _joint(self, edge: str, counts: Any) -> None:
        """How many rows an edge says that it has answered and passed on."""
        if self.fleet.children.get(edge) == "edge" and (found := _counts(counts)):
            self.asks.live.setdefault(edge, {"up": 0, "down": 0})["joint"] = found

    def doing(self) -> dict[str, dict[str, Any]]:
        """What every member, here or below, does at this moment: phase, run, bytes; how it came."""
        busy = self.asks.busy()
        found = {name: dict(told) for name, told in self.asks.live.items()}
        for name in self.fleet.children:
            mine = found.setdefault(name, {"up": 0, "down": 0})
            mine |= {"phase": "working" if name in busy else "idle", "run": busy.get(name, "")}
            mine |= self._ways.get(name, {})
        return found

    async def _below(self, edge: str, head: Mapping[str, Any]) -> None:
        below = head.get("clients", {})
        if self.fleet.children.get(edge) != "edge" or not isinstance(below, Mapping):
            return
        await self._remember_below(edge, below)
        self._seats[edge] = _named(head.get("seats"))
        before = self.fleet.reachable()
        held = {name for name in before if self.fleet.clients[name].via == edge}
        for moved in self.fleet.below(edge, below):
            self._moved(*moved)
        self._strays(below)
        self._found(below)
        self._say_standing(below.keys() - held)
        await self._gone(before.keys() - self.fleet.reachable().keys(), f"left {edge}")
        self.changed.set()

    async def _gone(self, names: Collection[str], reason: str) -> None:
        for name in sorted(names):
            await self.durable(lambda name=name: self.store.node_gone(name, reason))  # type: ignore[misc]

    def _moved(self, client: str, before: str, *, newer: bool = True) -> None:
        """A client changed its parent: whoever it left need not wait for it.

        `newer`: it was seen there just now. Else the way of before ended and an older one is left: the
        session there may be one that a restart ended, and replaces none.
        """
        seen = self.fleet.clients[client]
        known = self._sessions if seen.via == client else self._seats.get(seen.via, {})
        session = known.get(client, "") if newer else ""
        if before == client:
            self.moved_away(client, session, seen.parent)
        elif self._here(before):
            word = {"client": client, "session": session, "at": seen.parent}
            self.service.send(before, "moved", word)
        elif self.fleet.deserted(before):
            self._lost(before, f"{LOST}its clients moved to another parent")

    def _strays(self, below: Iterable[str]) -> None:
        """Clients below an edge that we still ask ourselves, as an earlier life of ours began to."""
        for client in below:
            if self.asks.of(client):
                self.moved_away(client)

    def moved_away(self, client: str, session: str = "", at: str = "") -> None:
        """Another parent has this client now: nothing of it is waited for here, unless it is back.

        `session`: its session there, at the member `at`. Another one than the one here is a second process
        of the same identity: the one that was here first ends.
        """
        mine = session in ("", self._sessions.get(client, ""))
        if self._here(client):
            if not mine:
                self.spawn(self._replaced(client, session, at))
            return
        via = self.fleet.clients[client].via if client in self.fleet.clients else client
        if session and self._seats.get(via, {}).get(client, session) != session:
            self.service.send(via, "moved", {"client": client, "session": session, "at": at})
        self._elsewhere.add(client)
        self._heard.pop(client, None)
        self.service.leave(client, MOVED)  # its seat here is no way to it
        self._lost(client, MOVED)

    async def _replaced(self, client: str, session: str, at: str) -> None:
        if not self._here(client):
            return  # it has left by itself
        await self.service.replace(client, REPLACED)
        self.moved_away(client, session, at)
        where = f"at {at}" if at else "at a parent further up"
        text = f"a second session of this identity, {where}, replaced the one here: is its folder copied?"
        await self._note("", client, "warning", text)

    def seats(self) -> dict[str, str]:
        """Sessions of members that are connected, here or below: whoever is above us tells copies by them."""
        here = {str(s["name"]) for s in self.service.sessions() if s.get("connected")}
        below = {name: session for seats in self._seats.values() for name, session in seats.items()}
        return {**below, **{name: self._sessions[name] for name in sorted(here & self._sessions.keys())}}

    def _here(self, name: str) -> bool:
        """Whether it is connected to us at this moment: a seat alone only waits for it."""
        return any(s["name"] == name and s.get("connected") for s in self.service.sessions())

    def serve_models(self, letters: Collection[dict[str, Any]]) -> None:
        """Which models are to be served now: whatever is not among them is offered no more."""
        before = self.asks.models
        self.asks.models = {k: before[k] for k in map(_slot, letters) if k in before}
        for letter in letters:
            self.serve_model(letter)

    def serve_model(self, letter: dict[str, Any]) -> dict[str, Any]:
        """Tell every member which model to serve, now and whenever one comes; the letter in whose place."""
        key = _slot(letter)
        before = self.asks.models.get(key, {})
        if before == letter:
            return before
        self.asks.models[key] = letter
        for name in self.fleet.children:
            self.service.send(name, "model", letter)
        return before

    def sent(self, ask: str, sent: Sent, peer: str, letter: dict[str, Any], asked: Want) -> None:
        """An ask goes out to a member, now or when it comes; one that went elsewhere is not waited for."""
        if self._holds_back(sent, peer, letter):
            return
        kept = self.asks.put(ask, sent, peer, letter, asked)
        if peer in self._elsewhere and not self._here(peer):
            self.spawn(kept.drive.failed(kept.request, peer, MOVED))
        self._elsewhere.discard(peer)
        self._await(peer)

    async def offered(self, name: str, upload: str) -> Offer:
        """See Asks."""
        return await self.asks.offered(name, upload)

    async def uploaded(self, name: str, upload: str, head: bytes, path: Path) -> dict[str, Any]:
        """See Asks."""
        return await self.asks.uploaded(name, upload, head, path)

    async def receipt(self, name: str, upload: str) -> dict[str, Any] | None:
        """See Asks."""
        return await self.asks.receipt(name, upload)

    def blob(self, name: str, blob: str) -> Path | None:
        """See Asks."""
        return self.asks.blob(name, blob)

    def base(self, name: str, old: str, blob: str, *, slow: bool) -> Path | None:
        """See Asks."""
        return self.asks.base(old, blob, slow=slow)

    def sends(self, name: str, size: int) -> None:
        """See Asks."""
        self.asks.sends(name, size)


def _slot(letter: Mapping[str, Any]) -> str:
    """A letter about the version for all takes the place of the one before, and so does one on trial."""
    return f"{letter.get('name', '')}/{letter.get('slot', '')}"


async def _unheard(_member: str, _said: Mapping[str, Any]) -> None:
    pass


def _about(hello: Mapping[str, Any]) -> dict[str, Any]:
    """What a member says about itself. Raises Refused for what is none."""
    about = hello.get("about", {})
    if not isinstance(about, Mapping):
        raise Refused("a hello tells about its member in a table")
    if "power" in about:
        busy = about.get("busy")
        busy = list(map(str, busy)) if isinstance(busy, (list, tuple)) else []
        return {**about, "power": _power(about["power"]), "busy": busy}
    return dict(about)


def _named(said: Any) -> dict[str, str]:
    """Sessions by member as an edge says; an older one says none."""
    return {str(k): str(v)[:16] for k, v in said.items()} if isinstance(said, Mapping) else {}


def _topmost(name: str, nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """The member of ours through whom this one was reached, by the parents that the nodes had last."""
    for _ in nodes:  # once around at most, should they stand in a ring
        if not (parent := nodes.get(name, {}).get("parent")):
            break
        name = parent
    return name


def _way(said: Mapping[str, Any]) -> dict[str, Any]:
    """How a member came to its parent: transport, address, and whether it is sealed."""
    told = {key: str(said[key])[:256] for key in ("transport", "address") if said.get(key)}
    return {**told, "sealed": True} if said.get("sealed") is True else told


def _counts(said: Any) -> dict[str, int]:
    """What an edge says of rows it was asked for, as far as it is what it should be."""
    said = said if isinstance(said, Mapping) else {}
    return {k: n for k in JOINT if isinstance(n := said.get(k), int) and 0 <= n < 2**53}


def _power(said: Any) -> dict[str, Any]:
    """What a client says of its power, as far as it is what it should be."""
    said = said if isinstance(said, Mapping) else {}
    since, until, joules = (
        float(v) if isinstance(v := said.get(k), (int, float)) else 0.0 for k in ("since", "until", "joules")
    )
    words = {"held": str(said.get("held", ""))[:200], "rule": str(said.get("rule", ""))[:20]}
    told = {**words, "until": until, **({"since": since} if since else {})}
    return {**told, "joules": joules, "source": str(said.get("source", ""))[:20]} if joules else told
