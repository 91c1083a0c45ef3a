"""Integers in as many whole bytes as the largest of them needs, without loss.

`pack` cuts the unused bytes off 8-byte integers and lays what is left byte plane by byte plane,
lowest first: (width, n) of uint8. `unpack` puts the sign, or zeros, back on top. Planes are copied
with one stride and a block stays in the cache; rows of 3 bytes would be copied one by one.

    unpack(pack(x), x.dtype) == x          pack(x).shape[0] == width(x)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BLOCK = 1 << 15  # numbers at a time: 256 KiB


def width(x: Array) -> int:
    """Bytes the largest magnitude of `x` (int64 or uint64) needs, 0 where all are 0."""
    if not x.size:
        return 0
    return narrowest(int(x.min()), int(x.max()), signed=x.dtype.kind == "i")


def narrowest(low: int, high: int, *, signed: bool) -> int:
    """Bytes that hold every integer from `low` to `high`; 0 if both are 0."""
    if not signed:
        return -(-high.bit_length() // 8)
    return -(-(max(high, ~low).bit_length() + 1) // 8) if low or high else 0


def pack(x: Array, wide: int | None = None) -> NDArray[np.uint8]:
    """(n,) int64 or uint64 as (w, n) bytes; `wide`: that many bytes, None for as few as will do."""
    w = width(x) if wide is None else wide
    raw = np.ascontiguousarray(x, x.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, 8)
    planes = np.empty((w, len(raw)), np.uint8)
    for start in range(0, len(raw), _BLOCK):
        block = slice(start, start + _BLOCK)
        for j in range(w):
            planes[j, block] = raw[block, j]
    return planes


def unpack(planes: Array, dtype: Any = np.int64, out: Array | None = None) -> Array:
    """(w, n) bytes as (n,) numbers of `dtype`, int64 or uint64; into `out` if it is given."""
    w, n = planes.shape
    x = np.zeros(n, dtype) if out is None else out
    raw = x.view(np.uint8).reshape(-1, 8)
    spare = np.int64(64 - 8 * w)
    for start in range(0, n, _BLOCK):
        block = slice(start, start + _BLOCK)
        if out is not None:
            x[block] = 0
        for j in range(w):
            raw[block, j] = planes[j, block]
        if x.dtype.kind == "i" and 0 < w < 8:
            x[block] <<= spare
            x[block] >>= spare
    return x
