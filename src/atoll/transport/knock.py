"""Who knocks in vain: a TLS handshake that fails, or is never done, is logged with the peer and the reason.

asyncio says neither where a handshake fails or takes too long. The listening socket knows the address when
it accepts; what is begun for that connection runs in a context that remembers it, the handshake included.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from contextvars import ContextVar
from typing import Any

from .rate import Rate

HANDSHAKE = 10.0  # seconds for a TLS handshake
_BEFORE = 0.1  # seconds: so much earlier we look, while a connection that is then ended is still there

log = logging.getLogger("atoll.transport")
_PEER: ContextVar[tuple[str, socket.socket | None]] = ContextVar("_PEER", default=("somebody", None))
_EACH, _ALL = Rate(0.1, 3.0), Rate(1.0, 30.0)  # lines in the log: of one address, of all


class Door(socket.socket):
    """A listening socket; what its connections begin knows whose they are."""

    def accept(self) -> tuple[socket.socket, Any]:
        """See socket."""
        connection, address = super().accept()
        _PEER.set((str(address[0]), connection))
        return connection, address


class Handshake(ssl.SSLObject):
    """The server's side of a connection: `sslobject_class` of a context."""

    _late: asyncio.TimerHandle | None = None

    def do_handshake(self) -> None:
        """See ssl."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if self._late is None:
                self._late = asyncio.get_running_loop().call_later(HANDSHAKE - _BEFORE, _late, *_PEER.get())
            raise
        except ssl.SSLError as error:
            self._over()
            failed(_PEER.get()[0], (error.reason or str(error)).lower().replace("_", " "))
            raise
        self._over()

    def _over(self) -> None:
        if self._late is not None:
            self._late.cancel()


def _late(peer: str, connection: socket.socket | None) -> None:
    if connection is not None and connection.fileno() != -1:  # its peer has not closed it
        failed(peer, f"it is not done after {HANDSHAKE:g} seconds")


def failed(peer: str, why: str) -> None:
    """Log it, unless too much was logged of this peer, or of all, just now."""
    now = time.monotonic()
    if not _EACH.wait(peer, now) and not _ALL.wait("", now):
        log.warning("TLS handshake with %s failed: %s; members speak TLS 1.3", peer, why)


async def doors(host: str, port: int) -> list[Door]:
    """Sockets that listen at every address of `host`. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    opened: list[Door] = []
    try:
        for family, kind, proto, _, address in dict.fromkeys(found):
            door = Door(family, kind, proto)
            opened.append(door)
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            door.bind(address)
    except OSError:
        for door in opened:
            door.close()
        raise
    return opened
