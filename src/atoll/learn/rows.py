"""A client's data as the arrays an engine reads: shape and type checked, nothing copied if it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from atoll.core.errors import DataError

from .task import Array


@dataclass(frozen=True)
class Drawn:
    """Some rows of a client's: `x` (n, ...) and `y` (n, ...)."""

    x: Any
    y: Any

    def __len__(self) -> int:
        return len(self.y)


def rows(data: Any, dims: tuple[int, ...], loss: str, dtype: str) -> tuple[Array, Array]:
    """Rows x (n, features) in `dtype` with each row contiguous; y (n,) int64, or (n, outputs) in `dtype`.

    Raises DataError for another width, for x and y of different lengths, for labels that are not
    whole numbers. It does not read x: NaN and labels out of range show in training.
    """
    x, y = np.asarray(data.x), np.asarray(data.y)
    if x.ndim != 2:
        x = (
            x.reshape(len(x), -1)
            if x.ndim > 2 and len(x)
            else x.reshape(0, dims[0])
            if not x.size
            else x[:, None]
        )
    if x.shape[1] != dims[0]:
        raise DataError(
            f"the model reads {dims[0]} features a row and x has {x.shape[1]}: choose the job's columns"
        )
    if len(x) != len(y):
        raise DataError(f"x has {len(x)} rows and y has {len(y)}: they must belong together")
    if x.dtype != dtype or x.strides[1] != x.itemsize or x.strides[0] % x.itemsize:
        x = np.ascontiguousarray(_numbers(x, "x"), dtype)
    return x, _targets(y, dims[-1], dtype) if loss == "squared" else _labels(y)


def _labels(y: Array) -> Array:
    if y.ndim != 1 or (len(y) and y.dtype.kind not in "iub"):
        raise DataError(
            f"y must be one whole number a row (n,), a class, got {y.dtype} of {y.ndim} dimensions"
        )
    return np.ascontiguousarray(y, np.int64)


def _targets(y: Array, outputs: int, dtype: str) -> Array:
    y = y.reshape(len(y), -1) if len(y) else y.reshape(0, outputs)
    if y.shape[1] != outputs:
        raise DataError(f"the model answers {outputs} numbers a row and y has {y.shape[1]}")
    return np.ascontiguousarray(_numbers(y, "y"), dtype)


def _numbers(array: Array, what: str) -> Array:
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} must hold numbers, got {array.dtype}: encode text and dates as numbers first"
        )
    return array
