"""A compact update comes out as it went in; whatever else comes is refused before it takes memory."""

from __future__ import annotations

import gzip
import struct
import sys
import tracemalloc
import zlib
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import CodecError, MisuseError
from atoll.core.update import Layout, Leaf, Update
from atoll.wire import coded
from atoll.wire.coded import Code, Coded, Drawn, compact, decode, encode, shortest

HEAD = struct.Struct("<4BQQ")
STREAM = struct.Struct("<QQ")


@st.composite
def codes(draw: st.DrawFn) -> Code:
    size = draw(st.sampled_from([0, 1, 5, 300, 1024, 1025, 5000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    where: np.ndarray | Drawn | None = None
    k = size
    match draw(st.sampled_from(["all", "listed", "drawn"])):
        case "listed":
            k = draw(st.integers(0, size))
            where = (
                np.sort(rng.choice(size, k, replace=False)).astype(np.int64) if size else np.zeros(0, "i8")
            )
        case "drawn":
            k = draw(st.integers(0, size))
            where = Drawn(k, draw(st.integers(0, 2**64 - 1)))
    dtype = np.dtype(draw(st.sampled_from(["<f4", "<f8"])))
    bits = draw(st.sampled_from([0, 1, 2, 4, 8]))
    if not bits:
        return Code(size, dtype, where, (rng.normal(size=k) * (rng.random(k) < 0.9)).astype(dtype))
    what = rng.integers(bits > 1, 2**bits, k).astype(np.uint8)
    scales = np.abs(rng.normal(size=-(-k // 1024))).astype(np.float32)
    return Code(size, dtype, where, what, bits, scales)


def parts(code: Code) -> tuple:
    where = code.where if isinstance(code.where, Drawn | None) else code.where.tobytes()
    scales = None if code.scales is None else code.scales.tobytes()
    return code.size, code.dtype, where, code.what.tobytes(), code.what.dtype, code.bits, scales


@settings(max_examples=300)
@given(codes())
def test_a_code_comes_out_as_it_went_in(code: Code) -> None:
    back = decode(encode(code), code.size)
    assert parts(back) == parts(code)
    assert back.numbers().tobytes() == code.numbers().tobytes()
    assert encode(back).tobytes() == encode(code).tobytes()


@given(codes())
def test_numbers_are_where_the_code_says_and_0_elsewhere(code: Code) -> None:
    full = np.zeros(code.size, code.dtype)
    places = coded.places(code)
    assert (np.diff(places) > 0).all() and (not len(places) or (places[0] >= 0 and places[-1] < code.size))
    for i, place in enumerate(places):
        level, scale = int(code.what[i]), np.float32(0) if code.scales is None else code.scales[i // 1024]
        match code.bits:
            case 0:
                full[place] = code.what[i]
            case 1:
                full[place] = scale if level else -scale
            case bits:
                full[place] = np.float32(level - 2 ** (bits - 1)) * scale
    np.testing.assert_array_equal(code.numbers(), full)


@settings(max_examples=500)
@given(codes(), st.data())
def test_changed_bytes_are_refused_or_a_code_of_the_same_size(code: Code, data: st.DataObject) -> None:
    raw = bytearray(encode(code))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "more"])):
            case "flip":
                raw[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del raw[max(at, 1) :]
            case "more":
                raw[at:at] = data.draw(st.binary(max_size=9))
    try:
        back = decode(np.frombuffer(raw, np.uint8), code.size)
    except CodecError:
        return
    assert back.numbers().shape == (code.size,)
    assert parts(decode(encode(back), code.size)) == parts(back)


@given(st.binary(max_size=200), st.integers(0, 5000))
def test_any_bytes_are_refused_or_a_code(raw: bytes, size: int) -> None:
    with suppress(CodecError):
        assert decode(np.frombuffer(raw, np.uint8), size).numbers().shape == (size,)


def plain(
    *streams: bytes, kind: int = 0, itemsize: int = 4, bits: int = 8, count: int, key: int = 0
) -> np.ndarray:
    said = b"".join(STREAM.pack(len(s), len(s)) + s for s in streams)
    return np.frombuffer(HEAD.pack(kind, itemsize, bits, 0, count, key) + said, np.uint8)


ONE = np.float32(1).tobytes()
HOSTILE = {
    "no head": (np.zeros(5, np.uint8), "as bytes"),
    "floats": (np.zeros(99, np.float32), "as bytes"),
    "an unknown kind": (plain(ONE, b"\1" * 4, kind=3, count=4), "head"),
    "an unknown precision": (plain(ONE, b"\1" * 4, itemsize=2, count=4), "head"),
    "an unknown width": (plain(ONE, b"\1" * 4, bits=3, count=4), "head"),
    "a key and no use for it": (plain(ONE, b"\1" * 4, key=1, count=4), "head"),
    "fewer numbers": (plain(ONE, b"\1" * 3, count=3), "at most 4 numbers"),
    "more numbers": (plain(ONE, b"\1" * 2**20, count=2**20, kind=1), "at most 4 numbers"),
    "2**63 numbers": (plain(ONE, b"\1" * 4, count=2**63, kind=2), "at most 4 numbers"),
    "level 0": (plain(ONE, b"\1\0\1\1", count=4), "not one of 8 bits"),
    "level 0 of two bits": (plain(ONE, b"\x05", bits=2, count=4), "not one of 2 bits"),
    "a bit after the last": (plain(ONE, b"\x1f", bits=1, count=4), "zeros after the last"),
    "a short stream": (plain(ONE, b"\1" * 3, count=4), "another length"),
    "a long stream": (plain(ONE, b"\1" * 5, count=4), "another length"),
    "no streams": (plain(count=4), "ends before"),
    "one stream more": (plain(ONE, b"\1" * 4, b"", count=4), "goes on"),
    **{
        f"a scale of {scale}": (plain(np.float32(scale).tobytes(), b"\1" * 4, count=4), "scales from 0")
        for scale in (np.nan, np.inf, -np.inf, -1.0, -0.0, 2.0**121)
    },
    "a place beyond the end": (plain(b"\4", ONE, b"\1", kind=1, count=1), "places below 4"),
    "places beyond the end": (plain(b"\0\0\2", ONE, b"\1" * 3, kind=1, count=3), "places below 4"),
    "fewer places": (plain(b"\0", ONE, b"\1" * 2, kind=1, count=2), "another length"),
    "a place without an end": (plain(b"\0\xff", ONE, b"\1" * 2, kind=1, count=2), "expected 2 places"),
    "far places": (plain(b"\xff" * 4, ONE, b"\1" * 4, kind=1, count=4), "expected 4 places"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_codes_are_refused_with_the_reason(name: str) -> None:
    data, why = HOSTILE[name]
    with pytest.raises(CodecError, match=why):
        decode(data, 4)


def zipped(frame: bytes, length: int, count: int) -> np.ndarray:
    scales = np.zeros(-(-count // 1024), "<f4").tobytes()
    said = STREAM.pack(len(scales), len(scales)) + scales + STREAM.pack(length, len(frame)) + frame
    return np.frombuffer(HEAD.pack(0, 4, 8, 0, count, 0) + said, np.uint8)


def test_a_frame_that_unpacks_to_another_length_is_not_unpacked() -> None:
    count, huge = 100_000, zstandard.ZstdCompressor().compress(bytes(1 << 28))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"\1" * count)
    right = zstandard.ZstdCompressor().compress(b"\1" * count)
    lying = bytearray(huge)
    lying[6:10] = struct.pack("<I", count)  # the frame says less than it holds
    assert zstandard.frame_content_size(bytes(lying)) == count
    assert decode(zipped(right, count, count), count).what.min() == 1  # control: an honest one is read
    tracemalloc.start()
    for frame, length in (
        (huge, count),
        (huge, 1 << 28),
        (bytes(lying), count),
        (unsized, count),
        (right[:-3], count),
        (right + b"x", count),
        (right + right, count),
        (b"\0" * 40, count),
    ):
        with pytest.raises(CodecError):
            decode(zipped(frame, length, count), count)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def gzipped(data: bytes) -> bytes:
    return zlib.compress(data, 9, 31)


def test_gzip_is_read_as_zstandard_is_and_never_past_the_length_that_is_due() -> None:
    count, levels = 100_000, b"\1" * 100_000
    right, huge = gzipped(levels), gzipped(bytes(1 << 20))
    assert len(huge) < 1200 and decode(zipped(right, count, count), count).what.tobytes() == levels
    later = gzip.compress(levels, mtime=9)
    assert decode(zipped(later, count, count), count).what.tobytes() == levels  # another writer's header
    wrong = bytearray(right)
    wrong[-8] ^= 1  # its checksum
    tracemalloc.start()
    for frame, why in (
        (huge, "another length"),
        (gzipped(bytes(1 << 28)), "another length"),
        (gzipped(levels[1:]), "another length"),
        (right[:-9], "expected one whole gzip member|another length"),
        (right[:-1], "expected one whole gzip member"),
        (right + b"x", "expected one whole gzip member"),
        (gzipped(levels[:500]) + gzipped(levels[500:]), "another length"),
        (right + gzipped(b""), "expected one whole gzip member"),
        (bytes(wrong), "damaged"),
        (b"\x1f\x8b" + bytes(40), "damaged"),
    ):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        with pytest.raises(CodecError, match=why):
            decode(zipped(frame, count, count), count)
        assert tracemalloc.get_traced_memory()[1] - before < 2 << 20
    tracemalloc.stop()


@given(codes())
def test_without_zstandard_a_code_is_packed_by_gzip_and_says_the_same(code: Code) -> None:
    with pytest.MonkeyPatch.context() as without:
        without.setitem(sys.modules, "zstandard", None)
        by_gzip = encode(code)
        assert encode(code).tobytes() == by_gzip.tobytes()
        assert parts(decode(by_gzip, code.size)) == parts(code)  # by a machine that has none either
    assert parts(decode(by_gzip, code.size)) == parts(code)
    assert by_gzip.nbytes <= encode(code, packs=False).nbytes


def test_without_zstandard_zeros_still_travel_small_and_its_frames_are_refused_in_words() -> None:
    code = Code(LAYOUT.size, np.dtype("<f4"), None, np.zeros(LAYOUT.size, np.float32))
    by_zstandard = encode(code)
    with pytest.MonkeyPatch.context() as without:
        without.setitem(sys.modules, "zstandard", None)
        assert encode(code).nbytes < LAYOUT.size * 4 / 10 and b"\x1f\x8b\x08" in encode(code).tobytes()
        with pytest.raises(CodecError, match="no zstandard to read it with: pip install zstandard"):
            decode(by_zstandard, LAYOUT.size)


LAYOUT = Layout((Leaf("w", (40, 30)), Leaf("b", (30,))))


def test_an_update_that_is_coded_is_an_update_like_any_other() -> None:
    rng = np.random.default_rng(3)
    what = rng.integers(1, 256, LAYOUT.size).astype(np.uint8)
    code = Code(LAYOUT.size, np.dtype("<f4"), None, what, 8, np.array([0.5, 0.25], np.float32))
    update = Coded(LAYOUT, code)
    same = Update(LAYOUT, code.numbers())
    assert update == same and same == update
    assert update["b"].shape == (30,) and not update.buffer.flags.writeable
    assert update + update == same + same and type(update + update) is Update
    assert type(update.pick(lambda n: n == "w")) is Update
    assert deepcopy(update) == update
    assert update.sent == update.packed.nbytes < same.buffer.nbytes / 3
    with pytest.raises(MisuseError, match="a code of 1230 numbers, got 5"):
        Coded(LAYOUT, replace(code, size=5))


@pytest.mark.parametrize("bits", [0, 1, 8])
def test_scaled_it_stays_compact(bits: int) -> None:
    rng = np.random.default_rng(3)
    where = np.sort(rng.choice(LAYOUT.size, 50, replace=False))
    what = rng.normal(size=50).astype("<f4") if not bits else rng.integers(bits > 1, 2**bits, 50).astype("u1")
    scales = np.array([0.7], np.float32) if bits else None
    update = Coded(LAYOUT, Code(LAYOUT.size, np.dtype("<f4"), where, what, bits, scales))
    half = update.scale(1 / 3)
    assert isinstance(half, Coded)
    np.testing.assert_allclose(half.buffer, update.buffer / 3, rtol=1e-6)
    np.testing.assert_array_equal(half.buffer, decode(half.packed, LAYOUT.size).numbers())
    np.testing.assert_allclose(update.scale(-2.0).buffer, update.buffer * -2)
    np.testing.assert_allclose(update.scale(2.0**121).buffer, update.buffer * np.float32(2.0**121))


def test_spooled_it_has_the_same_numbers_and_leaves_no_file(tmp_path) -> None:
    code = Code(LAYOUT.size, np.dtype("<f4"), np.array([3, 900]), np.ones(2, "<f4"))
    update = Coded(LAYOUT, code)
    update.spool(tmp_path)
    assert not update.buffer.flags.owndata and not list(tmp_path.iterdir())
    np.testing.assert_array_equal(update.buffer, code.numbers())
    assert parts(update.code) == parts(code)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("kept", [0.5, 0.2, 0.01])
def test_plain_numbers_are_packed_bit_for_bit_where_it_pays(dtype: str, kept: float) -> None:
    rng = np.random.default_rng(5)
    layout = Layout((Leaf("w", (20_000,)),))
    x = (rng.normal(size=20_000) * 1e-3).astype(dtype)
    assert shortest(Update(layout, x), packs=True).dtype == dtype, "their exponents alone are not worth it"
    x[rng.random(20_000) > kept] = 0
    x[:2] = -0.0, np.nan
    packed = shortest(Update(layout, x), packs=True)
    assert compact(packed) and packed.nbytes < x.nbytes * {0.5: 0.75, 0.2: 0.4, 0.01: 0.05}[kept]
    assert decode(packed, 20_000).numbers().tobytes() == x.tobytes()
    noise = rng.integers(0, 2**31, 20_000).astype("<u4").view("<f4")
    assert shortest(Update(layout, noise), packs=True).dtype == noise.dtype
    assert shortest(Update(layout, x), packs=False).dtype == x.dtype
    assert shortest(Update(Layout((Leaf("w", (9,)),)), np.zeros(9, dtype)), packs=True).dtype == dtype


def test_codes_no_receiver_would_take_are_not_written() -> None:
    with pytest.raises(MisuseError, match="numbers, of"):
        encode(Code(3, np.dtype("<f4"), None, np.ones(3, "u1"), 5, np.ones(1, "<f4")))
