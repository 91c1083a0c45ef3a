"""Where a shelf keeps one name: a folder in which every change is one file that appears whole.

    <name>/signed.json      the champion's manifest; it names its file by its SHA-256
    <name>/rollout.json     the line (rollout.py) and its candidate's manifest, while there is more than that
    <name>/<sha256>.onnx    of the champion, and of a candidate

A model's file is there before a manifest names it, and goes when no manifest names it any more. Of the two
manifests the champion's counts: what was killed between them is read as if it had been done.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ..core.errors import StateError
from ..wire.failpoint import declare, hit
from ..wire.files import whole
from .rollout import Line

_MODEL = declare("shelf.model.before"), declare("shelf.model.after")
_CHAMPION = declare("shelf.champion.before"), declare("shelf.champion.after")
_LINE = declare("shelf.line.before"), declare("shelf.line.after")
_TIDIED = declare("shelf.tidied")
_SIGNED, _ROLLOUT = "signed.json", "rollout.json"


class _Kept(msgspec.Struct, frozen=True):
    line: Line
    candidate: str = ""


class Place:
    """One name's folder. Writing raises StateError where the disk does not take it; the old file stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def champion(self) -> bytes:
        """Its manifest. Raises OSError."""
        return (self.folder / _SIGNED).read_bytes()

    def line(self) -> tuple[Line, bytes]:
        """The line and the candidate's manifest, b"" for none; an empty line where none was written.

        Raises StateError where what was written cannot be read.
        """
        try:
            kept = msgspec.json.decode((self.folder / _ROLLOUT).read_bytes(), type=_Kept)
        except FileNotFoundError:
            return Line(), b""
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError(f"{self.folder / _ROLLOUT} cannot be read: {error}") from None
        return kept.line, kept.candidate.encode()

    def path(self, digest: str) -> Path:
        """Where a model's bytes are."""
        return self.folder / _file(digest)

    def model(self, digest: str) -> bytes:
        """A model's bytes. Raises OSError."""
        return self.path(digest).read_bytes()

    def add(self, digest: str, data: bytes) -> None:
        """Keep a model's bytes."""
        self._write(_file(digest), data, _MODEL)

    def crown(self, manifest: bytes) -> None:
        """This manifest is the champion's from now on."""
        self._write(_SIGNED, manifest, _CHAMPION)

    def note(self, line: Line, candidate: bytes) -> None:
        """The line, and its candidate's manifest; what the champion's manifest says anyway is not kept."""
        plain = replace(line, champion=0, newest=0) == Line() and line.champion == line.newest
        if plain and not (self.folder / _ROLLOUT).exists():
            return
        self._write(_ROLLOUT, msgspec.json.encode(_Kept(line, candidate.decode())), _LINE)

    def tidy(self, digests: Iterable[str]) -> None:
        """Only these models are needed."""
        needed = set(map(_file, digests))
        hit(_TIDIED)
        for other in self.folder.glob("*.onnx"):
            if other.name not in needed:
                with suppress(OSError):
                    other.unlink()

    def _write(self, name: str, content: bytes, points: tuple[str, str]) -> None:
        try:
            hit(points[0])
            with whole(self.folder / name) as out:
                out.write(content)
            hit(points[1])
        except OSError as error:
            raise StateError(f"{self.folder} cannot be written: {error.strerror}") from None


def _file(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise StateError("a manifest names its model by a SHA-256 in hex")
    return f"{digest}.onnx"
