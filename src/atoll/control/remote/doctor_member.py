"""The doctor beside a client or an edge: its parents' doors, as the member itself would knock at them."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import AtollError
from ...privacy.token import Token
from ...transport.open import chosen
from ..pinning import blind, fingerprint
from .doctor_broker import by_broker
from .doctor_network import Far, clocks, reach, spoken, way
from .finding import Finding, span


def doors(folder: Path, settings: Any, timeout: float, clock: Callable[[], float]) -> Iterator[Finding]:
    """Each parent that the settings or the identity in `folder` name; nothing where there is no member."""
    if settings is not None and not hasattr(settings, "join"):
        return
    identity = _identity(folder / "identity")
    urls: Sequence[str] = (settings.join if settings else ()) or (identity.urls if identity else ())
    proxy = settings.proxy if settings else ""
    transport = chosen(settings.transport) if settings else ""
    pins = _pins(identity, settings.token if settings else "")
    for url in urls:
        if url.startswith("mqtt"):
            yield from by_broker(url, settings, identity, pins, timeout)
            continue
        far = yield from reach(url, proxy, timeout)
        if far is not None:
            yield from _door(far, identity, pins, transport, clock)


def _identity(place: Path) -> Any:
    from ...privacy.keys import Identity

    try:
        return Identity.open(place)
    except AtollError:  # the folder's own findings say what is wrong with it
        return None


def _pins(identity: Any, token: str) -> frozenset[str]:
    """Fingerprints of the roots this member trusts."""
    if identity is None:
        try:
            return frozenset({Token.parse(token).fingerprint})
        except AtollError:
            return frozenset()
    end = "-----END CERTIFICATE-----"
    blocks = identity.roots.decode("ascii").split(end)
    return frozenset(fingerprint(f"{block}{end}".encode()) for block in blocks if block.strip())


def _door(
    far: Far, identity: Any, pins: frozenset[str], transport: str, clock: Callable[[], float]
) -> Iterator[Finding]:
    try:
        answer, root, _ = far.get("/v1/root", blind())
    except (OSError, http.client.HTTPException) as error:
        remedy = "this is no coordinator or edge, or a proxy between ends TLS: ask for the right URL"
        yield Finding("server", "bad", f"no TLS 1.3 with it: {error}", remedy)
        return
    yield clocks(answer.headers.get("Date"), clock())
    try:
        known = fingerprint(root) in pins
    except AtollError:
        known = False
    if not known:
        remedy = "it is another federation, or the token is: ask its administrator for a new token"
        yield Finding("root", "bad", f"the root of {far.host} is not the one this member pinned", remedy)
        return
    yield Finding("root", "ok", f"the root of {far.host} is the one this member pinned")
    if identity is not None:
        yield from _mutual(far, identity, transport, clock())


def _mutual(far: Far, identity: Any, transport: str, now: float) -> Iterator[Finding]:
    from ...transport.tls import client_context

    try:
        answer, body, shown = far.get("/v1/ways", client_context(identity.roots, identity))
    except ssl.SSLCertVerificationError as error:
        remedy = "dial a name that its certificate has, or add this one to `names` there"
        yield Finding("certificate", "bad", f"not good for {far.host}: {error.verify_message}", remedy)
        return
    except (OSError, http.client.HTTPException) as error:
        remedy = "its certificate or ours may have ended, or ours was revoked: see the findings on identity"
        yield Finding("certificate", "bad", f"the connection broke: {error}", remedy)
        return
    left = ssl.cert_time_to_seconds(str(shown["notAfter"])) - now if shown else 0.0
    yield Finding("certificate", "ok", f"good for {far.host}, for another {span(left)}; ours was taken")
    ways = json.loads(body) if answer.status == 200 else {}
    yield spoken(ways.get("protocol"), far.host)
    port = ways.get("grpc")
    if transport == "grpc" and isinstance(port, int) and far.proxy is None:
        found = way((far.host, port), far.timeout)
        if found.level == "bad":
            remedy = 'let the gRPC port out as well, or set transport = "https"'
            found = Finding("way", "bad", found.found, remedy)
        yield found
