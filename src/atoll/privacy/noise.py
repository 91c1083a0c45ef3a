"""Gaussian noise for differential privacy: from a cipher's keystream, on a grid of whole numbers.

A key of 32 bytes names one noise: the same key and size give the same numbers, another key others that
nobody without it can tell from chance. AES-256 in counter mode fills 53-bit uniforms, Box and Muller 1958
makes them normal. Sums with noise come out as multiples of a power of two far below the noise, so that
no bit of a floating-point number tells what was there before (Mironov 2012, "On significance of the least
significant bits for differential privacy").

The uniforms end the normal's tails at 8.5 deviations, which costs 1e-17 of δ for each number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil, log2, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import MisuseError
from .hazmat.suite import INTL

KEY = 32  # bytes
FINE = 20  # bits of the grid below the noise's deviation
_BLOCK = 1 << 16  # numbers made at a time


def uniforms(
    key: bytes, stream: Callable[[bytes], Any] = INTL.stream
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Two uniforms in (0, 1] and a coin each, for ever, a block at a time; from a suite's `stream`."""
    made = stream(key)
    zeros = bytes(8 * _BLOCK)
    while True:
        bits = np.frombuffer(made.update(zeros), "<u8")
        unit = ((bits >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
        half = _BLOCK // 2
        yield unit[:half], unit[half:], (bits[:half] & np.uint64(1)).astype(bool)


def normals(key: bytes, size: int) -> Iterator[NDArray[np.float64]]:
    """`size` standard normal numbers, a block at a time. Raises MisuseError for another length of key."""
    if len(key) != KEY:
        raise MisuseError(f"a noise key has {KEY} bytes, got {len(key)}")
    stream = INTL.stream(key)
    zeros = bytes(8 * _BLOCK)
    for start in range(0, size, _BLOCK):
        bits = np.frombuffer(stream.update(zeros), "<u8") >> np.uint64(11)
        half = _BLOCK // 2
        radius = np.sqrt(-2.0 * np.log((bits[:half] + 1.0) * 2.0**-53))
        angle = bits[half:] * (2.0**-53 * 2 * np.pi)
        made = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        yield made[: size - start]


def grid(deviation: float) -> float:
    """The power of two that sums with noise of this deviation are multiples of."""
    return 2.0 ** (ceil(log2(deviation)) - FINE)


def add(
    total: NDArray[Any], sensitivity: float, sigma: float, key: bytes
) -> tuple[NDArray[np.float64], float]:
    """The total with noise of `sigma` times its sensitivity, float64, and the deviation of the noise.

    Rounding to the grid can move two neighbouring totals apart by a step more in each number than
    `sensitivity` (L2) says: the noise covers that as well.
    """
    step = grid(sigma * sensitivity)
    deviation = sigma * (sensitivity + step * sqrt(total.size))
    noisy = np.empty(total.size, np.float64)
    done = 0
    for block in normals(key, total.size):
        part = slice(done, done + len(block))
        noisy[part] = (np.rint(total[part] / step) + np.rint(block * (deviation / step))) * step
        done += len(block)
    return noisy, deviation
