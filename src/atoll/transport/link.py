"""What a member needs of a transport: one session of packets, uploads and downloads that resume.

    link = open_link("grpcs://hub:8443", identity)       # or https://, wss://; the only line that differs
    channel = await link.session(name, hello)             # hello and welcome are its first packets
    receipt = await link.upload("r1.3.bank-a.0", frames, await link.offset("r1.3.bank-a.0"))

A letter is a wire message without arrays: a kind and plain values. A packet carries one under its
number (core/session.py), so that letters arrive once and in order over any number of connections.
Bulk travels apart, as frames of one wire message; a few of them may go along with a letter.
`dial.py` keeps all this going; `service.py` is
the other side; the whole protocol is one page: docs/reference/protocol.md.

Errors, the same on every transport: Refused and ProtocolError are answers and are not retried;
Gone is everything that may pass: no connection, a server that restarts, is full or lost its place.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from ..core.errors import AtollError, CodecError, Gone, ProtocolError, Refused, StateError
from ..core.session import Packet
from ..wire.plain import HEADER, Bytes, Limits, Message, decode_plain, encode_plain
from ..wire.proto import piece
from . import atoll_pb2 as pb

PROTOCOL = (1, 2)  # major, minor: another major is refused, an older minor joins
REPLACED = "another session of this identity replaced this one"
RETURN = (300.0, 600.0)  # seconds, the window in which who was replaced asks whether the seat is free
CAPABILITIES = ("delta", "along")  # what may be used if both sides have it

# What a letter may hold. Down: an ask lists its cohort and the points of every leaf.
UP = Limits(bytes=0, head=256 << 10, leaves=1 << 12, values=1 << 14)
DOWN = Limits(bytes=0, head=1 << 20)
PACKET = DOWN.head + HEADER + 32  # bytes of the longest packet
TELLING = 4 << 20  # bytes sent by which a link's speed is told: fewer may wait in buffers
ALONG = 448 << 10  # bytes of frames that go along with a letter; at 64 kbit/s for less than three heartbeats
KEPT = 0xFFFFFFFF  # the offset of an upload that has its receipt: send no frame, take it

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")  # of a member
UPLOAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
BLOB = re.compile(r"[0-9a-f]{64}")
SESSION = re.compile(r"[0-9a-f]{32}")


class Channel(Protocol):
    """One connection of a session, in packets of at most PACKET bytes; whole, in order, or not at all."""

    async def send(self, packet: bytes) -> None:
        """Hand over one packet. Raises Gone when the connection is over; what was lost is not known."""

    async def recv(self) -> bytes | None:
        """The next packet, None at the end. Raises Refused, ProtocolError or Gone as the server ended it."""

    async def close(self) -> None:
        """End it; again is no error."""


class Link(Protocol):
    """A way to one server. Nothing is connected before it is used; safe to use from one event loop."""

    url: str

    async def session(self, name: str, hello: bytes) -> Channel:
        """Open a connection of the session called `name`, 32 hexadecimal digits; its first packet is `hello`.

        The first to come back is the welcome. All later calls are of this session.
        """

    async def offset(self, upload: str) -> int:
        """How many frames of an upload the server has; the head counts as one."""

    async def upload(self, upload: str, frames: AsyncIterator[bytes], start: int) -> dict[str, Any]:
        """Send a message's frames from number `start` on; the receipt.

        Raises Gone where the server has another offset by now: ask again and go on from there.
        """

    def download(self, blob: str, start: int, have: Sequence[str]) -> AsyncIterator[Bytes]:
        """The frames of a blob from number `start` on; with `have`, maybe those of a delta (delta.py)."""

    async def probe(self) -> None:
        """See whether the server can be reached, without a session. Raises Gone or Refused."""

    async def close(self) -> None:
        """Give all connections back; again is no error."""


def letter(kind: str, head: Mapping[str, Any], limits: Limits = DOWN) -> bytes:
    """A letter as bytes. Raises MisuseError for what does not fit one."""
    return encode_plain(kind, head, limits)


def read(data: Bytes, limits: Limits = DOWN) -> Message:
    """The letter in `data`. Raises CodecError or IntegrityError."""
    return decode_plain(data, limits)


def split(body: bytes) -> tuple[memoryview, list[memoryview]]:
    """A packet's letter, and the frames that go along with it; unread. Raises CodecError."""
    view, at = memoryview(body), 0
    found: list[memoryview] = []
    while at < len(view):
        end = at + HEADER + int.from_bytes(view[at + 16 : at + 20], "little")
        if end > len(view):
            raise CodecError(f"expected whole frames, frame {len(found)} is cut")
        found.append(view[at:end])
        at = end
    return found[0], found[1:]


def pack(packet: Packet, along: Bytes = b"") -> bytes:
    """A packet of core/session.py, its body a letter's bytes or None, as it travels. `along`: frames that
    go with the letter; none do where that would be too long.
    """
    made: bytes = pb.Packet(number=packet.number, seen=packet.seen).SerializeToString()
    if packet.body is None:
        return made
    if len(packet.body) + len(along) > DOWN.head + HEADER:
        along = b""
    return made + piece(3, packet.body, along)


def unpack(data: bytes) -> Packet:
    """What `pack` made. Raises CodecError."""
    if len(data) > PACKET:
        raise CodecError(f"expected a packet of at most {PACKET} bytes, got {len(data)}")
    try:
        packet = pb.Packet.FromString(data)
    except DecodeError:
        raise CodecError("expected a packet as in atoll.proto") from None
    if packet.number and not packet.letter:
        raise CodecError("expected a letter in a numbered packet")
    return Packet(packet.number, packet.seen, packet.letter or None)


def agreed(theirs: Any, what: str) -> tuple[int, int]:
    """The protocol both sides speak, from what the other side says it speaks; `what` names it.

    The same major with any minor is spoken as the lower minor. Raises ProtocolError.
    """
    match theirs:
        case [int(major), int(minor)] if not isinstance(major, bool) and major >= 0 <= minor:
            pass
        case _:
            raise ProtocolError(f"expected {what}'s protocol as two integers, major and minor")
    ours = f"{PROTOCOL[0]}.{PROTOCOL[1]}"
    if major > PROTOCOL[0]:
        raise ProtocolError(
            f"{what} speaks protocol {major}.{minor}, this side {ours}: "
            f"upgrade Atoll on this side, or install a version of Atoll on {what} that speaks {PROTOCOL[0]}.x"
        )
    if major < PROTOCOL[0]:
        raise ProtocolError(
            f"{what} speaks protocol {major}.{minor}, this side {ours}: upgrade Atoll on {what}"
        )
    return major, min(minor, PROTOCOL[1])


class ReplacedError(Gone):
    """A second process of one identity has its seat: come back after a while, if the seat is free then."""

    def __init__(self) -> None:
        super().__init__(REPLACED)


def word(error: BaseException) -> tuple[str, str]:
    """How a server says an error: refused, protocol or gone (later, maybe), and its reason in words."""
    match error:
        case Refused():
            return "refused", str(error)
        case ProtocolError():
            return "protocol", str(error)
        case Gone() | StateError():
            return "gone", str(error)
        case OSError():
            return "gone", f"the server cannot use its disk: {error.strerror or type(error).__name__}"
    return "gone", "the server failed: see its log"


def fault(said: str, reason: str) -> AtollError:
    """The error that `word` said; an unknown word may pass."""
    return {"refused": Refused, "protocol": ProtocolError}.get(said, Gone)(reason)
