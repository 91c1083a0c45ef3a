"""The rows that a watch hands to its workplace to fine-tune on.

Apart from tuning.py, since a client that watches learns nothing itself and loads nothing that learns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ...data.examples import Examples


class Rows(msgspec.Struct):
    """`x` (n, *row) float32 and `y` (n,) float64 as bytes."""

    row: tuple[int, ...]
    x: bytes
    y: bytes

    @classmethod
    def of(cls, x: NDArray[np.float32], y: NDArray[np.float64]) -> Rows:
        """These."""
        return cls(x.shape[1:], x.astype(np.float32).tobytes(), y.astype(np.float64).tobytes())

    def examples(self, *, classes: bool) -> Examples:
        """Labels are class numbers, or values."""
        from ...data.examples import Examples

        y = np.frombuffer(self.y, np.float64)
        x = np.frombuffer(self.x, np.float32).reshape(len(y), *self.row)
        return Examples(x, y.astype(np.int64) if classes else y)
