"""What stands before every route of the API: hosts, policy, callers, rates, sizes and headers.

It is plain ASGI around the whole application, not a dependency of each route: a route added
anywhere passes it, and one that the policy does not name is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.routing import Match, Route

from ...core.errors import StateError
from ...transport.rate import Rate
from .auth import ANYONE, POLICY, Caller, allows

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

FILES = (("POST", "/v1/plans"),)  # requests whose body is a file
SAFE = ("GET", "HEAD", "OPTIONS")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """`body`: bytes of a request, `file`: of one that brings a file. `seconds`: for its body to arrive.
    `calls`: by caller or address. `failures`: bad tokens by address. `waiting`: long polls of one caller
    at a time.
    """

    body: int = 1 << 20
    file: int = 256 << 20
    seconds: float = 20.0
    waiting: int = 32
    calls: Callable[[], Rate] = lambda: Rate(50.0, 200.0)
    failures: Callable[[], Rate] = lambda: Rate(0.5, 20.0)


@dataclass
class Guard:
    """The application `app` behind its policy.

    `routes`: what there is. `who(authorization)`: the caller a header proves. `hosts`: names this
    server answers to, without ports; a page elsewhere that points its own name at us is turned away.
    `clock`: seconds, monotonic. `close()`: whoever waits for something may go.
    """

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    routes: Callable[[], Sequence[Any]]
    who: Callable[[str | None], Awaitable[Caller | None]]
    hosts: Callable[[], frozenset[str]]
    clock: Callable[[], float]
    policy: Mapping[tuple[str, str], str] = field(default_factory=lambda: POLICY)
    limits: Limits = field(default_factory=Limits)
    close: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._calls, self._failures = self.limits.calls(), self.limits.failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, _dressed(send, secure=scope.get("scheme") == "https"))
        else:  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refused = self._stranger(scope, head) or await self._caller(scope, head)
        if refused is None:
            files = (scope["method"], scope["path"]) in FILES
            refused, body = await self._body(receive, head, self.limits.file if files else self.limits.body)
        if refused is not None:
            await refuse(send, *refused)
            return
        scope.setdefault("state", {})
        await self.app(scope, _replay(body, receive), send)

    def _stranger(self, scope: Scope, head: Mapping[str, str]) -> tuple[Any, ...] | None:
        """Why this request is not for us: another host's name, or a page of another origin."""
        host = _hostname(head.get("host", ""))
        if host not in self.hosts():
            return 421, "Refused", "this server does not answer to that name: use the URL it was started with"
        origin = _hostname(head.get("origin", f"//{host}").partition("//")[2])
        if scope["method"] not in SAFE and origin != host:
            return 403, "Refused", "a page of another site may not change anything here"
        return None

    async def _caller(self, scope: Scope, head: Mapping[str, str]) -> tuple[Any, ...] | None:
        """Why the policy refuses this request; sets the caller in the scope's state where it does not."""
        template, methods = self._route(scope)
        if template is None:
            if methods:
                return 405, "MisuseError", f"this route takes {', '.join(sorted(methods))}"
            return 404, "MisuseError", "there is nothing here: GET /v1/openapi.json lists the routes"
        least = self.policy.get((scope["method"], template))
        if least is None:
            return 403, "Refused", "no policy names this route, so nobody may call it"
        address, now = (scope.get("client") or ("",))[0], self.clock()
        caller = None
        if least != ANYONE:
            if (wait := self._failures.spent(address, now)) > 0:
                return 429, "Refused", "too many bad tokens came from your address: wait a little", wait
            try:
                caller = await self.who(head.get("authorization"))
            except StateError as error:
                return 503, "StateError", str(error), 1.0
            if caller is None:
                self._failures.wait(address, now)
                return 401, "Refused", "this needs a valid token of this federation: ask its administrator"
            if not allows(caller.role, least):
                return 403, "Refused", f"this needs the role {least}, and you are {caller.role}"
        if (wait := self._calls.wait(caller.name if caller else address, now)) > 0:
            return 429, "Refused", "too many requests: wait a little", wait
        scope.setdefault("state", {})["caller"] = caller
        return None

    def _route(self, scope: Scope) -> tuple[str | None, set[str]]:
        """The template of the route that will answer, or None and the methods its path takes."""
        others: set[str] = set()
        for route in self.routes():
            match, _ = route.matches(scope)
            if match is Match.FULL:  # what is no plain route has no template, so no policy
                return (route.path if isinstance(route, Route) else "?"), others
            if match is Match.PARTIAL:
                others |= set(getattr(route, "methods", None) or ())
        return None, others

    async def _body(
        self, receive: Receive, head: Mapping[str, str], most: int
    ) -> tuple[tuple[Any, ...] | None, bytes]:
        """All of the body, or why not."""
        declared = head.get("content-length", "0")
        large = (413, "MisuseError", f"the body is larger than {most} bytes: send less")
        if not declared.isdecimal() or int(declared) > most:
            return large, b""
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.limits.seconds):
                while more:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        return large, b""
        except TimeoutError:
            return (408, "MisuseError", f"the body did not come within {self.limits.seconds:g} seconds"), b""
        return None, bytes(body)


async def refuse(send: Send, status: int, kind: str, message: str, wait: float = 0.0) -> None:
    """Answer an error: {"error": {"kind", "message"}}; `wait`: seconds until it is worth another try."""
    body = json.dumps({"error": {"kind": kind, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Bearer realm="atoll"'))
    if wait:
        headers.append((b"retry-after", str(int(wait) + 1).encode()))
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _hostname(authority: str) -> str:
    """`[::1]:8443` is `::1`, `hub:8443` is `hub`."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].partition("/")[0].lower().rstrip(".")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what comes after it."""
    first = True

    async def again() -> MutableMapping[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def _dressed(send: Send, *, secure: bool) -> Send:
    """A `send` that adds the headers every answer carries, and keeps those an answer set itself."""
    always = {**HEADERS, **({"strict-transport-security": "max-age=31536000"} if secure else {})}

    async def dressed(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = {k.lower() for k, _ in message.get("headers", [])}
            more = [(k.encode(), v.encode()) for k, v in always.items() if k.encode() not in given]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return dressed
