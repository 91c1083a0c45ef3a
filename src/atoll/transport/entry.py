"""The three doors of enrolment as routes of an aiohttp server: enrol.py is the other side.

Nobody needs a certificate to come here, so each body is short, and what it asks is checked by the
token's secret, under seal where it comes through others' hands (letterbox.py), or by the key of the
certificate that is to be renewed. A coordinator answers itself;
an edge, which certifies nobody, passes the request on to its parent for those that reach only it. For a
renewal it is not trusted; of an enrolment it sees the token, as the coordinator does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from ..core.errors import AtollError, ConfigError, Gone, ProtocolError, Refused
from ..privacy.keys import Identity, Member, proven
from .enrol import SECONDS, passed
from .letterbox import Letterbox
from .tls import https_member

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
Asking = Callable[[web.Request], Awaitable[Mapping[str, Any]]]


def routes(
    registry: Registry,
    *,
    urls: Sequence[str],
    clock: Callable[[], float],
    call: Call = asyncio.to_thread,
    identity: Callable[[], Identity] | None = None,
) -> list[web.RouteDef]:
    """GET /v1/root, POST /v1/enrol and /v1/renew, for `app.add_routes`.

    `urls`: where members will dial; `clock`: Unix seconds; `call(function)` awaits the registry's
    methods, in the thread where its store may be used. `identity`: the server's own; without it no
    secret comes under seal.
    """
    return _doors(_Coordinator(registry, clock, call), urls, identity)


def passed_on(
    parents: Callable[[], Sequence[str]],
    identity: Callable[[], Identity],
    *,
    urls: Sequence[str],
    clock: Callable[[], float],
    proxy: str | None = None,
    ca: Path | None = None,
    user: tuple[str, str] | None = None,
) -> list[web.RouteDef]:
    """The same routes at an edge. `parents()`: URLs to ask in turn, as it joins by them itself;
    `identity()`: the edge's own; `proxy`, `ca`, `user`: as in enrol.py.
    """
    return _doors(_Edge(parents, identity, clock, proxy, ca, user), urls, identity)


class _Behind(Protocol):
    @property
    def root(self) -> bytes: ...
    async def enrol(self, secret: str, csr: str) -> bytes: ...
    async def renew(self, asked: web.Request) -> bytes: ...


def _doors(
    behind: _Behind, urls: Sequence[str], identity: Callable[[], Identity] | None
) -> list[web.RouteDef]:
    box = None if identity is None else Letterbox(identity)

    async def enrol(asked: web.Request) -> bytes:
        body = await _body(asked, "csr")
        secret = body.get("secret")
        if box is not None and secret is None:
            secret = box.opened(body).hex()
        if not isinstance(secret, str):
            raise ProtocolError("expected JSON with secret and csr, as text")
        return await behind.enrol(secret, body["csr"])

    async def shown(asked: web.Request) -> Mapping[str, str]:
        if box is None:
            raise ProtocolError("this server opens nothing that is sealed: it has no identity")
        return box.shown(await _body(asked, "nonce"))

    async def root(_: web.Request) -> web.Response:
        return web.Response(body=behind.root, content_type="application/x-pem-file")

    return [
        web.get("/v1/root", root),
        web.post("/v1/enrol/key", _answered(shown)),
        web.post("/v1/enrol", _answered(_chained(enrol, urls))),
        web.post("/v1/renew", _answered(_chained(behind.renew, urls))),
    ]


@dataclass
class _Coordinator:
    registry: Registry
    clock: Callable[[], float]
    call: Call

    @property
    def root(self) -> bytes:
        return self.registry.root

    async def enrol(self, secret: str, csr: str) -> bytes:
        try:
            known = bytes.fromhex(secret)
        except ValueError:
            raise ProtocolError("the secret is 64 hexadecimal digits") from None
        return await self.call(lambda: self.registry.enrol(known, csr.encode(), now=self.clock()))

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
    parents: Callable[[], Sequence[str]]
    identity: Callable[[], Identity]
    clock: Callable[[], float]
    proxy: str | None
    ca: Path | None
    user: tuple[str, str] | None

    @property
    def root(self) -> bytes:
        return self.identity().roots

    async def enrol(self, secret: str, csr: str) -> bytes:
        return await self._pass("/v1/enrol", {"secret": secret, "csr": csr})

    async def renew(self, asked: web.Request) -> bytes:
        body = await _body(asked, "csr", "chain")
        return await self._pass("/v1/renew", {"csr": body["csr"], "chain": body["chain"]})

    async def _pass(self, path: str, body: dict[str, str]) -> bytes:
        """The first answer of a parent; Gone where one of them may yet give another than the last did."""
        parents, more = self.parents(), {"proxy": self.proxy, "ca": self.ca, "user": self.user}
        said: list[AtollError] = []
        for url in parents:
            try:
                async with asyncio.timeout(SECONDS * 0.9 / len(parents)):  # the child waits as long in all
                    return await passed(url, path, body, self.identity(), now=self.clock(), **more)  # type: ignore[arg-type]
            except Refused:
                raise
            except TimeoutError:
                said.append(Gone(f"{url} cannot be reached: it does not answer"))
            except AtollError as error:
                said.append(error)
        if said and all(isinstance(error, ProtocolError) for error in said):
            raise said[0]
        text = "; ".join(map(str, said)) or "it has no URL of one: set `join`"
        raise Gone(f"no parent of this edge certifies now: {text}")


def _chained(asking: Callable[[web.Request], Awaitable[bytes]], urls: Sequence[str]) -> Asking:
    """What is answered to who gets a certificate."""

    async def answer(asked: web.Request) -> Mapping[str, Any]:
        return {"chain": (await asking(asked)).decode(), "urls": list(urls)}

    return answer


def _answered(asking: Asking) -> Answer:
    """A handler that answers with this, or with the error in its own words."""

    async def answer(asked: web.Request) -> web.Response:
        try:
            found = await asking(asked)
        except AtollError as error:
            _log.warning("%s from %s: %s", asked.path, asked.remote, error)
            status = 503  # ours, and it may pass
            if isinstance(error, (ProtocolError, ConfigError)):
                status = 400
            elif isinstance(error, Refused):
                status = 403
            return web.json_response({"error": str(error)}, status=status)
        return web.json_response(found)

    return answer


async def _body(asked: web.Request, *names: str) -> dict[str, str]:
    """The body's texts, these among them. Raises ProtocolError for others, or more than LONGEST bytes."""
    if asked.content_length is None or asked.content_length > LONGEST:
        raise ProtocolError(f"expected a body of at most {LONGEST} bytes, and its length ahead of it")
    data = await asked.read()
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in names):
        raise ProtocolError(f"expected JSON with {' and '.join(names)}, as text")
    return {name: text for name, text in body.items() if isinstance(text, str)}
