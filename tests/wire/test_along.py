"""What goes along with letters: small models with the asks that name them, small answers with their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from atoll.core.errors import ProtocolError, Refused
from atoll.core.session import Packet
from atoll.transport.conformance import message
from atoll.transport.link import ALONG, letter, pack, split, unpack
from atoll.transport.memory import MemoryLink
from tests.wire.test_dial import Net, blob_file, dialled, run, serving


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which transfers were calls of their own."""
    made: list[str] = []

    def noted(name: str) -> None:
        real = getattr(MemoryLink, name)

        def call(self: MemoryLink, *args: Any) -> Any:
            made.append(name)
            return real(self, *args)

        monkeypatch.setattr(MemoryLink, name, call)

    for name in ("offset", "upload", "download"):
        noted(name)
    return made


def test_a_small_model_and_a_small_answer_need_no_call(tmp_path: Path, calls: list[str]) -> None:
    async def story() -> None:
        net = Net()
        service, desk = await serving(net, "a", tmp_path / "a")
        model, _, blob = message(300 << 10)
        answer, buffer, _ = message(200 << 10, seed=1)
        long, longer, _ = message(ALONG, seed=2)
        desk.blobs[blob] = blob_file(tmp_path, model, blob)
        desk.expects |= {"up.1": len(buffer), "up.2": len(longer)}
        async with dialled(net, "a") as (dial, side):
            await side.until(lambda heard: heard)
            service.send("ann", "ask", {"params": blob}, blob)
            await side.until(lambda heard: ("ask", {"params": blob}) in heard)
            await dial.download(blob, tmp_path / "got")
            assert (tmp_path / "got").read_bytes() == b"".join(model)
            receipt = await dial.upload("up.1", blob_file(tmp_path, answer), fresh=True)
            assert receipt == desk.receipts["up.1"] and desk.kept["up.1"] == buffer
            assert calls == []
            await dial.upload("up.2", blob_file(tmp_path, long), fresh=True)
            await dial.download(blob, tmp_path / "again")
            assert calls == ["upload", "download"], "the control: long ones, and those that went"
            assert desk.kept["up.2"] == longer
        await service.close()

    run(story())


def test_an_answer_that_is_not_wanted_is_refused_as_by_a_call(tmp_path: Path, calls: list[str]) -> None:
    async def story() -> None:
        net = Net()
        service, desk = await serving(net, "a", tmp_path / "a")
        frames, buffer, _ = message(1000)
        async with dialled(net, "a") as (dial, side):
            await side.until(lambda heard: heard)
            with pytest.raises(Refused, match="not expected"):
                await dial.upload("up", blob_file(tmp_path, frames), fresh=True)
            desk.expects["up"] = len(buffer)
            frames[1] = frames[1][:99] + b"!" + frames[1][100:]
            with pytest.raises(ProtocolError, match="crc32"):
                await dial.upload("up", blob_file(tmp_path, frames), fresh=True)
            assert calls == [] and dial.connected
        await service.close()

    run(story())


def test_after_a_cut_calls_bring_it_and_nothing_goes_along_any_more(tmp_path: Path, calls: list[str]) -> None:
    async def story() -> None:
        net = Net()
        service, desk = await serving(net, "a", tmp_path / "a")
        frames, buffer, _ = message(300 << 10)
        desk.expects |= {"up.1": len(buffer), "up.2": len(buffer)}
        path = blob_file(tmp_path, frames)
        async with dialled(net, "a") as (dial, side):
            await side.until(lambda heard: heard)
            sending = asyncio.ensure_future(dial.upload("up.1", path, fresh=True))
            await asyncio.sleep(0)  # it waits to be written
            net.cut()
            receipt = await sending
            assert receipt == desk.receipts["up.1"] and desk.kept["up.1"] == buffer
            assert calls == ["offset", "upload"]
            await dial.upload("up.2", path, fresh=True)
            assert calls == ["offset", "upload", "upload"]
            assert [w[0] for w in desk.told].count("uploaded") == 2
        await service.close()

    run(story())


def test_a_model_whose_letter_waited_for_a_connection_is_fetched(tmp_path: Path, calls: list[str]) -> None:
    async def story() -> None:
        net = Net()
        service, desk = await serving(net, "a", tmp_path / "a")
        model, _, blob = message(300 << 10)
        desk.blobs[blob] = blob_file(tmp_path, model, blob)
        async with dialled(net, "a") as (dial, side):
            await side.until(lambda heard: heard)
            net.down.add("a")
            net.cut()
            await side.until(lambda heard: ("lost",) in heard)
            service.send("ann", "ask", {"params": blob}, blob)
            net.down.clear()
            await side.until(lambda heard: ("ask", {"params": blob}) in heard)
            await dial.download(blob, tmp_path / "got")
            assert (tmp_path / "got").read_bytes() == b"".join(model)
            assert calls == ["download"]
        await service.close()

    run(story())


def test_a_packet_with_frames_is_one_protobuf_message() -> None:
    frames, _, _ = message(70_000)
    body = letter("ask", {"params": "x"})
    for along in (b"", b"".join(frames)):
        packet = unpack(pack(Packet(7, 3, body), along))
        assert (packet.number, packet.seen, packet.body) == (7, 3, body + along)
        first, rest = split(packet.body)
        assert bytes(first) == body and b"".join(rest) == along
    assert unpack(pack(Packet(1, 0, body), bytes(1 << 20))).body == body, "what is too long stays here"
