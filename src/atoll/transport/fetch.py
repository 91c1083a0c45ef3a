"""A blob on its way in: its frames in a part file, checked as they come, that a kill does not lose.

The part file holds whole frames one after the other, as the blob's file will. Its first frame says
whether the rest is the blob or a delta to it (delta.py), so going on needs nothing but the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..core.errors import CodecError, Gone, IntegrityError, ProtocolError
from ..wire import wire_pb2
from ..wire.plain import FRAME, HEADER, Bytes, payload
from .frames import Announced, FrameFile, announced


class Part:
    """The part file of `blob`. Methods block: a worker thread calls them, one at a time."""

    def __init__(self, blob: str, path: Path, have: Mapping[str, Path]) -> None:
        self.blob = blob
        self.path = path
        self.have = have
        self.part = path.with_name(path.name + ".part")
        self.whole = path.with_name(path.name + ".whole")  # what a delta leads to
        self.frames = 0
        self.told: Announced | None = None
        self.base = ""  # the blob a delta starts from
        self._digest: Any = None
        self._at = 0  # bytes of the frames that count

    def total(self) -> int | None:
        """Frames of what comes, None until its head is here."""
        return self.told.frames if self.told else None

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self._at

    def find(self) -> None:
        """Take up what is there; frames that are cut or wrong are dropped."""
        try:
            with self.part.open("rb") as file:
                while True:
                    header = file.read(HEADER)
                    length = int.from_bytes(header[16:20], "little")
                    if len(header) < HEADER or length > FRAME:
                        break
                    self._count(header + file.read(length))
                    if self.total() == self.frames:
                        break
        except (FileNotFoundError, ProtocolError):
            pass
        if self.base and self.base not in self.have:
            self.drop()

    def write(self, frames: list[Bytes]) -> None:
        """Add these frames. Raises ProtocolError for one that is wrong or not due."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            for frame in frames:
                at = self._at
                self._count(frame)
                done = 0
                while done < len(frame):
                    done += os.pwrite(file, memoryview(frame)[done:], at + done)
            os.ftruncate(file, self._at)
        finally:
            os.close(file)

    def _count(self, frame: Bytes) -> None:
        data = payload(frame, self.frames)
        if self.frames == 0:
            self._begin(data)
        elif self.told is None or self.frames >= self.told.frames:
            raise CodecError(f"frame {self.frames} is more than the head announced")
        elif len(data) != self.told.length(self.frames):
            raise CodecError(f"frame {self.frames} has {len(data)} bytes, more or fewer than announced")
        else:
            self._digest.update(data)
        self.frames += 1
        self._at += len(frame)

    def _begin(self, head: memoryview) -> None:
        if sha256(head).hexdigest() != self.blob:
            self.base = source(bytes(head), self.blob)
            if self.base not in self.have:
                raise IntegrityError("what came is neither the blob asked for nor a delta from one held here")
        self.told = announced(head)
        self._digest = sha256()

    def verify(self) -> None:
        """Raise Gone (everything from the start) unless what came is what its head announced."""
        if self.told is None or self._digest.digest() != self.told.sha256:
            self.drop()
            raise Gone("the blob's SHA-256 is not the one its head announced: it is fetched again")

    def finish(self) -> None:
        """Give it its name; from a delta, once it is restored to `whole`. Raises IntegrityError, StateError.

        It is not synced: what a power cut spoils is fetched again, by whoever finds out when reading it.
        """
        if self.base:
            if FrameFile.of(self.whole).blob != self.blob:
                raise IntegrityError("a delta gave another blob than it announced")
            self.part.unlink()
            self.whole.replace(self.part)
        self.part.replace(self.path)

    def drop(self) -> None:
        """Begin again, without deltas."""
        self.part.unlink(missing_ok=True)
        self.whole.unlink(missing_ok=True)
        self.have = {}
        self.frames, self.told, self.base, self._digest, self._at = 0, None, "", None, 0


def source(head: bytes, blob: str) -> str:
    """The blob that a delta to `blob` starts from, given the protobuf of its head. Raises CodecError."""
    try:
        parsed = wire_pb2.Head.FromString(head)
    except Exception:  # noqa: BLE001  DecodeError, and whatever else a parser finds to say
        raise CodecError("expected the head of a delta") from None
    values = {entry.name: entry.value for entry in parsed.values}
    if parsed.kind != "delta" or {"from", "to", "head"} - values.keys() or values["to"].text != blob:
        raise IntegrityError("what came is neither the blob asked for nor a delta to it")
    if sha256(values["head"].raw).hexdigest() != blob:
        raise IntegrityError("the delta's target is not the blob it names")
    return values["from"].text
