"""From a URL to a link, from an address to a server: the one line of configuration that chooses a transport.

Each library is loaded when its scheme is used: a member over HTTPS never loads gRPC.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..core.errors import ConfigError
from ..privacy.keys import Identity, Member
from .address import authority
from .link import Link
from .service import Service

if TYPE_CHECKING:
    from .https import Extra
    from .tls import Source


def chosen(transport: str) -> str:
    """The transport that a setting stands for here: "auto" is gRPC where grpcio is installed, else HTTPS."""
    if transport != "auto":
        return transport
    return "grpc" if find_spec("grpc") else "https"


class Listening(Protocol):
    """A server that accepts members."""

    port: int

    async def close(self) -> None:
        """Accept nobody any more; close the Service first."""


def open_link(
    url: str,
    identity: Identity | None,
    *,
    claim: Member | None = None,
    proxy: str | None = None,
    ca: Path | None = None,
    user: tuple[str, str] | None = None,
) -> Link:
    """A link to the server at `url`: grpcs://, https://, https+poll:// or wss://host:port.

    https+sealed://, https+poll+sealed:// and wss+sealed:// are for a proxy that ends TLS: each call is
    signed, and `ca` (PEM; None: the system's) vouches for the proxy. mqtts+sealed://broker:8883/GATEWAY
    goes by a broker, which `ca` vouches for, to a gateway; `user`: our name and password there.
    `proxy`: an HTTP proxy to go through, http://user:password@host:port; None: as the environment says.
    grpc://, http://, ws:// are plain text, to this machine only; `claim` is who we say we are there.
    Raises ConfigError for another URL.
    """
    scheme = url.partition("://")[0].partition("+")[0]
    if scheme.startswith("mqtt"):
        from .mqtt_link import mqtt_link

        return mqtt_link(url, identity, user=user, ca=ca)
    authority(url)
    if scheme.startswith("grpc"):
        from .grpc import GrpcLink

        return GrpcLink(url, identity, claim=claim, proxy=proxy)
    from .https_link import HttpsLink

    return HttpsLink(url, identity, claim=claim, proxy=proxy, ca=ca)


async def listen(
    service: Service,
    url: str,
    source: Source | None,
    *,
    federation: str,
    extra: Extra | None = None,
    wall: Callable[[], float] = time.time,
) -> Listening:
    """Accept members at `url`: grpcs://host:port, or https://host:port for HTTPS and WebSocket together.

    `source`: the server's identity, or a function that gives the newest (keys.Current). `extra`: more
    HTTPS routes by (method, path). Raises ConfigError where it cannot listen there.
    """
    scheme, address = url.partition("://")[0], authority(url)
    if (scheme in {"grpc", "http", "ws"}) != (source is None):
        raise ConfigError(
            f"{url} is plain text or not, and the server has an identity or not: they must agree"
        )
    if scheme.startswith("grpc"):
        from . import grpc

        return await grpc.serve(service, address, source, federation=federation, wall=wall)
    from . import https

    return await https.serve(service, address, source, federation=federation, extra=extra, wall=wall)
