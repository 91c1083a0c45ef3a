"""Looking for values in bytes: as text, as numbers of every width and order, in base64, compressed, deltas.

A value of four bytes alone may turn up by chance; so two neighbours of a row or of a column must.
"""

from __future__ import annotations

import re
import tempfile
import zlib
from base64 import b64decode
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from atoll.core.errors import AtollError
from atoll.core.update import Update
from atoll.transport.delta import restore
from atoll.wire.codec import HEADER, MAGIC, Decoder, Message
from atoll.wire.manifest import Limits

DIGITS = re.compile(rb"[0-9]{6,}")
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}")
_LENGTH = slice(16, 20)
_LIMITS = Limits(bytes=1 << 26)


class Planted:
    """What is looked for: `rows` (n, d) of values below 1 with seven digits, all different."""

    def __init__(self, rows: NDArray[np.float64]) -> None:
        whole = np.rint(rows * 1e7).astype(np.int64)
        self.texts = {f"{n:07d}".encode() for n in whole.flat}
        wide, pairs = [rows.ravel(), whole.ravel()], []
        for narrow in (rows.astype("<f4"), whole.astype("<i4")):
            for neighbours in (narrow, np.ascontiguousarray(narrow.T)):
                pairs += [neighbours[:, i : i + 2] for i in range(neighbours.shape[1] - 1)]
        eights = [a.tobytes() for a in wide] + [a.byteswap().tobytes() for a in wide]
        eights += [np.ascontiguousarray(p).tobytes() for p in pairs]
        eights += [np.ascontiguousarray(p).byteswap().tobytes() for p in pairs]
        self._eights = np.unique(np.concatenate([np.frombuffer(e, "<u8") for e in eights]))

    def found(self, stream: bytes) -> int:
        """How often planted values stand in the stream, as it is, in base64 parts, and unpacked."""
        return self._plain(b"\0".join(layers(stream)))

    def _plain(self, data: bytes) -> int:
        hits = sum(
            any(run[i : i + 7] in self.texts for i in range(len(run) - 6)) for run in DIGITS.findall(data)
        )
        for start in range(8):
            words = (
                np.frombuffer(data, "<u8", (len(data) - start) // 8, start) if len(data) > start + 8 else ()
            )
            at = np.minimum(np.searchsorted(self._eights, words), len(self._eights) - 1)
            hits += int((self._eights[at] == words).sum())
        return hits


def layers(stream: bytes) -> Iterator[bytes]:
    """The stream, and what is in it once base64 and compression are taken off, deltas applied."""
    yield stream
    for run in BASE64.findall(stream):
        plain = run.replace(b"-", b"+").replace(b"_", b"/")
        for start in range(4):
            piece = plain[start:]
            yield b64decode(piece[: len(piece) // 4 * 4])
    yield from unpacked(stream)
    for array in arrays(messages([stream])):
        yield array.tobytes()


def unpacked(stream: bytes) -> Iterator[bytes]:
    """Whatever is zstandard, zlib or gzip in it."""
    for at in (m.start() for m in re.finditer(re.escape(b"\x28\xb5\x2f\xfd"), stream)):
        with suppress(zstandard.ZstdError):
            yield zstandard.ZstdDecompressor().decompressobj().decompress(stream[at:])
    for at in (m.start() for m in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b", stream)):
        with suppress(zlib.error):
            yield zlib.decompressobj(47).decompress(stream[at:])


def frames(stream: bytes) -> Iterator[bytes]:
    """Every wire frame in it, whatever stands between them."""
    at = stream.find(MAGIC)
    while at >= 0:
        size = HEADER + int.from_bytes(stream[at:][_LENGTH], "little")
        if at + size <= len(stream):
            yield stream[at : at + size]
        at = stream.find(MAGIC, at + 4)


def messages(streams: Iterable[bytes]) -> Iterator[Message]:
    """The messages that passed whole. Deltas as the models they lead to."""
    blobs: dict[str, bytes] = {}
    for stream in streams:
        decoder, kept = Decoder(_LIMITS), b""
        for frame in frames(stream):
            if frame[12:16] == b"\0\0\0\0":  # a first frame
                decoder, kept = Decoder(_LIMITS), b""
            with suppress(AtollError):
                kept += frame
                for message in decoder.feed(frame):
                    yield message
                    yield from _led_to(message, kept, blobs)


def _led_to(message: Message, frames: bytes, blobs: dict[str, bytes]) -> Iterator[Message]:
    from hashlib import sha256

    if message.kind != "delta":
        size = HEADER + int.from_bytes(frames[_LENGTH], "little")
        blobs[sha256(frames[HEADER:size]).hexdigest()] = frames
        return
    if (old := blobs.get(str(message.head.get("from")))) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        base, delta, out = (Path(folder) / name for name in ("base", "delta", "out"))
        base.write_bytes(old)
        delta.write_bytes(frames)
        restore(base, delta, out)
        blobs[str(message.head["to"])] = made = out.read_bytes()
    yield from messages([made])


def arrays(found: Iterable[Message]) -> Iterator[NDArray[np.generic]]:
    """Every array in messages, as it was sent."""
    for message in found:
        for array in message.arrays.values():
            yield array.buffer if isinstance(array, Update) else np.asarray(array)
