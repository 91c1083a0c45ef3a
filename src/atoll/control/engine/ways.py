"""Doors and ways: what a server listens on, and how a member finds it from one URL.

A member knows its parent by one https:// URL. There the server says which other doors it has
(`/v1/ways`), so that one line, `transport = "grpc"`, chooses how the two talk; without it gRPC
where the member has grpcio and the server a door for it, else HTTPS.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...core.errors import Gone, MisuseError, PrivacyError, ProtocolError, Refused
from ...privacy.keys import Current
from ...privacy.private import write_private
from ...transport import link
from ...transport.open import chosen, open_link
from ...wire.plain import Bytes
from ..settings import PLAIN, Client, Edge, Transport, address, authorities, login

if TYPE_CHECKING:
    from aiohttp import web

    from ...transport.https import Extra
    from .answering import Answering
    from .coordinator import Coordinator
    from .host import Host
    from .pki import Registrar

log = logging.getLogger("atoll.member")
CACHE = 8 << 20  # bytes of models read last: the system has the rest in memory anyway
SECONDS = 20.0  # until a server must have said which doors it has
LONGEST = 1 << 16  # bytes of what it says
GRACE = 30.0  # seconds a member's seat waits for it to connect again
_SCHEMES: Mapping[str, str] = {"grpc": "grpcs", "https": "https", "websocket": "wss"}


class Servers:
    """The doors of a coordinator or an edge: gRPC, HTTPS and WebSocket for members, and enrolment."""

    def __init__(self, settings: Any, current: Current, host: Host, registrar: Any = None) -> None:
        from ...transport.service import Limits, Service

        self.settings = settings
        self.current = current
        self.registrar = registrar
        self.host = host
        self.ports: dict[str, Any] = {}
        clock = asyncio.get_running_loop().time
        limits = Limits(cache=CACHE, heartbeat=settings.heartbeat, grace=min(settings.patience, GRACE))
        self.service = Service(host, limits, deltas=Path(settings.folder) / "deltas", clock=clock)
        host.service = self.service
        self._open: list[Any] = []
        self.answering: Answering | None = None

    async def start(self) -> None:
        """Listen. Raises ConfigError or StateError where it cannot."""
        from ...transport import https

        source = None if self.settings.insecure else self.current
        federation = self.current().member.federation
        await self.service.start()
        host, _ = address(self.settings.listen, "$.listen")
        grpc_port = None
        if self.settings.grpc:
            from ...transport import grpc

            door = await grpc.serve(self.service, self.settings.grpc, source, federation=federation)
            self._open.append(door)
            grpc_port = door.port
        ways = {"grpc": grpc_port, "protocol": list(link.PROTOCOL)}
        await self._answer()
        front = await https.serve(
            self.service,
            self.settings.listen,
            source,
            federation=federation,
            extra=self._extra(ways),
        )
        self._open.append(front)
        ways |= {"https": front.port, "websocket": front.port}
        self.announce({"listen": f"https://{host}:{front.port}", "grpc": grpc_port})
        log.info(
            "%s of federation %s: members join https://%s:%d%s",
            self.settings.name,
            federation,
            next(iter(self.settings.names), host),
            front.port,
            f", gRPC on port {grpc_port}" if grpc_port else "",
        )

    def _extra(self, ways: Mapping[str, Any]) -> Extra:
        """What members find beside their sessions: our other doors, the root, enrolment and renewal."""
        from aiohttp import web

        from ...transport import entry
        from ..desk.auth import MEMBERS

        if self.registrar is not None:
            doors = entry.routes(
                self.registrar, urls=(), clock=time.time, call=self.host.durable, identity=self.current
            )
        else:
            doors = entry.passed_on(
                lambda: self.settings.join or self.current().urls,
                self.current,
                urls=(),
                clock=time.time,
                proxy=self.settings.proxy or None,
                ca=authorities(self.settings),
                user=login(self.settings),
            )
        extra: dict[tuple[str, str], Any] = {}

        async def say(_request: web.Request, _member: Any) -> web.StreamResponse:
            return web.json_response(ways)

        for door in doors:
            extra[door.method, door.path] = _answers(door.handler)
        extra |= self.answering.routes() if self.answering is not None else {}
        extra["GET", "/v1/ways"] = say
        if unknown := sorted(extra.keys() - MEMBERS.keys()):
            raise MisuseError(f"nobody has said who may call {' '.join(unknown[0])}: add it to MEMBERS")
        return extra

    async def _answer(self) -> None:
        """Load the models that children may ask, where there are any: they need libraries of their own."""
        passes_on = isinstance(self.settings, Edge) and self.settings.joint.send != "nothing"
        if self.settings.models or passes_on:
            from .answering import Answering

            self.answering = Answering(self.settings, self.current, self.host.out)
            await self.answering.start()

    def counts(self) -> dict[str, int]:
        """What our models were asked."""
        return {} if self.answering is None else self.answering.counts()

    def announce(self, more: Mapping[str, Any]) -> None:
        """Write where we listen into `ports.json`."""
        self.ports |= more
        write_private(Path(self.settings.folder) / "ports.json", json.dumps(self.ports, indent=1).encode())

    async def stop(self) -> None:
        """Tell members when to come back, and close."""
        await self.service.close()
        for door in self._open:
            await door.close()
        if self.answering is not None:
            await self.answering.stop()


def _answers(handler: Any) -> Callable[[web.Request, Any], Any]:
    async def answer(request: web.Request, _member: Any) -> web.StreamResponse:
        found: web.StreamResponse = await handler(request)
        return found

    return answer


class Api:
    """The door for operators: REST, metrics, the console."""

    def __init__(self, node: Coordinator, registrar: Registrar) -> None:
        from ..desk import api
        from ..desk.admin import first
        from ..desk.listen import Listening
        from ..desk.office import Office

        settings = node.settings
        host, port = address(settings.api, "$.api")
        self._node = node
        self._office = Office(
            node.store,
            settings.federation,
            registrar.root,
            node.folder,
            hosts=frozenset({"localhost", "127.0.0.1", "::1", host, *settings.names}),
            until=lambda: node.current().member.until,
            live=node.live,
            about=node.about,
            busy=lambda: "",
        )
        from ...transport.tls import server_context

        tls = server_context(node.current, "none")
        self._listening = Listening(api.guarded(self._office), host, port, tls)
        self.url = self._listening.url
        self._first = lambda: first(
            node.store, self._office.fingerprint, time.time(), secrets.token_bytes, self._keep
        )
        self._task: Any = None

    async def start(self) -> None:
        """Serve; at a first start put the admin's token into `admin.json`, readable by its owner only."""
        await self._node.host.durable(self._first)
        self._task = asyncio.get_running_loop().create_task(self._listening.serve())
        log.info("console and API: %s", self.url)

    def _keep(self, token: str) -> None:
        kept = json.dumps({"url": self.url, "token": token}, indent=1)
        place = self._node.folder / "admin.json"
        write_private(place, kept.encode())
        log.info("the first admin's token: %s", place)

    async def stop(self) -> None:
        """Answer what is under way, then close."""
        self._listening.close()
        if self._task is not None:
            await self._task


def find_link(current: Current, settings: Client | Edge) -> Callable[[str], link.Link]:
    """How to make a link to a URL: as its scheme says, or for https:// as the settings' `transport` does.

    Over plain text, which links take to this machine only, we say who we are and nothing proves it.
    """
    transport, proxy, ca, user = settings.transport, settings.proxy, authorities(settings), login(settings)
    dialled = {urlsplit(url).scheme for url in settings.join or current().urls}
    if transport == "auto" and chosen(transport) == "https" and "https" in dialled:
        log.info("grpcio is not installed: this member talks HTTPS (gRPC: pip install 'atoll-fl[grpc]')")

    def make(url: str) -> link.Link:
        scheme = urlsplit(url).scheme
        if scheme in PLAIN:
            return open_link(url, None, claim=current().member)
        if scheme == "https" and chosen(transport) != "https":
            return Found(url, current, transport, proxy)
        return open_link(url, current(), proxy=proxy or None, ca=ca, user=user)

    return make


async def _get(url: str, path: str, context: ssl.SSLContext) -> bytes | None:
    """A short answer 200, None for anything that is less simple: a member over gRPC needs no HTTP library,
    which would be a sixth of its memory. Raises Gone where nobody listens.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    lines = f"GET {path} HTTP/1.1", f"Host: {parts.netloc}", "Accept-Encoding: identity", "Connection: close"
    try:
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                writer.write("\r\n".join([*lines, "", ""]).encode("ascii"))
                data = await reader.read(LONGEST)
                while more := await reader.read(LONGEST - len(data)):
                    data += more
            finally:
                writer.close()
    except (ConnectionRefusedError, ConnectionResetError, TimeoutError) as error:
        raise Gone(f"{url} cannot be reached: {str(error) or 'it does not answer'}") from None
    except (OSError, UnicodeEncodeError):
        return None
    head, _, body = data.partition(b"\r\n\r\n")
    simple = head.startswith(b"HTTP/1.1 200 ") and b"chunked" not in head.lower()
    return body if simple and len(data) < LONGEST else None


class Found:
    """A link over the door that the server names for a transport, asked for when it is first used."""

    def __init__(self, url: str, current: Current, transport: Transport, proxy: str) -> None:
        self.url = url
        self._current = current
        self._transport = transport
        self._proxy = proxy
        self._inner: link.Link | None = None

    async def _door(self) -> link.Link:
        if self._inner is None:
            ways, transport = await self._ask(), chosen(self._transport)
            if self._transport == "auto" and not isinstance(ways.get(transport), int):
                transport = "https"
            port = ways.get(transport)
            if not isinstance(port, int):
                raise Gone(f"{self.url} offers no {transport}: choose another transport")
            host = urlsplit(self.url).hostname or ""
            host = f"[{host}]" if ":" in host else host
            door = f"{_SCHEMES[transport]}://{host}:{port}"
            self._inner = open_link(door, self._current(), proxy=self._proxy or None)
        return self._inner

    async def _ask(self) -> dict[str, Any]:
        from ...transport.tls import client_context

        context = client_context(self._current().roots)
        answer = None
        if not self._proxy and not any(name.lower().endswith("_proxy") for name in os.environ):
            answer = await _get(self.url, "/v1/ways", context)
        if answer is None:
            from ...transport.enrol import Caller

            try:
                async with Caller(self.url, self._proxy or None) as caller:
                    answer = await caller.get("/v1/ways", context)
            except (PrivacyError, ProtocolError, Refused) as error:  # not our parent says so
                raise Gone(str(error)) from None
        try:
            ways = json.loads(answer)
        except ValueError:
            ways = None
        if not isinstance(ways, dict):
            raise Gone(f"{self.url} did not say which doors it has: is it another service's address?")
        return ways

    async def session(self, name: str, hello: bytes) -> link.Channel:
        """See link.Link."""
        return await (await self._door()).session(name, hello)

    async def offset(self, upload: str) -> int:
        """See link.Link."""
        return await (await self._door()).offset(upload)

    async def upload(self, upload: str, frames: AsyncIterator[bytes], start: int) -> dict[str, Any]:
        """See link.Link."""
        return await (await self._door()).upload(upload, frames, start)

    async def download(self, blob: str, start: int, have: Sequence[str]) -> AsyncIterator[Bytes]:
        """See link.Link."""
        async for frame in (await self._door()).download(blob, start, have):
            yield frame

    async def probe(self) -> None:
        """See link.Link."""
        await (await self._door()).probe()

    async def close(self) -> None:
        """See link.Link."""
        if self._inner is not None:
            await self._inner.close()
