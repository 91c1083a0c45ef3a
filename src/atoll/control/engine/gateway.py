"""A gateway's process: a broker on one side, a coordinator or an edge on the other (transport/gateway.py).

It keeps no file, has no identity and enrols nowhere: what it carries is signed by others for others.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ...core.errors import ConfigError
from ...transport.address import authority
from ..pinning import blind
from ..settings import Gateway

if TYPE_CHECKING:
    from ...transport import gateway

log = logging.getLogger("atoll.gateway")


def made(settings: Gateway) -> gateway.Gateway:
    """The gateway of these settings. Raises ConfigError for a broker or server that cannot be."""
    from ...transport import gateway
    from ...transport.https_link import HttpCarrier
    from ...transport.mqtt import broker_at

    if urlsplit(settings.to).scheme != "https":
        raise ConfigError(f"a gateway dials https://host:port, got {settings.to!r}", "$.to")
    ca = Path(settings.ca) if settings.ca else None
    broker, path = broker_at(settings.broker, (settings.user, settings.password), ca)
    if path or "+" in urlsplit(settings.broker).scheme:
        raise ConfigError("a gateway's broker is mqtts://host:port; members add +sealed, /NAME", "$.broker")
    carrier = HttpCarrier(f"https://{authority(settings.to)}", _server(settings.root))
    return gateway.Gateway(broker, settings.name, carrier, gateway.Limits(member=settings.calls))


def _server(root: str) -> ssl.SSLContext:
    """By what the server is recognised: the federation's root, or nothing."""
    from ...transport.tls import client_context

    if not root:
        log.warning("without `root` the server's certificate is not checked: members check what it says")
        return blind()
    try:
        return client_context(Path(root).read_bytes(), alpn=["http/1.1"])
    except OSError as error:
        raise ConfigError(f"{root} cannot be read: {error.strerror}", "$.root") from None


def main(settings: Gateway) -> int:
    """Run a gateway until it is stopped; its exit code."""
    from .process import program

    found = made(settings)
    return program(found.serve, found.close)
