"""One side's half of a session over connections that come and go; both sides use it.

One task per connection reads; writing and handling start a task only while there is something to
do, so that thousands of members that wait cost little more than their sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from ..core.errors import ProtocolError, StateError
from ..core.session import Packet, Session
from ..wire.plain import Bytes
from .link import pack

log = logging.getLogger("atoll.transport")

AHEAD = 1_000  # numbers a packet may be ahead of those that arrived: HTTP reorders a few
HANDLED = 256  # letters waiting to be handled before the connection is read more slowly
ACK = 0.5  # seconds an acknowledgement waits for a letter to ride on, or for others to be said with


class Outbox:
    """Packets on their way into one connection."""

    __slots__ = ("_clock", "_send", "_task", "_waiting", "closed", "sent")

    def __init__(self, send: Callable[[bytes], Awaitable[None]], clock: Callable[[], float]) -> None:
        self._send = send
        self._clock = clock
        self._waiting: deque[Callable[[], bytes]] = deque()
        self._task: asyncio.Task[None] | None = None
        self.sent = clock()
        self.closed = False

    def put(self, packet: Callable[[], bytes]) -> None:
        """Make it and send it after those before it; nothing happens where the connection is over."""
        if self.closed:
            return
        self._waiting.append(packet)
        self.sent = self._clock()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._send(self._waiting.popleft()())
        except Exception as error:  # noqa: BLE001  whatever a transport raises when its peer is gone
            log.debug("a connection ended while it was written: %r", error)
            self.close()
        finally:
            self._task = None

    async def last(self, packet: Packet, seconds: float) -> None:
        """Send this and no more; give up after so many seconds."""
        self.put(partial(pack, packet))
        if (task := self._task) is not None:
            await asyncio.wait([task], timeout=seconds)
        self.close()

    def close(self) -> None:
        """Drop what waits: the session keeps what must arrive."""
        self.closed = True
        self._waiting.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()


class Inbox:
    """What to do about arrivals, one after the other; it outlives connections and sessions.

    A call that raises StateError or OSError is tried again until it succeeds: the store heals itself.
    """

    __slots__ = ("_blame", "_task", "_waiting")

    def __init__(self, blame: Callable[[ProtocolError], None]) -> None:
        self._blame = blame
        self._waiting: deque[Callable[[], Awaitable[None]]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Enough waits: read no more."""
        return len(self._waiting) >= HANDLED

    def put(self, call: Callable[[], Awaitable[None]]) -> None:
        """Call it after those before it."""
        self._waiting.append(call)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def drained(self) -> None:
        """Until nothing waits."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Handle nothing more."""
        self._waiting.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._waiting:
                if await self._handled(self._waiting[0]) and self._waiting:
                    self._waiting.popleft()
        finally:
            self._task = None

    async def _handled(self, call: Callable[[], Awaitable[None]]) -> bool:
        try:
            await call()
        except (StateError, OSError) as error:
            log.error("a letter waits until it can be stored: %s", error)  # noqa: TRY400
            await asyncio.sleep(1.0)
            return False
        except ProtocolError as error:
            self._blame(error)
        except Exception:
            log.exception("handling a letter failed; the next one follows")
        return True


class Half:
    """Letters pushed until they are known to have arrived, letters arrived in order.

    What goes along with a letter goes once: after a cut it is brought or fetched by a call, which goes on
    where it was; and where a connection broke under it nothing goes along any more (`carries`).
    """

    __slots__ = ("_ack", "_known", "_laden", "_letters", "_pushed", "_told", "carries", "outbox")

    def __init__(self) -> None:
        self.outbox: Outbox | None = None
        self.carries = True
        self._laden = 0  # the number of the last letter that something went along with
        self._letters = Session()
        self._pushed = self._known = self._told = 0
        self._ack: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Letters not known to have arrived."""
        return self._pushed - self._known

    @property
    def seen(self) -> int:
        """The number of the last letter that arrived in order."""
        return self._letters.ack().seen

    def unsaid(self) -> list[bytes]:
        """Those letters, oldest first."""
        return [packet.body for packet in self._letters.unacked()]

    def push(self, body: bytes, along: Callable[[], Bytes] | None = None) -> None:
        """Number a letter; it goes now, or when there is a connection. `along()`: frames that go with it."""
        packet = self._letters.push(body)
        self._pushed = packet.number
        if along is None or not self.carries or self.outbox is None:
            self._put(packet)
        else:
            self._laden, self._told = packet.number, packet.seen
            self.outbox.put(lambda: pack(packet, along()))

    def connect(self, outbox: Outbox, seen: int) -> None:
        """A connection stands, the other side has `seen` so many: say the rest."""
        self.outbox = outbox
        self._take(Packet(0, seen))
        self.carries = self.carries and self._laden <= self._known
        for packet in self._letters.unacked():
            self._put(packet)

    def arrived(self, packet: Packet) -> list[bytes]:
        """Letters now in order. Raises ProtocolError for numbers that cannot be."""
        if packet.number > AHEAD and packet.number > self.seen + AHEAD:
            raise ProtocolError(f"letter {packet.number} is more than {AHEAD} ahead of the last in order")
        bodies = self._take(packet)
        if packet.number and self._ack is None:
            self._ack = asyncio.get_running_loop().call_later(ACK, self._acknowledge, packet.number)
        return bodies

    def alive(self) -> None:
        """Say that we are here, and what arrived."""
        self._put(self._letters.ack())

    def _take(self, packet: Packet) -> list[bytes]:
        self._known = max(self._known, min(packet.seen, self._pushed))
        return self._letters.arrived(packet)

    def _acknowledge(self, number: int) -> None:
        self._ack = None
        if self.seen > self._told or number <= self._told:  # or it came again: our word was lost
            self.alive()

    def _put(self, packet: Packet) -> None:
        if self.outbox is not None:
            self._told = packet.seen
            self.outbox.put(partial(pack, packet))

    def end(self) -> None:
        """No more acknowledgements."""
        if self._ack is not None:
            self._ack.cancel()
            self._ack = None
