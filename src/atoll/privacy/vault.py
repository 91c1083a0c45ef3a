"""Files that only one key opens: what a client keeps on its disk.

Hoang, Reyhanitabar, Rogaway, Vizár 2015, "Online authenticated-encryption and its nonce-reuse
misuse-resistance", §7, the construction STREAM: chunks under counters, the last one marked, so that a file
that was cut, or whose chunks were moved, does not open; and of a long one only a chunk is in memory.

    file     MAGIC   suite (1 byte)   salt (32)   chunk 0   chunk 1   ...   the last chunk
    chunk    GCM(k, nonce = 0 (7 bytes), number (4), 1 for the last else 0 (1); CHUNK bytes of text, or fewer)
    k      = HKDF(the vault's key; purpose, suite, the file's name, salt)

Each time that a file is written it has another salt, and so a key of its own: no nonce comes twice. Its name
is in its key: one file does not pass for another. An older state of the same file does; who can bring back
old files can be told by what is kept elsewhere only.
"""

from __future__ import annotations

import hmac
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import ProtocolError, StateError
from .hazmat.suite import INTL, KEY, SUITES, TAG, Suite
from .private import write_private

MAGIC = b"atoll sealed 1\n"
CHUNK = 1 << 18  # bytes of text
_SUITES = {1: "intl", 2: "gm"}
_SALT = 32
_HEAD = len(MAGIC) + 1 + _SALT


class Sink(Protocol):
    """What takes bytes."""

    def write(self, data: Any, /) -> Any:
        """As a file's."""


@dataclass(frozen=True)
class Vault:
    """The key of a folder's files, 32 bytes, and the suite that new ones are written in; others are read."""

    key: bytes = field(repr=False)
    suite: Suite = INTL

    def write(self, path: Path, data: bytes) -> None:
        """As `write_private`, sealed."""
        made = io.BytesIO()
        with self.sealing(made, path) as sink:
            sink.write(data)
        write_private(path, made.getvalue())

    @contextmanager
    def sealing(self, out: Sink, path: Path) -> Iterator[Sink]:
        """What is written in the block goes to `out`, sealed for the name of `path`; whole once it ends."""
        number = next(n for n, name in _SUITES.items() if name == self.suite.name)
        salt = os.urandom(_SALT)
        out.write(MAGIC + bytes([number]) + salt)
        sealing = _Sealing(out, self.suite, self._key(self.suite, path, salt))
        yield sealing
        sealing.finish()

    def read(self, path: Path) -> bytes:
        """All of a file. Raises FileNotFoundError, and StateError unless this key sealed it as it is."""
        with self.opened(path) as file:
            return bytes(file.read())

    def opened(self, path: Path) -> io.RawIOBase:
        """A sealed file to read from and to seek in. Raises as `read`, here or as soon as it is read."""
        file = path.open("rb", buffering=0)
        try:
            head = file.read(_HEAD)
            suite = SUITES.get(_SUITES.get(head[len(MAGIC)], "")) if sealed(head) else None
            if suite is None:
                raise StateError(f"{path.name} is not encrypted as this client keeps its files: remove it")
            return _Opened(file, suite, self._key(suite, path, head[-_SALT:]), path.name)
        except BaseException:
            file.close()
            raise

    def name(self, kind: str, text: str) -> str:
        """What a file is called whose own name nobody need read on the disk, whatever suite seals it."""
        return hmac.digest(self.key, f"atoll name 1 {kind}:{text}".encode(), "sha256")[:16].hex()

    def _key(self, suite: Suite, path: Path, salt: bytes) -> bytes:
        name = f"{path.parent.name}/{path.name}"
        return suite.derived(self.key, "atoll file 1", suite.name, name, salt)


def sealed(head: bytes) -> bool:
    """Whether a file that begins so is a sealed one."""
    return len(head) >= _HEAD and head.startswith(MAGIC)


def _nonce(number: int, *, last: bool) -> bytes:
    return bytes(7) + number.to_bytes(4, "big") + bytes([last])


class _Sealing:
    def __init__(self, out: Sink, suite: Suite, key: bytes) -> None:
        self._out, self._suite, self._key = out, suite, key
        self._rest = bytearray()
        self._number = 0

    def write(self, data: Any, /) -> None:
        self._rest += data
        done = 0
        while len(self._rest) - done > CHUNK:
            self._chunk(bytes(memoryview(self._rest)[done : done + CHUNK]), last=False)
            done += CHUNK
        del self._rest[:done]

    def finish(self) -> None:
        self._chunk(bytes(self._rest), last=True)

    def _chunk(self, text: bytes, *, last: bool) -> None:
        self._out.write(self._suite.encrypted(self._key, _nonce(self._number, last=last), text))
        self._number += 1


class _Opened(io.RawIOBase):
    """One chunk at a time."""

    def __init__(self, file: Any, suite: Suite, key: bytes, name: str) -> None:
        self._file, self._suite, self._key, self._name = file, suite, key, name
        body = file.seek(0, os.SEEK_END) - _HEAD
        self._count = max(1, -(-body // (CHUNK + TAG)))
        self._size = max(0, body - self._count * TAG)
        self._at, self._here, self._text = 0, -1, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        room = memoryview(buffer).cast("B")
        done = 0
        while done < len(room):
            number, inside = divmod(self._at, CHUNK)
            part = self._chunk(number)[inside : inside + len(room) - done] if number < self._count else b""
            if not part:
                break
            room[done : done + len(part)] = part
            done += len(part)
            self._at += len(part)
        return done

    def close(self) -> None:
        self._file.close()
        super().close()

    def _chunk(self, number: int) -> bytes:
        if number != self._here:
            self._file.seek(_HEAD + number * (CHUNK + TAG))
            last = number == self._count - 1
            try:
                text = self._file.read(CHUNK + TAG)
                self._text = self._suite.decrypted(self._key, _nonce(number, last=last), text)
            except ProtocolError:
                raise StateError(
                    f"{self._name} was changed, is cut, or was encrypted with another key"
                ) from None
            self._here = number
        return self._text


__all__ = ["CHUNK", "KEY", "MAGIC", "Vault", "sealed"]
