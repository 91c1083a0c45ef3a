"""What goes in comes out, however the bytes are split; what is not a message is refused."""

from __future__ import annotations

import math
import random
import struct
import tracemalloc
from hashlib import sha256
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atoll.core.errors import CodecError, IntegrityError, MisuseError
from atoll.core.update import Layout, Leaf, Rows, Update
from atoll.wire import wire_pb2 as pb
from atoll.wire.codec import FRAME, HEADER, Decoder, Limits, Message, decode, encode
from atoll.wire.plain import decode_plain, encode_plain

SMALL = Limits(bytes=1 << 22, head=1 << 16, elements=1 << 18, values=4096, streams=2)

names = st.text(min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary()
plain = st.recursive(
    scalars, lambda x: st.lists(x, max_size=4) | st.dictionaries(names, x, max_size=4), max_leaves=9
)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
arrays = st.sampled_from(["<f4", "<f8", "<i8", "<u8", "<i4", "u1"]).flatmap(lambda d: hnp.arrays(d, shapes))


@st.composite
def updates(draw: st.DrawFn) -> Update:
    leaves = draw(st.lists(names, unique=True, max_size=4))
    layout = Layout(tuple(Leaf(name, draw(shapes)) for name in leaves))
    if draw(st.booleans()):
        bits = draw(st.integers(1, 64))
        top = st.integers(0, 2**bits - 1)
        return Update(layout, draw(hnp.arrays("<u8", layout.size, elements=top)), bits=bits)
    dtype = draw(st.sampled_from(["<f4", "<f8"]))
    rows = {}
    for name in draw(st.lists(names.filter(lambda n: n not in leaves), unique=True, max_size=2)):
        ids = sorted(draw(st.sets(st.integers(0, 2**40), max_size=5)))
        values = draw(hnp.arrays(draw(st.sampled_from(["<f4", "<f8"])), (len(ids), draw(st.integers(0, 3)))))
        rows[name] = Rows(np.array(ids, np.int64), values)
    return Update(layout, draw(hnp.arrays(dtype, layout.size)), rows=rows)


messages = st.builds(
    Message,
    names,
    st.dictionaries(names, plain, max_size=4),
    st.dictionaries(names, arrays | updates(), max_size=4),
    st.integers(0, 2**64 - 1),
)


def wire(message: Message, limits: Limits = SMALL) -> bytes:
    return b"".join(encode(message, limits))


def shape(value: Any) -> Any:
    """Everything about a message that must survive, bit for bit, in a form that compares."""
    match value:
        case Message():
            return value.kind, shape(dict(value.head)), shape(dict(value.arrays)), value.stream
        case Update():
            return value.layout, value.bits, shape(value.buffer), shape(dict(value.rows))
        case Rows():
            return shape(value.ids), shape(value.values)
        case np.ndarray():
            return str(value.dtype), value.shape, value.tobytes()
        case float():
            return "nan" if math.isnan(value) else struct.pack("<d", value)
        case dict():
            return {k: shape(v) for k, v in value.items()}
        case list():
            return [shape(v) for v in value]
    return type(value), value


def big() -> Message:
    """Three frames: a section that ends inside a frame and one that begins there."""
    rng = np.random.default_rng(3)
    update = Update.of({"w": rng.normal(size=(300, 700)).astype("f4"), "b": np.ones(7, "f4")})
    return Message("task", {"round": 3}, {"x": rng.integers(0, 9, 150_001), "params": update}, stream=9)


@settings(max_examples=150, deadline=None)
@given(messages)
def test_decode_is_the_inverse_of_encode(message: Message) -> None:
    data = wire(message)
    back = decode(data, SMALL)
    assert shape(back) == shape(message)
    assert wire(back) == data  # one message, one form
    for array in back.arrays.values():
        buffer = array.buffer if isinstance(array, Update) else array
        assert buffer.ctypes.data % 64 == 0 or not buffer.size
        assert not buffer.flags.writeable


@settings(max_examples=50, deadline=None)
@given(st.lists(messages, max_size=3), st.data())
def test_how_the_bytes_are_split_changes_nothing(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(wire, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder, got = Decoder(SMALL), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    decoder.end()
    assert list(map(shape, got)) == list(map(shape, sent))


def test_one_byte_at_a_time() -> None:
    sent = Message("m", {"a": [1, 2], "b": [1.5], "c": [1, 2.5], "d": []}, {"x": np.arange(9)})
    decoder = Decoder()
    got = [m for byte in wire(sent) for m in decoder.feed(bytes([byte]))]
    assert list(map(shape, got)) == [shape(sent)]


def test_streams_interleave_and_a_long_buffer_has_full_frames() -> None:
    one = big()
    two = Message("other", {}, one.arrays, stream=4)
    frames = list(encode(one)), list(encode(two))
    sizes = [len(f) - HEADER for f in frames[0][1:]]
    assert sizes == [FRAME, -(-150_001 * 8 // 64) * 64 + -(-(210_007 * 4) // 64) * 64 - FRAME]
    decoder = Decoder()
    got = [m for pair in zip(*frames, strict=True) for f in pair for m in decoder.feed(f)]
    assert list(map(shape, got)) == [shape(one), shape(two)]


def test_arrays_out_of_order_in_memory_travel_in_order() -> None:
    a = np.arange(12.0).reshape(3, 4)
    sent = Message("m", {}, {"t": a.T, "s": a[:, ::2], "big": a.astype(">f8")})
    back = decode(wire(sent))
    for name, array in sent.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)


def test_finite_refuses_nan_anywhere_and_else_it_passes() -> None:
    nan = np.array([1, np.nan], "f4")
    for message in (
        Message("m", {}, {"x": nan}),
        Message("m", {}, {"x": Update.of({"w": nan})}),
        Message("m", {}, {"x": Update.of({"w": Rows(np.array([1]), nan[None])})}),
        Message("m", {"a": {"b": [1, float("inf")]}}),
    ):
        assert shape(decode(wire(message))) == shape(message)
        with pytest.raises(CodecError, match="finite"):
            decode(wire(message), finite=True)
    assert decode(wire(big()), finite=True).kind == "task"


def test_whole_messages_before_a_fault_are_delivered() -> None:
    good = wire(Message("m"))
    decoder = Decoder()
    assert len(decoder.feed(good + b"x" * HEADER)) == 1
    with pytest.raises(CodecError, match="version"):
        decoder.feed(good)
    with pytest.raises(CodecError, match="version"):
        decoder.end()


# Faults, one by one. `frame` seals any payload, so that what is wrong is only what is meant.


def frame(payload: bytes, sequence: int = 0, stream: int = 0, magic: bytes = b"ATL\x01") -> bytes:
    prefix = struct.pack("<4sQII", magic, stream, sequence, len(payload))
    return prefix + struct.pack("<I", crc32(payload, crc32(prefix))) + payload


def sealed(head: pb.Head, buffer: bytes = b"") -> bytes:
    """The message of a head and a buffer, hash and checksums right, whatever the head says."""
    head.sha256 = sha256(buffer).digest()
    parts = [buffer[i : i + FRAME] for i in range(0, len(buffer), FRAME)]
    return b"".join(frame(p, i) for i, p in enumerate([head.SerializeToString(), *parts]))


def head_of(message: Message) -> pb.Head:
    return pb.Head.FromString(next(encode(message))[HEADER:])


F4 = pb.F4


def refused_heads() -> dict[str, pb.Head]:
    def array(**fields: Any) -> pb.Head:
        return pb.Head(
            kind="m", arrays=[pb.Array(**{"name": "x", "dtype": F4, "shape": [16], **fields})], size=64
        )

    def update(**fields: Any) -> pb.Head:
        leaf = pb.Leaf(name="w", shape=[16])
        return pb.Head(
            kind="m", updates=[pb.Update(**{"name": "u", "dtype": F4, "leaves": [leaf], **fields})], size=64
        )

    deep = pb.Value()
    for _ in range(SMALL.depth + 1):
        deep = pb.Value(list=pb.List(items=[deep]))
    x = pb.Array(name="x", dtype=F4, shape=[16])
    return {
        "no kind": pb.Head(),
        "size too small": pb.Head(kind="m", arrays=[x], size=0),
        "size too large": pb.Head(kind="m", arrays=[x], size=128),
        "size without arrays": pb.Head(kind="m", size=64),
        "one name twice": pb.Head(kind="m", arrays=[x, x], size=128),
        "array and update share a name": pb.Head(
            kind="m", arrays=[x], updates=[pb.Update(name="x", dtype=F4)], size=64
        ),
        "no dtype": array(dtype=pb.NONE),
        "unknown dtype": array(dtype=99),
        "no name": array(name=""),
        "long name": array(name="x" * 300),
        "many dimensions": array(shape=[1] * 8 + [16]),
        "many elements": pb.Head(
            kind="m", arrays=[pb.Array(name="x", dtype=pb.U1, shape=[1 << 19])], size=1 << 19
        ),
        "elements that overflow": array(shape=[1 << 63, 1 << 63]),
        "zero times huge": array(shape=[0, 1 << 62]),
        "real dtype in a ring": update(bits=8),
        "ring of 65 bits": update(bits=65, dtype=pb.U8),
        "integers outside a ring": update(dtype=pb.I4),
        "leaf twice": update(leaves=[pb.Leaf(name="w", shape=[8])] * 2),
        "leaf and rows share a name": update(rows=[pb.Rows(name="w", dtype=F4)]),
        "rows of integers": update(rows=[pb.Rows(name="r", dtype=pb.I4)]),
        "value twice": pb.Head(kind="m", values=[pb.Entry(name="a")] * 2),
        "deep value": pb.Head(kind="m", values=[pb.Entry(name="a", value=deep)]),
        "many values": pb.Head(
            kind="m", values=[pb.Entry(name="a", value=pb.Value(integers=pb.Integers(items=[0] * 5000)))]
        ),
        "many leaves": pb.Head(
            kind="m", arrays=[pb.Array(name=f"{i}", dtype=F4, shape=[0]) for i in range(20)]
        ),
    }


@pytest.mark.parametrize("fault", refused_heads())
def test_a_head_that_is_not_in_order_is_refused(fault: str) -> None:
    head = refused_heads()[fault]
    limits = Limits(**{**{f: getattr(SMALL, f) for f in SMALL.__slots__}, "leaves": 16})
    data = sealed(head, bytes(min(head.size, 1 << 20)))
    with pytest.raises(CodecError):
        decode(data, limits)


def test_the_same_builders_make_what_is_accepted() -> None:
    """The control of the test above: its heads are refused for their fault and nothing else."""
    x = pb.Array(name="x", dtype=F4, shape=[16])
    u = pb.Update(name="u", dtype=F4, leaves=[pb.Leaf(name="w", shape=[4, 4])])
    got = decode(sealed(pb.Head(kind="m", arrays=[x], updates=[u], size=128), bytes(128)), SMALL)
    assert list(got.arrays) == ["x", "u"]


def test_buffers_that_break_a_promise_are_refused() -> None:
    ring = pb.Update(name="u", dtype=pb.U8, bits=20, leaves=[pb.Leaf(name="w", shape=[8])])
    rows = pb.Update(name="u", dtype=F4, rows=[pb.Rows(name="r", dtype=F4, count=2, width=1)])
    for head, buffer, why in (
        (pb.Head(kind="m", updates=[ring], size=64), np.full(8, 1 << 20, "<u8").tobytes(), "out of the ring"),
        (
            pb.Head(kind="m", updates=[rows], size=128),
            np.array([2, 2], "<i8").tobytes().ljust(128, b"\0"),
            "ids",
        ),
        (
            pb.Head(kind="m", updates=[rows], size=128),
            np.array([-1, 2], "<i8").tobytes().ljust(128, b"\0"),
            "ids",
        ),
        (
            pb.Head(kind="m", arrays=[pb.Array(name="x", dtype=pb.U1, shape=[1])], size=64),
            b"\1" * 64,
            "zeros between",
        ),
    ):
        with pytest.raises(CodecError, match=why):
            decode(sealed(head, buffer))


def test_frames_out_of_order_are_refused() -> None:
    head, one, two = encode(big())
    for data, why in (
        (head + two, "expected frame 1"),
        (head + head, "expected frame 1"),
        (one, "expected frame 0"),
        (head + one + one, "expected frame 2"),
        (frame(b"x", magic=b"ATL\x02"), "version"),
        (frame(b""), "head of"),
        (frame(b"\xff" * 20), "protobuf"),
        (frame(head_of(Message("m")).SerializeToString() + b"\x78\x01"), "unknown"),
        (head + frame(one[HEADER:-1], 1, 9), "bytes in this frame"),
        (head + one, "middle"),
        (head[:-1], "middle"),
        (head[:7], "middle"),
        (b"", "exactly one"),
        (2 * wire(Message("m")), "exactly one"),
        (wire(Message("m")) + b"A", "middle"),
    ):
        with pytest.raises(CodecError, match=why):
            decode(data)


def test_changed_bytes_are_noticed() -> None:
    head, one, two = encode(big())
    with pytest.raises(IntegrityError, match="crc32"):
        decode(head + one[:-1] + bytes([one[-1] ^ 1]) + two)
    with pytest.raises(IntegrityError, match="SHA-256"):
        decode(head + frame(one[HEADER:-1] + bytes([one[-1] ^ 1]), 1, 9) + two)


def test_memory_under_way_is_bounded_over_all_streams() -> None:
    limits = Limits(bytes=3 << 20, streams=2)
    decoder = Decoder(limits)
    first = [next(encode(Message("m", {}, {"x": np.zeros(2 << 17)}, s))) for s in (1, 2)]
    assert decoder.feed(first[0]) == []
    with pytest.raises(CodecError, match="under way"):
        decoder.feed(first[1])
    decoder = Decoder(limits)
    small = [next(encode(Message("m", {}, {"x": np.zeros(2)}, s))) for s in (1, 2, 3)]
    assert decoder.feed(small[0] + small[1]) == []
    with pytest.raises(CodecError, match="at once"):
        decoder.feed(small[2])


@pytest.mark.parametrize(
    "message",
    [
        Message("m", {"a": 1 << 63}),
        Message("m", {"a": [1 << 63]}),
        Message("m", {"a": object()}),
        Message("m", {1: "a"}),  # type: ignore[dict-item]
        Message("m", {"\ud800": 1}),
        Message("m", {}, {"x": np.array(["a"])}),
        Message("m", {}, {"x": np.zeros(3, np.float16)}),
        Message("m", {}, {"": np.zeros(3)}),
        Message(""),
        Message("m", {}, {"x": np.zeros((1,) * 9)}),
        Message("m", {"a": "x" * FRAME}),
    ],
)
def test_what_cannot_be_sent_is_our_own_mistake(message: Message) -> None:
    with pytest.raises(MisuseError):
        encode(message)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut out, insert, repeat or swap; one to four times."""
    b = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        i, j = sorted((rng.randrange(len(b) + 1), rng.randrange(len(b) + 1)))
        i, j = (i, min(j, i + 16)) if rng.random() < 0.8 else (i, j)
        match rng.randrange(5):
            case 0 if i < len(b):
                b[i] ^= 1 << rng.randrange(8)
            case 1:
                b[i:j] = rng.choice([b"\xff", b"\0", b"\x80"]) * (j - i)
            case 2:
                del b[i:j]
            case 3:
                b[i:i] = rng.randbytes(rng.randint(1, 12))
            case _:
                b[j:j] = b[i:j]
    return bytes(b)


def fuzz_seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    table = Rows(np.array([1, 5, 9]), rng.normal(size=(3, 2)))
    real = Update.of({"w": rng.normal(size=(3, 5)), "b": np.zeros(()), "t": table})
    ring = Update(Layout((Leaf("w", (9,)),)), rng.integers(0, 1 << 20, 9).astype("u8"), bits=20)
    head = {"n": None, "t": True, "i": -5, "r": [0.5, 1.5], "k": {"a": [1, "b", b"c", []]}, "ids": [1, 2, 3]}
    return [
        wire(Message("task", head, {"params": real, "x": np.arange(40, dtype="i4")}, 3)),
        wire(Message("reply", {}, {"u": ring, "c": np.zeros((2, 0))}, 7)),
        wire(Message("hello")),
    ]


def test_no_mutation_gets_past_the_checks() -> None:
    """2,400 seeded mutations: of the bytes as sent, and of heads and buffers sealed again."""
    rng = random.Random(20)
    limits = Limits(bytes=1 << 16, head=1 << 12, elements=1 << 12, values=256, leaves=64)
    outcomes = {"refused": 0, "whole": 0}
    tracemalloc.start()
    try:
        for n in range(2400):
            data = rng.choice(fuzz_seeds())
            if n % 3 == 0:
                bad = mutate(data, rng)
            else:
                (length,) = struct.unpack_from("<I", data, 16)
                head, buffer = data[HEADER : HEADER + length], data[2 * HEADER + length :]
                if n % 3 == 1:
                    bad = frame(mutate(head, rng)) + (frame(buffer, 1) if buffer else b"")
                else:
                    parsed = pb.Head.FromString(head)
                    bad = sealed(parsed, mutate(buffer, rng) if buffer else b"")
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            try:
                message = decode(bad, limits)
            except (CodecError, IntegrityError):
                outcomes["refused"] += 1
            else:
                outcomes["whole"] += 1
                assert shape(decode(wire(message), limits)) == shape(message)
            assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
    finally:
        tracemalloc.stop()
    assert outcomes["refused"] > 1000
    assert outcomes["whole"] > 100


# Letters: messages without arrays have a codec of their own, which must be the same one.


@given(names, st.dictionaries(names, plain, max_size=4))
def test_a_letter_is_the_message_without_arrays(kind: str, values: dict[str, Any]) -> None:
    letter = encode_plain(kind, values)
    assert letter == wire(Message(kind, values))
    assert shape(decode_plain(letter)) == shape(decode(letter))


@pytest.mark.parametrize("fault", refused_heads())
def test_a_letter_whose_head_is_not_in_order_is_refused(fault: str) -> None:
    head = refused_heads()[fault]
    limits = Limits(**{**{f: getattr(SMALL, f) for f in SMALL.__slots__}, "leaves": 16})
    with pytest.raises(CodecError):
        decode_plain(sealed(head), limits)


def test_letters_hold_no_arrays() -> None:
    for empty in ({"x": np.zeros(0)}, {"u": Update.of({})}):
        data = wire(Message("m", {}, empty))
        assert decode(data).arrays
        with pytest.raises(CodecError, match="lists arrays"):
            decode_plain(data)


def test_both_codecs_refuse_the_same_letters() -> None:
    """4,000 seeded mutations, half of them of one bit and sealed again: both take it, or neither."""
    rng = random.Random(22)
    limits = Limits(bytes=0, head=1 << 12, values=256, leaves=64)
    head = {"n": None, "t": True, "i": -5, "r": [0.5, 1.5], "k": {"a": [1, "b", b"c", []]}, "ids": [1, 2, 3]}
    whole = 0
    for n in range(4000):
        data = encode_plain("ask", head)
        made = mutate(data, rng) if n % 2 else resealed(flipped(data[HEADER:], rng))
        found: list[Any] = []
        for read in (decode, decode_plain):
            try:
                found.append(shape(read(made, limits)))
            except (CodecError, IntegrityError):
                found.append(None)
        assert found[0] == found[1], made.hex()
        whole += found[0] is not None
    assert 200 < whole < 3000


def flipped(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def resealed(head: bytes) -> bytes:
    """A letter with this head and the right hash, if it is protobuf at all."""
    try:
        return sealed(pb.Head.FromString(head))
    except DecodeError:
        return frame(head)


def test_a_letter_that_is_too_long_is_our_own_mistake() -> None:
    with pytest.raises(MisuseError, match="has 5"):
        encode_plain("m", {"x": b"0" * 5000}, Limits(head=4096))
    for values in ({"x": 1j}, {"x": 1 << 63}, {1: "x"}, {"x" * 300: 1}):
        with pytest.raises(MisuseError):
            encode_plain("m", values)  # type: ignore[arg-type]
