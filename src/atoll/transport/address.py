"""Addresses and URLs of servers; and who somebody says they are, where there is no TLS to prove it."""

from __future__ import annotations

import ipaddress
import math
from urllib.parse import urlsplit

from ..core.errors import ConfigError, ProtocolError
from ..privacy.keys import Member

SCHEMES = ("grpcs", "https", "wss", "grpc", "http", "ws")


def host_port(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port". Raises ConfigError."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None:
        raise ConfigError(f"expected an address as host:port, got {address!r}")
    return host, port


def authority(url: str) -> str:
    """host:port of a server's URL. Raises ConfigError for one that members cannot dial."""
    parts = urlsplit(url)
    if parts.scheme.partition("+")[0] not in SCHEMES or parts.path not in {"", "/"} or parts.query:
        raise ConfigError(f"expected a URL such as grpcs://host:8443, https://… or wss://…, got {url!r}")
    host_port(parts.netloc)
    return parts.netloc


def loopback(address: str) -> None:
    """Raises ConfigError unless the address is this machine's own, never seen by others."""
    host, _ = host_port(address)
    try:
        own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = host == "localhost"
    if not own:
        raise ConfigError(
            f"{address} can be reached by others, and without TLS all of them could read and forge what "
            "members say: give the server an identity (atoll pki init), or use 127.0.0.1"
        )


def claimed(uri: str) -> Member:
    """The member that a caller says it is, without proof. Raises ProtocolError."""
    match uri.split("/"):
        case ["spiffe:", "", federation, role, name] if federation and role and name:
            return Member(federation, role, name, 0, math.inf)
    raise ProtocolError("expected the member's name, spiffe://federation/role/name")
