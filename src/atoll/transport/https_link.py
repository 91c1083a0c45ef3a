"""A member's link over HTTPS: sessions by streaming, by long poll or over WebSocket.

    https://host:port        packets come in one long response; if a proxy holds it back, by polls
    https+poll://host:port   by polls from the start
    wss://host:port          over a WebSocket
    …+sealed://host:port     any of them behind a proxy that ends TLS: see sealed.py

Packets go up in requests of their own, as many as wait at once. `proxy`: http://user:password@host:port
that passes TLS through (CONNECT); None: as the environment says.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from ..core.errors import AtollError, ConfigError, Gone, IntegrityError, ProtocolError
from ..privacy.keys import Identity, Member
from ..wire.plain import Bytes
from .address import authority, loopback
from .link import DOWN, PACKET, Channel, fault, read, unpack
from .pieces import frames as frames_of
from .pieces import packed, packets
from .pump import thread
from .sealed import OVERHEAD, Seal, header, heard, opened
from .tls import client_context
from .ws import SocketChannel

_ANSWER = 2 << 20  # bytes of the longest answer
STREAM = 8.0  # seconds for the first packet of a stream; then a proxy is thought to hold it back
_WORDS = {400: "protocol", 401: "refused", 403: "refused", 404: "refused", 405: "refused", 413: "protocol"}


class HttpsLink:
    """See link.Link and above. `identity`: None in plain text, to this machine only."""

    def __init__(
        self,
        url: str,
        identity: Identity | None,
        *,
        claim: Member | None = None,
        proxy: str | None = None,
        ca: Path | None = None,
    ) -> None:
        self.url = url
        scheme, *modes = url.partition("://")[0].split("+")
        self._poll = "poll" in modes
        self._identity = identity if "sealed" in modes else None
        self._seal: Seal | None = None
        self._base = f"{scheme.replace('ws', 'http')}://{authority(url)}"
        self._socket = scheme.startswith("ws")
        self._proxy = proxy
        self._headers: dict[str, str] = {}
        self._tls: ssl.SSLContext | None = None
        if "sealed" in modes and identity is None:
            raise ConfigError(f"{url}: a member needs its identity to sign with")
        if self._identity is not None:
            if scheme in {"https", "wss"}:
                self._tls = ssl.create_default_context(cafile=ca)
        elif scheme in {"https", "wss"} and identity is not None:
            self._tls = client_context(identity.roots, identity, ["http/1.1"])
        else:
            loopback(authority(url))
            self._headers = {"atoll-member": claim.uri if claim else ""}
        self._http: aiohttp.ClientSession | None = None

    def _client(self) -> aiohttp.ClientSession:
        if self._http is None:
            connector = aiohttp.TCPConnector(ssl=self._tls or True, limit=0, keepalive_timeout=30.0)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=15.0, connect=30.0)
            self._http = aiohttp.ClientSession(
                connector=connector, timeout=timeout, trust_env=self._proxy is None, auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=1 << 20,
            )  # fmt: skip
        return self._http

    @asynccontextmanager
    async def call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request and its response. Raises what the server said; Gone for what happened on the way."""
        if self._identity is not None and self._seal is None and path != "/v1/seal":
            await self._shake(self._identity)
        told = {**self._headers, **(headers or {})}
        if self._seal is not None:
            told["atoll-seal"] = header(self._seal, method, path, told)
        from yarl import URL

        if self._proxy:
            more["proxy"] = self._proxy
        try:
            async with self._client().request(
                method, URL(self._base + path, encoded=True), headers=told, allow_redirects=False, **more
            ) as response:
                if response.status >= 300:
                    raise self._error(response.status, response.headers, path)
                yield response
        except (aiohttp.ClientError, ConnectionError, TimeoutError, ssl.SSLError) as error:
            raise Gone(f"{self.url}: {str(error) or type(error).__name__}") from None

    async def _shake(self, identity: Identity) -> None:
        """Agree on a nonce with the server behind the proxy."""
        nonce = secrets.token_hex(16)
        asked = {"chain": identity.chain.decode(), "nonce": nonce}
        async with self.call("POST", "/v1/seal", json=asked) as response:
            try:
                answer = json.loads(await response.content.read(_ANSWER))
            except ValueError:
                raise Gone(f"{self.url}: what answered is no server of a federation") from None
        self._seal = opened(identity, nonce, answer, now=time.time())

    def _error(self, status: int, headers: Mapping[str, str], path: str) -> AtollError:
        """What a server said instead; a proxy's words come without ours, or without a signature."""
        word = headers.get("atoll-error") or _WORDS.get(status, "gone")
        reason = _reason(headers.get("atoll-reason"))
        reason = reason or f"the server or a proxy before it answered {status}"
        if self._identity is not None:
            try:
                if self._seal is None or "atoll-seal" not in headers:
                    raise IntegrityError("no signature")
                told = heard(self._seal, path, status, headers["atoll-seal"])
            except ProtocolError:
                return Gone(f"not signed by the server: {reason}")
            word, _, reason = told.partition("\n")
        return fault(word, reason)

    async def session(self, name: str, hello: bytes) -> Channel:
        """See link.Link."""
        self._headers["atoll-session"] = name
        if self._socket:
            return await self._open_socket(hello)
        if not self._poll:
            channel = _Streamed(self, hello)
            if await channel.opened():
                return channel
            await channel.close()
            self._poll = True
        return _Polled(self, hello)

    async def _open_socket(self, hello: bytes) -> Channel:
        told = self._headers
        await self.ready()
        if self._seal is not None:
            told = {**told, "atoll-seal": header(self._seal, "GET", "/v1/ws", told)}
        try:
            socket = await self._client().ws_connect(
                self._base + "/v1/ws", headers=told, proxy=self._proxy, max_msg_size=PACKET + OVERHEAD,
                compress=0, timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:
            raise self._error(error.status, error.headers or {}, "/v1/ws") from None
        except (aiohttp.ClientError, ConnectionError, TimeoutError, ssl.SSLError) as error:
            raise Gone(f"{self.url}: {str(error) or type(error).__name__}") from None
        channel = SocketChannel(socket, self._seal)
        await channel.send(hello)
        return channel

    async def offset(self, upload: str) -> int:
        """See link.Link."""
        async with self.call("HEAD", f"/v1/uploads/{_plain(upload)}") as response:
            frames = response.headers.get("atoll-frames", "")
            if self._seal is not None:
                told = response.headers.get("atoll-seal", "")
                frames = heard(self._seal, f"/v1/uploads/{upload}", response.status, told)
            return _number(frames)

    async def upload(self, upload: str, frames: AsyncIterator[bytes], start: int) -> dict[str, Any]:
        """See link.Link."""
        headers = {"atoll-start": str(start), "Content-Type": "application/octet-stream"}
        path = f"/v1/uploads/{_plain(upload)}"
        body = self._closed(upload, frames) if self._identity is not None else frames
        async with self.call("PUT", path, headers, data=body) as response:
            answer = b"".join([piece async for piece in response.content.iter_chunked(_ANSWER)])
        if self._seal is not None:
            answer = bytes(self._seal.open(f"receipt {upload}", answer))
        return dict(read(unpack(answer).body or b"", DOWN).head)

    async def _closed(self, upload: str, frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Frames as signed records; a megabyte is hashed off the event loop."""
        async for frame in frames:
            if self._seal is None:
                raise Gone("the request was sent before it was agreed who signs")
            yield packed([await thread(None, self._seal.close, f"frame {upload}", frame)])

    @asynccontextmanager
    async def post(
        self, headers: Mapping[str, str], said: Sequence[bytes]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request of a session with these packets."""
        await self.ready()
        body = packed(self._seal.close("packet", packet) if self._seal else packet for packet in said)
        async with self.call("POST", "/v1/session", headers, data=body) as response:
            yield response

    def open_packet(self, packet: bytes) -> bytes:
        """A packet as the server said it. Raises IntegrityError."""
        return bytes(self._seal.open("packet", packet)) if self._seal else packet

    async def ready(self) -> None:
        """Before a body is made: agree on a nonce where all is signed."""
        if self._identity is not None and self._seal is None:
            await self._shake(self._identity)

    async def download(self, blob: str, start: int, have: Sequence[str]) -> AsyncIterator[Bytes]:
        """See link.Link."""
        path = f"/v1/blobs/{_plain(blob)}?from={start}&have={','.join(have)}"
        async with self.call("GET", path) as response:
            async for frame in frames_of(response.content.iter_any()):
                yield frame

    async def probe(self) -> None:
        """See link.Link."""
        async with asyncio.timeout(10), self.call("GET", "/v1/"):
            pass

    async def close(self) -> None:
        """See link.Link."""
        if self._http is not None:
            await self._http.close()


class _Streamed:
    """Down one long response, up in single requests."""

    def __init__(self, link: HttpsLink, hello: bytes) -> None:
        self._link = link
        self._headers = {"atoll-mode": "stream", "atoll-connection": secrets.token_hex(16)}
        self._down: asyncio.Queue[bytes | AtollError | None] = asyncio.Queue(64)
        self._first = asyncio.Event()
        self._task = asyncio.ensure_future(self._run(hello))

    async def _run(self, hello: bytes) -> None:
        last: AtollError | None = None
        try:
            async with self._link.post(self._headers, [hello]) as response:
                async for packet in packets(response.content.iter_any()):
                    self._first.set()
                    await self._down.put(self._link.open_packet(packet))
        except AtollError as error:
            last = error
        finally:
            self._first.set()
        await self._down.put(last)

    async def opened(self) -> bool:
        """Whether something came down in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STREAM):
                await self._first.wait()
                return True
        return False

    async def send(self, packet: bytes) -> None:
        async with self._link.post({**self._headers, "atoll-mode": "send"}, [packet]):
            pass

    async def recv(self) -> bytes | None:
        if self._task.done() and self._down.empty():
            return None
        item = await self._down.get()
        if isinstance(item, AtollError):
            raise item
        return item

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


class _Polled:
    """Down by one waiting request after the other, up with them or in requests of their own."""

    def __init__(self, link: HttpsLink, hello: bytes) -> None:
        self._link = link
        self._headers = {"atoll-mode": "poll", "atoll-connection": secrets.token_hex(16)}
        self._hello: bytes | None = hello
        self._ready: list[bytes] = []
        self._over = False

    async def send(self, packet: bytes) -> None:
        async with self._link.post({**self._headers, "atoll-mode": "send"}, [packet]):
            pass

    async def recv(self) -> bytes | None:
        while not self._ready:
            if self._over:
                return None
            hello, self._hello = self._hello, None
            headers = {**self._headers, "atoll-open": "1"} if hello else self._headers
            try:
                async with self._link.post(headers, [hello] if hello else []) as response:
                    pieces = packets(response.content.iter_any())
                    self._ready = [self._link.open_packet(p) async for p in pieces]
            except Gone as error:
                self._over = True
                if "this connection is over" in str(error):
                    return None
                raise
        return self._ready.pop(0)

    async def close(self) -> None:
        if not self._over:
            self._over = True
            headers = {**self._headers, "atoll-mode": "end"}
            with suppress(AtollError, TimeoutError):
                async with asyncio.timeout(2), self._link.post(headers, []):
                    pass


def _reason(header: str | None) -> str:
    try:
        return str(json.loads(f'"{header}"')) if header else ""
    except ValueError:
        return ""


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise ProtocolError("expected a number of frames from the server")
    return int(text)


def _plain(name: str) -> str:
    """A name as it may stand in a path."""
    if not name or any(c not in _SAFE for c in name) or name.strip(".") == "":
        raise ProtocolError(f"no upload or blob can be called {name[:60]!r}")
    return name


_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
