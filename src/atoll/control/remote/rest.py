"""The operator's end of the REST API: one pinned TLS connection, timeouts, careful retries.

The token names the federation's root by its SHA-256. The root itself is fetched over a connection
that proves nothing, compared with that name, and only then trusted; the bearer goes over connections
verified by it and over no other. Requests that change nothing are tried again when a connection
breaks or the server is busy; the others only where they were certainly not received.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ...core import errors
from ...core.errors import AtollError, ConfigError, IntegrityError, PeerError
from ...privacy.token import Token
from ..pinning import blind, fingerprint, loopback, pinned, proxy_for

RETRIES = (0.2, 0.6, 1.8)  # seconds before each further try, times 0.5 to 1.5
BUSY = (429, 502, 503, 504)
PATIENCE = 10.0  # seconds: a server that asks for a longer wait is told to the caller
MOST = 64 << 20  # bytes of an answer that is read into memory
_BROKEN = (OSError, http.client.HTTPException)


class Rest:
    """Requests to the coordinator at `url`, as the bearer of `token`. Safe to share among threads.

    `timeout`: seconds for each step on the network. `sleep` and `jitter` are arguments for tests.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.url, self.token, self.timeout = url.rstrip("/"), token, timeout
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.path:
            raise ConfigError(f"expected a URL as in https://hub.example:8444, got {url!r}")
        self.host, self.secure = parts.hostname, parts.scheme == "https"
        self.port = parts.port or (443 if self.secure else 80)
        if not self.secure and not loopback(self.host):
            raise ConfigError(f"{self.url} would send the token in the clear: write https://")
        self._sleep, self._jitter = sleep, jitter
        self._context: ssl.SSLContext | None = None
        self._open: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()

    def get(self, path: str, timeout: float | None = None, **query: Any) -> Any:
        """The JSON that GET answers; tried again where a try was lost."""
        return self._json("GET", path, query=query, timeout=timeout)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that POST answers; sent once."""
        return self._json("POST", path, body=body or {})

    def upload(self, path: str, data: bytes) -> Any:
        """The JSON that POST answers to a file; sent once."""
        return json.loads(self._answer("POST", path, data, 600.0))

    def delete(self, path: str) -> Any:
        """The JSON that DELETE answers; sent once."""
        return self._json("DELETE", path)

    def download(self, path: str, sha256: str = "") -> bytes:
        """The bytes that GET answers. Raises IntegrityError where they are not those `sha256` names."""
        data = self._answer("GET", path, None, None)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise IntegrityError("the file that came is not the one that was promised: fetch it again")
        return data

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        with self._lock:
            self._drop()

    def __del__(self) -> None:
        if hasattr(self, "_open"):  # else it was refused before it began
            self._drop()

    def _json(
        self, method: str, path: str, *, query: Any = None, body: Any = None, timeout: float | None = None
    ) -> Any:
        query = {k: v for k, v in (query or {}).items() if v is not None}
        target = f"{path}?{urlencode(query)}" if query else path
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        return json.loads(self._answer(method, target, data, timeout))

    def _answer(self, method: str, target: str, data: bytes | None, timeout: float | None) -> bytes:
        waits = list(RETRIES)
        while True:
            try:
                status, head, body = self._once(method, target, data, timeout)
            except _BROKEN as error:
                again = method == "GET" or isinstance(error, (ConnectionRefusedError, socket.gaierror))
                if not waits or not again or isinstance(error, ssl.SSLCertVerificationError):
                    raise _unreachable(self.url, error) from None
                wait = waits.pop(0)
            else:
                if status < 400:
                    return body
                wait = _seconds(head.get("Retry-After"), waits[0] if waits else 0.0)
                if status not in BUSY or not waits or wait > PATIENCE or method != "GET":
                    raise _error(status, body)
                waits.pop(0)
            self._sleep(wait * (0.5 + self._jitter()))

    def _once(
        self, method: str, target: str, data: bytes | None, timeout: float | None
    ) -> tuple[int, Any, bytes]:
        with self._lock:
            if method != "GET":
                self._drop()  # an idle connection may be dead: then nobody could tell whether this arrived
            if self._open is None:
                self._open = self._connect(self._verified())
            connection = self._open
            if connection.sock is not None:
                connection.sock.settimeout(timeout or self.timeout)
            head = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
            if data is not None:
                head["Content-Type"] = "application/json"
            try:
                connection.request(method, target, data, head)
                answer = connection.getresponse()
                body = _read(answer)
            except BaseException:
                self._drop()
                raise
            if answer.will_close:
                self._drop()
            return answer.status, answer.headers, body

    def _verified(self) -> ssl.SSLContext | None:
        """What to speak TLS with: trusts the root the token names, and nothing else."""
        if not self.secure:
            return None
        if self._context is None:
            self._context = pinned(self.root().decode("ascii"))
        return self._context

    def root(self) -> bytes:
        """The federation's root certificate (PEM), compared with the token's fingerprint.

        Raises PrivacyError where another root came: nothing secret has been sent by then.
        """
        connection = self._connect(blind() if self.secure else None)
        try:
            connection.request("GET", "/v1/root")
            answer = connection.getresponse()
            body = _read(answer, 1 << 20)
        finally:
            connection.close()
        if answer.status != 200:
            raise _error(answer.status, body)
        if fingerprint(body) != self.token.fingerprint:
            raise errors.PrivacyError(
                f"{self.url} is not the federation this token was made for: its root has another"
                " fingerprint. Nothing was sent; check the URL, or ask for a token of this federation"
            )
        return body

    def _connect(self, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
        """A connection of its own, through the system's HTTP proxy where it names one for this host."""
        proxy = None if loopback(self.host) else proxy_for(self.host, "https" if self.secure else "http")
        host, port = (proxy[0], proxy[1]) if proxy else (self.host, self.port)
        if context is None:
            return http.client.HTTPConnection(host, port, timeout=self.timeout)
        connection = http.client.HTTPSConnection(host, port, timeout=self.timeout, context=context)
        if proxy:
            connection.set_tunnel(self.host, self.port, headers=proxy[2])
        return connection

    def _drop(self) -> None:
        if self._open is not None:
            with contextlib.suppress(*_BROKEN):
                self._open.close()
            self._open = None


def path(*parts: str | int) -> str:
    """The path of a route from its parts, each quoted: `path("runs", id)` is /v1/runs/id."""
    return "/v1/" + "/".join(quote(str(p), safe="") for p in parts)


def pages(get: Callable[..., Any], target: str, name: str, **query: Any) -> Iterator[dict[str, Any]]:
    """Every row of a list that comes in pages: the answer names the `next` one until it is done."""
    after: Any = None
    while True:
        answer = get(target, after=after, **query)
        yield from answer[name]
        after = answer.get("next")
        if after is None:
            return


def _read(answer: http.client.HTTPResponse, most: int | None = None) -> bytes:
    """The body; JSON up to MOST bytes, a file however long it says it is."""
    if most is None:
        most = MOST if answer.headers.get_content_type() == "application/json" else 1 << 40
    body = answer.read(most + 1)
    if len(body) > most:
        raise IntegrityError(f"the server's answer is longer than {most} bytes")
    if answer.length:
        raise http.client.IncompleteRead(body, answer.length)
    return body


def _seconds(text: str | None, default: float) -> float:
    return float(text) if text is not None and text.isdecimal() else default


def _error(status: int, body: bytes) -> AtollError:
    """What the server refused, as the error it named; only this library's own errors can be named."""
    try:
        found = json.loads(body)["error"]
        kind, message = str(found["kind"]), str(found["message"])
    except (ValueError, KeyError, TypeError):
        return PeerError(f"the server answered with status {status}")
    made = getattr(errors, kind, None)
    if isinstance(made, type) and issubclass(made, AtollError):
        return made(message)
    return PeerError(message)


def _unreachable(url: str, error: Exception) -> AtollError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return errors.PrivacyError(
            f"the server at {url} did not prove that it is that host: {error.verify_message};"
            " nothing was sent. atoll doctor says more"
        )
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return errors.Gone(f"{url} cannot be reached: {text}. atoll doctor looks for the cause")
