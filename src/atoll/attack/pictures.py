"""Rows above their reconstructions, as grey PNG files (W3C 2003, "Portable Network Graphics", 2nd ed.)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, StateError
from .invert import Leak

Array = NDArray[Any]
_TALL = 56  # at least so many pixels a picture


def write(folder: Path, found: Iterable[Leak], shape: tuple[int, ...]) -> list[Path]:
    """One file for each protection and number of clients. `shape`: of a row.

    Raises ConfigError for rows that are no square pictures, StateError where nothing can be written.
    """
    side = isqrt(int(np.prod(shape)))
    if side * side != int(np.prod(shape)) or side < 2:
        raise ConfigError(f"rows of shape {tuple(shape)} are no square pictures of one channel")
    made = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leak in found:
            name = "-".join(leak.protection.replace(",", "").split())
            made.append(folder / f"{name}-{leak.clients}.png")
            made[-1].write_bytes(png(grid(leak, side)))
    except OSError as error:
        raise StateError(f"pictures cannot be written to {folder}: {error}") from None
    return made


def grid(leak: Leak, side: int) -> NDArray[np.uint8]:
    """The rows beside each other, and what was made of each below it."""
    low, high = float(leak.pairs[0].min()), float(leak.pairs[0].max())
    lines = [
        np.hstack([np.pad(x.reshape(side, side), 1, constant_values=high) for x in p]) for p in leak.pairs
    ]
    grey = np.clip((np.vstack(lines) - low) / max(high - low, 1e-30), 0, 1)
    times = -(-_TALL // side)
    return np.rint(255 * grey).astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1)


def png(grey: NDArray[np.uint8]) -> bytes:
    """An 8-bit grey picture (height, width) as a PNG file."""
    height, width = grey.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in grey)  # 0: as it is, no filter
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


__all__ = ["grid", "png", "write"]
