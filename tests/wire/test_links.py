"""Every transport keeps the same laws: the conformance suite over each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from atoll.privacy.keys import Member
from atoll.transport.conformance import LAWS, Desk, check
from atoll.transport.grpc import GrpcLink
from atoll.transport.grpc import serve as serve_grpc
from atoll.transport.link import Link
from atoll.transport.memory import MemoryLink
from atoll.transport.service import Limits, Service

LIMITS = Limits(takeover=0.2)


def member(name: str) -> Member:
    return Member("lab", "client", name, 1, 1e12)


@asynccontextmanager
async def memory(desk: Desk) -> AsyncIterator[tuple[Service, Callable[[str], Link]]]:
    service = Service(desk, LIMITS)
    await service.start()
    yield service, lambda name: MemoryLink(service, member(name))
    await service.close()


@asynccontextmanager
async def grpc_plain(desk: Desk) -> AsyncIterator[tuple[Service, Callable[[str], Link]]]:
    service = Service(desk, LIMITS)
    await service.start()
    server = await serve_grpc(service, "127.0.0.1:0", None, federation="lab")
    url = f"grpc://127.0.0.1:{server.port}"
    yield service, lambda name: GrpcLink(url, None, claim=member(name))
    await service.close()
    await server.close(0)


WORLDS: dict[str, Any] = {"memory": memory, "grpc_plain": grpc_plain}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.strip("_"))
@pytest.mark.parametrize("world", WORLDS)
def test_law(world: str, law: Any) -> None:
    check(WORLDS[world], [law])
