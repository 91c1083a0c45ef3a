"""What changed between two models, without loss: for members that hold the one before.

Neighbouring models share most of the high bits of each number, or most numbers (learn/thin.py). The words
of both buffers are xor'ed and packed as an update's floats are (wire/coded.py): where few differ, those and
their places. A delta is itself a wire message, so it travels, resumes and is checked as every blob is:

    kind "delta", values: from, to (blob names), head (the target's own, protobuf), array "packed":
    for each 4 MiB of buffer the length (uint32) of a code, and the code

It is offered only where it saves a tenth at least. Law (tests/wire): restore(a, delta(a, b)) is b.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CodecError, IntegrityError
from ..wire.codec import FRAME, Limits, Message, decode, encode
from ..wire.coded import decode as unpacked
from ..wire.coded import lossless
from ..wire.files import whole
from ..wire.plain import frame, payload
from .frames import FrameFile, announced

BLOCK = 4 * FRAME  # bytes of buffer in one code
PAYS = 0.9  # of the whole, at most

_WORD = np.dtype("<f4")  # what is compared with each other; of float64 two words
_LENGTH = struct.Struct("<I")


def make(old: FrameFile, new: FrameFile, path: Path) -> bool:
    """Write the delta from one blob file to another; False, and no file, where it does not pay."""
    if old.told.size != new.told.size or not new.told.size:
        return False
    packed, room = bytearray(), int(PAYS * new.told.size)
    for a, b in zip(_blocks(old), _blocks(new), strict=True):
        block = lossless((a ^ b).view(_WORD))  # buffers are whole words, multiples of 64 bytes
        packed += _LENGTH.pack(len(block)) + block.tobytes()
        if len(packed) > room:
            return False
    head = payload(new.read(0, 1)[0], 0)
    values = {"from": old.blob, "to": new.blob, "head": bytes(head)}
    message = Message("delta", values, {"packed": np.frombuffer(packed, np.uint8)})
    with whole(path) as file:
        for frame in encode(message, _limits(len(packed))):
            file.write(frame)
    return True


def restore(old: Path, delta: Path, path: Path) -> None:
    """Write the blob file that `delta` leads to. Raises CodecError or IntegrityError."""
    base = FrameFile.of(old)
    message = decode(delta.read_bytes(), _limits(base.told.size))
    head, packed = message.head["head"], message.arrays["packed"]
    told = announced(head)
    if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8 or told.size != base.told.size:
        raise CodecError("the delta does not fit the blob it starts from")
    digest = sha256()
    with path.open("wb") as file:
        file.write(frame(0, 0, [memoryview(head)]))
        sequence = 1
        for a, change in zip(_blocks(base), _unpack(packed.data, told.size), strict=True):
            b = (a ^ change).data
            digest.update(b)
            for start in range(0, len(b), FRAME):
                file.write(frame(0, sequence, [b[start : start + FRAME]]))
                sequence += 1
    if digest.digest() != told.sha256:
        raise IntegrityError("the delta gave a buffer whose SHA-256 is not the one announced")


def _limits(size: int) -> Limits:
    return Limits(bytes=size + BLOCK, elements=size + BLOCK)


def _blocks(file: FrameFile) -> Iterator[NDArray[np.uint8]]:
    """The buffer, BLOCK bytes at a time, the last one shorter."""
    step = BLOCK // FRAME
    for start in range(1, file.told.frames, step):
        frames = file.read(start, step)
        yield np.concatenate([np.frombuffer(payload(f), np.uint8) for f in frames])


def _unpack(packed: memoryview, size: int) -> Iterator[NDArray[np.uint8]]:
    """What differs in each block; a block is never longer than it must be, whatever its code says."""
    at = 0
    for start in range(0, size, BLOCK):
        length = min(BLOCK, size - start)
        end = at + _LENGTH.size
        if end > len(packed):
            raise CodecError("the delta is shorter than its target needs")
        (count,) = _LENGTH.unpack(packed[at:end])
        at = end + count
        code = unpacked(np.frombuffer(packed[end:at], np.uint8), length // _WORD.itemsize)
        if code.dtype != _WORD or code.bits:
            raise CodecError("a block of the delta is no list of words")
        yield code.numbers().view(np.uint8)
