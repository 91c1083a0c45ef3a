"""The server's side of every transport: who may speak, what they say in order, what they carry.

    service = Service(desk)                # desk: what the coordinator or edge does about it
    await grpc.serve(service, …)           # bindings hand over members and bytes, nothing else
    service.send("bank-a", "ask", {…})     # a letter; kept until the member has it

A seat is a member's session: it outlives its connections by `Limits.grace` seconds, so a member
that comes back finds its letters. `present` and `absent` speak of seats, not of connections. A
seat ends with this process (`epoch`): the member then says hello afresh and the desk sends again
what is open. One identity has one seat; a second session takes it over, and the desk is told.

Laws (tests/wire): within a seat each letter arrives once and in order, in both directions, over
any cuts; an upload gives one receipt however often it is sent; after `cut` nothing more is served.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..core.errors import AtollError, Gone, MisuseError, ProtocolError, Refused
from ..core.session import Packet
from ..wire.heap import keep_memory
from ..wire.plain import Bytes
from .blobs import Blobs
from .deltas import Deltas
from .half import Inbox, Outbox
from .link import (
    BLOB,
    CAPABILITIES,
    RETURN,
    SESSION,
    TELLING,
    UP,
    UPLOAD,
    ReplacedError,
    agreed,
    letter,
    pack,
    read,
    split,
    unpack,
    word,
)
from .receive import Uploads
from .seat import Line, Seat

if TYPE_CHECKING:
    from ..privacy.keys import Member

log = logging.getLogger("atoll.transport")

GROUPED = 8.0  # seconds between groups of heartbeats
SWEEP = 15.0  # most seconds between two looks at all seats: a millisecond for each thousand
SLOW = 32e6  # bytes a second; on faster links it takes longer to find out what has changed than to send all
SILENT = 60.0  # seconds that proxies commonly let a connection be silent in one direction


class Offer(NamedTuple):
    """Where to spool an upload's buffer, and how many bytes it may have; its head stands in `<path>.head`."""

    path: Path
    limit: int


class Desk(Protocol):
    """What a coordinator or an edge does with what its members say. All of it on the service's event loop.

    Calls about one member come one after the other, in order: admit, present, its letters, absent;
    uploads and blobs at any time in between. Refused and ProtocolError reach the member as they
    are; StateError and OSError as "try again later"; anything else is logged and said to be our fault.
    """

    async def admit(self, member: Member, hello: Mapping[str, Any]) -> dict[str, Any]:
        """May this member join? What the welcome shall say, plain values. Raises Refused or Gone (later)."""

    async def present(self, name: str) -> None:
        """A new seat: send it what is open. Letters it sent before are not repeated."""

    async def absent(self, name: str, reason: str) -> None:
        """Its seat is over."""

    async def letter(self, name: str, kind: str, head: Mapping[str, Any]) -> None:
        """One letter. The kind "alert" comes from the service itself: {"reason": …}."""

    async def offered(self, name: str, upload: str) -> Offer:
        """Is this upload expected, where does it go? The same answer each time. Raises Refused."""

    async def uploaded(self, name: str, upload: str, head: bytes, path: Path) -> dict[str, Any]:
        """The buffer at `path` is whole and its SHA-256 right; `head` is its protobuf, unread.

        Check and keep it for good; the receipt. Called again for the same upload if it failed with
        anything but Refused or ProtocolError, after which the spool is removed.
        """

    async def receipt(self, name: str, upload: str) -> dict[str, Any] | None:
        """The receipt of an upload kept before."""

    def blob(self, name: str, blob: str) -> Path | None:
        """The file of this blob's frames, if this member may read it now."""

    def base(self, name: str, old: str, blob: str, *, slow: bool) -> Path | None:
        """The file of a blob that this member says it holds, if what has changed since is worth finding out:
        on a `slow` link, or where it is little.
        """

    def sends(self, name: str, size: int) -> None:
        """So many bytes of a blob, or of what has changed in one, are about to go to it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one service gives; all seconds.

    `heartbeat`: what members are told; one silent for three of them has lost its connection.
    `grace`: a seat without connection waits so long. `rate`, `burst`: letters per second and member,
    beyond which it is read more slowly. `queue`: letters waiting for one member. `transfers`: at once,
    of one member. `window`: in this time a transfer moves at least one frame. `takeover`: a second
    connection with the same upload takes over from one that stood still so long. `returns`: members
    that come back each second after a restart: they spread evenly over the window this gives.
    """

    sessions: int = 10_000
    heartbeat: float = 25.0
    grace: float = 75.0
    hello: float = 15.0
    rate: float = 100.0
    burst: int = 1_000
    queue: int = 2_000
    transfers: int = 8
    window: float = 300.0
    takeover: float = 5.0
    returns: float = 200.0
    cache: int = 32 << 20

    @property
    def quiet(self) -> float:
        """Seconds a server has said nothing after which it answers a heartbeat.

        A member waits for three. Where heartbeats are so rare that no proxy counts seconds in between, every
        second one is answered: answering costs the server as much as hearing.
        """
        return self.heartbeat * (0.5 if self.heartbeat < SILENT else 1.5)


@dataclass(frozen=True, slots=True)
class Way:
    """How a member came: `transport` as in its URL, `address` for people, `sealed` behind a proxy."""

    transport: str
    address: str = ""
    sealed: bool = False


class Service:
    """All seats of one server process. Make it, `start` it, give it to bindings, `close` it.

    `federation`: whose members may speak, all that the certificates vouch for where it is empty.
    `deltas`: a folder to make deltas in; without one models are always sent whole. `token(n)`: n random
    bytes in hexadecimal.
    """

    epoch: str  # this process life, 32 hexadecimal digits

    def __init__(
        self,
        desk: Desk,
        limits: Limits = Limits(),
        *,
        federation: str = "",
        deltas: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        token: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self.desk = desk
        self.limits = limits
        self.federation = federation
        self.epoch = token(16)
        self._clock = clock
        self._wall = wall
        self._seats: dict[str, Seat] = {}
        self._answers: set[asyncio.Future[None]] = set()
        self._lines: dict[str, set[Line]] = {}
        self._knocks: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(4, "atoll-transfer")
        self._uploads = Uploads(desk, self._pool, window=limits.window, takeover=limits.takeover)
        self._blobs = Blobs(self._pool, limits.cache)
        self._deltas = Deltas(deltas, self._pool) if deltas else None
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._slot = 0
        self._quiet = limits.quiet

    async def start(self) -> None:
        """Begin to watch for silent members; on the running event loop."""
        keep_memory()
        self._sweep()

    async def close(self, reason: str = "the server shuts down") -> None:
        """Tell everybody when to come back, end all connections; seats end without a word to the desk."""
        self._closed = True
        if self._sweeper:
            self._sweeper.cancel()
        lines = [line for lines in self._lines.values() for line in lines]
        for line in lines:
            line.cut(Gone(reason))
        await _ended(lines)
        for seat in self._seats.values():
            seat.half.end()
            seat.inbox.close()
        self._seats.clear()
        self._pool.shutdown(wait=False)

    def send(self, name: str, kind: str, head: Mapping[str, Any], along: str = "") -> bool:
        """Queue a letter for a present member. False where it has no seat: `present` will come.

        `along`: a blob that the letter names. A small one goes with it, to members that know that.
        """
        seat = self._seats.get(name)
        if seat is None:
            return False
        if seat.half.waiting >= self.limits.queue:
            self._cut(name, Gone("too many letters wait: say hello again"))
            self._leave(seat, f"{seat.half.waiting} letters wait for it: it does not read them")
            return False
        seat.half.push(
            letter(kind, head), partial(self._along, seat, along) if along and seat.along else None
        )
        return True

    def _along(self, seat: Seat, blob: str) -> Bytes:
        """The frames of a small blob, unless they went to this seat before."""
        path = self.desk.blob(seat.name, blob) if blob != seat.held else None
        if path is None or not (frames := self._blobs.small(path)):
            return b""
        seat.held = blob
        self.desk.sends(seat.name, len(frames))
        return frames

    async def cut(self, name: str, reason: str) -> None:
        """End everything this member has open, now; its seat is over. `admit` keeps it out."""
        await self._end(name, Refused(reason), reason)

    async def replace(self, name: str, reason: str) -> None:
        """As `cut`: another process of this identity has a seat elsewhere. This one may ask again later."""
        await self._end(name, ReplacedError(), reason)

    async def _end(self, name: str, error: AtollError, reason: str) -> None:
        lines = self._cut(name, error)
        if seat := self._seats.get(name):
            self._leave(seat, reason)
        await _ended(lines)

    def leave(self, name: str, reason: str) -> None:
        """End the seat of a member that is not connected: it was seen elsewhere."""
        if (seat := self._seats.get(name)) and seat.line is None:
            self._leave(seat, reason)

    def sessions(self) -> list[dict[str, Any]]:
        """For people, by name: role, transport, address, sealed, protocol, connected, since, heard, waiting.

        `since` and `heard` are seconds ago; `sealed`: a proxy ends TLS, payload signatures carry the trust.
        """
        now = self._clock()
        return [seat.row(now) for _, seat in sorted(self._seats.items())]

    # -- what bindings call ---------------------------------------------------------------------

    async def session(
        self,
        member: Member,
        way: Way,
        incoming: AsyncIterator[bytes],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Serve one connection until it ends; what must be said is said in packets, also why it ends."""
        outbox = Outbox(send, self._clock)
        try:
            with self._speaking(member) as line:
                seat = await self._enter(member, way, incoming, outbox, line)
                try:
                    await self._listen(seat, incoming, outbox)
                finally:
                    if seat.half.outbox is outbox:
                        seat.half.outbox, seat.line, seat.heard = None, None, self._clock()
        except Exception as error:  # noqa: BLE001  whatever it is, the member is told something
            said, reason = self._word(error, member)
            bye: dict[str, Any] = {"error": said, "reason": reason, "back": self._back()}
            if isinstance(error, ReplacedError):
                bye |= {"back": list(RETURN), "replaced": True}
            await outbox.last(Packet(0, 0, letter("bye", bye)), seconds=2.0)
        finally:
            outbox.close()

    async def offset(self, member: Member, session: str, upload: str) -> int:
        """How many frames of this upload are on disk; KEPT when it has its receipt."""
        with self._transfer(member, session):
            return await self._uploads.offset(member.name, _upload_id(upload))

    async def upload(
        self, member: Member, session: str, upload: str, start: int, incoming: AsyncIterator[Bytes]
    ) -> dict[str, Any]:
        """Take frames in from number `start` on; the receipt."""
        with self._transfer(member, session) as line:
            return await self._uploads.take(
                member.name, _upload_id(upload), start, incoming, lambda reason: line.cut(Gone(reason))
            )

    async def download(
        self,
        member: Member,
        session: str,
        blob: str,
        start: int,
        have: Sequence[str],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Send the frames of a blob from number `start` on, or those of a delta from one of `have`."""
        with self._transfer(member, session):
            path = await self._readable(member.name, blob, start, have)
            size, began = path.stat().st_size, self._clock()
            self.desk.sends(member.name, size)
            async with aclosing(self._blobs.frames(path, start)) as frames:
                async for frame in frames:
                    try:
                        async with asyncio.timeout(self.limits.window):
                            await send(frame)
                    except TimeoutError:
                        raise Gone(f"no frame was taken for {self.limits.window:g} seconds") from None
            if not start and size >= TELLING and (seat := self._seats.get(member.name)) is not None:
                seat.rate = size / max(self._clock() - began, 1e-3)

    async def _readable(self, name: str, blob: str, start: int, have: Sequence[str]) -> Path:
        """The file to send: the blob's, or that of a delta to it."""
        path = self.desk.blob(name, blob) if BLOB.fullmatch(blob) else None
        if path is None:
            raise Refused("there is no such blob for this member")
        if self._deltas is not None and self._seats[name].delta:
            slow = self._seats[name].rate < SLOW
            for old in have:
                base = self.desk.base(name, old, blob, slow=slow) if BLOB.fullmatch(old) else None
                if base and (delta := await self._deltas.path(base, path, (old, blob))):
                    return delta
        if start and have:
            raise Gone("the delta that was begun is not here any more: fetch the blob whole")
        return path

    def word(self, error: BaseException, member: Member | None = None) -> tuple[str, str]:
        """How to say this error to a member (link.word); what is its fault or ours is logged."""
        return self._word(error, member)

    # -- who speaks -----------------------------------------------------------------------------

    @contextmanager
    def _speaking(self, member: Member) -> Iterator[Line]:
        """Around all that is done for a member, so that `cut` can end it."""
        self._vouched(member)
        task = asyncio.current_task()
        if task is None:
            raise MisuseError("a service is called from tasks of one event loop")
        line = Line(task)
        lines = self._lines.setdefault(member.name, set())
        lines.add(line)
        try:
            yield line
        except asyncio.CancelledError:
            if line.error is None:
                raise
            task.uncancel()
            raise line.error from None
        finally:
            line.over = True
            lines.discard(line)
            if not lines:
                self._lines.pop(member.name, None)

    @contextmanager
    def _transfer(self, member: Member, session: str) -> Iterator[Line]:
        """A call beside a session: only the member whose seat it is has any."""
        seat = self._seats.get(member.name)
        if seat is None or seat.session != session:
            raise Gone("this session is not known here: say hello first")
        if seat.transfers >= self.limits.transfers:
            raise Gone(f"{seat.transfers} transfers are under way: wait for one to end")
        seat.transfers += 1
        seat.member = max(seat.member, member, key=lambda m: m.until)
        try:
            with self._speaking(member) as line:
                yield line
        finally:
            seat.transfers -= 1

    def _vouched(self, member: Member) -> None:
        if self._closed:
            raise Gone("the server shuts down")
        if member.role not in {"client", "edge"}:
            raise Refused(f"expected a client or an edge, the certificate is a {member.role}'s")
        if self.federation and member.federation != self.federation:
            raise Refused(f"this is federation {self.federation}, the certificate is {member.federation}'s")
        if member.until <= self._wall():
            raise Refused("the certificate has expired: renew it, or enrol again with a new token")

    def _word(self, error: BaseException, member: Member | None) -> tuple[str, str]:
        said, reason = word(error)
        who = f"{member.role} {member.name}" if member else "a stranger"
        if said != "gone":
            log.warning("%s: %s: %s", who, said, reason)
        elif not isinstance(error, (AtollError, OSError)):
            log.error("serving %s failed", who, exc_info=error)
        else:
            log.info("%s: %s", who, reason)
        return said, reason

    # -- sessions -------------------------------------------------------------------------------

    async def _enter(
        self, member: Member, way: Way, incoming: AsyncIterator[bytes], outbox: Outbox, line: Line
    ) -> Seat:
        """Hello and welcome; the seat, its connection in place."""
        try:
            async with asyncio.timeout(self.limits.hello):
                packet = unpack(await anext(incoming))
        except StopAsyncIteration:
            raise Gone("the connection ended before a hello") from None
        except TimeoutError:
            raise Gone(f"no hello came for {self.limits.hello:g} seconds") from None
        hello = _hello(packet)
        protocol = agreed(hello.get("protocol"), f"{member.role} {member.name}")
        session = hello.get("session")
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise ProtocolError("expected a session of 32 hexadecimal digits in the hello")
        self._knock(member.name)
        said = await self.desk.admit(member, hello)
        seat = self._seats.get(member.name)
        if hello.get("yields") is True and seat is not None and seat.line and seat.session != session:
            raise ReplacedError
        resumed = seat is not None and seat.session == session and hello.get("epoch") == self.epoch
        if seat is None or not resumed:
            seat = self._seat(member, session, way)
        elif seat.line is not None:
            seat.line.cut(Gone("this session goes on over another connection"))
        theirs = hello.get("capabilities", [])
        both = [c for c in CAPABILITIES if isinstance(theirs, list) and c in theirs]
        welcome = {
            **said,
            "protocol": list(protocol),
            "capabilities": both,
            "epoch": self.epoch,
            "resumed": resumed,
            "heartbeat": self.limits.heartbeat,
            "first": self._first(),
            "back": self._back(),
        }
        seat.member, seat.way, seat.protocol = member, way, protocol
        seat.delta, seat.along = "delta" in both, "along" in both
        seat.line, seat.heard = line, self._clock()
        outbox.put(partial(pack, Packet(0, seat.half.seen, letter("welcome", welcome))))
        seat.half.connect(outbox, packet.seen if resumed else 0)
        return seat

    def _seat(self, member: Member, session: str, way: Way) -> Seat:
        """A new seat; who sat there leaves."""
        name, inbox = member.name, None
        if old := self._seats.get(name):
            inbox = old.inbox
            if old.session == session or old.line is None:
                self._cut(name, Gone("the member says hello afresh"))
                self._leave(old, "it started again")
            else:
                reason = f"a second session of this identity, from {way.address or '?'}, replaced the first"
                log.warning("%s %s: %s", member.role, name, reason)
                inbox.put(partial(self.desk.letter, name, "alert", {"reason": reason}))
                self._cut(name, ReplacedError())
                self._leave(old, reason)
        elif len(self._seats) >= self.limits.sessions:
            raise Gone(f"all {self.limits.sessions} seats are taken: try another parent, or later")
        inbox = inbox or Inbox(lambda error: self._blame(name, error))
        seat = Seat(member, session, way, inbox, self._clock())
        self._seats[name] = seat
        inbox.put(partial(self.desk.present, name))
        return seat

    def _blame(self, name: str, error: ProtocolError) -> None:
        """The desk says a letter broke the rules."""
        log.warning("%s: protocol: %s", name, error)
        self._cut(name, error)
        if seat := self._seats.get(name):
            self._leave(seat, str(error))

    def _cut(self, name: str, error: AtollError) -> list[Line]:
        """End what a member has open, but for the task that says so."""
        me = asyncio.current_task()
        lines = [line for line in self._lines.get(name, ()) if line.task is not me]
        for line in lines:
            line.cut(error)
        return lines

    def _leave(self, seat: Seat, reason: str) -> None:
        """Its seat is over."""
        if self._seats.get(seat.name) is seat:
            del self._seats[seat.name]
            seat.half.end()
            seat.inbox.put(partial(self.desk.absent, seat.name, reason))

    async def _listen(self, seat: Seat, incoming: AsyncIterator[bytes], outbox: Outbox) -> None:
        async for data in incoming:
            seat.heard = now = self._clock()
            packet = unpack(data)
            if packet.body is not None and packet.number == 0:
                self._goodbye(seat, read(packet.body, UP))
                return
            for body in seat.half.arrived(packet):
                first, along = split(body)
                message = read(first, UP)
                if message.kind == "upload":
                    self._answers.add(task := asyncio.ensure_future(self._answer(seat, message.head, along)))
                    task.add_done_callback(self._answers.discard)
                else:
                    seat.inbox.put(partial(self.desk.letter, seat.name, message.kind, message.head))
            if not packet.number and now - outbox.sent > self._quiet:
                seat.half.alive()
            if (wait := seat.pace(now, self.limits.rate, self.limits.burst)) > 0:
                await asyncio.sleep(wait)
            if seat.inbox.full:
                await seat.inbox.drained()

    async def _answer(self, seat: Seat, head: Mapping[str, Any], along: list[memoryview]) -> None:
        """An upload that came along with a letter; one that did not, as after a cut, comes by a call."""
        upload = str(head.get("upload", ""))
        try:
            if not along:
                raise Gone("nothing came along with the answer: bring it")
            with self._transfer(seat.member, seat.session) as line:
                said = await self._uploads.take(
                    seat.name, _upload_id(upload), 0, along, lambda reason: line.cut(Gone(reason))
                )
        except Exception as error:  # noqa: BLE001  said to the member
            word, reason = self._word(error, seat.member)
            said = {"upload": upload, "error": word, "reason": reason[:1000]}
        seat.half.push(letter("receipt", said))

    def _goodbye(self, seat: Seat, message: Any) -> None:
        if message.kind != "bye":
            raise ProtocolError(f"expected a number on a letter of kind {message.kind[:40]!r}")
        self._leave(seat, "it said goodbye")

    def _first(self) -> float:
        """Seconds to a member's first heartbeat.

        They are spread over the interval, but in groups: waking up for one heartbeat costs several
        times what handling it does, and a group shares the waking: groups four times as large cost the
        server of 5,000 members half as much (measured), and take 25 ms of its event loop each.
        """
        beat = self.limits.heartbeat
        step = min(GROUPED, beat / 10)
        self._slot = (self._slot + 1) % int(beat / step)
        return (self._slot * step - self._clock()) % beat

    def _back(self) -> list[float]:
        """The window in which a member that loses its connection comes back, seconds."""
        return [0.0, len(self._seats) / self.limits.returns]

    def _knock(self, name: str) -> None:
        """At most one hello a second in the long run, ten at once."""
        now = self._clock()
        due = max(self._knocks.get(name, now), now) + 1.0
        if due > now + 10:
            raise Gone("too many hellos: wait a little")
        self._knocks[name] = due

    def _sweep(self) -> None:
        """Drop silent connections, seats that nobody came back to, members whose certificate ran out."""
        now, wall = self._clock(), self._wall()
        for seat in list(self._seats.values()):
            silent = now - seat.heard
            if seat.member.until <= wall:
                self._cut(seat.name, Refused("the certificate has expired: renew it, or enrol again"))
                self._leave(seat, "its certificate expired")
            elif seat.line is not None and silent > 3 * self.limits.heartbeat:
                seat.line.cut(Gone(f"nothing was heard for {silent:.0f} seconds"))
            elif seat.line is None and silent > self.limits.grace:
                self._leave(seat, f"it was away for {silent:.0f} seconds")
        self._knocks = {name: due for name, due in self._knocks.items() if due > now}
        pause = min(max(self.limits.heartbeat / 8, 0.02), SWEEP)
        self._sweeper = asyncio.get_running_loop().call_later(pause, self._sweep)


def _hello(packet: Packet) -> Mapping[str, Any]:
    if packet.number or packet.body is None:
        raise ProtocolError("expected a hello as the first packet")
    message = read(packet.body, UP)
    if message.kind != "hello":
        raise ProtocolError(f"expected a hello first, got a letter of kind {message.kind[:40]!r}")
    return message.head


def _upload_id(upload: str) -> str:
    if not UPLOAD.fullmatch(upload):
        raise ProtocolError("expected an upload's id: up to 200 letters, digits, dots, dashes, underscores")
    return upload


async def _ended(lines: Sequence[Line]) -> None:
    """Until these have ended, two seconds at most."""
    me = asyncio.current_task()
    tasks = [line.task for line in lines if line.task is not me and not line.task.done()]
    if tasks:
        await asyncio.wait(tasks, timeout=2.0)
