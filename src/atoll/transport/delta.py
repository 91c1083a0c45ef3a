"""What changed between two models, without loss: for members that hold the one before.

A model whose steps are thin (learn/thin.py) moves by small multiples of one power of two, so what it moved by
in some rounds is a few integers. Whatever they do not explain, rounding or all of a model that trains
otherwise, is old and new xor'ed: neighbouring models share most of the high bits of each number.

    moved = old + unit · q  where q is not 0, else old;      rest = moved xor new

Both are packed as updates are (wire/coded.py). A delta is itself a wire message, so it travels, resumes and
is checked as every blob is:

    kind "delta", values: from, to (blob names), head (the target's own, protobuf), array "packed":
    for each 4 MiB of buffer two codes, the moves and the rest, each after its length (uint32)

It is offered only where it saves a tenth at least. Law (tests/wire): restore(a, delta(a, b)) is b.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CodecError, IntegrityError
from ..wire.codec import FRAME, Limits, Message, decode, encode
from ..wire.coded import WIDTH, Code, lossless, places
from ..wire.coded import decode as unpacked
from ..wire.coded import encode as packed_code
from ..wire.files import whole
from ..wire.plain import frame, payload
from .frames import FrameFile, announced

Floats: TypeAlias = NDArray[np.float32]

BLOCK = 4 * FRAME  # bytes of buffer that are packed together
PAYS = 0.9  # of the whole, at most

_WORD = np.dtype("<f4")  # what is compared with each other; of float64 two words
_LENGTH = struct.Struct("<I")
_SAMPLE = 1 << 12  # numbers that show whether moves explain anything
_MOST = 127  # units in one move


def make(old: FrameFile, new: FrameFile, path: Path) -> bool:
    """Write the delta from one blob file to another; False, and no file, where it does not pay."""
    if old.told.size != new.told.size or not new.told.size:
        return False
    packed, room = bytearray(), int(PAYS * new.told.size)
    for a, b in zip(_blocks(old), _blocks(new), strict=True):
        for code in _packed(a.view(_WORD), b.view(_WORD)):  # buffers are whole words, multiples of 64 bytes
            packed += _LENGTH.pack(len(code)) + code.tobytes()
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
        for a, (moves, rest) in zip(_blocks(base), _unpack(packed.data, told.size), strict=True):
            b = (moved(a.view(_WORD), moves).view(np.uint8) ^ rest.numbers().view(np.uint8)).data
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


def _packed(old: Floats, new: Floats) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    moves = _moves(old, new)
    rest = moved(old, moves).view(np.uint8) ^ new.view(np.uint8)
    return packed_code(moves), lossless(rest.view(_WORD))


def moved(old: Floats, moves: Code) -> Floats:
    """old + moves at their places, in float32: the same bits on any machine."""
    out = old.copy()
    with np.errstate(all="ignore"):
        out[places(moves)] += moves.values()
    return out


def _moves(old: Floats, new: Floats) -> Code:
    """The multiples of one power of two by which numbers moved, where that explains most of a sample."""
    step = max(len(old) // _SAMPLE, 1)
    unit = _unit(old[::step], new[::step])
    q = _multiples(old, new, unit) if unit else np.zeros(0)
    where = np.flatnonzero(q)
    levels = (q[where] + 128).astype(np.uint8)
    return Code(len(old), _WORD, where, levels, 8, np.full(-(-len(where) // WIDTH), unit, "<f4"))


def _multiples(old: Floats, new: Floats, unit: float) -> NDArray[np.float64]:
    """By how many units each number moved, 0 where that is too many."""
    with np.errstate(all="ignore"):
        q = np.rint((new.astype(np.float64) - old) / unit)
        q[~(np.abs(q) <= _MOST)] = 0  # NaN as well: words that are no numbers stay as they are
    return q


def _unit(old: Floats, new: Floats) -> float:
    """The power of two that the smallest moves have, but a few; 0 where it explains less than half."""
    with np.errstate(all="ignore"):
        size = np.abs(new.astype(np.float64) - old)
        real = np.sort(size[(size > 2.0**-100) & (size < 2.0**100)])
        if not len(real):
            return 0.0
        unit = float(2.0 ** np.round(np.log2(real[len(real) // 20])))
        q = _multiples(old, new, unit)
        right = np.count_nonzero((old + (q * unit).astype(_WORD) == new) & (q != 0))
    return unit if 2 * right >= len(real) else 0.0


def _unpack(packed: memoryview, size: int) -> Iterator[tuple[Code, Code]]:
    """Moves and rest of each block; a block is never longer than it must be, whatever its codes say."""
    at = 0
    for start in range(0, size, BLOCK):
        words = min(BLOCK, size - start) // _WORD.itemsize
        codes = []
        for _ in range(2):
            end = at + _LENGTH.size
            if end > len(packed):
                raise CodecError("the delta is shorter than its target needs")
            (count,) = _LENGTH.unpack(packed[at:end])
            at = end + count
            codes.append(unpacked(np.frombuffer(packed[end:at], np.uint8), words))
        moves, rest = codes
        if moves.dtype != _WORD or rest.dtype != _WORD:
            raise CodecError("a block of the delta is not of its target's words")
        yield moves, rest
