"""Handshakes that fail are logged with the peer's address and the reason, not without end."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from atoll.control.desk.listen import Listening
from atoll.transport import https, knock
from atoll.transport.rate import Rate
from atoll.transport.tls import client_context, server_context
from tests.wire.world import hub, identity, serving

HOST = "127.0.0.1"


@asynccontextmanager
async def members(folder: Path) -> AsyncIterator[int]:
    async with serving("https", folder) as (_, _, port):
        yield port


async def _nothing(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def operators(_folder: Path) -> AsyncIterator[int]:
    listening = Listening(_nothing, HOST, 0, server_context(hub(), "none"))
    serving = asyncio.ensure_future(listening.serve())
    try:
        yield listening.port
    finally:
        listening.close()
        await serving


def older() -> ssl.SSLContext:
    context = client_context(hub().roots, identity())
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


async def dials(port: int, context: ssl.SSLContext | None) -> None:
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        with suppress(OSError):
            await reader.read()
        writer.close()


@pytest.mark.parametrize("door", [members, operators])
def test_an_older_session_is_logged_with_its_peer(
    door: Callable[[Path], AbstractAsyncContextManager[int]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(knock, "_EACH", Rate(0.001, 3.0))

    async def main() -> None:
        async with door(tmp_path) as port:
            await dials(port, client_context(hub().roots))
            assert not caplog.messages  # control: TLS 1.3
            await dials(port, older())
            await dials(port, None)
            for _ in range(9):
                await dials(port, older())

    with caplog.at_level(logging.WARNING, "atoll.transport"):
        asyncio.run(main())
    told = [text for text in caplog.messages if "TLS handshake" in text]
    assert f"{HOST} failed: unsupported protocol" in told[0]
    assert f"{HOST} failed: http request" in told[1]
    assert len(told) == 3


@pytest.mark.parametrize("door", [members, operators])
def test_a_handshake_that_is_never_done_is_logged_with_its_peer(
    door: Callable[[Path], AbstractAsyncContextManager[int]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(knock, "_EACH", Rate(0.001, 3.0))
    monkeypatch.setattr(knock, "HANDSHAKE", 0.5)
    monkeypatch.setattr(https, "HANDSHAKE", 0.5)

    async def main() -> None:
        async with door(tmp_path) as port:
            _, stays = await asyncio.open_connection(HOST, port, ssl=client_context(hub().roots))
            for _ in range(3):
                _, leaves = await asyncio.open_connection(HOST, port)
                leaves.close()
            await asyncio.sleep(1.0)
            assert not caplog.messages  # control: a handshake that is done, connections that are closed
            silent = [(await asyncio.open_connection(HOST, port))[1] for _ in range(9)]
            await asyncio.sleep(1.0)
            for writer in (*silent, stays):
                writer.close()

    with caplog.at_level(logging.WARNING, "atoll.transport"):
        asyncio.run(main())
    told = [text for text in caplog.messages if "TLS handshake" in text]
    assert f"{HOST} failed: it is not done after 0.5 seconds" in told[0]
    assert len(told) == 3
