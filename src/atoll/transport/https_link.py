"""A member's link over HTTPS: sessions by streaming, by long poll or over WebSocket.

    https://host:port        packets come in one long response; if a proxy holds it back, by polls
    https+poll://host:port   by polls from the start
    wss://host:port          over a WebSocket

Packets go up in requests of their own, as many as wait at once. `proxy`: http://user:password@host:port
that passes TLS through (CONNECT); None: as the environment says.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from ..core.errors import AtollError, Gone, ProtocolError
from ..privacy.keys import Identity, Member
from ..wire.codec import Bytes
from .address import authority, loopback
from .link import DOWN, PACKET, Channel, fault, read, unpack
from .pieces import frames as frames_of
from .pieces import packed, packets
from .tls import client_context
from .ws import SocketChannel

STREAM = 8.0  # seconds for the first packet of a stream; then a proxy is thought to hold it back
_WORDS = {400: "protocol", 401: "refused", 403: "refused", 404: "refused", 405: "refused", 413: "protocol"}


class HttpsLink:
    """See link.Link and above. `identity`: None in plain text, to this machine only."""

    def __init__(
        self, url: str, identity: Identity | None, *, claim: Member | None = None, proxy: str | None = None
    ) -> None:
        self.url = url
        scheme, _, self._mode = url.partition("://")[0].partition("+")
        self._base = f"{scheme.replace('ws', 'http')}://{authority(url)}"
        self._socket = scheme.startswith("ws")
        self._proxy = proxy
        self._headers: dict[str, str] = {}
        self._tls: ssl.SSLContext | None = None
        if scheme in {"https", "wss"} and identity is not None:
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
        told = {**self._headers, **(headers or {})}
        if self._proxy:
            more["proxy"] = self._proxy
        try:
            async with self._client().request(
                method, self._base + path, headers=told, allow_redirects=False, **more
            ) as response:
                if response.status >= 300:
                    raise await _error(response)
                yield response
        except (aiohttp.ClientError, ConnectionError, TimeoutError, ssl.SSLError) as error:
            raise Gone(f"{self.url}: {str(error) or type(error).__name__}") from None

    async def session(self, name: str, hello: bytes) -> Channel:
        """See link.Link."""
        self._headers["atoll-session"] = name
        if self._socket:
            return await self._open_socket(hello)
        if self._mode != "poll":
            channel = _Streamed(self, hello)
            if await channel.opened():
                return channel
            await channel.close()
            self._mode = "poll"
        return _Polled(self, hello)

    async def _open_socket(self, hello: bytes) -> Channel:
        try:
            socket = await self._client().ws_connect(
                self._base + "/v1/ws", headers=self._headers, proxy=self._proxy, max_msg_size=PACKET,
                compress=0, timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:
            told: Mapping[str, str] = error.headers or {}
            reason = (
                _reason(told.get("atoll-reason")) or f"{self.url} answered {error.status} {error.message}"
            )
            raise fault(told.get("atoll-error") or _WORDS.get(error.status, "gone"), reason) from None
        except (aiohttp.ClientError, ConnectionError, TimeoutError, ssl.SSLError) as error:
            raise Gone(f"{self.url}: {str(error) or type(error).__name__}") from None
        channel = SocketChannel(socket)
        await channel.send(hello)
        return channel

    async def offset(self, upload: str) -> int:
        """See link.Link."""
        async with self.call("HEAD", f"/v1/uploads/{_plain(upload)}") as response:
            return _number(response.headers.get("atoll-frames", ""))

    async def upload(self, upload: str, frames: AsyncIterator[bytes], start: int) -> dict[str, Any]:
        """See link.Link."""
        headers = {"atoll-start": str(start), "Content-Type": "application/octet-stream"}
        path = f"/v1/uploads/{_plain(upload)}"
        async with self.call("PUT", path, headers, data=frames) as response:
            answer = unpack(await response.content.read(PACKET))
        return dict(read(answer.body or b"", DOWN).head)

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
            async with self._link.call(
                "POST", "/v1/session", self._headers, data=packed([hello])
            ) as response:
                async for packet in packets(response.content.iter_any()):
                    self._first.set()
                    await self._down.put(packet)
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
        headers = {**self._headers, "atoll-mode": "send"}
        async with self._link.call("POST", "/v1/session", headers, data=packed([packet])):
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
        headers = {**self._headers, "atoll-mode": "send"}
        async with self._link.call("POST", "/v1/session", headers, data=packed([packet])):
            pass

    async def recv(self) -> bytes | None:
        while not self._ready:
            if self._over:
                return None
            hello, self._hello = self._hello, None
            headers = {**self._headers, "atoll-open": "1"} if hello else self._headers
            try:
                body = packed([hello] if hello else [])
                async with self._link.call("POST", "/v1/session", headers, data=body) as response:
                    self._ready = [p async for p in packets(response.content.iter_any())]
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
                async with asyncio.timeout(2), self._link.call("POST", "/v1/session", headers):
                    pass


async def _error(response: aiohttp.ClientResponse) -> AtollError:
    """What a server said instead; a proxy's words may come without ours."""
    word = response.headers.get("atoll-error") or _WORDS.get(response.status, "gone")
    reason = _reason(response.headers.get("atoll-reason"))
    return fault(word, reason or f"the server or a proxy before it answered {response.status}")


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
