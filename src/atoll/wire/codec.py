"""The one codec: a message becomes frames, frames become the same message.

A message is a kind, plain values and named arrays or Updates. Its head (protobuf, wire.proto) says
every name and size; the numbers follow as one buffer, each section on a multiple of 64 bytes, cut
into frames of 1 MiB. The format is one page: docs/reference/wire-format.md.

Laws (tests/laws/test_codec.py): `decode(encode(m)) == m`; how the bytes are split on their way
changes nothing; two encodings of one message are the same bytes; whatever bytes come, a Decoder
gives messages, CodecError or IntegrityError, and holds no more memory than its Limits allow.

This file frames; manifest.py says what a head may hold. Nothing here reads a socket or a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CodecError, IntegrityError, MisuseError, ProtocolError
from . import wire_pb2 as pb
from .crc import crc32
from .manifest import ALIGN, Array, Section, build, check, manifest
from .plain import (
    CRC,
    FRAME,
    HEADER,
    LIMITS,
    MAGIC,
    PREFIX,
    Bytes,
    Limits,
    Message,
    frame,
    parsed,
    sized,
)

__all__ = ["FRAME", "HEADER", "MAGIC", "Bytes", "Decoder", "Limits", "Message", "decode", "encode"]


def encode(message: Message, limits: Limits = LIMITS) -> Iterator[bytes]:
    """The frames of a message, ready to send; only these are copied, 1 MiB at a time.

    The buffer is read twice, for the hash in the head and for the frames: do not change it between.
    Raises MisuseError for what the format does not hold or `limits` forbid.
    """
    try:
        head, sections = manifest(message)
    except (TypeError, UnicodeEncodeError) as error:
        raise MisuseError(f"this message cannot be sent: {error}") from None
    digest = sha256()
    for piece in _padded(sections):
        digest.update(piece)
    head.sha256 = digest.digest()
    try:
        check(head, limits)
    except CodecError as error:
        raise MisuseError(f"this message cannot be sent: {error}") from None
    payload = sized(head.SerializeToString(deterministic=True), limits)
    return _frames(message.stream, payload, sections)


def _frames(stream: int, head: bytes, sections: list[Array]) -> Iterator[bytes]:
    yield frame(stream, 0, [memoryview(head)])
    for sequence, parts in enumerate(_cut(_padded(sections)), 1):
        yield frame(stream, sequence, parts)


def _padded(sections: list[Array]) -> Iterator[memoryview]:
    """Each section's bytes, then zeros up to the next multiple of ALIGN."""
    for section in sections:
        yield section.reshape(-1).view(np.uint8).data
        if gap := -section.nbytes % ALIGN:
            yield memoryview(bytes(gap))


def _cut(pieces: Iterator[memoryview]) -> Iterator[list[memoryview]]:
    """Regroup into FRAME bytes each, the last one shorter, without copying."""
    parts: list[memoryview] = []
    room = FRAME
    for whole in pieces:
        rest = whole
        while len(rest):
            parts.append(rest[:room])
            room -= len(parts[-1])
            rest = rest[len(parts[-1]) :]
            if not room:
                yield parts
                parts, room = [], FRAME
    if parts:
        yield parts


class _Partial:
    """A message under way: its head, and its buffer filled up to `done`."""

    __slots__ = ("buffer", "digest", "done", "head", "sections", "sequence")

    def __init__(self, head: pb.Head, sections: list[Section]) -> None:
        self.head = head
        self.sections = sections
        self.buffer = _aligned_empty(head.size)
        self.digest = sha256()
        self.done = 0
        self.sequence = 1


def _aligned_empty(size: int) -> NDArray[np.uint8]:
    room = np.empty(size + ALIGN, np.uint8)
    start = -room.ctypes.data % ALIGN
    return room[start : start + size]


class Decoder:
    """Bytes in any pieces in, whole messages out; one per connection, without I/O.

    Messages on different streams may interleave frame by frame. With `finite`, a NaN or an
    infinity anywhere is refused. After an error the Decoder stays broken: the peer is set aside.
    """

    def __init__(self, limits: Limits = LIMITS, *, finite: bool = False) -> None:
        self._limits = limits
        self._finite = finite
        self._open: dict[int, _Partial] = {}
        self._header = bytearray()
        self._frame: _Incoming | None = None
        self._error: ProtocolError | None = None

    def feed(self, data: Bytes) -> list[Message]:
        """The messages these bytes complete. Raises CodecError or IntegrityError.

        Messages that were whole before the fault are given first; the error then comes with the
        next call, so that what a caller sees does not depend on how the bytes were split.
        """
        if self._error:
            raise self._error
        whole: list[Message] = []
        try:
            whole.extend(self._read(memoryview(data)))
        except ProtocolError as error:
            self._error = error
            self._open.clear()
            if not whole:
                raise
        return whole

    def end(self) -> None:
        """Say that no more bytes come. Raises CodecError if a message is unfinished."""
        if self._error:
            raise self._error
        if self._open or self._header or self._frame:
            raise CodecError("the bytes end in the middle of a message: expected the rest of its frames")

    def _read(self, data: memoryview) -> Iterator[Message]:
        while len(data):
            if self._frame is None:
                taken = HEADER - len(self._header)
                self._header += data[:taken]
                data = data[taken:]
                if len(self._header) < HEADER:
                    return
                self._frame = self._begin(bytes(self._header))
                self._header.clear()
            data = self._frame.take(data)
            if self._frame.full:
                frame, self._frame = self._frame, None
                message = self._finish(frame)
                if message is not None:
                    yield message

    def _begin(self, header: bytes) -> _Incoming:
        """Check a header against what may come next on its stream."""
        magic, stream, sequence, length = PREFIX.unpack_from(header)
        (crc,) = CRC.unpack_from(header, PREFIX.size)
        if magic != MAGIC:
            raise CodecError(f"expected a frame of Atoll's wire version {MAGIC[3]}, got bytes {magic.hex()}")
        partial = self._open.get(stream)
        due = partial.sequence if partial else 0
        if sequence != due:
            raise CodecError(f"stream {stream}: expected frame {due}, got {sequence}")
        if partial:
            rest = partial.buffer[partial.done : partial.done + FRAME]
            if length != len(rest):
                raise CodecError(f"stream {stream}: expected {len(rest)} bytes in this frame, got {length}")
            return _Incoming(stream, rest.data, crc, crc32(header[: PREFIX.size]))
        if len(self._open) >= self._limits.streams:
            raise CodecError(f"expected at most {self._limits.streams} messages under way at once")
        if not 1 <= length <= self._limits.head:
            raise CodecError(f"expected a head of 1..{self._limits.head} bytes, got {length}")
        return _Incoming(stream, memoryview(bytearray(length)), crc, crc32(header[: PREFIX.size]))

    def _finish(self, frame: _Incoming) -> Message | None:
        """Verify a whole frame and put it to its message; the message, if this completes it."""
        if frame.crc != frame.expected:
            raise IntegrityError(f"stream {frame.stream}: a frame's crc32 does not match its bytes")
        partial = self._open.get(frame.stream)
        if partial is None:
            partial = self._start(bytes(frame.into))
            self._open[frame.stream] = partial
        else:
            partial.digest.update(frame.into)
            partial.done += len(frame.into)
            partial.sequence += 1
        if partial.done < len(partial.buffer):
            return None
        del self._open[frame.stream]
        if partial.digest.digest() != partial.head.sha256:
            raise IntegrityError(f"stream {frame.stream}: the buffer's SHA-256 is not the one announced")
        return build(partial.head, partial.sections, partial.buffer, frame.stream, finite=self._finite)

    def _start(self, payload: bytes) -> _Partial:
        head = parsed(payload)
        sections = check(head, self._limits)
        under_way = sum(len(p.buffer) for p in self._open.values())
        if head.size + under_way > self._limits.bytes:
            raise CodecError(
                f"expected at most {self._limits.bytes} bytes under way, got {head.size + under_way}"
            )
        return _Partial(head, sections)


class _Incoming:
    """A frame being filled, straight into the place where its bytes belong."""

    __slots__ = ("crc", "expected", "filled", "into", "stream")

    def __init__(self, stream: int, into: memoryview, expected: int, crc: int) -> None:
        self.stream = stream
        self.into = into
        self.expected = expected
        self.crc = crc
        self.filled = 0

    @property
    def full(self) -> bool:
        return self.filled == len(self.into)

    def take(self, data: memoryview) -> memoryview:
        """Copy what fits, return the rest."""
        part = data[: len(self.into) - self.filled]
        self.into[self.filled : self.filled + len(part)] = part
        self.crc = crc32(part, self.crc)
        self.filled += len(part)
        return data[len(part) :]


def decode(data: Bytes, limits: Limits = LIMITS, *, finite: bool = False) -> Message:
    """The one message in `data`. Raises CodecError for none, more or a broken one."""
    decoder = Decoder(limits, finite=finite)
    messages = decoder.feed(data)
    decoder.end()
    if len(messages) != 1:
        raise CodecError(f"expected exactly one message, got {len(messages)}")
    return messages[0]
