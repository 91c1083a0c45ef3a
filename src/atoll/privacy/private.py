"""Files that only their owner reads: keys and tokens on disk. Around each step stands a failpoint."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..wire.failpoint import declare, hit

_SYNC = declare("private.sync.before"), declare("private.sync.after")
_REPLACE = declare("private.replace.before"), declare("private.replace.after")
_FOLDER = declare("private.folder.before"), declare("private.folder.after")


def write_private(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, mode 0600 from its first byte, on disk when this returns.

    Missing folders are made, mode 0700. Raises OSError as the system does; nothing is left behind.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(data)
            hit(_SYNC[0])
            out.flush()
            os.fsync(out.fileno())
            hit(_SYNC[1])
        hit(_REPLACE[0])
        partial.replace(path)
        hit(_REPLACE[1])
    finally:
        with suppress(OSError):  # renamed, or never made
            partial.unlink()
    hit(_FOLDER[0])
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    hit(_FOLDER[1])
