"""Frames of one wire message as things to move: checked one by one, counted, found in a file.

Transports move frames without knowing what is in them. All they need stands in each frame's header
and in two fields of the head: how long the buffer is and its SHA-256. Those are picked out here
without parsing the rest, which is for the gate. Format: docs/reference/wire-format.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256
from io import RawIOBase
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ..core.errors import CodecError, IntegrityError, StateError
from ..wire.plain import FRAME, HEADER, PREFIX, Bytes, payload
from ..wire.proto import fields

WHOLE = FRAME + HEADER  # bytes of every frame but the head's and the last


def number(frame: Bytes) -> int:
    """The frame's place in its message, unchecked; 0 is the head."""
    return int.from_bytes(frame[12:16], "little")


class Announced(NamedTuple):
    """What a head says of its buffer."""

    size: int  # bytes
    sha256: bytes

    @property
    def frames(self) -> int:
        """Of the whole message, its head included."""
        return 1 + -(-self.size // FRAME)

    def length(self, sequence: int) -> int:
        """Bytes that frame `sequence`, from 1, must carry."""
        return min(FRAME, self.size - (sequence - 1) * FRAME)


def announced(head: bytes | memoryview) -> Announced:
    """Size and hash of the buffer, from the protobuf of a head, everything else skipped unread.

    Raises CodecError where it is not a sequence of protobuf fields with these two, once each.
    """
    found: dict[int, list[int | bytes]] = {5: [], 6: []}
    try:
        for field, value in fields(memoryview(head)):
            if value is None or isinstance(value, int) != (field == 5):
                raise ValueError
            if field in found:
                found[field].append(value if isinstance(value, int) else bytes(value))
    except (ValueError, IndexError):
        raise CodecError("the head is not the protobuf message of wire.proto") from None
    if max(map(len, found.values())) > 1:
        raise CodecError("the head says the size or the hash of its buffer twice")
    (size,), (digest,) = found[5] or [0], found[6] or [b""]
    if not isinstance(size, int) or size >> 64 or not isinstance(digest, bytes) or len(digest) != 32:
        raise CodecError("the head is not the protobuf message of wire.proto")
    return Announced(size, digest)


Opened: TypeAlias = Callable[[Path], RawIOBase]


def plain(path: Path) -> RawIOBase:
    """A file as it lies on disk."""
    return path.open("rb", buffering=0)


class FrameFile(NamedTuple):
    """A file of all frames of one message, one after the other: where each stands. `opened`: how it is read,
    where it does not lie on disk as it is.
    """

    path: Path
    first: int  # bytes of the head's frame
    told: Announced
    blob: str  # SHA-256 of the head, hexadecimal: the blob's name
    opened: Opened = plain

    @classmethod
    def of(cls, path: Path, opened: Opened = plain) -> FrameFile:
        """Read its head. Raises StateError where it is no such file."""
        try:
            with opened(path) as file:
                start = file.read(HEADER) or b""
                length = PREFIX.unpack_from(start)[3] if len(start) == HEADER else 0
                head = payload(start + (file.read(min(length, FRAME)) or b""), 0)
                told = announced(head)
                size = file.seek(0, os.SEEK_END)
        except (CodecError, IntegrityError) as error:
            raise StateError(f"{path.name} is not a file of frames: {error}") from None
        made = cls(path, HEADER + len(head), told, sha256(head).hexdigest(), opened)
        if size != made.size:
            raise StateError(f"{path.name} has {size} bytes, its head says {made.size}: it is cut or damaged")
        return made

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.first + self.told.size + HEADER * (self.told.frames - 1)

    def read(self, start: int, count: int) -> list[bytes]:
        """Frames from number `start` on, at most `count`; unchecked."""
        end = min(start + count, self.told.frames)
        with self.opened(self.path) as file:
            file.seek(self._place(start))
            return [file.read(self._length(k)) or b"" for k in range(start, end)]

    def verify(self) -> None:
        """Read all of it. Raises CodecError or IntegrityError unless it is what its head announced."""
        digest = sha256()
        for k in range(1, self.told.frames):
            (frame,) = self.read(k, 1)
            digest.update(payload(frame, k))
        if digest.digest() != self.told.sha256:
            raise IntegrityError(f"the SHA-256 of {self.path.name} is not the one announced")

    def _place(self, k: int) -> int:
        return 0 if k == 0 else self.first + (k - 1) * WHOLE

    def _length(self, k: int) -> int:
        return self.first if k == 0 else HEADER + self.told.length(k)
