"""The doctor beside a client that joins by a broker: the broker, the gateway there, the server behind it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Coroutine, Iterator
from typing import Any

from ...core.errors import AtollError
from ..pinning import fingerprint
from ..settings import authorities, login
from .doctor_network import known, spoken, way
from .finding import Finding


def by_broker(
    url: str, settings: Any, identity: Any, pins: frozenset[str], timeout: float
) -> Iterator[Finding]:
    """What stands between here and the server behind a gateway, in the order one would look for it."""
    from ...transport.mqtt import broker_at

    user, ca = (login(settings), authorities(settings)) if settings else (None, None)
    try:
        at, name = broker_at(url, user, ca)
    except AtollError as error:
        yield Finding("address", "bad", str(error), "write it as mqtts+sealed://broker.example:8883/GATEWAY")
        return
    for found in (known(at.host), way((at.host, at.port), timeout)):
        yield found
        if found.level == "bad":
            return
    if wrong := _tried(_greeted(at), timeout):
        remedy = "see [broker] and `ca` in client.toml: the user, the password, who vouches for the broker"
        yield Finding("broker", "bad", wrong, remedy)
        return
    who = f"as {at.user}" if at.user else "without a name"
    yield Finding(
        "broker", "ok", f"{at.host}:{at.port} lets us in {who}, {'over' if at.tls else 'without'} TLS"
    )
    yield from _behind(url, name, settings, identity, pins, timeout)


def _behind(
    url: str, name: str, settings: Any, identity: Any, pins: frozenset[str], timeout: float
) -> Iterator[Finding]:
    from ...transport.mqtt_link import Asker, mqtt_link

    user, ca = (login(settings), authorities(settings)) if settings else (None, None)
    member = identity.member.name if identity else (settings.name if settings else "") or "member"
    said: list[bytes] = []

    async def asked() -> None:
        async with Asker(url, member, user, ca) as asker:
            said.extend([await asker.get("/v1/root"), await asker.get("/v1/")])

    if wrong := _tried(asked(), timeout):
        remedy = "see that `atoll gateway` runs with this name, reaches its server, and may use its topics"
        yield Finding("gateway", "bad", wrong, remedy)
        return
    yield Finding("gateway", "ok", f"{name} answers, and a server behind it")
    try:
        same = fingerprint(said[0]) in pins
    except AtollError:
        same = False
    if not same:
        remedy = "it is another federation, or the token is: ask its administrator for a new token"
        yield Finding("root", "bad", f"the root behind {name} is not the one this member pinned", remedy)
        return
    yield Finding("root", "ok", f"the root behind {name} is the one this member pinned")
    yield spoken(_protocol(said[1]), f"the server behind {name}")
    if identity is None:
        return

    async def signed() -> None:
        link = mqtt_link(url, identity, user=user, ca=ca)
        try:
            await link.probe()
        finally:
            await link.close()

    if wrong := _tried(signed(), timeout):
        remedy = "our certificate may have ended, or somebody answers in the server's place"
        yield Finding("certificate", "bad", wrong, remedy)
    else:
        yield Finding("certificate", "ok", "the server signed what it said, and took our signature")


def _protocol(about: bytes) -> Any:
    """What a server says it speaks, None where it says nothing of the kind."""
    try:
        return json.loads(about)["protocol"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


async def _greeted(at: Any) -> None:
    """Connect to the broker, and nothing more."""
    from ...transport.mqtt import Line

    name = f"atoll-doctor-{secrets.token_hex(8)}"
    line = Line(at, name, {}, (name, b"", False), lambda *_: None)
    try:
        await line.open()
    finally:
        await line.close()


def _tried(call: Coroutine[Any, Any, None], timeout: float) -> str:
    """What went wrong with it, "" for nothing."""

    async def limited() -> None:
        async with asyncio.timeout(timeout):
            await call

    try:
        asyncio.run(limited())
    except TimeoutError:
        return f"nothing was answered within {timeout:.0f} seconds"
    except AtollError as error:
        return str(error)
    return ""
