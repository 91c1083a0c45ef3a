"""Reading an answer's numbers to see that they can be: finite, in range, in the ring, in their type.

Each is read once, a block at a time and straight from the mapped file; the largest and the smallest
of a leaf say all. Nothing of the model's size is copied, but for compact updates, which are unpacked one at
a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite, sqrt
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...core.errors import CodecError, ProtocolError
from ...wire.coded import decode
from ...wire.packed import narrowest, unpack
from .want import Table

Array: TypeAlias = NDArray[Any]
Tick: TypeAlias = Callable[[], None]

_BLOCK = 1 << 16  # numbers looked at together
_TICK = 1 << 22  # numbers between two signs of life


class Reading:
    """Reads an answer's arrays, each once, and knows which ones nobody expected.

    `limit`: the largest whole number a contribution of weight 1 may put into the sum. `tick` is called
    every few million numbers. All methods raise ProtocolError, saying `what` it is about.
    """

    def __init__(self, arrays: Mapping[str, Array], limit: float, tick: Tick) -> None:
        self._arrays = arrays
        self._limit = limit
        self._left = set(arrays)
        self._tick = tick
        self._read = 0

    def has(self, name: str) -> bool:
        """Whether this array has come, and nobody took it yet."""
        return name in self._left

    def take(self, name: str) -> Array:
        """The array of this name. Raises ProtocolError if there is none."""
        if name not in self._left:
            raise ProtocolError("one of the model's arrays is missing in it")
        self._left.remove(name)
        return self._arrays[name]

    def done(self) -> None:
        """Raise ProtocolError if an array is left that nobody took."""
        if self._left:
            raise ProtocolError(f"it holds {len(self._left)} arrays that the model has not")

    def unpacked(self, code: Array, size: int, what: str) -> Array:
        """The numbers of a compact update, which must be one of `size` numbers in every byte."""
        try:
            numbers = decode(code, size).numbers()
        except CodecError as error:
            raise ProtocolError(f"{what}'s update cannot be unpacked: {error}") from None
        self._tick()
        return numbers

    def real(self, leaf: Array, unit: float | None, scale: float, what: str) -> None:
        """Finite, and within the range that the sum refuses to go beyond: the same test as its own."""
        low, high = self._ends(leaf)
        largest = max(high, -low)
        if not isfinite(largest):
            raise ProtocolError(f"{what} holds a NaN or an infinity")
        if unit is not None and not np.rint(largest * unit * scale) <= self._limit * scale:
            raise ProtocolError(f"{what} is beyond this round's range: its training diverged")

    def length(self, x: Array) -> float:
        """The L2 norm of finite numbers."""
        total = 0.0
        for block in self._blocks(len(x)):
            part = x[block].astype(np.float64)
            total += float(part @ part)
        return sqrt(total)

    def ids(self, name: str, table: Table, what: str) -> Array:
        """Ids of a table's rows, increasing."""
        ids = self.take(name)
        if ids.dtype.str != "<i8" or ids.ndim != 1:
            raise ProtocolError(f"{what}: expected ids of type <i8")
        if len(ids) and (ids[0] < 0 or ids[-1] >= table.height or (ids[1:] <= ids[:-1]).any()):
            raise ProtocolError(f"{what}: expected increasing ids below {table.height}")
        return ids

    def rows(self, ids: str, values: str, table: Table, what: str) -> Array:
        """Values of sparse rows, (k, width)."""
        k, found = len(self.ids(ids, table, what)), self.take(values)
        if found.dtype.kind != "f" or found.shape != (k, table.width):
            raise ProtocolError(f"{what}: expected rows of {table.width} real numbers")
        return found

    def ring(self, planes: Array, size: int, bits: int, what: str) -> None:
        """Packed integers of a ring: only the highest byte can be out of it."""
        if planes.dtype != np.uint8 or planes.shape != (-(-bits // 8), size):
            raise ProtocolError(f"{what}'s update is not {size} packed integers of {bits} bits")
        if bits % 8 and self._ends(planes[-1])[1] >> bits % 8:
            raise ProtocolError(f"{what}'s update has a number out of the ring of {bits} bits")

    def packed(self, planes: Array, size: int, most: float, bits: int | None, what: str) -> None:
        """Packed integers of a sum: as many bytes as they need, or all that there are, where sizes are not to
        tell of numbers; none larger than `most`.
        """
        if planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != size or len(planes) > 8:
            raise ProtocolError(f"{what} is not {size} packed integers")
        low = high = 0
        for block in self._blocks(size):
            x = unpack(planes[:, block], np.uint64 if bits else np.int64)
            low, high = min(low, int(x.min())), max(high, int(x.max()))
        if len(planes) not in (narrowest(low, high, signed=not bits), -(-(bits or 64) // 8)):
            raise ProtocolError(f"{what} is packed wider than it needs")
        if high >> bits if bits else max(high, -low) > most:
            raise ProtocolError(f"{what} is beyond what its clients can have added")

    def _ends(self, x: Array) -> tuple[Any, Any]:
        """The smallest and the largest number, and 0; NaN if there is one."""
        low = high = x.dtype.type(0)
        with np.errstate(invalid="ignore"):
            for block in self._blocks(len(x)):
                part = x[block]
                low, high = np.minimum(low, part.min()), np.maximum(high, part.max())
        return low.item(), high.item()

    def _blocks(self, size: int) -> Iterator[slice]:
        for start in range(0, size, _BLOCK):
            yield slice(start, start + _BLOCK)
            self._read += _BLOCK
            if self._read >= _TICK:
                self._read = 0
                self._tick()
