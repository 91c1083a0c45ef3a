"""The page of the protocol is true, and generated code of any language can speak it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc

from atoll.transport import atoll_pb2 as pb
from atoll.transport import half, link, pieces, receive, sealed, service
from atoll.transport.conformance import hello, message
from atoll.transport.grpc import LONGEST
from atoll.transport.https import _Calls
from atoll.transport.tls import grpc_channel_credentials
from tests.house.sources import ROOT
from tests.wire.world import blob_file, identity, run, serving

PAGE = (ROOT / "docs/reference/protocol.md").read_text("utf-8")


def test_the_page_has_the_numbers_of_the_code() -> None:
    limits = service.Limits()
    assert f"version {link.PROTOCOL[0]}.{link.PROTOCOL[1]}" in PAGE
    assert (link.UP.head, link.DOWN.head) == (256 << 10, 1 << 20) and "256 KiB of head up, 1 MiB" in PAGE
    assert f"{link.KEPT}: it has its" in PAGE
    assert half.AHEAD == 1000 and "more than 1,000 ahead" in PAGE
    assert (limits.rate, limits.burst) == (100, 1000) and "100 a second\nafter a burst of 1,000" in PAGE
    assert limits.grace == 75 and "75 s by default" in PAGE
    assert limits.window == 300 and "five minutes" in PAGE
    assert limits.takeover == 5 and "for five\nseconds" in PAGE
    assert sealed.WINDOW == 4096 and "up to 4,096 out of order" in PAGE
    assert LONGEST <= (1 << 20) + 200 and "1 MiB and 200 bytes" in PAGE
    assert link.UPLOAD.fullmatch("x" * 200) and not link.UPLOAD.fullmatch("x" * 201)
    assert all(f"`{name}`" in PAGE for name in sealed.SIGNED)
    assert {receive.KEPT, link.KEPT} == {0xFFFFFFFF}
    assert pieces.PACKET == link.PACKET


def test_the_page_has_every_route_and_method() -> None:
    for route in _Calls(None, None, None).routes():  # type: ignore[arg-type]
        name = route.path.replace("{upload}", "ID").replace("{blob}", "NAME")
        assert f"`{route.method} {name}" in PAGE, f"{route.method} {route.path} is not on the page"
    proto = (ROOT / "src/atoll/transport/atoll.proto").read_text("utf-8")
    assert proto.count("rpc ") == 4


def test_generated_stubs_speak_it(tmp_path: Path) -> None:
    """As protoc's own code would: protobuf messages everywhere, none of our wrapping."""
    frames, buffer, blob = message(3 << 20)

    async def story() -> None:
        async with serving("grpcs", tmp_path) as (_, desk, port):
            desk.expects["up"] = len(buffer)
            desk.blobs[blob] = blob_file(tmp_path, frames)
            channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc_channel_credentials(identity()))
            told: Any = (("atoll-session", "ab" * 16),)

            def of(kind: str, name: str, ask: Any, answer: Any) -> Any:
                make = getattr(channel, kind)
                return make(f"/atoll.v1.Link/{name}", ask.SerializeToString, answer.FromString)

            session = of("stream_stream", "Session", pb.Packet, pb.Packet)(metadata=told)
            await session.write(pb.Packet.FromString(hello("ab" * 16)))
            assert link.read((await session.read()).letter).kind == "welcome"
            offset = of("unary_unary", "Offset", pb.Place, pb.Place)
            assert (await offset(pb.Place(upload="up"), metadata=told)).frames == 0
            upload = of("stream_unary", "Upload", pb.Frame, pb.Packet)
            place = (*told, ("atoll-upload", "up"), ("atoll-start", "0"))
            receipt = await upload((pb.Frame(data=frame) for frame in frames), metadata=place)
            assert link.read(receipt.letter).kind == "receipt"
            assert desk.kept["up"] == buffer
            download = of("unary_stream", "Download", pb.Wanted, pb.Frame)
            got = [frame.data async for frame in download(pb.Wanted(blob=blob, start=1), metadata=told)]
            assert got == frames[1:]
            session.cancel()
            await channel.close()

    run(story())


def test_a_member_over_https_loads_no_grpc() -> None:
    code = (
        "import sys, atoll.transport.dial\n"
        "from atoll.transport.open import open_link\n"
        "open_link('http://127.0.0.1:1', None)\n"
        "print(sorted({'grpc', 'sqlalchemy', 'fastapi', 'torch', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
