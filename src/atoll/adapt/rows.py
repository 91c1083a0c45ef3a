"""A client's data as a network takes them, checked: numbers, finite, labels that fit the loss.

Messages name columns and shapes, never a cell or a label.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.errors import ConfigError, DataError

CLASSES = frozenset({"cross_entropy", "nll"})  # losses whose labels are class numbers


def rows_of(data: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A client's `x` (n, ...) and `y` (n, ...). Raises DataError for wrong lengths, NaN or text."""
    x, y = np.asarray(data.x), np.asarray(data.y)
    for name, part in (("x", x), ("y", y)):
        if part.dtype.kind not in "fiub":
            raise DataError(f"{name} must hold numbers, got dtype {part.dtype}: encode it first")
        if part.ndim == 0:
            raise DataError(f"{name} must have one row per example, got a single number")
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            raise DataError(
                f"{name} has {int((~np.isfinite(part)).sum())} NaN or infinite cells: fill or drop them"
            )
    if len(x) != len(y):
        raise DataError(f"x and y must have as many rows as each other, got {len(x)} and {len(y)}")
    return x, y


def features(x: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """`x` in what the module takes: int64 for 32 and 64-bit integers (tokens), else `dtype`."""
    tokens = x.dtype.kind in "iu" and x.dtype.itemsize >= 4
    return x.astype(np.int64 if tokens else dtype, copy=False)


def labels(loss: Any, y: np.ndarray[Any, Any], out: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """`y` as the loss wants it for answers of shape `out` a row. Raises DataError where it cannot fit.

    `loss`: a name, or a function, which takes labels of any shape.
    """
    if callable(loss):
        return y.astype(dtype if y.dtype.kind == "f" else np.int64, copy=False)
    if loss in CLASSES:
        return _classes(y, out)
    y = y.astype(dtype, copy=False)
    if y.ndim == len(out) and out[-1:] == (1,):
        y = y[..., None]
    if y.shape[1:] != out:
        raise DataError(
            f"{loss} needs y shaped like the output, (n, {_dims(out)}), got (n, {_dims(y.shape[1:])})"
        )
    if loss == "bce_with_logits" and len(y) and not (y.min() >= 0 and y.max() <= 1):
        raise DataError("bce_with_logits needs labels between 0 and 1")
    return y


def _classes(y: np.ndarray[Any, Any], out: tuple[int, ...]) -> np.ndarray[Any, Any]:
    whole = y.astype(np.int64, copy=False)
    if not out:
        raise ConfigError("class labels need an output (n, classes), the module gives (n,)")
    if y.dtype.kind == "f" and not np.array_equal(whole, y):
        raise DataError("class labels must be whole numbers from 0; for real targets use loss='mse'")
    if whole.shape[1:] != out[1:]:
        raise DataError(f"class labels must be shaped (n, {_dims(out[1:])}), got (n, {_dims(y.shape[1:])})")
    if len(whole) and not (whole.min() >= 0 and whole.max() < out[0]):
        raise DataError(f"class labels must lie in 0..{out[0] - 1}: the module has {out[0]} outputs")
    return whole


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
