"""What stands between members: a relay with every fault of a network, a CONNECT proxy, one that ends TLS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import threading
from base64 import b64encode
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Generic, Self, TypeVar

Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(host: str, port: int, tls: ssl.SSLContext | None = None) -> Pipe:
    """A connection that is closed even if nobody waits for it any more when it stands."""
    making = asyncio.ensure_future(asyncio.open_connection(host, port, ssl=tls))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(
            lambda done: done.cancelled() or done.exception() or done.result()[1].transport.abort()
        )
        raise


class Server:
    """An asyncio TCP server for `async with`; `port` is free until then."""

    port = 0

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self.accepted = 0

    async def __aenter__(self) -> Any:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0)  # who was accepted just now is known after this
        while self._tasks:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Not a coroutine: one that is cancelled before it begins could close nothing."""
        self.accepted += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            await self.serve(reader, writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


S = TypeVar("S", bound=Server)


class Aside(Generic[S]):
    """Servers that run in a thread with a loop of its own, for `with`."""

    def __init__(self, servers: Sequence[S]) -> None:
        self.servers = servers
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        for server in self.servers:
            await server.__aenter__()
        self._ready.set()
        await self._stop.wait()
        for server in self.servers:
            await server.__aexit__()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def ports(self) -> list[int]:
        return [server.port for server in self.servers]


async def join(
    a: Pipe,
    b: Pipe,
    through: Callable[[str, bytes], Awaitable[bytes]],
    ended: Collection[asyncio.StreamWriter] = (),
) -> None:
    """Copy both ways, each piece as `through(direction, piece)` leaves it, until either side ends.

    `ended`: writers that take nothing any more; may change.
    """

    async def copy(direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            passed = await through(direction, data)
            if writer in ended:
                return
            writer.write(passed)
            with contextlib.suppress(*([ConnectionError] if direction == "down" else [])):
                await writer.drain()  # who hears nothing any more may still be heard to its end
        if writer.can_write_eof():
            writer.write_eof()

    both = {asyncio.ensure_future(copy("up", a[0], b[1])), asyncio.ensure_future(copy("down", b[0], a[1]))}
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        b[1].transport.abort()  # first: this task may be cancelled again
        for task in both:
            task.cancel()
        await asyncio.wait(both)


class Relay(Server):
    """Passes bytes on to `port` of this machine, as badly as its attributes say; all may change at any time.

    `latency`, `jitter`: seconds each piece waits; `rate`: bytes a second; `cut_at`: after so many bytes
    up, all connections end, once; `held`: nothing passes, nothing ends (half-open); `closed`: nobody gets
    in; `corrupt`: so many pieces more get one bit flipped; `record`: (direction, bytes) of all.
    """

    def __init__(self, to: int, seed: int = 0) -> None:
        super().__init__()
        self._to = to
        self._rng = random.Random(seed)
        self._free = asyncio.Event()
        self._free.set()
        self.latency = self.jitter = self.rate = 0.0
        self.corrupt = 0
        self.cut_at: int | None = None
        self.closed = False
        self.bytes = {"up": 0, "down": 0}
        self.record: list[tuple[str, bytes]] | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._onward: set[asyncio.StreamWriter] = set()  # of these, those to the server,
        self._ended: set[asyncio.StreamWriter] = set()  # and those of them that were cut

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed:
            return
        other = await connect("127.0.0.1", self._to)
        self._writers |= {writer, other[1]}
        self._onward.add(other[1])
        try:
            await join((reader, writer), other, self._through, self._ended)
        finally:
            self._writers -= {writer, other[1]}
            self._onward.remove(other[1])
            self._ended.discard(other[1])

    async def _through(self, direction: str, data: bytes) -> bytes:
        await self._free.wait()
        if self.latency or self.jitter:
            await asyncio.sleep(self.latency + self._rng.uniform(0, self.jitter))
        if self.rate:
            await asyncio.sleep(len(data) / self.rate)
        if direction == "up" and self.cut_at is not None and self.bytes["up"] + len(data) >= self.cut_at:
            data = data[: max(0, self.cut_at - self.bytes["up"])]
            self.cut_at = None
            self.hold()  # what came after a gap would be no faithful byte of anybody's
            asyncio.get_running_loop().call_later(0.01, self.cut)
        if self.corrupt and len(data) > 1000 and self._rng.random() < 0.1:
            self.corrupt -= 1
            at = self._rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << self._rng.randrange(8)]) + data[at + 1 :]
        self.bytes[direction] += len(data)
        if self.record is not None:
            self.record.append((direction, data))
        return data

    def hold(self, *, held: bool = True) -> None:
        """Let nothing pass any more, or again; connections stay."""
        if held:
            self._free.clear()
        else:
            self._free.set()

    def cut(self) -> None:
        """End all connections as a clean end of the stream, after what was passed on; new ones may follow.

        To the server only our direction ends: closed with an answer unread, the connection would be reset,
        and what a busy server has not read yet would be lost.
        """
        self.hold(held=False)
        for writer in list(self._writers):
            with contextlib.suppress(OSError, RuntimeError):
                if writer in self._onward:
                    self._ended.add(writer)
                    writer.write_eof()
                else:
                    writer.close()

    def reset(self) -> None:
        """End all connections at once."""
        for writer in list(self._writers):
            writer.transport.abort()


class ConnectProxy(Server):
    """An HTTP proxy that passes TLS through for those who know its user and password."""

    def __init__(self, user: str = "", password: str = "") -> None:
        super().__init__()
        self._expected = "Basic " + b64encode(f"{user}:{password}".encode()).decode() if user else ""
        self.refused = 0
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            told = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:])}
            self.asked.append(target)
            if method == "CONNECT" and told.get("proxy-authorization", "") == self._expected:
                break
            self.refused += 1
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\n"
                b"Content-Length: 0\r\n\r\n"
            )
            await writer.drain()
        host, _, port = target.rpartition(":")
        other = await connect(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def through(direction: str, data: bytes) -> bytes:
            return data

        await join((reader, writer), other, through)


class TlsProxy(Server):
    """Ends TLS with a certificate of its own and speaks to `port` of this machine, in TLS if `upstream`.

    `change(direction, piece)` may read and alter all that passes.
    """

    def __init__(self, to: int, tls: ssl.SSLContext, upstream: ssl.SSLContext | None) -> None:
        super().__init__(tls)
        self._to = to
        self._upstream = upstream
        self.change: Callable[[str, bytes], bytes] = lambda direction, data: data

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other = await connect("127.0.0.1", self._to, self._upstream)

        async def through(direction: str, data: bytes) -> bytes:
            return self.change(direction, data)

        await join((reader, writer), other, through)
