"""Models as blobs: a message's frames in one file, encoded once and read by all who need it."""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

from ..core.errors import IntegrityError
from ..wire.codec import HEADER, Decoder, Message, encode
from ..wire.files import whole
from ..wire.manifest import Limits

_PIECE = 1 << 20  # bytes read at a time
WHOLE = Limits(bytes=1 << 36, elements=1 << 34)  # what a blob that was verified on its way may hold


def write_frames(store: Any, message: Message) -> str:
    """Put a message into the store's blobs; its name, the SHA-256 of its head."""
    frames = encode(message, WHOLE)
    first = next(frames)
    name: str = store.blobs.put(
        chain([first], frames), hashlib.sha256(memoryview(first)[HEADER:]).hexdigest()
    )
    return name


def read_frames(path: Path, *, finite: bool = True) -> Message:
    """The message in a blob, read piece by piece: in memory once. Raises IntegrityError or CodecError."""
    decoder = Decoder(WHOLE, finite=finite)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            for message in decoder.feed(piece):
                return message
    raise IntegrityError(f"{path.name} ends before its message does: fetch it again")


def keep_frames(path: Path, message: Message) -> dict[str, Any]:
    """Write a message's frames to `path`, whole or not at all; its size and number of frames."""
    size = count = 0
    with whole(path) as out:
        for frame in encode(message, WHOLE):
            out.write(frame)
            size, count = size + len(frame), count + 1
    return {"size": size, "frames": count}
