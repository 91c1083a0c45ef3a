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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..core.errors import Gone, ProtocolError, Refused

if TYPE_CHECKING:
    from ..privacy.keys import Member

log = logging.getLogger("atoll.transport")


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What one service gives; all seconds.

    `heartbeat`: what members are told; one silent for three of them has lost its connection.
    `grace`: a seat without connection waits so long. `rate`, `burst`: letters per second and member,
    beyond which it is read more slowly. `queue`: letters waiting for one member. `transfers`: at once,
    of one member. `window`: in this time a transfer moves at least one frame. `takeover`: a second
    connection with the same upload takes over from one that stood still so long. `back`: members that
    lose their connection come back within this window, spread evenly.
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
    back: tuple[float, float] = (0.0, 5.0)
    cache: int = 32 << 20


@dataclass(frozen=True, slots=True)
class Way:
    """How a member came: `transport` as in its URL, `address` for people, `sealed` behind a proxy."""

    transport: str
    address: str = ""
    sealed: bool = False


class Service:
    """All seats of one server process. Make it, `start` it, give it to bindings, `close` it."""

    epoch: str  # this process life, 32 hexadecimal digits

    def __init__(
        self,
        desk: Desk,
        limits: Limits = Limits(),
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        token: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self.desk = desk
        self.limits = limits

    async def start(self) -> None:
        """Begin to watch for silent members; on the running event loop."""

    async def close(self, reason: str = "the server shuts down") -> None:
        """Tell everybody when to come back, end all connections."""

    def send(self, name: str, kind: str, head: Mapping[str, Any]) -> bool:
        """Queue a letter for a present member. False where it has no seat: `present` will come."""
        raise NotImplementedError

    async def cut(self, name: str, reason: str) -> None:
        """End everything this member has open, now; its seat is over. `admit` keeps it out."""

    def sessions(self) -> list[dict[str, Any]]:
        """For people: name, role, transport, address, sealed, protocol, connected, since, heard, waiting."""
        raise NotImplementedError

    # -- what bindings call ---------------------------------------------------------------------

    async def session(
        self,
        member: Member,
        way: Way,
        incoming: AsyncIterator[bytes],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Serve one connection until it ends; what must be said is said in packets."""

    async def offset(self, member: Member, session: str, upload: str) -> int:
        """How many frames of this upload are on disk."""
        raise NotImplementedError

    async def upload(
        self, member: Member, session: str, upload: str, start: int, incoming: AsyncIterator[bytes]
    ) -> dict[str, Any]:
        """Take frames in from number `start` on; the receipt."""
        raise NotImplementedError

    def download(
        self, member: Member, session: str, blob: str, start: int, have: Sequence[str]
    ) -> AsyncIterator[bytes]:
        """Frames of a blob, or of a delta to it from one the member has."""
        raise NotImplementedError
