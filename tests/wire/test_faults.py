"""The network at its worst: whatever it does, letters arrive once and uploads end whole."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from atoll.transport.conformance import enter, message
from atoll.transport.https import serve as serve_https
from atoll.transport.open import open_link
from atoll.transport.service import Limits, Service
from atoll.wire.codec import FRAME
from tests.wire.proxy import Relay
from tests.wire.world import LIMITS, SCHEMES, Desk, blob_file, claim, dialled, run, serving

FRAMES, BUFFER, _ = message(20 * FRAME + 77)
SIZE = sum(map(len, FRAMES))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("percent", [10, 50, 99])
def test_an_upload_cut_on_its_way_sends_at_most_one_frame_again(
    scheme: str, percent: int, tmp_path: Path
) -> None:
    async def story() -> None:
        async with serving(scheme, tmp_path) as (_, desk, port), Relay(port) as relay:
            desk.expects["up"] = len(BUFFER)
            async with dialled([f"{scheme}://127.0.0.1:{relay.port}"]) as (dial, side):
                await side.until(lambda heard: heard)
                before = relay.bytes["up"]
                relay.cut_at = before + SIZE * percent // 100
                await dial.upload("up", blob_file(tmp_path, FRAMES))
                assert desk.kept["up"] == BUFFER
                assert relay.cut_at is None, "it was cut"
                sent = relay.bytes["up"] - before
                # TLS, HTTP/2 and heartbeats add a few per cent.
                assert sent < SIZE * 1.03 + FRAME + 200_000, f"{sent - SIZE} bytes were sent again"

    run(story())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_letters_over_a_flapping_line_arrive_once_and_in_order(scheme: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(scheme, tmp_path) as (service, desk, port), Relay(port) as relay:
            async with dialled([f"{scheme}://127.0.0.1:{relay.port}"]) as (dial, side):
                await side.until(lambda heard: heard)
                for k in range(6):
                    for i in range(20):
                        dial.send("up", {"k": 20 * k + i})
                        service.send("ann", "down", {"k": 20 * k + i})
                        if i == 10:
                            await asyncio.sleep(0)
                            relay.reset() if k % 2 else relay.cut()
                    last = {"k": 20 * k + 19}
                    await side.until(lambda heard, last=last: ("down", last) in heard)
                    await desk.until(lambda told, last=last: ("letter", "ann", "up", last) in told)
            assert [h[1]["k"] for h in side.heard if h[0] == "down"] == list(range(120))
            assert [w[3]["k"] for w in desk.told if w[0] == "letter"] == list(range(120))
            assert [w[0] for w in desk.told].count("present") == 1

    run(story())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_half_open_line_is_noticed_by_both_sides(scheme: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            serving(scheme, tmp_path) as (service, desk, port),
            Relay(port) as relay,
            dialled([f"{scheme}://127.0.0.1:{relay.port}"]) as (dial, side),
        ):
            await side.until(lambda heard: heard)
            relay.hold()
            dial.send("up", {"k": 1})
            service.send("ann", "down", {"k": 1})
            await side.until(lambda heard: ("lost",) in heard)
            relay.reset()
            relay.hold(held=False)
            await side.until(lambda heard: ("down", {"k": 1}) in heard)
            await desk.until(lambda told: ("letter", "ann", "up", {"k": 1}) in told)

    run(story())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_slow_and_late_line_carries_everything(scheme: str, tmp_path: Path) -> None:
    frames, buffer, _ = message(200_000)
    limits = Limits(takeover=0.2, heartbeat=2.0)

    async def story() -> None:
        async with serving(scheme, tmp_path, limits) as (service, desk, port), Relay(port) as relay:
            relay.latency, relay.jitter = 0.1, 0.1
            desk.expects["up"] = len(buffer)
            async with dialled([f"{scheme}://127.0.0.1:{relay.port}"]) as (dial, side):
                await side.until(lambda heard: heard)
                relay.latency, relay.jitter, relay.rate = 0.0, 0.02, 300_000
                dial.send("up", {"k": 1})
                await dial.upload("up", blob_file(tmp_path, frames))
                assert desk.kept["up"] == buffer
                service.send("ann", "down", {"k": 1})
                await side.until(lambda heard: ("down", {"k": 1}) in heard)
                assert not [h for h in side.heard if h[0] == "lost"]

    run(story())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bits_flipped_on_the_way_change_nothing(scheme: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(scheme, tmp_path) as (_, desk, port), Relay(port, seed=3) as relay:
            desk.expects["up"] = len(BUFFER)
            async with dialled([f"{scheme}://127.0.0.1:{relay.port}"]) as (dial, side):
                await side.until(lambda heard: heard)
                relay.corrupt = 3
                await dial.upload("up", blob_file(tmp_path, FRAMES))
                assert desk.kept["up"] == BUFFER
                assert relay.corrupt == 0, "bits were flipped"

    run(story())


def test_a_parent_behind_a_partition_is_left_for_another(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        async with (
            serving("grpcs", tmp_path / "a") as (_, _, first),
            serving("https", tmp_path / "b") as (_, _, second),
            Relay(first) as relay,
        ):
            home, away = f"grpcs://127.0.0.1:{relay.port}", f"https://127.0.0.1:{second}"
            async with dialled([home, away]) as (_, side):
                await side.until(lambda heard: ("open", home, True) in heard)
                relay.closed = True
                relay.reset()
                await side.until(lambda heard: ("open", away, True) in heard)
                relay.closed = False
                await side.until(lambda heard: heard.count(("open", home, True)) == 2)

    run(story())


def _crowd(port: int, slow: int, mute: int) -> list[socket.socket]:
    """`slow` connections that began a handshake or a request and stopped, `mute` that said nothing."""
    crowd = []
    for k in range(slow + mute):
        s = socket.create_connection(("127.0.0.1", port))
        if k < slow:
            s.sendall(b"\x16\x03\x01\x02" if k % 2 else b"GET / HT")
        crowd.append(s)
    return crowd


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_who_says_nothing_keeps_nobody_from_being_served(scheme: str, tmp_path: Path) -> None:
    frames, buffer, _ = message(3 * FRAME)

    async def story() -> None:
        async with serving(scheme, tmp_path) as (_, desk, port):
            crowd = await asyncio.to_thread(_crowd, port, 200, 800)
            try:
                desk.expects["up"] = len(buffer)
                async with dialled([f"{scheme}://127.0.0.1:{port}"]) as (dial, side):
                    await side.until(lambda heard: heard)
                    await dial.upload("up", blob_file(tmp_path, frames))
                    assert desk.kept["up"] == buffer
            finally:
                for s in crowd:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    s.close()

    run(story())


def test_connections_without_a_request_are_closed(tmp_path: Path) -> None:
    async def story() -> None:
        service = Service(Desk(tmp_path), LIMITS)
        await service.start()
        server = await serve_https(service, "127.0.0.1:0", None, federation="lab", idle=0.2)
        quiet = await asyncio.open_connection("127.0.0.1", server.port)
        slow = await asyncio.open_connection("127.0.0.1", server.port)
        slow[1].write(b"GET /v1/ HTTP/1.1\r\nx: ")
        assert await quiet[0].read() == b""
        assert await slow[0].read() == b""
        for _, writer in (quiet, slow):
            writer.close()
        await service.close()
        await server.close()

    run(story())


def test_connections_beyond_the_limit_are_closed(tmp_path: Path) -> None:
    async def story() -> None:
        service = Service(Desk(tmp_path))
        await service.start()
        server = await serve_https(service, "127.0.0.1:0", None, federation="lab", connections=2, idle=1.0)
        link = open_link(f"http://127.0.0.1:{server.port}", None, claim=claim("ann"))
        channel, _ = await enter(link)
        crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(9)]
        closed = [asyncio.ensure_future(reader.read()) for reader, _ in crowd]
        await asyncio.wait(closed)
        assert service.sessions()[0]["connected"]
        for _, writer in crowd:
            writer.close()
        await channel.close()
        await link.close()
        await service.close()
        await server.close()

    run(story())
