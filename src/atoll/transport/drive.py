"""Runs a role on asyncio and a real clock, durably: killed at any point, it goes on as if nothing was.

A role is a `core.protocol` coroutine; the simulator's world drives the same ones in virtual time.
What a role learns from outside (who answered, in which order, when a request was over) goes into a
journal before it counts. After a restart the role is entered again at its last checkpoint and asks the
same questions; those the journal knows are answered from it, the first it does not know goes out.

    ask ──► journal.asked ──► net.ask × peers
    answer ──► journal.answered ──► hub ──► fold        only then its sender gets a receipt
    hub: closed ──► journal.closed ──► the role goes on

Records are written in their order; those that come while others are written, or that nobody outside can
know of yet (closed, note, checkpoint), join the next write: a round costs few syncs of the disk. An answer
waits a moment for others to the same request, where some are still to come: nobody goes on before they are.

Roles are deterministic but for what they are told, so the replayed role stands where the killed one
stood; sums do not depend on order, so the model has the same bits (tests/drive). Posts may be in flight
over a checkpoint: the role posts them again when it goes on, and they are taken for the ones that were.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from ..core import hub as h
from ..core import protocol as op
from ..core.errors import AtollError, MisuseError
from ..core.protocol import Party
from ..core.rng import Rng
from ..wire.failpoint import declare, hit

T = TypeVar("T")
MOMENT = 0.05  # seconds an answer waits for others to be written with

# Around each transition: what stands after it is known to the journal, what stands before is asked again.
_ASKED = declare("drive.asked.before"), declare("drive.asked.after")
_COUNTED = declare("drive.counted.before"), declare("drive.counted.after")
_FOLDED = declare("drive.folded.before"), declare("drive.folded.after")
_CLOSED = declare("drive.closed.before"), declare("drive.closed.after")
_SAVED = declare("drive.saved.before"), declare("drive.saved.after")
_NOTED = declare("drive.noted.before"), declare("drive.noted.after")


@dataclass(frozen=True, slots=True)
class Answered:
    """A recorded answer: `blob` and `info` say what came; `reason` why nothing did, "" if it did."""

    request: int
    peer: str
    blob: str | None
    reason: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Closed:
    """How a request ended: whose answers count, and why each other's does not."""

    replied: tuple[str, ...]
    missing: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a journal holds since the last checkpoint, in the order it was written.

    `state`: the checkpoint, None before the first. `requests`, `notes`: how many there were by then.
    Requests below `requests` are posts that were in flight at the checkpoint.
    """

    state: bytes | None = None
    requests: int = 0
    notes: int = 0
    asked: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    answers: Sequence[Answered] = ()
    closed: Mapping[int, Closed] = field(default_factory=dict)


class Stored(NamedTuple):
    """A checkpoint that is on disk already: the blob with its bytes, and others that these refer to."""

    blob: str
    others: tuple[str, ...] = ()


class Journal(Protocol):
    """What makes a role durable. Every method blocks until its record is on disk.

    A checkpoint forgets every request before it but those in `keep`.
    """

    def resume(self) -> Resumed:
        """All of it since the last checkpoint."""

    def asked(self, request: int, detail: Mapping[str, Any]) -> None:
        """A request goes out; again is nothing new."""

    def answered(
        self, request: int, peer: str, *, blob: str | None, reason: str, info: Mapping[str, Any]
    ) -> bool:
        """A peer's answer, or why there is none; False if it has one already."""

    def closed(self, request: int, replied: Sequence[str], missing: Mapping[str, str]) -> None:
        """A request is over, with whose answers."""

    def note(self, number: int, record: Mapping[str, Any]) -> bool:
        """A record for whoever watches; False if that number is there already."""

    def checkpoint(self, state: bytes | Stored, requests: int, notes: int, keep: Sequence[int]) -> None:
        """The role is at `state`, after so many requests and notes."""


class Net(Protocol):
    """How questions reach peers and answers become values again."""

    async def prepare(self, messages: Mapping[str, Any]) -> Mapping[str, Any]:
        """Bodies as letters, what they share encoded once."""

    def ask(self, request: int, peer: str, letter: Any, deadline: float | None) -> None:
        """Hand a letter over, now and whenever the peer comes back, until `cancel`."""

    def cancel(self, request: int, peers: Sequence[str]) -> None:
        """These peers need not answer any more."""

    def body(self, answered: Answered) -> Any:
        """A recorded answer as the value to fold."""


class Memory:
    """A journal that forgets: for a client, whose answers are kept where they are made."""

    def resume(self) -> Resumed:
        """Nothing."""
        return Resumed()

    def asked(self, request: int, detail: Mapping[str, Any]) -> None:
        """Not kept."""

    def answered(
        self, request: int, peer: str, *, blob: str | None, reason: str, info: Mapping[str, Any]
    ) -> bool:
        """Not kept."""
        return True

    def closed(self, request: int, replied: Sequence[str], missing: Mapping[str, str]) -> None:
        """Not kept."""

    def note(self, number: int, record: Mapping[str, Any]) -> bool:
        """Not kept."""
        return True

    def checkpoint(self, state: bytes | Stored, requests: int, notes: int, keep: Sequence[int]) -> None:
        """Not kept."""


@dataclass(slots=True)
class _Open:
    """A request under way: what was folded so far, whose answers did not fit, and who waits for it."""

    fold: op.Fold | None
    done: asyncio.Future[op.Answers] | None
    posted: str = ""
    waiting: set[str] = field(default_factory=set)
    folded: Any = None
    bad: dict[str, str] = field(default_factory=dict)
    unfolded: list[Answered] = field(default_factory=list)
    folding: asyncio.Task[None] | None = None
    recording: dict[str, asyncio.Future[Any]] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Record:
    """Something on its way into the journal; once it is there, `then` is called and the waiter is told."""

    write: Callable[[], Any]
    done: asyncio.Future[Any] | None = None
    then: Callable[[Any], None] = lambda result: None
    of: _Open | None = None  # the request that it answers

    @property
    def patient(self) -> bool:
        """Whether nobody waits for it, or it is an answer and others are still to come."""
        return self.done is None or (self.of is not None and bool(self.of.waiting - self.of.recording.keys()))


def _first(so_far: Any, _peer: str, body: Any) -> Any:
    return body if so_far is None else so_far


class Drive:
    """One role's life in this process; `run` until it returns, raises or is cancelled.

    `durable(f)`: runs f where the journal may block and returns its result; `work(f)`: where heavy
    computing may. `dump`, `load`: checkpoints as bytes. `context()`: plain values to keep with each
    request; after a restart `recorded()` gives back those of the request that is asked next.
    """

    def __init__(
        self,
        name: str,
        key: Rng,
        main: Callable[[Party], Coroutine[Any, Any, Any]],
        *,
        journal: Journal,
        net: Net,
        durable: Callable[[Callable[[], T]], Awaitable[T]],
        work: Callable[[Callable[[], T]], Awaitable[T]],
        dump: Callable[[Any], bytes | Stored],
        load: Callable[[bytes], Any],
        context: Callable[[], Mapping[str, Any]] = dict,
        on_note: Callable[[Mapping[str, Any]], None] = lambda record: None,
        names: tuple[str, ...] = (),
        deadline: float | None = None,
    ) -> None:
        self.name = name
        self._key = key
        self._main = main
        self._journal = journal
        self._net = net
        self._durable: Any = durable
        self._work: Any = work
        self._dump = dump
        self._load = load
        self._context = context
        self._on_note = on_note
        self._names = names
        self._deadline = deadline
        self._hub = h.Hub()
        self._open: dict[int, _Open] = {}
        self._posted: deque[op.Posted] = deque()
        self._arrived = asyncio.Event()
        self._past = Resumed()
        self._replay: list[op.Posted] = []
        self._flying: dict[int, str] = {}  # posts whose answers the role has not taken yet
        self._adopt: dict[int, str] = {}  # of those, the ones an earlier life made before its checkpoint
        self._broken: BaseException | None = None
        self._requests = 0
        self._landed = 0  # posts that came back since the last checkpoint
        self._notes = 0
        self._records: list[_Record] = []
        self._writer: asyncio.Task[None] | None = None
        self._more = asyncio.Event()  # records came
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def clock(self) -> float:
        """Seconds on the loop's clock, which nobody can set."""
        return asyncio.get_running_loop().time()

    async def run(self) -> Any:
        """The role's result; raises what it raises. Cancelling withdraws what it asked."""
        self._past = await self._durable(self._journal.resume)
        self._requests, self._notes = self._past.requests, self._past.notes
        self._adopt = {
            request: detail["peers"][0]
            for request, detail in sorted(self._past.asked.items())
            if request < self._requests
        }
        state = None if self._past.state is None else await self._work(lambda: self._load(self._past.state))
        party = Party(self.name, self._names, self._key, self.clock, state, self._deadline)
        try:
            result = await self._steps(self._main(party))
            await self._settle()
            return result
        except Exception:
            await self._settle()
            raise
        finally:
            for timer in self._timers:
                timer.cancel()
            for task in self._tasks:
                task.cancel()
            for request, o in self._open.items():
                self._net.cancel(request, sorted(o.waiting))

    def recorded(self) -> Mapping[str, Any] | None:
        """The context kept with the request that comes next, maybe posted again, if the journal has it."""
        found = self._past.asked.get(min(self._adopt, default=self._requests))
        return None if found is None else found.get("context", {})

    def posts(self) -> bool:
        """Whether the role may post now: it did at this point, where the journal knows what it asked next."""
        found = self._past.asked.get(self._requests)
        after = None if found is None else found.get("after")
        return bool(self._adopt) or after is None or after == self._landed

    def table(self) -> dict[int, dict[str, Any]]:
        """Open requests: who is waited for, who replied, until when."""
        return self._hub.table()

    def waits(self, request: int, peer: str) -> bool:
        """Whether this peer's answer to this request would count now."""
        o = self._open.get(request)
        return o is not None and peer in o.waiting

    async def answered(self, request: int, peer: str, *, blob: str, info: Mapping[str, Any]) -> bool:
        """An answer: recorded, then counted. False: it comes too late, or twice, and counts for nothing."""
        return await self._take(Answered(request, peer, blob, "", info))

    async def failed(self, request: int, peer: str, reason: str) -> bool:
        """The peer refused or is lost to this request; `reason` in its own words."""
        return await self._take(Answered(request, peer, None, reason or "it gave no reason"))

    async def left(self, peer: str, reason: str) -> None:
        """The peer is gone: every open request to it fails."""
        for request, o in list(self._open.items()):
            if peer in o.waiting:
                await self.failed(request, peer, reason)

    async def _take(self, a: Answered) -> bool:
        """Recorded in the order in which they come, so none after its request closed."""
        o = self._open.get(a.request)
        if o is None:
            return False
        while (other := o.recording.get(a.peer)) is not None:  # the first one wins, once it is on disk
            await asyncio.wait([other])
        if not self.waits(a.request, a.peer):
            return False
        hit(_COUNTED[0])
        o.recording[a.peer] = recorded = self._record(
            lambda: self._journal.answered(a.request, a.peer, blob=a.blob, reason=a.reason, info=a.info),
            lambda _: self._recorded(o, a),
            o,
        )
        recorded.add_done_callback(lambda _: o.recording.pop(a.peer, None))
        await asyncio.shield(recorded)
        return a.peer not in o.late

    def _recorded(self, o: _Open, a: Answered) -> None:
        """Counted as soon as it is on disk, whether or not whoever brought it still waits."""
        hit(_COUNTED[1])
        if a.peer in o.waiting:
            self._count(a)
        else:  # the request closed while this was being written
            o.late.add(a.peer)

    # -- into the journal ---------------------------------------------------------------------

    def _record(
        self,
        write: Callable[[], Any],
        then: Callable[[Any], None] = lambda result: None,
        of: _Open | None = None,
    ) -> asyncio.Future[Any]:
        """On disk when the future is done, and all before it. What comes meanwhile is written together."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._records.append(_Record(write, done, then, of))
        self._more.set()
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())
        return done

    def _later(self, write: Callable[[], Any], then: Callable[[Any], None] = lambda result: None) -> None:
        """On disk with the next record that somebody waits for: nothing outside may follow from it before."""
        self._records.append(_Record(write, None, then))

    async def _settle(self) -> None:
        """Until all that was recorded is on disk."""
        if self._records or self._writer is not None:
            await self._record(lambda: None)

    async def _write(self) -> None:
        try:
            while self._records:
                await self._moment()
                records, self._records = self._records, []
                try:
                    results = await self._durable(lambda records=records: self._together(records))
                except Exception as error:  # noqa: BLE001  whoever waits for it hears of it, else the role
                    self._fail(records, error)
                    continue
                for record, result in zip(records, results, strict=True):
                    record.then(result)
                    if record.done is not None and not record.done.done():
                        record.done.set_result(result)
        finally:
            self._writer = None

    async def _moment(self) -> None:
        """Until others wait, or answers have waited for others long enough."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MOMENT):
                while all(record.patient for record in self._records):
                    self._more.clear()
                    await self._more.wait()

    def _together(self, records: Sequence[_Record]) -> list[Any]:
        with getattr(self._journal, "batch", nullcontext)() if len(records) > 1 else nullcontext():
            return [record.write() for record in records]

    def _fail(self, records: Sequence[_Record], error: Exception) -> None:
        for record in records:
            if record.done is None:
                self._broken = error
                self._arrived.set()
            elif not record.done.done():
                record.done.set_exception(error)
                record.done.exception()  # a waiter that was cancelled leaves it unread

    def _count(self, a: Answered) -> None:
        self._open[a.request].waiting.discard(a.peer)
        if a.reason:
            self._handle(h.Failed(a.request, a.peer, a.reason))
        else:
            self._handle(h.Replied(a.request, a.peer, a))

    def _handle(self, event: h.Event) -> None:
        for effect in self._hub.handle(self.clock(), event):
            match effect:
                case h.Accept(request, _, body):
                    self._fold(self._open[request], body)
                case h.Wake(at):
                    self._at(at, lambda: self._handle(h.Tick()))
                case h.Closed(request):
                    self._open[request].waiting.clear()
                    self._spawn(self._close(effect))
                case h.Send():
                    pass  # _ask sends, once the journal has it

    def _at(self, when: float, act: Callable[[], None]) -> None:
        timer: list[asyncio.TimerHandle] = []

        def ring() -> None:
            self._timers.discard(timer[0])
            act()

        timer.append(asyncio.get_running_loop().call_at(when, ring))
        self._timers.add(timer[0])

    def _spawn(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _fold(self, o: _Open, body: Answered) -> None:
        """Fold after those that came before, and with those that come meanwhile; the event loop goes on."""
        o.unfolded.append(body)
        if o.folding is None or o.folding.done():
            o.folding = self._spawn(self._folded(o, o.folding))

    async def _folded(self, o: _Open, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before  # what went wrong in it is not forgotten
        while o.unfolded:
            bodies, o.unfolded = o.unfolded, []
            await self._work(lambda bodies=bodies: self._joined(o, bodies))

    def _joined(self, o: _Open, bodies: Sequence[Answered]) -> None:
        for body in bodies:
            self._join(o, body.peer, body)

    def _join(self, o: _Open, peer: str, body: Answered) -> None:
        """An answer that does not fit is set aside and counts as missing."""
        if o.fold is not None:
            hit(_FOLDED[0])
            try:
                o.folded = o.fold(o.folded, peer, self._net.body(body))
                hit(_FOLDED[1])
            except AtollError as error:
                o.bad[peer] = f"{type(error).__name__}: {error}"

    async def _close(self, closed: h.Closed) -> None:
        request, o = closed.request, self._open[closed.request]
        try:
            self._net.cancel(request, [*closed.replied, *closed.missing])
            if o.folding is not None:
                await o.folding
            replied = tuple(peer for peer in closed.replied if peer not in o.bad)
            missing = {**closed.missing, **o.bad}
            hit(_CLOSED[0])
            record = self._later if o.done is not None else self._record
            written = record(
                lambda: self._journal.closed(request, replied, missing), lambda _: hit(_CLOSED[1])
            )
            if written is not None:  # a post: the role may wait for something else and ask nothing for long
                await written
        except Exception as error:  # noqa: BLE001  the role hears of it: memory or the disk ran out, say
            self._broken = error
            self._arrived.set()
            if o.done is not None and not o.done.done():
                o.done.set_exception(error)
            return
        del self._open[request]
        self._over(request, o, Closed(replied, missing), enough=closed.enough and not o.bad)

    def _over(self, request: int, o: _Open, closed: Closed, *, enough: bool) -> None:
        if o.done is not None:
            if not o.done.done():
                o.done.set_result(op.Answers(o.folded, closed.replied, closed.missing, enough))
            return
        reason = next(iter(closed.missing.values()), "")
        self._posted.append(op.Posted(request, o.posted, o.folded, reason))
        self._arrived.set()

    # -- what a role asks for ---------------------------------------------------------------

    async def _steps(self, role: Coroutine[Any, Any, Any]) -> Any:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                asked = role.send(value) if error is None else role.throw(error)
            except StopIteration as done:
                return done.value
            value = error = None
            try:
                value = await self._perform(asked)
            except asyncio.CancelledError:
                role.close()
                raise
            except Exception as broke:  # noqa: BLE001  the role decides what a failure means
                error = broke

    async def _perform(self, asked: op.Op) -> Any:
        match asked:
            case op.Ask(messages, quorum, deadline, fold):
                o = _Open(fold, asyncio.get_running_loop().create_future())
                await self._ask(o, messages, quorum, deadline)
                return await o.done  # type: ignore[misc]
            case op.Post(peer, body, deadline):
                peer = next(iter(self._adopt.values()), peer)  # it goes where it went
                return await self._ask(_Open(_first, None, peer), {peer: body}, 1, deadline)
            case op.Next():
                return await self._next()
            case op.Sleep(seconds):
                await self._settle()
                await asyncio.sleep(seconds)
            case op.Work(run, share):
                if share:  # it takes its time: whoever watches hears before
                    await self._settle()
                return await self._work(run)
            case op.Checkpoint(state):
                await self._save(state)
            case op.Note(record):
                self._note(record)
            case _:
                raise MisuseError(
                    "letters between members (send and recv) are delivered in simulations only:"
                    " choose an algorithm whose clients answer a coordinator"
                )
        return None

    async def _ask(
        self, o: _Open, messages: Mapping[str, Any], quorum: int | None, deadline: float | None
    ) -> int:
        """Ask anew, or go on with what the journal knows of this request."""
        request = self._number(o.posted)
        was = self._past.closed.get(request)
        if was is not None:
            await self._again(request, o, was, len(messages), quorum)
            return request
        if request not in self._past.asked:
            after = self._landed if o.posted else -1
            detail = {"peers": sorted(messages), "context": dict(self._context()), "after": after}
            hit(_ASKED[0])
            await self._record(lambda: self._journal.asked(request, detail))
            hit(_ASKED[1])
        letters = await self._net.prepare(messages)
        o.waiting = set(messages)
        self._open[request] = o
        self._handle(h.Asked(request, messages, quorum, deadline))
        for a in self._past.answers:
            if a.request == request and self.waits(request, a.peer):
                self._count(a)
        until = None if deadline is None else self.clock() + deadline
        for peer in sorted(o.waiting):
            self._net.ask(request, peer, letters[peer], until)
        return request

    def _number(self, posted: str) -> int:
        """The next request's; a role that goes on from a checkpoint posts again what was in flight then."""
        request = min(self._adopt, default=self._requests) if posted else self._requests
        if self._adopt.pop(request, None) is None:
            self._requests += 1
        if posted:
            self._flying[request] = posted
        return request

    async def _again(self, request: int, o: _Open, was: Closed, asked: int, quorum: int | None) -> None:
        """A request that had closed: the answers that counted then, folded again."""
        kept = {a.peer: a for a in self._past.answers if a.request == request and not a.reason}
        for peer in was.replied:
            await self._work(lambda peer=peer: self._join(o, peer, kept[peer]))
        enough = len(was.replied) >= (asked if quorum is None else quorum)
        if o.done is not None:
            o.done.set_result(op.Answers(o.folded, was.replied, was.missing, enough))
        else:
            reason = next(iter(was.missing.values()), "")
            self._replay.append(op.Posted(request, o.posted, o.folded, reason))

    async def _next(self) -> op.Posted:
        """Posts come back in the order in which they closed, the recorded ones first."""
        self._adopt.clear()  # whoever waits has posted again what was in flight
        landed = await self._back()
        self._landed += 1
        del self._flying[landed.number]
        return landed

    async def _back(self) -> op.Posted:
        if self._replay:
            order = {request: place for place, request in enumerate(self._past.closed)}
            first = min(self._replay, key=lambda posted: order[posted.number])
            self._replay.remove(first)
            return first
        while not self._posted:
            await self._settle()
            if self._posted:
                break
            if self._broken is not None:
                raise self._broken
            self._arrived.clear()
            await self._arrived.wait()
        return self._posted.popleft()

    async def _save(self, state: Any) -> None:
        requests, notes, keep = self._requests, self._notes, sorted(self._flying)
        self._landed = 0
        data = await self._work(lambda: self._dump(state))
        hit(_SAVED[0])
        self._later(lambda: self._journal.checkpoint(data, requests, notes, keep), lambda _: hit(_SAVED[1]))

    def _note(self, record: Mapping[str, Any]) -> None:
        number, self._notes = self._notes, self._notes + 1

        def noted(fresh: bool) -> None:  # noqa: FBT001  the journal's answer
            hit(_NOTED[1])
            if fresh:
                self._on_note(record)

        hit(_NOTED[0])
        self._later(lambda: self._journal.note(number, record), noted)
