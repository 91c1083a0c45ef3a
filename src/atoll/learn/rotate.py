"""A random rotation before rounding, so that no single number of a block is much larger than the rest.

Suresh, Yu, Kumar, McMahan 2017, "Distributed mean estimation with limited communication", section 3:

    going out    z = H D x / √n      D: random signs that all clients share;  H: Walsh-Hadamard
    coming back  x = D H z / √n      once, on the sum: the rotation is linear and its own transpose

Each leaf is rotated by itself in blocks of 1,024, what is left over in smaller powers of two, so nothing is
padded. It turns by additions in a fixed order: the same bytes on any machine. It costs no bytes of its own,
but what is small before it is small no more: it takes away the zeros that topk() and packing live on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from ..core.registry import part
from ..core.rng import Rng
from ..core.transform import Context, State, Transform, transform
from ..core.update import Array, Update
from .quantise import dense

_BLOCK = 1024
_ROWS = 32  # blocks at a time


@part("transform")
def rotate(seed: int = 0) -> Transform:
    """Rotate each leaf at random, by `seed`, before int8(), int4() or int2(); the sum is rotated back."""
    return transform("rotate()", partial(_turn, seed, True), partial(_turn, seed, False), loses_bound=True)


def _turn(seed: int, out: bool, update: Update, state: State, ctx: Context) -> tuple[Update, State]:  # noqa: FBT001
    dense(update, "rotate()")
    x = update.buffer.copy()
    for name, where in update.layout.slices.items():
        leaf = x[where]
        signs = _signs(seed, name, len(leaf))
        if out:
            leaf *= signs
        for rows in _powers(leaf):
            hadamard(rows)
        if not out:
            leaf *= signs
    return Update(update.layout, x), state


@lru_cache(maxsize=256)
def _signs(seed: int, name: str, count: int) -> NDArray[np.int8]:
    """Random signs of a leaf, (count,) of 1 and -1."""
    random = Rng.of(seed).at("rotate", name).generator().bit_generator.random_raw(-(-count // 64))
    bits = np.unpackbits(random.astype("<u8", copy=False).view(np.uint8), count=count)
    return (1 - 2 * bits.astype(np.int8)).astype(np.int8)


def _powers(x: Array) -> Iterator[Array]:
    """All of `x` as views (rows, n), n a power of two: rows of 1,024 at a time, then one of each less."""
    start = 0
    while start < len(x):
        rows = min((len(x) - start) // _BLOCK, _ROWS)
        n = _BLOCK if rows else 1 << (len(x) - start).bit_length() - 1
        stop = start + max(rows, 1) * n
        yield x[start:stop].reshape(-1, n)
        start = stop


def hadamard(x: Array) -> None:
    """x H / √n in place, row by row: `x` (m, n) contiguous, n a power of two. Twice it is the identity."""
    m, n = x.shape
    columns = x.T.copy()  # (n, m): so that inner loops are long, however near the numbers stand
    room = np.empty(m * n // 2, x.dtype)
    half = 1
    while half < n:
        pairs = columns.reshape(-1, 2, half * m)
        a, b = pairs[:, 0], pairs[:, 1]
        less = np.subtract(a, b, out=room.reshape(a.shape))
        a += b
        b[...] = less
        half *= 2
    np.multiply(columns.T, x.dtype.type(n**-0.5), out=x)
