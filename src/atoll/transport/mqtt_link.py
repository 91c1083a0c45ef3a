"""A member's link over MQTT: its calls go to a gateway by a broker, and the gateway makes them over HTTPS.

    mqtts+sealed://broker:8883/GATEWAY    over TLS; mqtt+sealed:// in plain text, to this machine only

Each call is signed and each answer that decides something is the server's own (sealed.py): neither the
broker nor the gateway nor whoever else may publish there can speak for a member or for the server. They
can read, hold back and cut. A connection that breaks, and a gateway that goes away, end all calls as
Gone; the next call makes another connection.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from ..core.errors import AtollError, ConfigError, Gone
from ..privacy.keys import Identity
from . import atoll_pb2 as pb
from .calls import Answer, Body, CallLink, whole
from .mqtt import (
    BROKEN,
    SILENT,
    Broker,
    Line,
    Piece,
    Talk,
    broker_at,
    gateway_name,
    headers,
    life,
    read,
    topic_name,
)

STATE = 10.0  # seconds until a gateway that is there has been heard of


def mqtt_link(
    url: str,
    identity: Identity | None,
    *,
    user: tuple[str, str] | None = None,
    ca: Path | None = None,
    silent: float = SILENT,
) -> CallLink:
    """See link.Link and above. `user`: name and password at the broker; `ca`: PEM that vouches for it;
    `silent`: seconds until a call that nothing is heard of is given up.
    """
    if identity is None or not url.partition("://")[0].endswith("+sealed"):
        raise ConfigError(f"{url}: by a broker each call is signed: write mqtts+sealed://")
    carrier = MqttCarrier(url, identity.member.name, user, ca, silent=silent)
    return CallLink(url, carrier, identity, poll=True)


class MqttCarrier:
    """See calls.Carrier and mqtt_link. `member`: whose topics are used, where the broker asks no user."""

    def __init__(
        self,
        url: str,
        member: str,
        user: tuple[str, str] | None = None,
        ca: Path | None = None,
        *,
        silent: float = SILENT,
    ) -> None:
        self._broker, name = broker_at(url, user, ca)
        self._gateway = gateway_name(name)
        self._member = topic_name(self._broker.user or member)
        self._silent = silent
        self._way: _Way | None = None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def call(
        self, method: str, path: str, told: Mapping[str, str], data: Body
    ) -> AsyncIterator[Answer]:
        """See calls.Carrier."""
        way = await self._open()
        key = secrets.token_bytes(16)
        talk = way.calls[key] = Talk(key, way.put, self._silent)
        saying = asyncio.ensure_future(_said(talk, data, method=method, path=path, headers=headers(told)))
        try:
            first = await talk.hear()
            names = {header.name: header.value for header in first.headers}
            yield Answer(first.status, names, talk.body(first))
        finally:
            del way.calls[key]
            saying.cancel()
            with suppress(asyncio.CancelledError):
                await saying
            if not talk.over:
                talk.broken("the member wants no more of it")

    async def _open(self) -> _Way:
        async with self._lock:
            if self._way is None or self._way.line.why:
                await self.close()
                way = _Way(self._broker, self._gateway, self._member)
                try:
                    await way.open()
                except BaseException:
                    await way.line.close()
                    raise
                self._way = way
            return self._way

    async def close(self) -> None:
        """See calls.Carrier."""
        if self._way is not None:
            await self._way.line.close()


class Asker:
    """Single requests by a broker, as enrol.py makes them: see enrol.Calls. As a context.

    What is answered proves nothing by itself; nor does a refusal, which is Gone with its reason.
    """

    def __init__(
        self, url: str, member: str, user: tuple[str, str] | None = None, ca: Path | None = None
    ) -> None:
        self.url = url
        self._carrier = MqttCarrier(url, member, user, ca)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._carrier.close()

    async def get(self, path: str, _: object = None) -> bytes:
        """The body of an answer 200. Raises Gone."""
        return await self._call("GET", path, {}, None)

    async def post(self, path: str, body: Mapping[str, str], _: object = None) -> dict[str, Any]:
        """The JSON object of an answer 200. Raises Gone."""
        told = {"content-type": "application/json"}
        answer = _plain(await self._call("POST", path, told, json.dumps(body).encode()))
        if answer is None:
            raise Gone(f"{self.url} did not answer with JSON")
        return answer

    async def _call(self, method: str, path: str, told: Mapping[str, str], data: Body) -> bytes:
        async with self._carrier.call(method, path, told, data) as answer:
            body = await whole(answer.body)
        if answer.status == 200:
            return body
        reason = (_plain(body) or {}).get("error") or answer.headers.get("atoll-reason")
        raise Gone(f"{self.url}: {str(reason or f'status {answer.status}')[:1000]}")


def _plain(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


async def _said(talk: Talk, data: Body, **first: object) -> None:
    """Say a call; what goes wrong with its body is raised where its answer is waited for."""
    try:
        await talk.say(data, **first)
    except AtollError as error:
        talk.fail(error)


class _Way:
    """One connection to the broker, for as long as one life of the gateway answers."""

    def __init__(self, broker: Broker, gateway: str, member: str) -> None:
        link, top = secrets.token_hex(16), f"atoll/{gateway}"
        self.calls: dict[bytes, Talk] = {}
        self._state, self._up = f"{top}/state", f"{top}/up/{member}/{link}"
        self._down = f"{top}/down/{member}/{link}"
        self._gateway = gateway
        self._life = ""
        self._there = asyncio.Event()
        self.line = Line(
            broker,
            f"atoll-{link}",
            {self._state: True, self._down: False},
            (self._up, Piece(end=BROKEN).SerializeToString(), False),
            self._heard,
            self._over,
        )

    async def open(self) -> None:
        """Connect, and wait until the gateway is there. Raises Gone."""
        await self.line.open()
        try:
            async with asyncio.timeout(STATE):
                await self._there.wait()
        except TimeoutError:
            raise Gone(f"no gateway called {self._gateway} is at this broker") from None
        if self.line.why:
            raise Gone(self.line.why)

    def put(self, piece: pb.Piece) -> None:
        """Bring a piece to the gateway."""
        self.line.put(self._up, piece.SerializeToString())

    def _heard(self, topic: str, message: bytes, retained: bool) -> None:  # noqa: FBT001  line's contract
        if topic == self._state:
            self._stands(life(message))
            return
        piece = read(message) if topic == self._down and not retained else None
        talk = self.calls.get(piece.call) if piece is not None else None
        if piece is not None and talk is not None:
            talk.arrived(piece)

    def _stands(self, now: str) -> None:
        """The gateway is there, or away, or began anew and knows nothing of our calls."""
        before, self._life = self._life, now
        if now:
            self._there.set()
        if before and now != before:
            self._fail("the gateway went away: it is asked again")

    def _over(self, why: str) -> None:
        self._there.set()
        self._fail(why)

    def _fail(self, why: str) -> None:
        for talk in self.calls.values():
            talk.fail(Gone(why))
