"""Every transport keeps the same laws: the conformance suite over each of them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from atoll.privacy.keys import Authority, Identity, Member
from atoll.testing import check_link
from atoll.transport.conformance import LAWS, Desk, check
from atoll.transport.gateway import Gateway
from atoll.transport.grpc import GrpcLink
from atoll.transport.grpc import serve as serve_grpc
from atoll.transport.https import serve as serve_https
from atoll.transport.https_link import HttpCarrier, HttpsLink
from atoll.transport.link import Link
from atoll.transport.memory import MemoryLink
from atoll.transport.mqtt import Broker
from atoll.transport.open import open_link
from atoll.transport.service import Limits, Service
from atoll.transport.tls import client_context
from tests.wire.mosquitto import Mosquitto, missing
from tests.wire.pki import NOW
from tests.wire.pki import member as certified

LIMITS = Limits(takeover=2)


@cache
def authority() -> Authority:
    return Authority.new("lab", now=NOW)


@cache
def hub() -> Identity:
    return certified(authority(), "coordinator", "hub", hosts=["127.0.0.1", "localhost"])


@cache
def identity(name: str) -> Identity:
    return certified(authority(), "client", name)


def member(name: str) -> Member:
    return Member("lab", "client", name, 1, 1e12)


@asynccontextmanager
async def memory(desk: Desk) -> AsyncIterator[tuple[Service, Callable[[str], Link]]]:
    service = Service(desk, LIMITS)
    await service.start()
    yield service, lambda name: MemoryLink(service, member(name))
    await service.close()


def grpc(tls: bool) -> Any:
    @asynccontextmanager
    async def make(desk: Desk) -> AsyncIterator[tuple[Service, Callable[[str], Link]]]:
        service = Service(desk, LIMITS, federation="lab")
        await service.start()
        server = await serve_grpc(service, "127.0.0.1:0", hub() if tls else None, federation="lab")
        url = f"{'grpcs' if tls else 'grpc'}://127.0.0.1:{server.port}"
        yield service, lambda name: GrpcLink(url, identity(name) if tls else None, claim=member(name))
        await service.close()
        await server.close(0)

    return make


def https(scheme: str) -> Any:
    tls = scheme.startswith(("https", "wss"))

    @asynccontextmanager
    async def make(desk: Desk) -> AsyncIterator[tuple[Service, Callable[[str], Link]]]:
        service = Service(desk, LIMITS, federation="lab")
        await service.start()
        server = await serve_https(service, "127.0.0.1:0", hub() if tls else None, federation="lab")
        url = f"{scheme}://127.0.0.1:{server.port}"
        yield service, lambda name: HttpsLink(url, identity(name) if tls else None, claim=member(name))
        await service.close()
        await server.close()

    return make


def sealed(scheme: str) -> Any:
    @asynccontextmanager
    async def make(desk: Desk) -> AsyncIterator[tuple[Service, Callable[[str], Link]]]:
        service = Service(desk, LIMITS, federation="lab")
        await service.start()
        server = await serve_https(service, "127.0.0.1:0", None, federation="lab", signer=hub())
        url = f"{scheme}://127.0.0.1:{server.port}"
        yield service, lambda name: HttpsLink(url, identity(name))
        await service.close()
        await server.close()

    return make


@asynccontextmanager
async def by_broker(desk: Desk) -> AsyncIterator[tuple[Service, Callable[[str], Link]]]:
    """Members at a broker, a gateway that nobody trusts, and the server behind it."""
    async with https("https")(desk) as (service, connect):
        server = connect("ann").url
        with tempfile.TemporaryDirectory() as folder, Mosquitto(Path(folder)) as broker:
            at = Broker("127.0.0.1", broker.port, tls=False)
            gateway = Gateway(at, "plant", HttpCarrier(server, client_context(hub().roots)))
            serving = asyncio.ensure_future(gateway.serve())
            await gateway.there.wait()
            url = f"mqtt+sealed://127.0.0.1:{broker.port}/plant"
            yield service, lambda name: open_link(url, identity(name))
            await service.close()
            await gateway.close()
            await serving


WORLDS: dict[str, Any] = {
    "memory": memory,
    "grpc": grpc(False),
    "grpcs": grpc(True),
    **{scheme: https(scheme) for scheme in ("http", "https", "https+poll", "ws", "wss")},
    **{scheme: sealed(scheme) for scheme in ("http+sealed", "http+poll+sealed", "ws+sealed")},
}


BROKER = pytest.param("mqtt+sealed", marks=pytest.mark.skipif(bool(missing()), reason=missing()))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.strip("_"))
@pytest.mark.parametrize("world", [*WORLDS, BROKER])
def test_law(world: str, law: Any) -> None:
    check(WORLDS.get(world, by_broker), [law])


def test_the_suite_is_for_everybody() -> None:
    check_link(memory)


def dropping(desk: Desk) -> Any:
    seen = desk.letter

    async def letter(name: str, kind: str, head: Any) -> None:
        if head.get("k") != 2:
            await seen(name, kind, head)

    desk.letter = letter  # type: ignore[method-assign]
    return memory(desk)


def forgetful(desk: Desk) -> Any:
    async def receipt(name: str, upload: str) -> None:
        return None

    desk.receipt = receipt  # type: ignore[method-assign]
    return memory(desk)


def short(desk: Desk) -> Any:
    @asynccontextmanager
    async def make() -> AsyncIterator[Any]:
        async with memory(desk) as (service, _):

            class Short(MemoryLink):
                async def download(self, blob: str, start: int, have: Any) -> Any:
                    frames = [frame async for frame in super().download(blob, start, have)]
                    for frame in frames[:-1]:
                        yield frame

            yield service, lambda name: Short(service, member(name))

    return make()


@pytest.mark.parametrize(
    ("make", "law"),
    [(dropping, "once and in order"), (forgetful, "one receipt"), (short, "to the end")],
)
def test_control_the_suite_notices_what_is_wrong(make: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_link(make)
