"""Masks: a cipher's keystream as integers of a ring, added to a vector or taken away from it.

The stream is the suite's (AES-256 or SM4 in counter mode): a key may therefore mask one vector only.
All keys work on one block of the vector before the next, so that it stays in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .suite import Suite

BLOCK = 1 << 18  # bytes
_SPARE = 16  # what the cipher wants behind its output


def narrow(bits: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds integers modulo 2**bits; its own wrapping does no harm."""
    return np.dtype(next(f"<u{size}" for size in (1, 2, 4, 8) if 8 * size >= bits))


def masked(
    suite: Suite, numbers: NDArray[Any], bits: int, plus: Sequence[bytes] = (), minus: Sequence[bytes] = ()
) -> NDArray[np.uint64]:
    """`numbers` (d,) plus the masks of some keys less those of others, modulo 2**bits, uint64."""
    dtype = narrow(bits)
    made = numbers.astype(dtype)
    streams: list[tuple[Any, np.ufunc]] = [(suite.stream(key), np.add) for key in plus]
    streams += [(suite.stream(key), np.subtract) for key in minus]
    zeros, room = bytes(BLOCK), np.empty(BLOCK + _SPARE, np.uint8)
    step = BLOCK // dtype.itemsize
    for at in range(0, len(made), step):
        part = made[at : at + step]
        size = part.nbytes
        mask = room[:size].view(dtype)
        for stream, join in streams:
            stream.update_into(memoryview(zeros)[:size], room[: size + _SPARE])
            join(part, mask, out=part)
    wide = made.astype(np.uint64)
    return wide if bits in (8, 16, 32, 64) else wide & np.uint64((1 << bits) - 1)
