"""Addresses and URLs of servers, and the proxy to them; who somebody says they are, where TLS proves none."""

from __future__ import annotations

import ipaddress
import math
from base64 import b64encode
from urllib.parse import unquote, urlsplit, urlunsplit

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


def find_proxy(host: str, given: str | None) -> tuple[str | None, dict[str, str]]:
    """The proxy to `host` and the headers it wants, apart so that no message repeats a password.

    `given`: the proxy; "": none; None: as the environment says. Raises ConfigError for another form.
    """
    if given is None:
        from urllib.request import getproxies, proxy_bypass  # half a megabyte

        given = "" if proxy_bypass(host) else getproxies().get("https", "")
    if not given:
        return None, {}
    parts = urlsplit(given if "//" in given else f"http://{given}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError("a proxy is written http://host:port or http://user:password@host:port")
    shown = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        shown["Proxy-Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), shown
