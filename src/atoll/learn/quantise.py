"""Block-scaled integers: an update in 8, 4 or 2 bits a number, right in the mean.

Alistarh, Grubic, Li, Tomioka, Vojnović 2017, "QSGD: Communication-efficient SGD via gradient
quantization and encoding", section 3.1, with the largest magnitude of a block of 1,024 as its scale
(their 4.1, "bucketing" and "max normalisation"). With two bits it is Wen et al. 2017, "TernGrad":

    s = max|v| / L,   L = 2^(b-1) - 1;      q = ⌊v / s + u⌋,  u uniform on [0, 1);      E[s q] = v

Rounding is drawn from the client's own stream, so errors of different clients are independent and their
mean shrinks. Nothing is kept between rounds. A quantised update may be longer than it was: bound it after.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..core.errors import MisuseError
from ..core.registry import part
from ..core.rng import Rng
from ..core.transform import Context, State, Transform
from ..core.update import Array, Update
from ..wire.coded import WIDTH, Code, Coded

_ROWS = 64  # blocks at a time: 256 KiB of float32, which stays in the cache
_SMALLEST = 2.0**-100  # of a block's magnitudes; below it they count as 0
_LARGEST = 2.0**113  # of a block's scale; beyond it an update counts as diverged
_SPARE = np.float32(1 - 2.0**-22)  # so that no rounding in between lifts the largest number above its level
_MIDDLE = np.uint32(np.float32(128).view(np.uint32))


@part("transform")
def int8() -> Transform:
    """Eight bits a number: a quarter of the bytes, or less where packing them pays; error about 1 %."""
    return _quantised("int8()", 8)


@part("transform")
def int4() -> Transform:
    """Four bits a number: an eighth of the bytes, or less where packing them pays."""
    return _quantised("int4()", 4)


@part("transform")
def int2() -> Transform:
    """-1, 0 or 1 times the block's largest magnitude: a fiftieth of the bytes where most numbers are small.

    Noisy for one client; the mean over ten or more of them is what counts.
    """
    return _quantised("int2()", 2)


class Codec(Transform):
    """A transform that makes updates compact."""


def _quantised(name: str, bits: int) -> Transform:
    return Codec(name, partial(_out, name, bits), loses_bound=True, whole=True)


def _out(name: str, bits: int, update: Update, state: State, ctx: Context) -> tuple[Update, State]:
    return coded(name, bits, update, ctx.key), state


def coded(name: str, bits: int, update: Update, key: Rng) -> Update:
    """The update in so many bits a number, rounded by `key`; `name`: whose words an error is in."""
    dense(update, name)
    code = floats(update)
    found = levels(code.what, bits, key)
    if found is None:  # a diverged client: the aggregator must see it
        return update
    return Coded(update.layout, replace(code, what=found[0], bits=bits, scales=found[1]))


def floats(update: Update) -> Code:
    """Its numbers as they are; of a compact update, those that it sends."""
    if isinstance(update, Coded) and not update.code.bits:
        return update.code
    return Code(update.layout.size, update.buffer.dtype, None, update.buffer)


def levels(v: Array, bits: int, key: Rng) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
    """`v` (d,) as levels (d,) uint8 and scales (⌈d / 1024⌉,), see wire/coded.py; `bits`: 2, 4 or 8.

    None where a number is not finite, or far beyond what anything trains to (2**113).
    """
    q, scales = np.empty(v.size, np.uint8), np.empty(-(-v.size // WIDTH), np.float32)
    stream = np.random.SFC64(key.key)  # half of the time goes into random bits; Philox takes twice as long
    room = np.empty((2, min(_ROWS * WIDTH, max(v.size, WIDTH))), np.float32)
    done = 0
    while done < v.size:
        rows = min(_ROWS, (v.size - done) // WIDTH) or 1
        block = slice(done, min(done + rows * WIDTH, v.size))
        part, s = v[block].reshape(rows, -1), scales[done // WIDTH :][:rows]
        _round(part, bits, s, stream.random_raw(-(-part.size // 4)), room, q[block].reshape(rows, -1))
        done = block.stop
    return (q, scales) if (scales < _LARGEST).all() else None  # NaN fails as well


def _round(v: Array, bits: int, s: Array, random: Array, room: Array, q: Array) -> None:
    """Rows of one block each, (m, n): their scales into `s`, their levels into `q`.

    All is done in place. 128 + u is put together from its bits, with 16 random ones below the point; then
    v / s + 128 + u is above 0, and cutting off what is below its point is the floor.
    """
    most = 2.0 ** (bits - 1) - 1
    x, u = (r[: v.size].reshape(v.shape) for r in room)
    largest = np.maximum(v.max(axis=1), -v.min(axis=1))  # (m,)
    with np.errstate(over="ignore"):
        np.divide(largest, most, out=s, casting="same_kind")
    s[largest < _SMALLEST] = 0
    sixteen = random.astype("<u8", copy=False).view("<u2")[: v.size].reshape(v.shape)
    np.bitwise_or(sixteen, _MIDDLE, out=u.view(np.uint32))
    with np.errstate(invalid="ignore", over="ignore"):
        inverse = np.divide(_SPARE, s, out=np.zeros_like(s), where=s > 0)
        np.multiply(v, inverse[:, None], out=x, casting="same_kind")
        x += u
        np.copyto(q, x, casting="unsafe")
    if bits < 8:
        q -= np.uint8(128 - 2 ** (bits - 1))


def dense(update: Update, part: str) -> None:
    """Raise MisuseError for an update with sparse rows, which this part does not know."""
    if update.rows:
        raise MisuseError(f"{part} takes dense leaves, and {sorted(update.rows)} came as sparse rows")
