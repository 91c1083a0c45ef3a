"""What anybody may ask and costs a signature or a look-up: so often from one address, then 429."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from atoll.control.engine.pki import Registrar
from atoll.core.errors import Gone
from atoll.privacy.keys import Authority
from atoll.transport import https
from atoll.transport.enrol import enrol, renew
from atoll.transport.entry import routes
from atoll.transport.https_link import HttpsLink
from atoll.transport.rate import Rate
from atoll.transport.service import Service
from atoll.transport.tls import client_context
from tests.wire.pki import NOW, Ledger, member
from tests.wire.world import LIMITS, Desk

OURS = Authority.new("lagoon", now=NOW)
HUB = member(OURS, "coordinator", "hub", hosts=("localhost", "127.0.0.1"))


@asynccontextmanager
async def door(folder: Path, knocks: Rate | None = None) -> AsyncIterator[tuple[str, Registrar]]:
    registrar = Registrar(OURS, Ledger())
    service = Service(Desk(folder), LIMITS, federation="lagoon")
    await service.start()

    def answers(handler: Any) -> Any:
        return lambda request, _: handler(request)

    found = routes(registrar, urls=(), clock=lambda: NOW, identity=lambda: HUB)
    extra = {(each.method, each.path): answers(each.handler) for each in found}
    more: Any = {} if knocks is None else {"knocks": knocks}
    listening = await https.serve(
        service, "127.0.0.1:0", HUB, federation="lagoon", extra=extra, wall=lambda: NOW, **more
    )
    try:
        yield f"https://localhost:{listening.port}", registrar
    finally:
        await service.close()
        await listening.close()


@pytest.mark.parametrize("path", https.COSTLY)
def test_a_stranger_is_told_when_to_come_again(tmp_path: Path, path: str) -> None:
    async def main() -> None:
        async with door(tmp_path, Rate(0.1, 3.0)) as (url, _), aiohttp.ClientSession() as session:
            tls = client_context(OURS.root)
            seen = []
            for _ in range(5):
                async with session.post(url + path, json={}, ssl=tls) as answer:
                    seen.append(answer.status)
            assert seen[3:] == [429, 429]
            assert 429 not in seen[:3]
            assert 1 <= int(answer.headers["retry-after"]) <= 11
            async with session.get(f"{url}/v1/root", ssl=tls) as answer:  # it costs nothing
                assert answer.status == 200

    asyncio.run(main())


def test_members_take_it_for_a_failure_that_passes(tmp_path: Path) -> None:
    async def main() -> None:
        async with door(tmp_path, Rate(0.001, 1.0)) as (url, registrar):
            token = registrar.token("client", "bank-a", now=NOW, random=secrets.token_bytes)
            made = await enrol(url, token, folder=tmp_path / "a", proxy="", now=NOW)
            with pytest.raises(Gone, match="come again in"):
                await renew(url, made, proxy="", now=NOW)
            sealed = HttpsLink(url.replace("https", "https+sealed"), made, ca=_root(tmp_path))
            with pytest.raises(Gone, match="come again in"):
                await sealed.offset("up")
            await sealed.close()

    asyncio.run(main())


def _root(folder: Path) -> Path:
    (folder / "root.pem").write_bytes(OURS.root)
    return folder / "root.pem"


def test_two_hundred_clients_behind_one_address_join_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with door(tmp_path) as (url, _), aiohttp.ClientSession() as session:
            tls = client_context(OURS.root)

            async def joins() -> set[int]:
                """What a client asks that joins behind a proxy and opens its session."""
                seen = set()
                for path in ("/v1/enrol/key", "/v1/enrol", "/v1/seal"):
                    async with session.post(url + path, json={}, ssl=tls) as answer:
                        seen.add(answer.status)
                return seen

            assert 429 not in set().union(*await asyncio.gather(*(joins() for _ in range(200))))

    asyncio.run(main())
