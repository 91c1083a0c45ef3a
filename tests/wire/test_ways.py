"""A member looks for its parent's doors: whoever answers in its place is no reason to give up for good."""

import asyncio
from contextlib import suppress

import pytest
from aiohttp import web

from atoll.control.engine.ways import find_link
from atoll.control.settings import Client
from atoll.core.errors import Gone
from atoll.transport.dial import Dial, Patience
from tests.wire.pki import member
from tests.wire.test_enrol import HUB, IMPOSTOR, OURS, Hub

pytest.importorskip("grpc", reason="grpcio is not installed")
MINE = member(OURS, "client", "bank-a")


async def _closed(_: web.Request) -> web.Response:
    raise web.HTTPForbidden


async def _elsewhere(_: web.Request) -> web.Response:
    return web.Response(text="Sign in to the guests' network")


@pytest.mark.parametrize(
    ("who", "doors", "why"),
    [
        (IMPOSTOR, [web.get("/v1/ways", _elsewhere)], "did not prove that it is the federation's"),
        (HUB, [web.get("/", _elsewhere)], "is no parent of members"),
        (HUB, [web.get("/v1/ways", _elsewhere)], "did not say which doors it has"),
        (HUB, [web.get("/v1/ways", _closed)], "refused"),
    ],
)
def test_a_parent_whose_place_another_has_taken_is_dialled_on(who, doors, why):
    """A portal, an ingress without its service, a clock that is wrong after a start: it passes."""

    async def main():
        async with Hub().open(who, *doors) as hub:
            make = find_link(lambda: MINE, Client(name="bank-a", transport="grpc", join=(hub.url,)))
            with pytest.raises(Gone, match=why):
                await make(hub.url).session("ab" * 16, b"")
            dial = Dial([hub.url], make, dict, on_letter=_none, patience=Patience(first=0.01, longest=0.01))
            going = asyncio.ensure_future(dial.run())
            await asyncio.sleep(0.5)
            assert not going.done() and why in dial.reason
            await dial.close()
            with suppress(Gone):
                await going

    asyncio.run(main())


async def _none(*_):
    pass
