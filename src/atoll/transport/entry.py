"""The three doors of enrolment as routes of an aiohttp server: enrol.py is the other side.

Nobody needs a certificate to come here, so each body is short, and what it asks is checked by the
token's secret or by the key of the certificate that is to be renewed. A coordinator answers itself;
an edge, which certifies nobody, passes the request on to its parent for those that reach only it. For a
renewal it is not trusted; of an enrolment it sees the token, as the coordinator does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from ..core.errors import AtollError, ConfigError, ProtocolError, Refused
from ..privacy.keys import Identity, Member, proven
from .enrol import Caller, certified
from .tls import client_context, https_member

LONGEST = 64 * 1024  # bytes of a body
_log = logging.getLogger("atoll.enrol")


class Registry(Protocol):
    """Who certifies, as control/engine/pki.py: `enrol` and `renew` give a chain, or raise Refused and others.

    `root`: PEM; `grace`: seconds after its end in which a certificate may be renewed.
    """

    root: bytes
    federation: str
    grace: float

    def enrol(self, secret: bytes, csr: bytes, *, now: float) -> bytes: ...
    def renew(self, member: Member, csr: bytes, *, now: float) -> bytes: ...


Call = Callable[[Callable[[], bytes]], Awaitable[bytes]]
Answer = Callable[[web.Request], Awaitable[web.Response]]


def routes(
    registry: Registry, *, urls: Sequence[str], clock: Callable[[], float], call: Call = asyncio.to_thread
) -> list[web.RouteDef]:
    """GET /v1/root, POST /v1/enrol and /v1/renew, for `app.add_routes`.

    `urls`: where members will dial; `clock`: Unix seconds; `call(function)` awaits the registry's
    methods, in the thread where its store may be used.
    """
    return _doors(_Coordinator(registry, clock, call), urls)


def passed_on(
    parent: Callable[[], str],
    identity: Callable[[], Identity],
    *,
    urls: Sequence[str],
    proxy: str | None = None,
) -> list[web.RouteDef]:
    """The same routes at an edge. `parent()`: https://host:port to ask; `identity()`: the edge's own."""
    return _doors(_Edge(parent, identity, proxy), urls)


class _Behind(Protocol):
    @property
    def root(self) -> bytes: ...
    async def enrol(self, asked: web.Request) -> bytes: ...
    async def renew(self, asked: web.Request) -> bytes: ...


def _doors(behind: _Behind, urls: Sequence[str]) -> list[web.RouteDef]:
    async def root(_: web.Request) -> web.Response:
        return web.Response(body=behind.root, content_type="application/x-pem-file")

    return [
        web.get("/v1/root", root),
        web.post("/v1/enrol", _answered(behind.enrol, list(urls))),
        web.post("/v1/renew", _answered(behind.renew, list(urls))),
    ]


@dataclass
class _Coordinator:
    registry: Registry
    clock: Callable[[], float]
    call: Call

    @property
    def root(self) -> bytes:
        return self.registry.root

    async def enrol(self, asked: web.Request) -> bytes:
        body = await _body(asked, "secret", "csr")
        try:
            secret = bytes.fromhex(body["secret"])
        except ValueError:
            raise ProtocolError("the secret is 64 hexadecimal digits") from None
        return await self.call(lambda: self.registry.enrol(secret, body["csr"].encode(), now=self.clock()))

    async def renew(self, asked: web.Request) -> bytes:
        body = await _body(asked, "csr", "chain")
        csr, old, now, ours = body["csr"].encode(), body["chain"].encode(), self.clock(), self.registry
        member = proven(old, csr, ours.root, now=now, federation=ours.federation, grace=ours.grace)
        connection = asked.transport.get_extra_info("ssl_object") if asked.transport else None
        shown = https_member(connection, federation=ours.federation, now=now)
        if shown is not None and shown.uri != member.uri:
            raise ProtocolError(f"{shown.uri} cannot renew the certificate of {member.uri}")
        return await self.call(lambda: ours.renew(member, csr, now=now))


@dataclass
class _Edge:
    parent: Callable[[], str]
    identity: Callable[[], Identity]
    proxy: str | None

    @property
    def root(self) -> bytes:
        return self.identity().roots

    async def enrol(self, asked: web.Request) -> bytes:
        return await self._pass("/v1/enrol", await _body(asked, "secret", "csr"))

    async def renew(self, asked: web.Request) -> bytes:
        return await self._pass("/v1/renew", await _body(asked, "csr", "chain"))

    async def _pass(self, path: str, body: dict[str, str]) -> bytes:
        async with Caller(self.parent(), self.proxy) as caller:
            return certified(await caller.post(path, body, client_context(self.root)))[0]


def _answered(asking: Callable[[web.Request], Awaitable[bytes]], urls: list[str]) -> Answer:
    """A handler that answers with the chain, or with the error in its own words."""

    async def answer(asked: web.Request) -> web.Response:
        try:
            chain = await asking(asked)
        except AtollError as error:
            _log.warning("%s from %s: %s", asked.path, asked.remote, error)
            status = 503  # ours, and it may pass
            if isinstance(error, (ProtocolError, ConfigError)):
                status = 400
            elif isinstance(error, Refused):
                status = 403
            return web.json_response({"error": str(error)}, status=status)
        return web.json_response({"chain": chain.decode(), "urls": urls})

    return answer


async def _body(asked: web.Request, *names: str) -> dict[str, str]:
    """The body's texts of these names. Raises ProtocolError for anything else, or more than LONGEST bytes."""
    if asked.content_length is None or asked.content_length > LONGEST:
        raise ProtocolError(f"expected a body of at most {LONGEST} bytes, and its length ahead of it")
    data = await asked.read()
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in names):
        raise ProtocolError(f"expected JSON with {' and '.join(names)}, as text")
    return {name: body[name] for name in names}
