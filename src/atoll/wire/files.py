"""Files that appear whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole(path: Path, beside: str = "") -> Iterator[BinaryIO]:
    """A file to write that takes its name only when the block ends well, on disk by then.

    `beside`: what it is called until then; by default a name of its own, so that two processes may
    write the same file. A fixed name is overwritten by the next try after a kill. Missing folders
    are made. Raises OSError as the system does; nothing is left behind.
    """
    partial = path.with_name(beside or f".{path.name}.{secrets.token_hex(4)}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):  # renamed, never made, or in a folder that cannot be written
            partial.unlink()
