"""Protocol buffers without their package: the fields of a message in bytes, and bytes of a field.

Enough to look at an ONNX graph, or to put numbers into one, where neither onnx nor protobuf's runtime is
wanted. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(part: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """Field numbers and values of one message: a number, bytes, or None for a fixed-size one.

    Raises ValueError or IndexError for bytes that are no message.
    """
    at = 0
    while at < len(part):
        tag, at = varint(part, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = varint(part, at)
            yield tag >> 3, value
        elif kind == BYTES:
            size, at = varint(part, at)
            if size > len(part) - at:
                raise ValueError
            yield tag >> 3, part[at : at + size]
            at += size
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
            yield tag >> 3, None
        else:
            raise ValueError


def varint(part: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at byte `at`, and where the next field does."""
    value = 0
    for shift in range(0, 70, 7):
        byte = part[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError


def number(field: int, value: int) -> bytes:
    """A field that holds a number of at least 0."""
    return _varint(field << 3 | VARINT) + _varint(value)


def piece(field: int, *data: bytes | bytearray | memoryview) -> bytes:
    """A field that holds bytes, one part after the other: text, numbers packed, or a message."""
    return b"".join((_varint(field << 3 | BYTES), _varint(sum(map(len, data))), *data))


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)
