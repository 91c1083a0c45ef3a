"""Who knocks in vain: a TLS handshake that fails is logged with the peer's address and the reason.

asyncio says neither where a handshake fails. The listening socket knows the address when it accepts; what
is begun for that connection runs in a context that remembers it, the handshake included.
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

log = logging.getLogger("atoll.transport")
_PEER: ContextVar[str] = ContextVar("_PEER", default="somebody")
_EACH, _ALL = Rate(0.1, 3.0), Rate(1.0, 30.0)  # lines in the log: of one address, of all


class Door(socket.socket):
    """A listening socket; what its connections begin knows whose they are."""

    def accept(self) -> tuple[socket.socket, Any]:
        """See socket."""
        connection, address = super().accept()
        _PEER.set(str(address[0]))
        return connection, address


class Handshake(ssl.SSLObject):
    """The server's side of a connection: `sslobject_class` of a context."""

    def do_handshake(self) -> None:
        """See ssl."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            failed(_PEER.get(), error)
            raise


def failed(peer: str, error: ssl.SSLError) -> None:
    """Log it, unless too much was logged of this peer, or of all, just now."""
    now = time.monotonic()
    if not _EACH.wait(peer, now) and not _ALL.wait("", now):
        why = (error.reason or str(error)).lower().replace("_", " ")
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
