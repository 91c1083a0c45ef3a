"""Models as blobs: a message's frames in one file, encoded once and read by all who need it."""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import IntegrityError
from ...privacy.vault import Vault
from ...wire.codec import FRAME, HEADER, Decoder, Limits, Message, encode
from ...wire.manifest import ALIGN, build
from ...wire.values import head_of

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


def keep_frames(path: Path, message: Message, vault: Vault | None = None) -> None:
    """Write a message's frames to `path`, whole or not at all where this process is killed.

    `vault`: what seals it. It is not synced, so a power cut may spoil it: whoever finds it later looks.
    """
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as out, nullcontext(out) if vault is None else vault.sealing(out, path) as sink:
        for frame in encode(message, WHOLE):
            sink.write(frame)
    part.replace(path)


def made_frames(path: Path, message: Message) -> bool:
    """`keep_frames`, if this message is the blob that `path` is named after; whether it is."""
    first = memoryview(next(encode(message, WHOLE)))
    if hashlib.sha256(first[HEADER:]).hexdigest() != path.name:
        return False
    keep_frames(path, message)
    return True


def take_frames(path: Path) -> Message:
    """The message in a blob that this process has just written and verified: it is not done again."""
    with path.open("rb", buffering=0) as file:
        head, sections = head_of(file.read(int.from_bytes(file.read(HEADER)[16:20], "little")), WHOLE)
        room = np.empty(head.size + ALIGN, np.uint8)
        start = -room.ctypes.data % ALIGN
        buffer = room[start : start + head.size]
        view = buffer.data
        for place in range(0, head.size, FRAME):
            file.seek(HEADER, os.SEEK_CUR)
            piece = view[place : place + FRAME]
            while len(piece):
                piece = piece[file.readinto(piece) or _cut(path) :]
    return build(head, sections, buffer, 0, finite=True)


def _cut(path: Path) -> int:
    raise IntegrityError(f"{path.name} ends before its message does: fetch it again")
