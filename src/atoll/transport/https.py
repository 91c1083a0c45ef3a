"""The server's side of HTTPS and WebSocket: the same sessions and transfers, through any proxy.

    POST /v1/session          packets up; with `atoll-mode: stream` packets down for as long as it
                              stands, with `poll` those there are, within half a minute
    GET  /v1/ws               a WebSocket, one packet a message (ws.py)
    HEAD, PUT /v1/uploads/ID  the offset; frames, and a receipt back
    GET  /v1/blobs/ID         frames `?from=k&have=blob,blob`
    GET  /v1/root, POST /v1/enrol, POST /v1/renew   given by the caller: see enrol.py

Members show a certificate; one that is missing is refused everywhere but at the root, at enrolment
and where a proxy ends TLS and each call is signed instead (sealed.py). Connections that say nothing,
or too slowly, are closed; how many there may be is limited.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

from aiohttp import web

from ..core.errors import ConfigError, Gone, ProtocolError
from ..core.session import Packet
from ..privacy.keys import Member
from ..wire.plain import FRAME, HEADER, Bytes
from .address import claimed, host_port, loopback
from .knock import HANDSHAKE, doors
from .link import PROTOCOL, SESSION, letter, pack
from .pieces import frames, packed, packets
from .pump import thread
from .rate import Rate
from .sealed import OVERHEAD, Seal, Sealer, said
from .service import Service, Way
from .tls import Source, https_member, server_context

log = logging.getLogger("atoll.transport")

Handler: TypeAlias = Callable[[web.Request, Member | None], Awaitable[web.StreamResponse]]
Extra: TypeAlias = Mapping[tuple[str, str], Handler]  # (method, path): may answer strangers

_Call: TypeAlias = Callable[[web.Request, Member, Seal | None], Awaitable[web.StreamResponse]]

POLL = 25.0  # seconds a poll waits for a packet: proxies often cut at 30 or 60
IDLE = 75.0  # seconds a connection may stand without a request, or with an unfinished one
SWEEP = 5.0
STRANGER = "a member shows its certificate, or signs: enrol with a token first"
OVER = "this connection is over: say hello again"
COSTLY = ("/v1/enrol", "/v1/enrol/key", "/v1/renew", "/v1/seal")  # a signature or a look-up each, for anybody
HTTP = {"refused": 403, "protocol": 400, "gone": 503}


class _Caller(NamedTuple):
    """Who makes a request; the seal, where it is signed."""

    member: Member | None = None
    seal: Seal | None = None


class Listening:
    """A server that accepts members. `port`: the one it got."""

    def __init__(self, runner: web.AppRunner, servers: Sequence[asyncio.Server], watch: _Watch) -> None:
        self.port: int = servers[0].sockets[0].getsockname()[1]
        self._runner = runner
        self._servers = servers
        self._watch = watch

    async def close(self) -> None:
        """Accept nobody any more and end what is open. Close the Service first: it says goodbye."""
        self._watch.close()
        for server in self._servers:
            server.close()
        await self._runner.cleanup()


async def serve(
    service: Service,
    address: str,
    source: Source | None,
    *,
    federation: str,
    extra: Extra | None = None,
    signer: Source | None = None,
    connections: int = 20_000,
    idle: float = IDLE,
    knocks: Rate | None = None,
    wall: Callable[[], float] = time.time,
) -> Listening:
    """Listen at `address` (host:port, port 0 for any) with the identity of `source`.

    Without one members are who they say, in plain text: loopback only, for recording what is said.
    `signer`: whose signatures members behind a proxy that ends TLS trust; by default the same identity.
    `extra`: more routes, each by (method, path). `knocks`: how often an address may ask what is COSTLY: by
    default 1,000 times at once, for many members behind one, then 50 a second. Raises ConfigError where it
    cannot listen there.
    """
    sealer = _sealer(signer or source, federation, wall)

    def who(request: web.Request) -> _Caller:
        if sealer is not None and "atoll-seal" in request.headers:
            return _Caller(*sealer.request(request.method, request.raw_path, request.headers))
        if sealer is None:
            said = request.headers.get("atoll-member")
            return _Caller(claimed(said) if said else None)
        connection = request.transport.get_extra_info("ssl_object") if request.transport else None
        try:
            return _Caller(https_member(connection, federation=federation, now=wall()))
        except ValueError:  # OpenSSL names nobody any more after a record that was damaged
            raise Gone("the connection broke") from None

    host, port = host_port(address)
    context: ssl.SSLContext | None = None
    if source is None:
        loopback(address)
    else:
        context = server_context(source, "optional", ["http/1.1"])
    watch = _Watch(connections, idle)
    calls = _Calls(service, who, sealer, knocks)
    app = web.Application(middlewares=[watch.middleware], client_max_size=1 << 20)
    app.add_routes(calls.routes())
    for (method, path), handler in (extra or {}).items():
        app.router.add_route(method, path, calls.open_to_strangers(handler))
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, keepalive_timeout=idle, max_line_size=4096,
        max_headers=64, max_field_size=8190, lingering_time=5.0, shutdown_timeout=1.0, read_bufsize=1 << 20,
    )  # fmt: skip
    await runner.setup()
    watch.server = runner.server
    more = {"ssl_handshake_timeout": HANDSHAKE, "ssl_shutdown_timeout": 1.0} if context else {}
    try:
        loop = asyncio.get_running_loop()
        opened = await doors(host, port)
        servers = [
            await loop.create_server(runner.server, sock=door, ssl=context, backlog=1024, **more)  # type: ignore[call-overload]
            for door in opened
        ]
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(f"cannot listen at {address}: {error.strerror or error}") from None
    watch.start()
    return Listening(runner, servers, watch)


def _sealer(source: Source | None, federation: str, wall: Callable[[], float]) -> Sealer | None:
    if source is None:
        return None
    return Sealer(source if callable(source) else lambda: source, federation, wall)


class _Watch:
    """Closes connections that stand without a request for too long, and those beyond the limit."""

    def __init__(self, most: int, idle: float) -> None:
        self.server: web.Server | None = None
        self._most = most
        self._idle = idle
        self._busy: dict[int, int] = {}  # requests under way, by connection
        self._since: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Around every request."""
        key = id(request.protocol)
        self._busy[key] = self._busy.get(key, 0) + 1
        try:
            response: web.StreamResponse = await handler(request)
            return response
        finally:
            self._busy[key] -= 1
            if not self._busy[key]:
                del self._busy[key]
            self._since.pop(key, None)

    def start(self) -> None:
        """Look from time to time."""
        self._timer = asyncio.get_running_loop().call_later(min(SWEEP, self._idle / 4), self._look)

    def _look(self) -> None:
        now, seen = time.monotonic(), {}
        connections = list(self.server.connections) if self.server else []
        for place, handler in enumerate(connections):
            key = id(handler)
            if handler.transport is None or key in self._busy:
                continue
            seen[key] = self._since.get(key, now)
            if now - seen[key] > self._idle or place >= self._most:
                handler.transport.abort()
        self._since = seen
        self.start()

    def close(self) -> None:
        """Look no more."""
        if self._timer:
            self._timer.cancel()


class _Calls:
    """The calls of a member: who speaks is asked first, errors are said as status and reason."""

    def __init__(
        self,
        service: Service,
        who: Callable[[web.Request], _Caller],
        sealer: Sealer | None,
        knocks: Rate | None = None,
    ) -> None:
        self._knocks = knocks or Rate(50.0, 1000.0)
        self._service = service
        self._who = who
        self._sealer = sealer
        self._polled: dict[tuple[str, str], _Polled] = {}

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/v1/", self._about),
            web.post("/v1/seal", self.open_to_strangers(self._seal)),
            web.post("/v1/session", self._members_only(self._session)),
            web.get("/v1/ws", self._members_only(self._socket)),
            web.head("/v1/uploads/{upload}", self._members_only(self._offset)),
            web.put("/v1/uploads/{upload}", self._members_only(self._upload)),
            web.get("/v1/blobs/{blob}", self._members_only(self._download), allow_head=False),
        ]

    def _members_only(self, call: _Call) -> Any:
        async def handler(request: web.Request) -> web.StreamResponse:
            caller = _Caller()
            try:
                caller = self._who(request)
                if caller.member is None:
                    return _said(request, caller, 401, "refused", STRANGER)
                return await call(request, caller.member, caller.seal)
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001  said to the member, logged by the service
                word, reason = self._service.word(error, caller.member)
                status = 401 if caller.member is None and word != "gone" else HTTP[word]
                return _said(request, caller, status, word, reason)

        return handler

    def open_to_strangers(self, call: Handler) -> Any:
        """A route that says itself whom it answers."""

        async def handler(request: web.Request) -> web.StreamResponse:
            caller = _Caller()
            if request.path in COSTLY:
                wait = self._knocks.wait(request.remote, time.monotonic())
                if wait > 0:
                    return _later(int(wait) + 1)
            try:
                caller = self._who(request)
                return await call(request, caller.member)
            except web.HTTPException:
                raise
            except Exception as error:  # noqa: BLE001
                word, reason = self._service.word(error, caller.member)
                return _said(request, caller, HTTP[word], word, reason)

        return handler

    async def _seal(self, request: web.Request, member: Member | None) -> web.Response:
        if self._sealer is None:
            raise ProtocolError("this server signs nothing: it has no identity")
        try:
            asked = await request.json()
        except ValueError:
            raise ProtocolError("expected JSON") from None
        return web.json_response(self._sealer.answer(asked))

    async def _about(self, request: web.Request) -> web.Response:
        return web.json_response({"protocol": list(PROTOCOL)})

    # -- sessions -------------------------------------------------------------------------------

    async def _session(self, request: web.Request, member: Member, seal: Seal | None) -> web.StreamResponse:
        mode, connection = request.headers.get("atoll-mode", ""), request.headers.get("atoll-connection", "")
        if mode not in {"stream", "poll", "send", "end"} or not SESSION.fullmatch(connection):
            raise ProtocolError("expected atoll-mode stream, poll, send or end, and an atoll-connection")
        key = member.name, connection
        if mode == "stream":
            return await self._stream(request, member, seal, key)
        polled = self._polled.get(key)
        if polled is None:
            if mode != "poll" or request.headers.get("atoll-open") != "1":
                return _said(request, _Caller(member, seal), 410, "gone", OVER)
            polled = self._polled[key] = _Polled()
            polled.start(
                self._service, member, _way("https+poll", request, seal), lambda: self._polled.pop(key, None)
            )
        async for packet in packets(request.content.iter_any()):
            polled.put(_open(seal, packet))
        if mode == "end":
            polled.end()
        if mode != "poll":
            return web.Response(status=204)
        ready = await polled.get(POLL)
        if ready is None:
            return _said(request, _Caller(member, seal), 410, "gone", OVER)
        return web.Response(body=packed(_close(seal, packet) for packet in ready), headers=_PLAIN)

    async def _stream(
        self, request: web.Request, member: Member, seal: Seal | None, key: tuple[str, str]
    ) -> web.StreamResponse:
        first = [_open(seal, packet) async for packet in packets(request.content.iter_any())]
        response = web.StreamResponse(headers=_PLAIN | {"X-Accel-Buffering": "no"})
        await response.prepare(request)
        line = self._polled[key] = _Polled()
        for packet in first:
            line.put(packet)

        async def send(packet: bytes) -> None:
            await response.write(packed([_close(seal, packet)]))

        try:
            await self._service.session(member, _way("https", request, seal), line.incoming(), send)
            with suppress(ConnectionResetError):  # whoever has hung up needs no farewell
                await response.write_eof()
        finally:
            self._polled.pop(key, None)
        return response

    async def _socket(self, request: web.Request, member: Member, seal: Seal | None) -> web.StreamResponse:
        from .ws import serve_socket

        return await serve_socket(self._service, request, member, _way("wss", request, seal), seal)

    # -- transfers ------------------------------------------------------------------------------

    async def _offset(self, request: web.Request, member: Member, seal: Seal | None) -> web.Response:
        try:
            frames = await self._service.offset(member, _name(request), request.match_info["upload"])
        except Exception as error:  # noqa: BLE001  HEAD has no body: the reason stands in a header
            word, reason = self._service.word(error, member)
            return _said(request, _Caller(member, seal), HTTP[word], word, reason)
        headers = {"atoll-frames": str(frames)}
        if seal is not None:
            headers["atoll-seal"] = said(seal, request.raw_path, 200, str(frames))
        return web.Response(headers=headers)

    async def _upload(self, request: web.Request, member: Member, seal: Seal | None) -> web.Response:
        upload = request.match_info["upload"]
        incoming: AsyncIterator[Bytes] = frames(request.content.iter_any())
        if seal is not None:
            incoming = _opened(seal, upload, packets(request.content.iter_any(), FRAME + HEADER + OVERHEAD))
        start = _count(request.headers.get("atoll-start", ""))
        receipt = await self._service.upload(member, _name(request), upload, start, incoming)
        answer = pack(Packet(0, 0, letter("receipt", receipt)))
        return web.Response(body=seal.close(f"receipt {upload}", answer) if seal else answer, headers=_PLAIN)

    async def _download(self, request: web.Request, member: Member, seal: Seal | None) -> web.StreamResponse:
        response = web.StreamResponse(headers=_PLAIN)

        async def send(frame: bytes) -> None:
            if not response.prepared:
                await response.prepare(request)
            await response.write(frame)

        start = _count(request.query.get("from", "0"))
        have = [blob for blob in request.query.get("have", "").split(",") if blob][:16]
        blob = request.match_info["blob"]
        try:
            await self._service.download(member, _name(request), blob, start, have, send)
        except Exception as error:
            if not response.prepared:
                raise
            self._service.word(error, member)  # too late for a status: cut it off
            if request.transport:
                request.transport.abort()
            return response
        if not response.prepared:
            await response.prepare(request)
        await response.write_eof()
        return response


_PLAIN = {"Content-Type": "application/octet-stream", "Cache-Control": "no-store"}


class _Polled:
    """A connection of a session made of single requests."""

    def __init__(self) -> None:
        self._up: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._down: list[bytes] = []
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, service: Service, member: Member, way: Way, over: Callable[[], Any]) -> None:
        """Serve it from a task of its own."""

        async def run() -> None:
            try:
                await service.session(member, way, self.incoming(), self._send)
            finally:
                self._news.set()
                asyncio.get_running_loop().call_later(POLL, over)  # its last words may still be fetched

        self._task = asyncio.get_running_loop().create_task(run())

    async def _send(self, packet: bytes) -> None:
        self._down.append(packet)
        self._news.set()

    def put(self, packet: bytes) -> None:
        """A packet came. Raises ProtocolError where too many wait."""
        if self._up.qsize() > 4096:
            raise ProtocolError("more packets came than are read: wait for answers")
        self._up.put_nowait(packet)

    async def incoming(self) -> AsyncIterator[bytes]:
        """What came, until the end."""
        while (packet := await self._up.get()) is not None:
            yield packet

    def end(self) -> None:
        """No more comes."""
        self._up.put_nowait(None)

    async def get(self, seconds: float) -> list[bytes] | None:
        """What is to be said, once there is something or the time is over; None after the end."""
        if not self._down and self._task is not None and not self._task.done():
            self._news.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                return []
        await asyncio.sleep(0)  # what belongs together goes together
        ready, self._down = self._down, []
        if not ready and self._task is not None and self._task.done():
            return None
        return ready


def _said(request: web.Request, caller: _Caller, status: int, word: str, reason: str) -> web.Response:
    reason = reason[:500]
    headers = {"atoll-error": word, "atoll-reason": json.dumps(reason)[1:-1], "Cache-Control": "no-store"}
    if caller.seal is not None:
        headers["atoll-seal"] = said(caller.seal, request.raw_path, status, f"{word}\n{reason}")
    return web.json_response({"error": word, "reason": reason}, status=status, headers=headers)


def _later(seconds: int) -> web.Response:
    """Too often: as enrolment and sessions read it."""
    text = f"too many requests came from your address: come again in {seconds} s"
    headers = {"Retry-After": str(seconds), "atoll-error": "gone", "atoll-reason": text}
    return web.json_response({"error": text, "reason": text}, status=429, headers=headers)


def _open(seal: Seal | None, packet: bytes) -> bytes:
    """A packet as it was said; where all is signed, checked."""
    return bytes(seal.open("packet", packet)) if seal else packet


def _close(seal: Seal | None, packet: bytes) -> bytes:
    return seal.close("packet", packet) if seal else packet


async def _opened(seal: Seal, upload: str, records: AsyncIterator[bytes]) -> AsyncIterator[Bytes]:
    """The frames in signed records; a megabyte is hashed off the event loop."""
    async for record in records:
        yield await thread(None, seal.open, f"frame {upload}", record)


def _way(transport: str, request: web.Request, seal: Seal | None) -> Way:
    return Way(transport, request.remote or "", sealed=seal is not None)


def _name(request: web.Request) -> str:
    return request.headers.get("atoll-session", "")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise ProtocolError("expected the number of a frame")
    return int(text)


__all__ = ["Extra", "Listening", "serve"]
