"""What this process holds of memory that it does not use: freed, or code that only its start has run.

In glibc and Linux; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_C: Any = ctypes.CDLL(None) if os.name == "posix" else None
_ARENAS = -8  # M_ARENA_MAX
_DONTNEED = 4  # MADV_DONTNEED
_STATM = Path("/proc/self/statm")
_CODE = (b"r-xp", b"r--p")  # never written
_PROGRAM = os.fsencode(os.path.realpath(sys.executable))


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


def leave_code(most: int = 0) -> None:
    """Let go of all pages of programs and libraries that are as they are in their files (Linux), where they
    are more than `most` bytes.

    What runs comes back page by page from the system's cache of files; what only loading has run does not,
    which is two thirds (measured). The system would take these pages by itself where memory is short, but
    counts them as this process's until then.
    """
    with suppress(OSError), Path("/proc/self/smaps").open("rb") as maps:
        if int(_STATM.read_bytes().split()[2]) * os.sysconf("SC_PAGE_SIZE") <= most:
            return
        place: list[int] = []
        for line in maps:
            word, *more = line.split(None, 5)
            if not word.endswith(b":"):
                code = more[0] in _CODE and (b".so" in more[-1] or more[-1].rstrip() == _PROGRAM)
                place = [int(n, 16) for n in word.split(b"-")] if code else []
            elif place and word == b"Anonymous:" and more[0] == b"0":
                begin, end = place
                _C.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED)
