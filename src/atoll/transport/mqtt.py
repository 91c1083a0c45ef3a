"""Calls over MQTT 5: pieces on topics of their own, the same at both ends of a broker.

    atoll/GATEWAY/state              retained: the gateway's life, 32 hexadecimal digits; empty: it is away
    atoll/GATEWAY/up/MEMBER/LINK     calls (calls.py), cut into pieces; LINK: 32 hexadecimal digits
    atoll/GATEWAY/down/MEMBER/LINK   their answers

A piece is the protobuf message Piece of atoll.proto. A broker may deliver one twice, and one that
restarts loses some: pieces have numbers, one that came is not taken again, a gap ends the call. Who
sends is at most WINDOW pieces ahead of who reads, so nothing piles up in between. The broker and
whoever may publish there are not trusted: calls are signed (sealed.py), and junk is dropped unread.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from ..core.errors import AtollError, ConfigError, Gone
from . import atoll_pb2 as pb
from .address import loopback
from .calls import Body
from .link import NAME
from .pump import thread

PIECE = 112 << 10  # bytes of a body in one piece: some brokers take no message above 128 KiB
LONGEST = PIECE + (12 << 10)  # bytes of a message: a piece, its path and headers
WINDOW = 16  # pieces under way that were not read
SILENT = 60.0  # seconds without a word of the other side after which a call is broken
ALIVE = 20.0  # seconds between a gateway's words in a call it has nothing to say in
CONNECT = 10.0  # seconds until a broker must have let us in
CLOSE = 2.0  # seconds to say goodbye
KEEPALIVE = 20  # seconds between words on a connection that has nothing to say
PORTS = {"mqtts": 8883, "mqtt": 1883}
_LIFE = re.compile(rb"[0-9a-f]{32}")
_WHY = 500  # characters of a reason

Piece = pb.Piece
MORE, LAST, BROKEN = pb.Piece.MORE, pb.Piece.LAST, pb.Piece.BROKEN


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker is and who we are to it. `ca`: PEM that vouches for it, None for the system's."""

    host: str
    port: int
    tls: bool
    user: str = ""
    password: str = field(default="", repr=False)
    ca: Path | None = None


def broker_at(url: str, user: tuple[str, str] | None = None, ca: Path | None = None) -> tuple[Broker, str]:
    """The broker of a URL, and the gateway that its path names, "" for none. `user`: name and password.

    Raises ConfigError for another form, for plain text to other machines, and for a password in it: URLs
    are shown.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    try:
        host, port = parts.hostname, parts.port or PORTS.get(scheme)
    except ValueError:
        host = port = None
    if not host or port is None or scheme not in PORTS or parts.query:
        raise ConfigError(f"expected a broker's URL such as mqtts://broker:8883, got {url!r}")
    if parts.username is not None:
        raise ConfigError("a URL is shown in logs: write the broker's user and password under [broker]")
    if scheme == "mqtt":
        loopback(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    name, password = user or ("", "")
    return Broker(host, port, scheme == "mqtts", name, password, ca), parts.path.strip("/")


def gateway_name(name: str) -> str:
    """A gateway's name, as it stands in topics. Raises ConfigError."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"expected a gateway's name, as in mqtts+sealed://broker/plant, got {name[:60]!r}")
    return name


def topic_name(name: str) -> str:
    """Whose topics these are: the broker's user, or a member. Raises ConfigError for no name of that form."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"expected a broker's user in lower-case letters, digits, dots, dashes, got {name[:60]!r}"
        )
    return name


class _Closing(ssl.SSLSocket):
    """One that does not stay open where the broker does not prove itself, as the library leaves it."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  the library's own
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class Line:
    """One connection to a broker, from `open` until it breaks or is closed; it is not made again.

    `topics`: what to hear, each with whether retained messages are wanted. `will`: (topic, message,
    retained), said by the broker when we are gone without a word. `hear(topic, message, retained)` is
    called for each as it comes, `over(why)` once at the end; both on the event loop.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        topics: Mapping[str, bool],
        will: tuple[str, bytes, bool],
        hear: Callable[[str, bytes, bool], None],
        over: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.why = ""  # it is over
        self._broker = broker
        self._name = name
        self._topics = topics
        self._will = will
        self._hear = hear
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._codes: asyncio.Queue[Any] = asyncio.Queue()
        self._unsaid = 0
        self._said, self._ended = asyncio.Event(), asyncio.Event()
        self._client: Any = None

    async def open(self) -> None:
        """Connect and subscribe. Raises Gone with what the broker said, or why it cannot be reached."""
        at = self._broker
        try:
            async with asyncio.timeout(CONNECT):
                await self._connect()
                for topic, retained in self._topics.items():
                    await self._subscribe(topic, retained)
        except (OSError, ValueError, TimeoutError) as error:
            why = str(error) or f"it did not answer within {CONNECT:.0f} seconds"
            raise Gone(f"the broker {at.host}:{at.port} cannot be reached: {why}") from None

    async def _connect(self) -> None:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        at, (topic, message, retained) = self._broker, self._will
        client = self._client = paho.Client(
            CallbackAPIVersion.VERSION2, self._name, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        client.will_set(topic, message, 1, retained)
        if at.user:
            client.username_pw_set(at.user, at.password or None)
        if at.tls:
            context = ssl.create_default_context(cafile=at.ca)
            context.sslsocket_class = _Closing
            client.tls_set_context(context)
        client.connect_timeout = CONNECT
        client.on_connect = lambda _c, _u, _f, code, _p: self._later(self._let_in, code)
        client.on_disconnect = lambda _c, _u, _f, code, _p: self._later(self._lost, code)
        client.on_subscribe = lambda _c, _u, _m, codes, _p: self._later(self._codes.put_nowait, codes[0])
        client.on_publish = lambda _c, _u, _m, code, _p: self._later(self._confirmed, code)
        client.on_message = lambda _c, _u, m: self._later(self._heard, m.topic, m.payload, m.retain)
        limits: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        limits.MaximumPacketSize = LONGEST + 1024  # longer ones the broker keeps to itself
        await thread(None, partial(client.connect, at.host, at.port, KEEPALIVE, properties=limits))
        client.loop_start()  # a thread of its own
        await self._connected

    async def _subscribe(self, topic: str, retained: bool) -> None:  # noqa: FBT001
        from paho.mqtt.subscribeoptions import SubscribeOptions

        self._client.subscribe(topic, options=SubscribeOptions(qos=1, retainHandling=0 if retained else 2))
        code = await self._codes.get()
        if code.is_failure:
            who = self._broker.user or "a nameless client"
            raise Gone(f"the broker does not let {who} read {topic} ({code}): see its access list")

    def put(self, topic: str, message: bytes, *, retain: bool = False) -> None:
        """Say it after what was said before; once more where the broker does not confirm it."""
        if not self.why:
            self._unsaid += 1
            self._client.publish(topic, message, qos=1, retain=retain)

    async def close(self) -> None:
        """Say what waits, then goodbye to the broker; again is no error."""
        if self._client is None or self._ended.is_set():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE):
                while self._unsaid and not self.why:
                    self._said.clear()
                    await self._said.wait()
        self._end("closed")
        self._client.disconnect()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE):
                await self._ended.wait()

    # -- what the library's thread says ---------------------------------------------------------

    def _later(self, call: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(call, *args)

    def _let_in(self, code: Any) -> None:
        if self._connected.done():
            return
        if code.is_failure:
            self._connected.set_exception(Gone(f"the broker does not let us in: {code}"))
        else:
            self._connected.set_result(None)

    def _lost(self, code: Any) -> None:
        self._ended.set()
        self._end(f"the connection to the broker has ended: {code}")

    def _confirmed(self, code: Any) -> None:
        self._unsaid -= 1
        self._said.set()
        if code.is_failure:
            who = self._broker.user or "a nameless client"
            self._end(f"the broker takes nothing from {who} ({code}): see its access list")

    def _heard(self, topic: str, message: bytes, retained: bool) -> None:  # noqa: FBT001
        if not self.why:
            self._hear(topic, message, retained)

    def _end(self, why: str) -> None:
        if not self.why:
            self.why = why
            self._said.set()
            if not self._connected.done():
                self._connected.set_exception(Gone(why))
                self._connected.exception()  # whoever waited may be gone
            self._over(why)


def read(message: bytes) -> pb.Piece | None:
    """The piece in a message, None for anything else."""
    if len(message) > LONGEST:
        return None
    try:
        piece = pb.Piece.FromString(message)
    except DecodeError:
        return None
    return piece if len(piece.call) in {0, 16} and len(piece.body) <= PIECE else None


def life(message: bytes) -> str:
    """The gateway's life in its state, "" for none."""
    return message.decode() if _LIFE.fullmatch(message) else ""


class Talk:
    """One side of a call: what it says, in pieces, and what it hears. `put` brings a piece to the other."""

    def __init__(self, call: bytes, put: Callable[[pb.Piece], None], silent: float = SILENT) -> None:
        self._call = call
        self._put = put
        self._silent = silent
        self._heard: asyncio.Queue[pb.Piece | None] = asyncio.Queue()
        self._news = asyncio.Event()
        self._error: AtollError | None = None
        self._number = self._read = self._said = self._taken = 0
        self._last = False
        self.over = False  # the other side has said all it will

    def arrived(self, piece: pb.Piece) -> None:
        """A piece came; what came before is not taken again."""
        self._taken = max(self._taken, min(piece.taken, self._number))
        if piece.end == BROKEN:
            self.fail(Gone(piece.body.decode("utf-8", "replace")[:_WHY] or "the call was ended"))
        elif piece.number == self._said + 1 and not self._last:
            self._said, self._last = piece.number, piece.end == LAST
            if self._said > self._read + WINDOW:
                self.fail(Gone("more pieces came than were asked for"))
            self._heard.put_nowait(piece)
        elif piece.number > self._said:
            self.fail(Gone("a piece of the call was lost on its way"))
        else:
            self._heard.put_nowait(None)  # a sign of life
        self._news.set()

    def fail(self, error: AtollError) -> None:
        """It is over, for this reason."""
        if self._error is None:
            self._error = error
        self._heard.put_nowait(None)
        self._news.set()

    def alive(self) -> None:
        """Say that we are still here."""
        self._put(Piece(call=self._call, taken=self._read))

    def broken(self, why: str) -> None:
        """Say that nothing more comes of it."""
        self._put(Piece(call=self._call, end=BROKEN, body=why[:_WHY].encode()))

    async def hear(self) -> pb.Piece:
        """The next piece. Raises Gone, or what the call failed with."""
        piece = None
        while piece is None:
            try:
                async with asyncio.timeout(self._silent):
                    piece = await self._heard.get()
            except TimeoutError:
                raise Gone(f"nothing was heard of a call for {self._silent:.0f} seconds") from None
            if self._error is not None:
                raise self._error
        self._read += 1
        self.over = piece.end == LAST
        if not self.over and self._read % (WINDOW // 4) == 0:
            self.alive()
        return piece

    async def body(self, first: pb.Piece) -> AsyncIterator[bytes]:
        """The body that begins in `first`."""
        piece = first
        while True:
            if piece.body:
                yield piece.body
            if piece.end == LAST:
                return
            piece = await self.hear()

    async def say(self, body: Body, **first: Any) -> None:
        """All of a body, in pieces; `first`: what the first of them says besides. Raises as `hear`."""
        async for data, last in _cut(body):
            while self._number - self._taken >= WINDOW and self._error is None:
                self._news.clear()
                try:
                    async with asyncio.timeout(self._silent):
                        await self._news.wait()
                except TimeoutError:
                    raise Gone(f"nothing was heard of a call for {self._silent:.0f} seconds") from None
            if self._error is not None:
                raise self._error
            self._number += 1
            end = LAST if last else MORE
            said = Piece(call=self._call, number=self._number, taken=self._read, end=end, body=data, **first)
            self._put(said)
            first = {}


async def _cut(body: Body) -> AsyncIterator[tuple[bytes, bool]]:
    """A body in pieces, each with whether it is the last."""
    if body is None or isinstance(body, bytes):
        data = body or b""
        for at in range(0, len(data) or 1, PIECE):
            yield data[at : at + PIECE], at + PIECE >= len(data)
        return
    async for data in body:
        for at in range(0, len(data), PIECE):
            yield bytes(data[at : at + PIECE]), False
    yield b"", True


def headers(pairs: Mapping[str, str]) -> list[pb.Piece.Header]:
    """Headers as a piece has them, their names in lower case."""
    return [Piece.Header(name=name.lower(), value=value) for name, value in pairs.items()]
