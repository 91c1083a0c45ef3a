"""The doctor on the network: proxy, name, way, root, certificate, clock, token, version and health.

What fails hides what comes after it, so the first bad finding is the cause.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from ...core.errors import AtollError, ProtocolError
from ...privacy.token import Token
from ..pinning import blind, fingerprint, loopback, parsed_proxy, pinned, proxy_for
from .finding import ROOM, Finding, Level, span

SKEW = 60.0  # seconds two clocks may differ before it is worth a word; certificates are dated back an hour


def network(url: str, text: str | None, timeout: float, clock: Callable[[], float]) -> Iterator[Finding]:
    """What stands between here and the API at `url`, in the order one would look for it."""
    far = yield from reach(url, "", timeout)
    if far is None:
        return
    try:
        token = None if text is None else Token.parse(text)
    except AtollError as error:
        yield Finding("token", "bad", str(error), "copy the whole token, from atoll1. to its end")
        return
    yield from _server(far, token, clock)


def reach(url: str, proxy: str, timeout: float) -> Generator[Finding, None, Far | None]:
    """How to get to `url`: through which proxy, is the name known, does anybody answer. None where not."""
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    if parts.scheme not in ("https", "http") or not host:
        yield Finding("address", "bad", f"{url} is no URL", "write it as https://hub.example:8445")
        return None
    far = Far(host, parts.port or (443 if secure else 80), _proxy(host, parts.scheme, proxy), timeout, secure)
    yield _proxied(host, far.proxy)
    first = far.proxy[:2] if far.proxy else (host, far.port)
    named = known(first[0])
    yield named
    if named.level == "bad":
        return None
    there = way(first, timeout)
    yield there
    if there.level == "bad":
        return None
    return far


def _proxy(host: str, scheme: str, given: str) -> tuple[str, int, dict[str, str]] | None:
    if given:
        return parsed_proxy(given)
    return None if loopback(host) else proxy_for(host, scheme)


def _proxied(host: str, proxy: tuple[str, int, dict[str, str]] | None) -> Finding:
    named = next(
        (k for k in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY") if os.environ.get(k)), ""
    )
    if proxy:
        who = " with a user and password" if proxy[2] else ""
        return Finding("proxy", "ok", f"through {proxy[0]}:{proxy[1]}{who}, as {named or 'the system'} says")
    why = f"{named} is set, and {host} is left out of it" if named else "no proxy is named"
    return Finding("proxy", "ok", f"directly: {why}")


def known(host: str) -> Finding:
    """Whether this machine can find the name."""
    try:
        found = sorted({str(a[4][0]) for a in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except OSError as error:
        remedy = f"check the name's spelling and this machine's DNS (getent hosts {host})"
        return Finding("name", "bad", f"{host} is not known: {error.strerror or error}", remedy)
    return Finding("name", "ok", f"{host} is {', '.join(found[:4])}")


def way(to: tuple[str, int], timeout: float) -> Finding:
    """Whether anybody answers there."""
    began = time.monotonic()
    try:
        socket.create_connection(to, timeout).close()
    except OSError as error:
        remedy = "see that it runs there and a firewall lets this port out; behind a proxy set HTTPS_PROXY"
        return Finding("way", "bad", f"{to[0]}:{to[1]} does not answer: {error.strerror or error}", remedy)
    return Finding("way", "ok", f"{to[0]}:{to[1]} answers in {1000 * (time.monotonic() - began):.0f} ms")


@dataclass(frozen=True)
class Far:
    """The other side: its host and port, the proxy before it (host, port, headers), seconds to wait."""

    host: str
    port: int
    proxy: tuple[str, int, dict[str, str]] | None
    timeout: float
    secure: bool

    def get(self, path: str, context: ssl.SSLContext | None, bearer: str = "") -> tuple[Any, bytes, Any]:
        """(answer, body, socket) of one request on a connection of its own."""
        host, port = self.proxy[:2] if self.proxy else (self.host, self.port)
        made: http.client.HTTPConnection
        if context is None:
            made = http.client.HTTPConnection(host, port, timeout=self.timeout)
        else:
            made = http.client.HTTPSConnection(host, port, timeout=self.timeout, context=context)
            if self.proxy:
                made.set_tunnel(self.host, self.port, headers=self.proxy[2])
        try:
            made.request("GET", path, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})
            shown = made.sock.getpeercert() if isinstance(made.sock, ssl.SSLSocket) else None
            answer = made.getresponse()
            return answer, answer.read(1 << 20), shown
        finally:
            made.close()


def _server(far: Far, token: Token | None, clock: Callable[[], float]) -> Iterator[Finding]:
    """What the other side shows: its root, its certificate, its clock, its version."""
    try:
        answer, root, _ = far.get("/v1/root", blind() if far.secure else None)
    except (OSError, http.client.HTTPException) as error:
        remedy = "this is not the API of a coordinator, or a proxy between ends TLS: ask for the right URL"
        yield Finding("server", "bad", f"no TLS 1.3 with it: {error}", remedy)
        return
    yield clocks(answer.headers.get("Date"), clock())
    if token is None:
        yield Finding("root", "warn", "not compared: there is no token", "give --token, which names the root")
        return
    try:
        same = fingerprint(root) == token.fingerprint
    except AtollError:
        same = False
    if not same:
        remedy = (
            "the token is of another federation, or something between answers in its place: nothing was sent"
        )
        yield Finding("root", "bad", "its root is not the one the token names", remedy)
        return
    yield Finding("root", "ok", f"SHA-256 {token.fingerprint[:16]}…, as the token says")
    yield from _verified(far, root, token, clock())


def _verified(far: Far, root: bytes, token: Token, now: float) -> Iterator[Finding]:
    context = pinned(root.decode("ascii")) if far.secure else None
    try:
        answer, body, shown = far.get("/v1/federation", context, str(token))
    except ssl.SSLCertVerificationError as error:
        remedy = "use a name that its certificate has, or add this one to `names` of the coordinator"
        if "expired" in error.verify_message or "not yet" in error.verify_message:
            remedy = "restart the coordinator, which renews its certificate; and compare both clocks"
        yield Finding("certificate", "bad", f"not good for {far.host}: {error.verify_message}", remedy)
        return
    except (OSError, http.client.HTTPException) as error:
        yield Finding("certificate", "bad", f"the connection broke: {error}", "try again")
        return
    if shown:
        left = ssl.cert_time_to_seconds(str(shown["notAfter"])) - now
        remedy = "" if left > 0.5 * 3600 else "it renews at half of its life: see the coordinator's log"
        found = f"good for {far.host}, for another {span(left)}"
        yield Finding("certificate", "warn" if remedy else "ok", found, remedy)
    yield from _let_in(answer.status, body)
    if answer.status == 200:
        yield _health(far, context, token)


def _health(far: Far, context: ssl.SSLContext | None, token: Token) -> Finding:
    """How the coordinator says it is: whether its store takes writes, the room on its disk, its schema."""
    try:
        answer, body, _ = far.get("/v1/health", context, str(token))
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        told = json.loads(body)
        free, schema = int(told["disk"]["free"]), told["schema"]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        remedy = "see the coordinator's log; it may be of another version"
        return Finding("health", "warn", f"the coordinator does not say how it is: {error}", remedy)
    text = f"its store takes work at schema {schema['found']}, {free / 1e9:.1f} GB free on its disk"
    if not told["ok"]:
        remedy = "free space on the coordinator's disk, or mend it: it goes on by itself; else see its log"
        return Finding("health", "bad", f"the coordinator takes no work: {told['reason']}", remedy)
    if free < ROOM:
        return Finding("health", "warn", text, "free some space there: a full disk makes the store read-only")
    return Finding("health", "ok", text)


def _let_in(status: int, body: bytes) -> Iterator[Finding]:
    if status != 200:
        remedy = "ask an administrator for a new token; one that enrols a member is no key to the API"
        yield Finding("token", "bad", f"it is not let in (status {status})", remedy)
        return
    about = json.loads(body)
    yield Finding("token", "ok", f"lets in {about['caller']} as {about['role']} at {about['name']}")
    mine, theirs = version("atoll-fl"), str(about["version"])
    if mine.partition(".")[0] == theirs.partition(".")[0]:
        yield Finding("versions", "ok", f"atoll {mine} here, {theirs} there")
    else:
        remedy = "upgrade the older one: they are a major version apart"
        yield Finding("versions", "bad", f"atoll {mine} here, {theirs} there", remedy)


def spoken(theirs: Any, host: str) -> Finding:
    """Whether we speak the protocol that a server says it speaks."""
    from ...transport.link import PROTOCOL, agreed

    try:
        agreed(theirs, host)
    except ProtocolError as error:
        return Finding("versions", "bad", str(error), "upgrade the older one: they are a major version apart")
    ours, said = (".".join(map(str, one)) for one in (PROTOCOL, theirs))
    return Finding("versions", "ok", f"protocol {ours} here, {said} there")


def clocks(date: str | None, now: float) -> Finding:
    """Our clock beside the one in an answer's Date."""
    if date is None:
        return Finding("clock", "warn", "the server says no time", "")
    skew = now - parsedate_to_datetime(date).timestamp()
    if abs(skew) <= SKEW:
        return Finding("clock", "ok", "both clocks agree to the minute")
    way = "ahead of" if skew > 0 else "behind"
    text = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC here, {span(abs(skew))} {way} the server"
    level: Level = "bad" if abs(skew) > 3600 else "warn"
    return Finding("clock", level, text, "set both clocks by NTP: certificates begin and end by them")
