"""A whole federation in one thread and virtual time, reproducible from one seed.

Every peer is an actor: roles (coroutines of `core.protocol`), a hub and mailboxes. The world
interprets their operations and crashes peers; its net (net.py) decides by the seed which packets
are late, lost or doubled. Time jumps from event to event, so an hour of waiting costs nothing.
FoundationDB's simulation is the model.
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
from ..core.registry import nearest
from ..core.rng import Rng
from .faults import World
from .net import Net

Run = Coroutine[op.Op, Any, Any]


@dataclass(slots=True)
class _Letter:
    """What sessions carry: an ask, its answer or refusal, or mail for a named mailbox."""

    kind: str  # ask | reply | fail | mail
    ref: Any  # request id, or mailbox name
    body: Any
    deadline: float | None = None


@dataclass(slots=True)
class _Waiting:
    """A role that asked, what it has folded so far and whose answers did not fit; or the peer a
    post went to.
    """

    role: _Role | None
    fold: op.Fold | None
    folded: Any = None
    posted: str = ""
    bad: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Actor:
    """One life of a peer. A crash ends it for good; a restart is a new life with the old
    checkpoint. Request ids go on from life to life, so no answer finds a wrong question.
    """

    name: str
    key: Rng
    main: Callable[[Party], Run] | None
    responder: Responder | None
    device: bool = False
    saved: Any = None
    up: bool = True
    hub: h.Hub = field(default_factory=h.Hub)
    requests: Any = field(default_factory=count)
    asks: dict[int, _Waiting] = field(default_factory=dict)
    posted: deque[op.Posted] = field(default_factory=deque)
    nexts: deque[_Role] = field(default_factory=deque)
    mail: dict[tuple[str, str], deque[Any]] = field(default_factory=dict)
    readers: dict[tuple[str, str], deque[_Role]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    pace: float | None = None


@dataclass(slots=True, eq=False)
class _Role:
    """A running coroutine and the life it belongs to; it stops where that ends."""

    actor: _Actor
    run: Run


class Simulation:
    """The driver. Add peers, then `run` until the named role returns.

    `size(body)`: bytes of a body on the wire, for traffic and bandwidth. `on_note(peer, record)`
    and `on_checkpoint(peer, state)` see what roles publish. `restored`: checkpoints by peer. `now`:
    seconds since it began. `net`: knows the bytes that each peer sent and received.
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
        self._key = key
        self._on_note = on_note
        self._on_checkpoint = on_checkpoint
        self._restored = dict(restored or {})
        self._actors: dict[str, _Actor] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._luck = key.at("network").generator()
        self.net = Net(
            world, self._luck, self._clock, self._after, lambda letter: size(letter.body), self._deliver
        )
        self._results: dict[str, Any] = {}
        self._errors: dict[str, BaseException] = {}
        self._names: tuple[str, ...] = ()
        self._absent: set[str] = set()  # dropped out of their last task: nobody waits for their mail

    def add(
        self,
        name: str,
        *,
        main: Callable[[Party], Run] | None = None,
        answers: Responder | None = None,
        device: bool = False,
    ) -> None:
        """A peer with a role of its own, an answer for every ask, or both.

        A `device` needs the world's compute time for its work and may drop out of a task.
        """
        key = self._key.at(name)
        self._actors[name] = _Actor(name, key, main, answers, device, self._restored.get(name))

    def run(self, until: str) -> Any:
        """Let time pass until the role of `until` returns; its result.

        Raises what the role raised; MisuseError if everybody waits for ever, or
        if the world speaks of a peer that is not in it.
        """
        self._names = tuple(self._actors)
        self._known(
            *(c.peer for c in self.world.crashes), *(n for c in self.world.partitions for n in c.peers)
        )
        for actor in self._actors.values():
            self._begin(actor)
        for crash in self.world.crashes:
            self._at(crash.at, lambda c=crash: self._crash(c.peer, c.down))  # type: ignore[misc]
        while until not in self._results:
            if until in self._errors:
                raise self._errors[until]
            if not self._events:
                why = "".join(f"; {name} stopped: {error}" for name, error in self._errors.items())
                raise MisuseError(
                    f"{until} waits for an answer that nobody will send, at {self.now:g} s{why}"
                )
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self._results[until]

    def _clock(self) -> float:
        return self.now

    # -- roles ------------------------------------------------------------------------------

    def _begin(self, actor: _Actor) -> None:
        main = actor.main
        if main is not None:
            self._at(self.now, lambda: self._start(actor, lambda p: self._main(actor, main(p)), None))

    async def _main(self, actor: _Actor, run: Run) -> None:
        try:
            self._results[actor.name] = await run
        except AtollError as error:
            self._errors[actor.name] = error
            for other in self._actors.values():
                self._hang_up(other, actor.name, f"{actor.name} stopped: {error}")

    def _start(self, actor: _Actor, make: Callable[[Party], Run], deadline: float | None) -> None:
        if actor.up:
            party = Party(actor.name, self._names, actor.key, self._clock, actor.saved, deadline)
            self._step(_Role(actor, make(party)), None)

    def _step(self, role: _Role, value: Any, error: BaseException | None = None) -> None:
        """Resume a role, unless its life has ended since; what it asks wrongly is its own error."""
        if not role.actor.up:
            return
        try:
            asked = role.run.send(value) if error is None else role.run.throw(error)
        except StopIteration:
            return
        try:
            self._perform(role.actor, role, asked)
        except MisuseError as misuse:
            self._soon(role, None, misuse)

    def _perform(self, actor: _Actor, role: _Role, asked: op.Op) -> None:
        match asked:
            case op.Ask(messages, quorum, deadline, fold):
                self._known(*messages)
                self._ask(actor, _Waiting(role, fold), messages, quorum, deadline)
            case op.Post(peer, body, deadline):
                self._known(peer)
                self._soon(
                    role, self._ask(actor, _Waiting(None, _keep, posted=peer), {peer: body}, 1, deadline)
                )
            case op.Next():
                actor.nexts.append(role)
                self._feed(actor)
            case op.SendTo(peer, name, value):
                self._known(peer)
                self.net.send(actor.name, peer, _Letter("mail", name, value))
                self._soon(role, None)
            case op.Recv(peer, name, within):
                self._known(peer)
                self._recv(actor, role, (peer, name), within)
            case op.Sleep(seconds):
                self._after(seconds, lambda: self._step(role, None))
            case op.Work(run, share):
                self._work(actor, role, run, share)
            case op.Checkpoint(state):
                actor.saved = state
                self._on_checkpoint(actor.name, state)
                self._soon(role, None)
            case op.Note(record):
                self._on_note(actor.name, record)
                self._soon(role, None)

    def _known(self, *peers: str) -> None:
        for peer in peers:
            if peer not in self._actors:
                advice = (
                    nearest(peer, self._actors) if len(self._actors) < 20 else "add it before it is named"
                )
                raise MisuseError(f"there is no {peer!r} in this world: {advice}")

    def _soon(self, role: _Role, value: Any, error: BaseException | None = None) -> None:
        """Resume at this moment, but from the event loop: roles may loop without end."""
        self._at(self.now, lambda: self._step(role, value, error))

    def _work(self, actor: _Actor, role: _Role, run: Callable[[], Any], share: float) -> None:
        took = share * self._seconds(actor) if share else 0.0
        try:
            result, error = run(), None
        except Exception as broke:  # noqa: BLE001  the role decides what a failure means
            result, error = None, broke
        self._after(took, lambda: self._step(role, result, error))

    def _seconds(self, actor: _Actor) -> float:
        """How long this actor's next task takes."""
        if not actor.device:
            return 0.0
        if actor.pace is None:
            actor.pace = self.world.compute.draw(self._key.at("pace", actor.name).generator())
        wobble = 1 + self.world.jitter * (2 * self._luck.random() - 1) if self.world.jitter else 1.0
        return actor.pace * wobble

    # -- asks and answers -------------------------------------------------------------------

    def _ask(self, actor: _Actor, waiting: _Waiting, *ask: Any) -> int:
        request: int = next(actor.requests)
        actor.asks[request] = waiting
        self._hub(actor, h.Asked(request, *ask))
        return request

    def _hub(self, actor: _Actor, event: h.Event) -> None:
        for effect in actor.hub.handle(self.now, event):
            match effect:
                case h.Send(request, peer, body, deadline):
                    self.net.send(actor.name, peer, _Letter("ask", request, body, deadline))
                case h.Accept(request, peer, body):
                    self._fold(actor.asks[request], peer, body)
                case h.Wake(at):
                    self._at(at, lambda: self._hub(actor, h.Tick()) if actor.up else None)
                case h.Closed():
                    self._closed(actor, effect)

    def _fold(self, waiting: _Waiting, peer: str, body: Any) -> None:
        """Fold an answer in; one that does not fit is set aside and counts as missing."""
        if waiting.fold is not None:
            try:
                waiting.folded = waiting.fold(waiting.folded, peer, body)
            except AtollError as error:
                waiting.bad[peer] = f"{type(error).__name__}: {error}"

    def _closed(self, actor: _Actor, closed: h.Closed) -> None:
        waiting = actor.asks.pop(closed.request)
        missing = {**closed.missing, **waiting.bad}
        if waiting.role is None:
            reason = next(iter(missing.values()), "")
            actor.posted.append(op.Posted(closed.request, waiting.posted, waiting.folded, reason))
            self._feed(actor)
        else:
            replied = tuple(peer for peer in closed.replied if peer not in waiting.bad)
            answers = op.Answers(waiting.folded, replied, missing, closed.enough and not waiting.bad)
            self._soon(waiting.role, answers)

    def _feed(self, actor: _Actor) -> None:
        while actor.nexts and actor.posted:
            self._soon(actor.nexts.popleft(), actor.posted.popleft())

    def _recv(self, actor: _Actor, role: _Role, box: tuple[str, str], within: float | None) -> None:
        peer, quiet = box[0], not actor.mail.get(box) and not actor.readers.get(box)
        if quiet and (peer in actor.broken or peer in self._errors or peer in self._absent):
            reason = "dropped out" if peer in self._absent else "stopped"
            self._soon(role, None, Gone(actor.broken.pop(peer, f"{peer} {reason}")))
            return
        readers = actor.readers.setdefault(box, deque())
        readers.append(role)
        self._read(actor, box)
        if within is not None and role in readers:
            self._after(max(within, 0.0), lambda: self._expire(readers, role, box))

    def _expire(self, readers: deque[_Role], role: _Role, box: tuple[str, str]) -> None:
        if role in readers:
            readers.remove(role)
            self._soon(role, None, Gone(f"{box[0]} sent no {box[1]!r} in time"))

    def _read(self, actor: _Actor, box: tuple[str, str]) -> None:
        readers, mail = actor.readers.get(box), actor.mail.get(box)
        while readers and mail:
            self._soon(readers.popleft(), mail.popleft())
        if not readers:
            actor.readers.pop(box, None)
        if not mail:
            actor.mail.pop(box, None)

    async def _answer(self, actor: _Actor, sender: str, letter: _Letter, p: Party) -> None:
        """Run the responder; whatever it raises goes back as a refusal, never silence."""
        if actor.responder is None:
            reason, body = f"{actor.name} answers nothing", None
        elif actor.device and self.world.dropout and self._luck.random() < self.world.dropout:
            reason, body = "dropped out", None
            self._absent.add(actor.name)
            for other in self._actors.values():
                self._hang_up(other, actor.name, f"{actor.name} dropped out")
        else:
            self._absent.discard(actor.name)
            try:
                reason, body = "", await actor.responder(p, letter.body)
            except AtollError as error:
                reason, body = f"{type(error).__name__}: {error}", None
            except Exception:  # noqa: BLE001  a bug at a site reaches the operator with its traceback
                reason, body = traceback.format_exc(), None
        self.net.send(actor.name, sender, _Letter("fail" if reason else "reply", letter.ref, reason or body))

    def _deliver(self, name: str, sender: str, letter: _Letter) -> None:
        actor = self._actors[name]
        match letter.kind:
            case "ask":
                self._start(actor, lambda p: self._answer(actor, sender, letter, p), letter.deadline)
            case "reply":
                self._hub(actor, h.Replied(letter.ref, sender, letter.body))
            case "fail":
                self._hub(actor, h.Failed(letter.ref, sender, letter.body))
            case _:
                actor.mail.setdefault((sender, letter.ref), deque()).append(letter.body)
                self._read(actor, (sender, letter.ref))

    # -- time and crashes -------------------------------------------------------------------

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._at(self.now + seconds, act)

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def _crash(self, name: str, down: float) -> None:
        """Everything but the checkpoint is lost; the others see the connection break."""
        old = self._actors[name]
        if not old.up:
            return  # dead already
        old.up = False
        for peer in self.net.fall(name):
            self._actors[peer].broken[name] = f"{name} crashed"
        for other in self._actors.values():
            self._hub(other, h.Left(name, "crashed"))
            self._hang_up(other, name, f"{name} crashed")
        fresh = _Actor(name, old.key, old.main, old.responder, old.device, old.saved, up=False)
        fresh.pace, fresh.requests = old.pace, old.requests
        self._actors[name] = fresh

        def restart() -> None:
            fresh.up = True
            self.net.rise(name)
            self._begin(fresh)

        self._after(down, restart)

    def _hang_up(self, actor: _Actor, name: str, reason: str) -> None:
        """Whoever waits for mail from `name` waits in vain."""
        for box, readers in actor.readers.items():
            while box[0] == name and readers:
                actor.broken.pop(name, None)
                self._soon(readers.popleft(), None, Gone(reason))


def _keep(_so_far: Any, _peer: str, body: Any) -> Any:
    return body
