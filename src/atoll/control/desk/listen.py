"""The API's own socket: TLS 1.3, never in the clear on a public address, and no patience with silence."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...core.errors import ConfigError, StateError
from ...transport.knock import Door
from ..pinning import loopback

FIRST = 10.0  # seconds: a connection that has asked for nothing by then is closed
CONNECTIONS = 512


class Listening:
    """A server for `app` on host:port; `port` 0 takes a free one, which `port` then names.

    `tls`: None only on a loopback address. Its certificate may be loaded anew at any time:
    connections made afterwards see the new one. Raises ConfigError for a public address without
    TLS, StateError where the address cannot be had.
    """

    def __init__(self, app: Any, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        if tls is None and not loopback(host):
            raise ConfigError(
                f"the API would listen on {host} without TLS: give it a certificate (atoll pki init),"
                " or listen on 127.0.0.1"
            )
        if tls is not None:
            tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self.host = host
        self._app = app
        self._socket = _bound(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # a header anybody can write names nobody
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
            ssl_context_factory=None if tls is None else (lambda *_: tls),
        )
        self._server = _Server(config)

    @property
    def url(self) -> str:
        """Where it answers, as in https://127.0.0.1:8444; on this machine where it is every address."""
        host = "localhost" if self.host in ("", "0.0.0.0", "::") else self.host  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self._server.config.is_ssl else 'http'}://{host}:{self.port}"

    async def serve(self) -> None:
        """Answer until `close`, or until this task is cancelled."""
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._socket.close()

    def close(self) -> None:
        """Take no more requests; `serve` returns once those under way are answered, or 2 s later."""
        self._server.should_exit = True
        if (close := getattr(self._app, "close", None)) is not None:
            close()


class _Server(uvicorn.Server):
    """uvicorn inside somebody else's event loop: signals are the process's own business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """HTTP/1.1 that hangs up on a connection which never asks anything."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._first = asyncio.get_running_loop().call_later(FIRST, self._silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._first.cancel()
        super().connection_lost(exc)

    def _silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()


def _bound(host: str, port: int) -> socket.socket:
    bound = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = Door(family[0], family[1])
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(family[4])
        bound.listen(2048)  # who comes before `serve` waits for it
    except OSError as error:
        if bound is not None:
            bound.close()
        raise StateError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return bound
