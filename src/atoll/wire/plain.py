"""What every message has, and messages without arrays: letters. It needs no numpy, as a client that waits.

A message is a kind, plain values and arrays; as bytes it is a head (protobuf, wire.proto) in frame 0, and
a buffer in the frames after it (codec.py). Without arrays the head is all there is.

Law (tests/laws/test_codec.py): a letter is what codec.py makes of a message without arrays, byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

from google.protobuf.message import DecodeError

from ..core.errors import CodecError, IntegrityError, MisuseError
from . import wire_pb2 as pb
from .crc import crc32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..core.update import Update

Bytes: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"ATL\x01"  # the last byte is the version
PREFIX = struct.Struct("<4sQII")  # magic, stream, sequence, length
CRC = struct.Struct("<I")  # of the prefix and the payload
HEADER = PREFIX.size + CRC.size  # 24 bytes
FRAME = 1 << 20  # bytes of payload in every frame but the last
EMPTY = sha256().digest()  # of a buffer without arrays


@dataclass(frozen=True, slots=True)
class Limits:
    """What a Decoder accepts; beyond it is a CodecError, raised before anything is allocated.

    `bytes`: of all unfinished messages' buffers together. `head`: bytes of one head, at most
    1 MiB. `leaves`: arrays, leaves and sparse tables of one message. `elements`: numbers in one
    array. `name`: characters. `values`, `depth`: of the plain values. `streams`: messages that
    may be under way at once. The number of frames follows from `bytes`: none may be short.
    """

    bytes: int = 1 << 30
    head: int = FRAME
    leaves: int = 1 << 16
    elements: int = 1 << 28
    dims: int = 8
    name: int = 256
    values: int = 1 << 16
    depth: int = 16
    streams: int = 16


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Message:
    """What travels. `head`: None, bool, int64, float, str, bytes, lists and tables of these.

    `arrays`: Updates, or arrays of float32, float64, int64, uint64, int32 or uint8. Decoded ones
    are read-only views of one buffer, aligned to 64 bytes; `stream` says which stream it came on.
    """

    kind: str
    head: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any] | Update] = field(default_factory=dict)
    stream: int = 0


def encode_plain(kind: str, values: Mapping[str, Any], limits: Limits = LIMITS) -> bytes:
    """A message without arrays, in its one frame. Raises MisuseError for what does not fit."""
    try:
        head = pb.Head(kind=kind, values=entries(values), sha256=EMPTY)
        check_plain(head, limits)
    except (TypeError, UnicodeEncodeError, CodecError) as error:
        raise MisuseError(f"this message cannot be sent: {error}") from None
    return frame(0, 0, [memoryview(sized(head.SerializeToString(deterministic=True), limits))])


def decode_plain(data: Bytes, limits: Limits = LIMITS) -> Message:
    """What `encode_plain` made. Raises CodecError or IntegrityError."""
    carried = payload(data, 0)
    if not 1 <= len(carried) <= limits.head:
        raise CodecError(f"expected a head of 1..{limits.head} bytes, got {len(carried)}")
    stream = PREFIX.unpack_from(data)[1]
    head = parsed(bytes(carried))
    if head.arrays or head.updates or head.size:
        raise CodecError("expected plain values only, the head lists arrays")
    check_plain(head, limits)
    if head.sha256 != EMPTY:
        raise IntegrityError(f"stream {stream}: the buffer's SHA-256 is not the one announced")
    return Message(head.kind, table(head.values), {}, stream)


def frame(stream: int, sequence: int, parts: list[memoryview]) -> bytes:
    """A frame that carries `parts`, one after the other."""
    prefix = PREFIX.pack(MAGIC, stream, sequence, sum(map(len, parts)))
    crc = crc32(prefix)
    for part in parts:
        crc = crc32(part, crc)
    return b"".join([prefix, CRC.pack(crc), *parts])


def payload(frame: Bytes, sequence: int | None = None) -> memoryview:
    """What a frame carries. Raises CodecError or IntegrityError unless it is whole, right and due."""
    if len(frame) < HEADER:
        raise CodecError(f"expected a frame of at least {HEADER} bytes, got {len(frame)}")
    magic, _, number, length = PREFIX.unpack_from(frame)
    if magic != MAGIC:
        raise CodecError(f"expected a frame of Atoll's wire version {MAGIC[3]}, got bytes {magic.hex()}")
    if sequence is not None and number != sequence:
        raise CodecError(f"expected frame {sequence}, got {number}")
    if length != len(frame) - HEADER or length > FRAME:
        raise CodecError(f"frame {number} says it has {length} bytes and has {len(frame) - HEADER}")
    view = memoryview(frame)
    if crc32(view[HEADER:], crc32(view[: PREFIX.size])) != CRC.unpack_from(frame, PREFIX.size)[0]:
        raise IntegrityError(f"the crc32 of frame {number} does not match its bytes: send it again")
    return view[HEADER:]


def sized(head: bytes, limits: Limits) -> bytes:
    """The head, if it is not too long to be sent. Raises MisuseError."""
    if len(head) > limits.head:
        raise MisuseError(f"this message cannot be sent: its head has {len(head)} of {limits.head} bytes")
    return head


def parsed(payload: bytes) -> pb.Head:
    """The protobuf message, every field known and in its shortest form. Raises CodecError."""
    try:
        head = pb.Head.FromString(payload)
    except DecodeError:
        raise CodecError("the head is not the protobuf message of wire.proto") from None
    head.DiscardUnknownFields()
    if head.ByteSize() != len(payload):
        raise CodecError("the head has fields unknown here, or not in their shortest form")
    return head


def entries(table: Mapping[str, Any]) -> list[pb.Entry]:
    """A table of plain values as the head holds it. Raises MisuseError."""
    return [pb.Entry(name=name, value=_value(value)) for name, value in table.items()]


def _value(value: Any) -> pb.Value:
    """One plain value; a list of integers or of floats only travels packed."""
    made = pb.Value()
    match value:
        case None:
            pass
        case bool():
            made.flag = value
        case int() if -(1 << 63) <= value < 1 << 63:
            made.integer = value
        case float():
            made.real = value
        case str():
            made.text = value
        case bytes():
            made.raw = value
        case list() | tuple():
            _list(made, value)
        case Mapping():
            made.table.SetInParent()
            made.table.entries.extend(entries(value))
        case _:
            raise MisuseError(
                f"a head holds None, bool, int64, float, str, bytes, lists and tables; got {type(value)}"
            )
    return made


def _list(made: pb.Value, items: list[Any] | tuple[Any, ...]) -> None:
    types = set(map(type, items))
    if types == {int} and all(-(1 << 63) <= x < 1 << 63 for x in items):
        made.integers.items.extend(items)
    elif types == {float}:
        made.reals.items.extend(items)
    else:
        made.list.SetInParent()
        made.list.items.extend(map(_value, items))


def _name(name: str, limits: Limits) -> None:
    if not 1 <= len(name) <= limits.name:
        raise CodecError(f"a name has {len(name)} characters: expected 1..{limits.name}")


def distinct(names: list[str], limits: Limits) -> None:
    """Raise CodecError unless the names are few, different and of a good length."""
    if len(names) > limits.leaves or len(set(names)) != len(names):
        raise CodecError("two leaves share a name, or there are too many")
    for name in names:
        _name(name, limits)


def check_plain(head: pb.Head, limits: Limits) -> None:
    """Raise CodecError unless kind, hash and plain values are in order.

    Values are counted level by level, so that no nesting can exhaust the stack, and each list before its
    items are touched: an item of 2 bytes becomes an object of 80.
    """
    _name(head.kind, limits)
    if len(head.sha256) != 32:
        raise CodecError(f"expected a SHA-256 of 32 bytes, got {len(head.sha256)}")
    level: list[pb.Value] = []
    count, depth = len(head.values), 0
    _few(count, depth, limits)
    _open(head.values, level, limits)
    while level:
        deeper: list[pb.Value] = []
        for value in level:
            which = value.WhichOneof("of")
            if which == "table":
                count += len(value.table.entries)
                _few(count, depth, limits)
                _open(value.table.entries, deeper, limits)
            elif which in ("list", "integers", "reals"):
                items = getattr(value, which).items
                count += len(items)
                _few(count, depth, limits)
                deeper += items if which == "list" else ()
        level, depth = deeper, depth + 1
        _few(count, depth, limits)


def _few(count: int, depth: int, limits: Limits) -> None:
    if count > limits.values or depth > limits.depth:
        raise CodecError(f"expected at most {limits.values} plain values, {limits.depth} deep")


def _open(entries: Any, level: list[pb.Value], limits: Limits) -> None:
    distinct([e.name for e in entries], limits)
    level += [e.value for e in entries]


def table(found: Any) -> dict[str, Any]:
    """Entries of a head as plain values."""
    return {e.name: _python(e.value) for e in found}


def _python(value: pb.Value) -> Any:
    which = value.WhichOneof("of")
    if which is None:
        return None
    inner = getattr(value, which)
    if which == "table":
        return table(inner.entries)
    if which == "list":
        return [_python(item) for item in inner.items]
    return list(inner.items) if which in ("integers", "reals") else inner


def finite_plain(value: Any) -> bool:
    """Whether no number in it is infinite or NaN."""
    match value:
        case float():
            return isfinite(value)
        case dict() | list():
            return all(map(finite_plain, value.values() if isinstance(value, dict) else value))
    return True
