"""A member that has no gRPC talks HTTPS by itself, and says what to install where that is not wanted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from atoll.control.engine.ways import Found
from atoll.core.errors import Gone
from atoll.privacy.keys import Current
from atoll.transport.grpc import GrpcLink
from atoll.transport.https_link import HttpsLink
from atoll.transport.open import chosen
from tests.wire.pki import member
from tests.wire.test_links import authority

BARE = """
import sys
sys.modules["grpc"] = None  # as where it is not installed
from atoll.core.errors import ConfigError
from atoll.transport.open import chosen, open_link
assert chosen("auto") == "https" and chosen("grpc") == "grpc"
try:
    open_link("grpcs://localhost:8444", None)
except ConfigError as error:
    print(error)
"""


def test_who_asks_for_grpc_without_it_reads_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], check=True, capture_output=True, text=True)
    assert "pip install 'atoll-fl[grpc]'" in done.stdout


def test_it_is_grpc_where_both_have_it() -> None:
    assert chosen("auto") == "grpc"  # it is installed here
    assert chosen("websocket") == "websocket"


class Told(Found):
    """The server's answer is known."""

    ways: dict[str, Any]

    async def _ask(self) -> dict[str, Any]:
        return self.ways


async def door(transport: Any, **ways: Any) -> Any:
    folder = member(authority(), "client", "ann").folder
    assert folder is not None
    found = Told("https://localhost:8443", Current(folder), transport, "")
    found.ways = ways
    link = await found._door()
    await link.close()
    return link


def test_a_server_without_a_door_for_grpc_is_talked_to_over_https() -> None:
    assert isinstance(asyncio.run(door("auto", grpc=8444, https=8443)), GrpcLink)
    assert isinstance(asyncio.run(door("auto", grpc=None, https=8443)), HttpsLink)
    with pytest.raises(Gone, match="offers no grpc"):
        asyncio.run(door("grpc", grpc=None, https=8443))
