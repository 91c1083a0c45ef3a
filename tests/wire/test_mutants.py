"""Bytes that are almost right: none crashes anything, none is admitted unless it is what was sent."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import AtollError, CodecError, Gone, IntegrityError, ProtocolError, StateError
from atoll.core.session import Packet
from atoll.transport import pieces
from atoll.transport.conformance import each, enter, message
from atoll.transport.delta import make, restore
from atoll.transport.fetch import Part, source
from atoll.transport.frames import FrameFile, announced
from atoll.transport.grpc import unwrap, wrap
from atoll.transport.link import UP, letter, pack, read, unpack
from atoll.transport.open import open_link
from atoll.transport.receive import Spool
from atoll.wire.codec import FRAME, HEADER
from atoll.wire.plain import payload
from tests.wire.world import LIMITS, blob_file, identity, run, serving

FRAMES, BUFFER, BLOB = message(2 * FRAME + 300)
HEAD = FRAMES[0][HEADER:]


def mutants(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The data with bits flipped, pieces cut, doubled, moved, put in or filled with 0 and 255."""
    rng = random.Random(seed)
    for k in range(count):
        made = bytearray(data)
        for _ in range(1 + k % 3):
            at, long = rng.randrange(len(made) + 1), rng.choice((1, 1, 4, 16, 64))
            match rng.randrange(6):
                case 0 if made:
                    made[at % len(made)] ^= 1 << rng.randrange(8)
                case 1:
                    del made[at : at + long]
                case 2:
                    made[at:at] = made[at : at + long]
                case 3:
                    made[at:at] = rng.randbytes(long)
                case 4:
                    made[at : at + long] = bytes([rng.choice((0, 255))]) * len(made[at : at + long])
                case _:
                    del made[at:]
        yield bytes(made)


def test_ten_thousand_heads_headers_and_packets() -> None:
    good = announced(HEAD)
    packet = pack(Packet(3, 2, letter("up", {"k": [1, 2, {"x": "y"}]}, UP)))
    admitted = refused = 0
    for made in mutants(HEAD, 2500, 1):
        try:
            admitted += announced(made) == good and made != HEAD
        except CodecError:
            refused += 1
    for frame in (FRAMES[0], FRAMES[3]):
        for made in mutants(frame, 2500, 2):
            try:
                assert made == frame or payload(made) is None
            except (CodecError, IntegrityError):
                refused += 1
    for made in mutants(packet, 2500, 3):
        try:
            got = unpack(made)
            if got.body is not None:
                read(got.body, UP)
        except ProtocolError:
            refused += 1
    assert refused > 6000
    assert admitted < 2500, "heads may differ elsewhere: the gate reads them whole"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    for parse in (announced, payload, unpack, read, unwrap, lambda b: source(b, "0" * 64)):
        with contextlib.suppress(ProtocolError):
            parse(data)


@given(st.binary(max_size=5000))
def test_a_wrapped_frame_is_the_protobuf_message_frame(data: bytes) -> None:
    from atoll.transport import atoll_pb2 as pb

    assert wrap(data) == pb.Frame(data=data).SerializeToString() or not data
    assert bytes(unwrap(wrap(data))) == data


@given(st.lists(st.integers(1, 3000), max_size=5), st.randoms())
def test_how_a_body_is_cut_changes_nothing(sizes: list[int], rng: random.Random) -> None:
    packets = [rng.randbytes(size) for size in sizes]
    body = pieces.packed(packets) if packets else b""

    async def cut(data: bytes, step: int) -> list[bytes]:
        return [
            p async for p in pieces.packets(each([data[k : k + step] for k in range(0, len(data), step)]))
        ]

    async def cut_frames(step: int) -> list[bytes]:
        data = b"".join(small)
        return [f async for f in pieces.frames(each([data[k : k + step] for k in range(0, len(data), step)]))]

    small = message(70)[0]
    for step in (1, 3, 1000):
        assert asyncio.run(cut(body, step)) == packets
        assert asyncio.run(cut_frames(step)) == small


def test_bodies_that_lie_about_their_lengths_are_refused() -> None:
    async def take(split: Any, *parts: bytes) -> list[bytes]:
        return [piece async for piece in split(each(list(parts)))]

    with pytest.raises(CodecError, match="at most"):
        asyncio.run(take(pieces.packets, b"\xff\xff\xff\xff"))
    with pytest.raises(CodecError, match="frames"):
        asyncio.run(take(pieces.frames, b"ATL\x01" + b"\xff" * 40))
    for split in (pieces.packets, pieces.frames):
        with pytest.raises(Gone, match="ended within"):
            asyncio.run(take(split, b"ATL" if split is pieces.frames else b"\x05"))


def test_spools_admit_what_was_sent_and_nothing_else(tmp_path: Path) -> None:
    """Small frames, so that many mutants fit: the rules are those of big ones."""
    frames, buffer, _ = message(500)
    rng, admitted = random.Random(5), 0
    for k, made in enumerate(mutants(b"".join(frames), 2000, 7)):
        spool = Spool(tmp_path / "spool", 500 + 64)
        cut = sorted(rng.sample(range(len(made) + 1), 2)) if k % 4 == 0 else [len(frames[0])]
        parts = [made[a:b] for a, b in zip([0, *cut], [*cut, len(made)], strict=True)]
        try:
            spool.write([part for part in parts if part])
            spool.verify()
        except (ProtocolError, Gone):
            spool.drop()
            continue
        if spool.whole:
            admitted += 1
            assert spool.path.read_bytes() == buffer
            assert spool.head == frames[0][HEADER:]
        spool.drop()
    assert admitted <= 20, "those that are equal to what was sent"


def test_spools_over_a_torn_disk_start_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", len(BUFFER))
    spool.write(FRAMES[:3])
    with spool.path.open("r+b") as file:
        file.seek(5000)
        file.write(bytes(4096))  # a power cut: the length was kept, the bytes were not
    found = Spool(tmp_path / "spool", len(BUFFER))
    found.find()
    assert found.frames == 3
    found.write(FRAMES[3:])
    with pytest.raises(Gone, match="start again"):
        found.verify()
    assert found.frames == 0
    found.write(FRAMES)
    found.verify()
    assert found.path.read_bytes() == BUFFER
    for torn in (b"", b"nonsense"):
        found.beside.write_bytes(torn)
        again = Spool(tmp_path / "spool", len(BUFFER))
        again.find()
        assert again.frames == 0


def test_a_message_of_one_frame_is_kept_as_a_whole_or_sent_again(tmp_path: Path) -> None:
    frames, buffer, _ = message(300)
    size = len(buffer)
    spool = Spool(tmp_path / "spool", size)
    spool.write(frames)
    spool.verify()
    assert not spool.beside.exists()
    assert spool.path.read_bytes() == buffer
    after = Spool(tmp_path / "spool", size)  # the server was killed before it was kept
    after.find()
    assert after.frames == 0
    for frame in frames:  # not together: from then on a kill loses nothing of it
        after.write([frame])
    assert after.beside.exists()
    again = Spool(tmp_path / "spool", size)
    again.find()
    assert again.frames == 2
    again.verify()


def test_a_spool_that_a_failing_disk_moved_away_starts_again(tmp_path: Path) -> None:
    """The answer was renamed to its blob, and the folder could not be synced: no receipt, no file."""
    spool = Spool(tmp_path / "spool", len(BUFFER))
    spool.write(FRAMES)
    spool.path.rename(tmp_path / "blob")
    with pytest.raises(Gone, match="start again"):
        spool.verify()
    assert spool.frames == 0
    spool.write(FRAMES)
    spool.verify()
    assert spool.path.read_bytes() == BUFFER


def test_blob_files_that_are_damaged_say_so(tmp_path: Path) -> None:
    whole = blob_file(tmp_path, FRAMES)
    assert FrameFile.of(whole).blob == BLOB
    for damaged in (
        b"",
        b"x" * 100,
        whole.read_bytes()[:-1],
        whole.read_bytes() + b"x",
        b"".join(FRAMES[1:]),
    ):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(StateError):
            FrameFile.of(tmp_path / "damaged")


def test_parts_and_deltas_that_are_damaged_are_fetched_again(tmp_path: Path) -> None:
    new, _, name = message(2 * FRAME, seed=5)
    base = blob_file(tmp_path, new, "base")
    old = FrameFile.of(base)
    other, _, target = message(2 * FRAME, seed=5)
    assert not make(old, FrameFile.of(blob_file(tmp_path, FRAMES, "far")), tmp_path / "none"), "another size"
    assert make(old, FrameFile.of(blob_file(tmp_path, other, "same")), tmp_path / "delta")
    good = (tmp_path / "delta").read_bytes()
    restore(base, tmp_path / "delta", tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == b"".join(other)
    for made in mutants(good, 300, 9):
        (tmp_path / "bad").write_bytes(made)
        try:
            restore(base, tmp_path / "bad", tmp_path / "out")
        except AtollError:
            continue
        assert (tmp_path / "out").read_bytes() == b"".join(other)
    part = Part(target, tmp_path / "got", {name: base})
    part.part.write_bytes(good[:-1])
    part.find()
    with pytest.raises((Gone, IntegrityError)):
        part.verify()


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_mutants_over_the_wire_reach_no_desk_and_are_named_in_the_log(
    scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames, buffer, _ = message(3000)

    async def story() -> None:
        async with serving(scheme, tmp_path, LIMITS) as (_, desk, port):
            link = open_link(f"{scheme}://127.0.0.1:{port}", identity())
            channel, _ = await enter(link)
            for k, made in enumerate(mutants(b"".join(frames), 150, 11)):
                desk.expects[f"up.{k}"] = 10_000
                sent = [made[: len(frames[0])], made[len(frames[0]) :]]
                try:
                    await link.upload(f"up.{k}", each([part for part in sent if part]), 0)
                except (ProtocolError, Gone):
                    continue
                assert desk.kept[f"up.{k}"] == buffer
            await channel.close()
            await link.close()

    run(story())
    assert "client ann: protocol: " in caplog.text
    assert "serving" not in caplog.text, "nothing failed on our side"
