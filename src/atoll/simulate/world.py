"""A whole federation in one thread and virtual time, reproducible from one seed.

Every peer is an actor: roles (coroutines of `core.protocol`), a hub, and a session with each
peer it talks to. The world interprets their operations, and decides by the seed which packets
are late, lost or doubled and which peers crash. Time jumps from event to event, so an hour of
waiting costs nothing. FoundationDB's simulation is the model.
"""

from __future__ import annotations

import heapq
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ..core import hub as h
from ..core import protocol as op
from ..core.errors import AtollError, Gone, MisuseError
from ..core.protocol import Party, Responder
from ..core.rng import Rng
from ..core.session import Packet, Session
from .faults import World

Role = Coroutine[op.Op, Any, Any]


@dataclass(slots=True)
class _Letter:
    """What sessions carry: an ask, its answer or refusal, or mail for a named mailbox."""

    kind: str  # ask | reply | fail | mail
    ref: Any  # request id, or mailbox name
    body: Any
    deadline: float | None = None


@dataclass(slots=True)
class _Waiting:
    """A role that asked, what it has folded so far, or the peer a post went to."""

    role: Role | None
    fold: op.Fold | None
    folded: Any = None
    posted: str = ""


@dataclass(slots=True)
class _Actor:
    """A peer: lives until `alive` changes; a restart is a new life with the old checkpoint."""

    name: str
    main: Callable[[Party], Role] | None
    responder: Responder | None
    device: bool = False
    saved: Any = None
    life: int = 0
    up: bool = True
    hub: h.Hub = field(default_factory=h.Hub)
    requests: Any = field(default_factory=count)
    asks: dict[int, _Waiting] = field(default_factory=dict)
    posted: deque[op.Posted] = field(default_factory=deque)
    nexts: deque[Role] = field(default_factory=deque)
    mail: dict[tuple[str, str], deque[Any]] = field(default_factory=dict)
    readers: dict[tuple[str, str], deque[Role]] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    resending: set[str] = field(default_factory=set)
    pace: float | None = None


class Simulation:
    """The driver. Add peers, then `run` until the named role returns.

    `size(body)`: bytes of a body on the wire, for traffic and bandwidth. `on_note(peer, record)`
    and `on_checkpoint(peer, state)` see what roles publish. `restored`: checkpoints by peer.
    """

    def __init__(
        self,
        world: World,
        key: Rng,
        *,
        size: Callable[[Any], int] = lambda body: 0,
        on_note: Callable[[str, Any], None] = lambda peer, record: None,
        on_checkpoint: Callable[[str, Any], None] = lambda peer, state: None,
        restored: Mapping[str, Any] | None = None,
    ) -> None:
        self.now = 0.0
        self.world = world
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self._key = key
        self._size = size
        self._on_note = on_note
        self._on_checkpoint = on_checkpoint
        self._restored = dict(restored or {})
        self._actors: dict[str, _Actor] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._net = key.at("network").generator()
        self._results: dict[str, Any] = {}
        self._errors: dict[str, BaseException] = {}
        self._parties: dict[int, tuple[_Actor, int, Party]] = {}

    def add(
        self,
        name: str,
        *,
        main: Callable[[Party], Role] | None = None,
        answers: Responder | None = None,
        device: bool = False,
    ) -> None:
        """A peer with a role of its own, an answer for every ask, or both.

        A `device` needs the world's compute time for its work and may drop out of a task.
        """
        self._actors[name] = _Actor(name, main, answers, device, self._restored.get(name))

    def run(self, until: str) -> Any:
        """Let time pass until the role of `until` returns; its result.

        Raises what the role raised, or MisuseError if everybody waits for ever.
        """
        for actor in self._actors.values():
            self._begin(actor)
        for crash in self.world.crashes:
            self._at(crash.at, lambda c=crash: self._crash(c.peer, c.down))  # type: ignore[misc]
        while until not in self._results:
            if until in self._errors:
                raise self._errors[until]
            if not self._events:
                raise MisuseError(f"{until} waits for an answer that nobody will send, at {self.now:g} s")
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self._results[until]

    # -- roles ------------------------------------------------------------------------------

    def _begin(self, actor: _Actor) -> None:
        if actor.main is not None:
            role = self._role(actor, lambda p: self._main(actor, p), None)
            self._soon(role, None)

    async def _main(self, actor: _Actor, p: Party) -> None:
        assert actor.main is not None
        try:
            self._results[actor.name] = await actor.main(p)
        except AtollError as error:
            self._errors[actor.name] = error

    def _role(self, actor: _Actor, make: Callable[[Party], Role], deadline: float | None) -> Role:
        others = tuple(n for n in self._actors if n != actor.name)
        key = self._key.at(actor.name)
        party = Party(actor.name, others, key, lambda: self.now, actor.saved, deadline)
        role = make(party)
        self._parties[id(role)] = (actor, actor.life, party)
        return role

    def _step(self, role: Role, value: Any, error: BaseException | None = None) -> None:
        """Resume a role; drop it if its actor has died since."""
        actor, life, _ = self._parties[id(role)]
        if not actor.up or actor.life != life:
            del self._parties[id(role)]
            role.close()
            return
        try:
            asked = role.send(value) if error is None else role.throw(error)
        except StopIteration:
            del self._parties[id(role)]
            return
        self._perform(actor, role, asked)

    def _perform(self, actor: _Actor, role: Role, asked: op.Op) -> None:
        match asked:
            case op.Ask(messages, quorum, deadline, fold):
                request = next(actor.requests)
                actor.asks[request] = _Waiting(role, fold)
                self._hub(actor, h.Asked(request, messages, quorum, deadline))
            case op.Post(peer, body, deadline):
                request = next(actor.requests)
                actor.asks[request] = _Waiting(None, lambda _, __, b: b, posted=peer)
                self._hub(actor, h.Asked(request, {peer: body}, 1, deadline))
                self._soon(role, None)
            case op.Next():
                actor.nexts.append(role)
                self._feed(actor)
            case op.SendTo(peer, name, value):
                self._send(actor, peer, _Letter("mail", name, value))
                self._soon(role, None)
            case op.Recv(peer, name):
                actor.readers.setdefault((peer, name), deque()).append(role)
                self._read(actor, (peer, name))
            case op.Sleep(seconds):
                self._at(self.now + seconds, lambda: self._step(role, None))
            case op.Work(run):
                self._work(actor, role, run)
            case op.Checkpoint(state):
                actor.saved = state
                self._on_checkpoint(actor.name, state)
                self._soon(role, None)
            case op.Note(record):
                self._on_note(actor.name, record)
                self._soon(role, None)

    def _soon(self, role: Role, value: Any, error: BaseException | None = None) -> None:
        """Resume at this moment, but from the event loop: roles may loop without end."""
        self._at(self.now, lambda: self._step(role, value, error))

    def _work(self, actor: _Actor, role: Role, run: Callable[[], Any]) -> None:
        took = self._seconds(actor)
        try:
            result, error = run(), None
        except Exception as broke:  # noqa: BLE001  the role decides what a failure means
            result, error = None, broke
        if took:
            self._at(self.now + took, lambda: self._step(role, result, error))
        else:
            self._soon(role, result, error)

    def _seconds(self, actor: _Actor) -> float:
        """How long this actor's next task takes."""
        if not actor.device:
            return 0.0
        if actor.pace is None:
            actor.pace = self.world.compute.draw(self._key.at("pace", actor.name).generator())
        wobble = 1 + self.world.jitter * (2 * self._net.random() - 1) if self.world.jitter else 1.0
        return actor.pace * wobble

    # -- asks and answers -------------------------------------------------------------------

    def _hub(self, actor: _Actor, event: h.Event) -> None:
        for effect in actor.hub.handle(self.now, event):
            match effect:
                case h.Send(request, peer, body, deadline):
                    self._send(actor, peer, _Letter("ask", request, body, deadline))
                case h.Accept(request, peer, body):
                    waiting = actor.asks[request]
                    if waiting.fold is not None:
                        waiting.folded = waiting.fold(waiting.folded, peer, body)
                case h.Wake(at):
                    life = actor.life
                    self._at(at, lambda: self._hub(actor, h.Tick()) if actor.life == life else None)
                case h.Closed(request, replied, missing, enough):
                    self._closed(actor, request, op.Answers(None, replied, missing, enough))

    def _closed(self, actor: _Actor, request: int, answers: op.Answers) -> None:
        waiting = actor.asks.pop(request)
        if waiting.role is None:
            reason = next(iter(answers.missing.values()), "")
            actor.posted.append(op.Posted(waiting.posted, waiting.folded, reason))
            self._feed(actor)
        else:
            done = op.Answers(waiting.folded, answers.replied, answers.missing, answers.enough)
            role = waiting.role
            self._soon(role, done)

    def _feed(self, actor: _Actor) -> None:
        while actor.nexts and actor.posted:
            role, posted = actor.nexts.popleft(), actor.posted.popleft()
            self._soon(role, posted)

    def _read(self, actor: _Actor, box: tuple[str, str]) -> None:
        readers, mail = actor.readers.get(box), actor.mail.get(box)
        while readers and mail:
            role, value = readers.popleft(), mail.popleft()
            self._soon(role, value)

    async def _answer(self, actor: _Actor, sender: str, letter: _Letter, p: Party) -> None:
        """Run the responder; whatever it raises goes back as a refusal, never silence."""
        if actor.responder is None:
            reason, body = f"{actor.name} answers nothing", None
        elif actor.device and self.world.dropout and self._net.random() < self.world.dropout:
            reason, body = "dropped out", None
        else:
            try:
                reason, body = "", await actor.responder(p, letter.body)
            except AtollError as error:
                reason, body = f"{type(error).__name__}: {error}", None
            except Exception:  # noqa: BLE001  a bug at a site reaches the operator with its traceback
                reason, body = traceback.format_exc(), None
        self._send(actor, sender, _Letter("fail" if reason else "reply", letter.ref, reason or body))

    # -- packets ----------------------------------------------------------------------------

    def _send(self, actor: _Actor, peer: str, letter: _Letter) -> None:
        if peer not in self._actors:
            raise MisuseError(f"{actor.name} wrote to {peer!r}, which is not in this world")
        session = actor.sessions.setdefault(peer, Session())
        self._transmit(actor, peer, session.push(letter))
        self._watch(actor, peer)

    def _watch(self, actor: _Actor, peer: str) -> None:
        """Send again what is not acknowledged; needed only where packets can vanish."""
        w = self.world
        if peer in actor.resending or not (w.loss or w.partitions or w.crashes):
            return
        actor.resending.add(peer)
        life = actor.life

        def again() -> None:
            if actor.life != life or not actor.up:
                return
            actor.resending.discard(peer)
            packets = actor.sessions[peer].unacked()
            for packet in packets:
                self._transmit(actor, peer, packet)
            if packets:
                self._watch(actor, peer)

        self._at(self.now + w.resend, again)

    def _transmit(self, actor: _Actor, peer: str, packet: Packet) -> None:
        size = self._size(packet.body.body) if packet.body is not None else 0
        self.sent[actor.name] = self.sent.get(actor.name, 0) + size
        w = self.world
        copies = 1 + (w.repeat > 0 and self._net.random() < w.repeat)
        for _ in range(copies):
            if (w.loss and self._net.random() < w.loss) or self._cut(actor.name, peer):
                continue
            wait = w.delay.draw(self._net) + (size / w.bandwidth if w.bandwidth else 0.0)
            lives = actor.life, self._actors[peer].life
            self._at(self.now + wait, lambda: self._arrive(actor.name, peer, packet, size, lives))

    def _cut(self, a: str, b: str) -> bool:
        return any(
            c.start <= self.now < c.stop and (a in c.peers) != (b in c.peers) for c in self.world.partitions
        )

    def _arrive(self, sender: str, name: str, packet: Packet, size: int, lives: tuple[int, int]) -> None:
        actor, origin = self._actors[name], self._actors[sender]
        if not actor.up or lives != (origin.life, actor.life):
            return  # a packet of an earlier life: the connection it came on is gone
        self.received[name] = self.received.get(name, 0) + size
        session = actor.sessions.setdefault(sender, Session())
        letters = session.arrived(packet)
        if packet.number and (self.world.loss or self.world.partitions or self.world.crashes):
            self._transmit(actor, sender, session.ack())
        for letter in letters:
            self._deliver(actor, sender, letter)

    def _deliver(self, actor: _Actor, sender: str, letter: _Letter) -> None:
        match letter.kind:
            case "ask":
                role = self._role(actor, lambda p: self._answer(actor, sender, letter, p), letter.deadline)
                self._step(role, None)
            case "reply":
                self._hub(actor, h.Replied(letter.ref, sender, letter.body))
            case "fail":
                self._hub(actor, h.Failed(letter.ref, sender, letter.body))
            case _:
                actor.mail.setdefault((sender, letter.ref), deque()).append(letter.body)
                self._read(actor, (sender, letter.ref))

    # -- time and crashes -------------------------------------------------------------------

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def _crash(self, name: str, down: float) -> None:
        """Everything but the checkpoint is lost; the others see the connection break."""
        old = self._actors[name]
        old.up = False
        for other in self._actors.values():
            other.sessions.pop(name, None)
            other.resending.discard(name)
            self._hub(other, h.Left(name, "crashed"))
            for box, readers in other.readers.items():
                while box[0] == name and readers:
                    role = readers.popleft()
                    self._soon(role, None, Gone(f"{name} is gone"))
        fresh = _Actor(
            name, old.main, old.responder, old.device, old.saved, old.life + 1, up=False, pace=old.pace
        )
        self._actors[name] = fresh

        def restart() -> None:
            fresh.up = True
            self._begin(fresh)

        self._at(self.now + down, restart)
