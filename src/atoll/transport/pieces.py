"""HTTP bodies in pieces: frames by their own header, packets each after its length (uint32, little-endian).

How a body is cut on its way means nothing; what is too long is refused before it is read.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable

from ..core.errors import CodecError, Gone
from ..wire.plain import FRAME, HEADER
from .link import PACKET
from .sealed import OVERHEAD

_LENGTH = struct.Struct("<I")


async def frames(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole frames; their header's length is believed, the rest unchecked. Raises CodecError, Gone."""
    have: list[bytes] = []
    size, need = 0, 0
    async for piece in body:
        have.append(piece)
        size += len(piece)
        while size >= (need or HEADER):
            if not need:
                need = HEADER + _length(have)
                continue
            data = have[0] if len(have) == 1 else b"".join(have)
            yield data if size == need else data[:need]
            have = [] if size == need else [data[need:]]
            size, need = size - need, 0
    if size:
        raise Gone("the body ended within a frame")


def _length(have: list[bytes]) -> int:
    if len(have[0]) < HEADER:
        have[:] = [b"".join(have)]
    length = int.from_bytes(have[0][16:20], "little")
    if have[0][:3] != b"ATL" or length > FRAME:
        raise CodecError("expected frames of Atoll's wire format, of at most 1 MiB and their header")
    return length


def packed(packets: Iterable[bytes]) -> bytes:
    """Packets as one body."""
    return b"".join(part for packet in packets for part in (_LENGTH.pack(len(packet)), packet))


async def packets(body: AsyncIterator[bytes], longest: int = PACKET + OVERHEAD) -> AsyncIterator[bytes]:
    """The packets in a body, or other records of at most `longest` bytes. Raises CodecError, Gone."""
    held = bytearray()
    async for piece in body:
        held += piece
        while len(held) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held)
            if length > longest:
                raise CodecError(f"expected packets of at most {longest} bytes, got one of {length}")
            if len(held) < _LENGTH.size + length:
                break
            yield bytes(held[_LENGTH.size : _LENGTH.size + length])
            del held[: _LENGTH.size + length]
    if held:
        raise Gone("the body ended within a packet")
