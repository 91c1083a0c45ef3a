"""A member's link over HTTPS: sessions by streaming, by long poll or over WebSocket.

    https://host:port        packets come in one long response; if a proxy holds it back, by polls
    https+poll://host:port   by polls from the start
    wss://host:port          over a WebSocket
    …+sealed://host:port     any of them behind a proxy that ends TLS: see sealed.py

Packets go up in requests of their own, as many as wait at once. `proxy`: http://user:password@host:port
that passes TLS through (CONNECT); None: as the environment says.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from ..core.errors import ConfigError, Gone
from ..privacy.keys import Identity, Member
from .address import authority, loopback
from .calls import Answer, Body, CallLink
from .link import PACKET, Channel
from .sealed import OVERHEAD, header
from .tls import client_context
from .ws import SocketChannel

_BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError, ssl.SSLError)


class HttpCarrier:
    """Calls as HTTP requests to `base`, http(s)://host:port. See calls.Carrier.

    Connections are kept. `tls`: None for plain text. `proxy`: as above.
    """

    def __init__(self, base: str, tls: ssl.SSLContext | None, proxy: str | None = None) -> None:
        self.base = base
        self.tls = tls
        self.proxy = proxy
        self._http: aiohttp.ClientSession | None = None

    def client(self) -> aiohttp.ClientSession:
        """Its connections."""
        if self._http is None:
            connector = aiohttp.TCPConnector(ssl=self.tls or True, limit=0, keepalive_timeout=30.0)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=15.0, connect=30.0)
            self._http = aiohttp.ClientSession(
                connector=connector, timeout=timeout, trust_env=self.proxy is None, auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=1 << 20,
            )  # fmt: skip
        return self._http

    @asynccontextmanager
    async def call(
        self, method: str, path: str, headers: Mapping[str, str], data: Body
    ) -> AsyncIterator[Answer]:
        """See calls.Carrier."""
        from yarl import URL

        try:
            async with self.client().request(
                method, URL(self.base + path, encoded=True), headers=headers, data=data,
                proxy=self.proxy or None, allow_redirects=False,
            ) as response:  # fmt: skip
                yield Answer(response.status, response.headers, response.content.iter_any())
        except _BROKEN as error:
            raise Gone(f"{self.base}: {str(error) or type(error).__name__}") from None

    async def close(self) -> None:
        """See calls.Carrier."""
        if self._http is not None:
            await self._http.close()


class HttpsLink(CallLink):
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
        scheme, *modes = url.partition("://")[0].split("+")
        tls: ssl.SSLContext | None = None
        headers: dict[str, str] = {}
        if "sealed" in modes and identity is None:
            raise ConfigError(f"{url}: a member needs its identity to sign with")
        if "sealed" in modes:
            if scheme in {"https", "wss"}:
                tls = ssl.create_default_context(cafile=ca)
        elif scheme in {"https", "wss"} and identity is not None:
            tls = client_context(identity.roots, identity, ["http/1.1"])
        else:
            loopback(authority(url))
            headers = {"atoll-member": claim.uri if claim else ""}
        self.carrier = HttpCarrier(f"{scheme.replace('ws', 'http')}://{authority(url)}", tls, proxy)
        self._socket = scheme.startswith("ws")
        sign = identity if "sealed" in modes else None
        super().__init__(url, self.carrier, sign, headers, poll="poll" in modes)

    async def session(self, name: str, hello: bytes) -> Channel:
        """See link.Link."""
        if not self._socket:
            return await super().session(name, hello)
        self._headers["atoll-session"] = name
        await self.ready()
        told = self._headers
        if self._seal is not None:
            told = {**told, "atoll-seal": header(self._seal, "GET", "/v1/ws", told)}
        try:
            socket = await self.carrier.client().ws_connect(
                self.carrier.base + "/v1/ws", headers=told, proxy=self.carrier.proxy,
                max_msg_size=PACKET + OVERHEAD, compress=0, timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:
            raise self._error(error.status, error.headers or {}, "/v1/ws") from None
        except _BROKEN as error:
            raise Gone(f"{self.url}: {str(error) or type(error).__name__}") from None
        channel = SocketChannel(socket, self._seal)
        await channel.send(hello)
        return channel
