"""What the C library keeps of the memory that this process has freed. In glibc; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_C: Any = ctypes.CDLL(None) if os.name == "posix" else None
_ARENAS = -8  # M_ARENA_MAX


def keep_memory(size: int = 16 << 20) -> None:
    """Have the C library keep as much freed memory for us as one buffer of `size` bytes.

    Frames of a megabyte come and go by the thousand. By default each is given back to the system at
    once and the next one is paid for page by page: a third of the cost of a transfer (measured). In
    glibc the largest buffer freed so far is the measure of what is kept; elsewhere this does nothing.
    All threads share what is kept, where each would keep as much for itself.
    """
    if hasattr(_C, "malloc_trim"):  # glibc
        _C.mallopt(_ARENAS, 1)
    buffer = bytearray(size)
    del buffer


def give_back() -> None:
    """Have the C library give all freed memory back to the system, where it can (glibc)."""
    if hasattr(_C, "malloc_trim"):
        _C.malloc_trim(0)
