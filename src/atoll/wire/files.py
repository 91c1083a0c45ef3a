"""Files that appear whole or not at all: written beside, synced, renamed, the folder synced.

`Files` is all the store asks of a disk. Tests hand over another one that forgets what was not
synced (tests/wire/lossy.py) or has no space left. Around each step stands a failpoint; what another
disk does otherwise stands between the two.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from .failpoint import declare, hit

_SYNC = declare("files.sync.before"), declare("files.sync.after")
_REPLACE = declare("files.replace.before"), declare("files.replace.after")
_FOLDER = declare("files.folder.before"), declare("files.folder.after")
EARLY = 16 << 20  # bytes of a file that the disk is given at a time
_WRITE = 2  # SYNC_FILE_RANGE_WRITE


class Files:
    """The system's files. Every method raises OSError as the system does."""

    def create(self, path: Path) -> BinaryIO:
        """A new, empty file to write, in place of one that was there."""
        return path.open("wb")

    def sync(self, file: BinaryIO) -> None:
        """What was written to `file` is on disk when this returns."""
        hit(_SYNC[0])
        self._sync(file)
        hit(_SYNC[1])

    def sync_path(self, path: Path) -> None:
        """As `sync`, for a file somebody else wrote."""
        with path.open("rb+") as file:
            self.sync(file)

    def replace(self, old: Path, new: Path) -> None:
        """Give `old` the name `new`; that survives a power cut once the folder is synced."""
        hit(_REPLACE[0])
        self._replace(old, new)
        hit(_REPLACE[1])

    def unlink(self, path: Path) -> None:
        """Take a file away, if it is there."""
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """The names in `folder` are on disk when this returns."""
        hit(_FOLDER[0])
        self._sync_folder(folder)
        hit(_FOLDER[1])

    def make_folder(self, folder: Path) -> None:
        """The folder and those above it, each on disk when this returns."""
        if folder.is_dir():
            return
        self.make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        self.sync_folder(folder.parent)

    @contextmanager
    def whole(self, path: Path, beside: str = "") -> Iterator[BinaryIO]:
        """A file to write that takes its name only when the block ends well, on disk by then.

        `beside`: what it is called until then; by default a name of its own, so that two processes
        may write the same file. A fixed name is overwritten by the next try after a kill. Missing
        folders are made. Raises OSError as the system does; nothing is left behind.
        """
        partial = path.with_name(beside or f".{path.name}.{secrets.token_hex(4)}.part")
        self.make_folder(path.parent)
        try:
            with self.create(partial) as out:
                yield out
                self.sync(out)
            self.replace(partial, path)
            self.sync_folder(path.parent)
        finally:
            with suppress(OSError):  # renamed, never made, or in a folder that cannot be written
                self.unlink(partial)

    def _sync(self, file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())

    def _replace(self, old: Path, new: Path) -> None:
        old.replace(new)

    def _sync_folder(self, folder: Path) -> None:
        if os.name == "nt":
            return  # Windows opens no folders, and keeps its names in a journal
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


whole = Files().whole


def early(file: int, place: int, size: int) -> None:
    """Tell the disk of `size` bytes just written at `place` of a file that grows, and do not wait (Linux).

    It gets each EARLY bytes once they are full, and works while more come: a sync at the end then waits for
    little. That sync is as needed as ever, nothing is promised here.
    """
    start, end = (at // EARLY * EARLY for at in (place, place + size))
    if end > start and (begin := _begin()) is not None:
        begin(file, start, end - start, _WRITE)


@cache
def _begin() -> Callable[[int, int, int, int], int] | None:
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None) if os.name == "posix" else None
    if begin is not None:
        begin.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return begin
