"""Rows as they come in a request: JSON numbers, checked and read as an array."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError

ROWS = 10_000  # of a request


def read_rows(raw: bytes | msgspec.Raw, row: tuple[int | None, ...], most: int = ROWS) -> NDArray[np.float32]:
    """JSON rows of finite numbers as (n, *row) float32, n from 1 to `most`.

    Raises DataError for another shape, or numbers that are not finite in float32.
    """
    shape = f"rows of shape {list(row)}" if len(row) != 1 else f"rows of {row[0] or 'some'} numbers"
    try:
        nested = msgspec.json.decode(raw, type=_nested(1 + len(row)))
        if not 1 <= len(nested) <= most:
            raise DataError(f"expected 1 to {most} rows, got {len(nested)}: send them in parts")
        with np.errstate(over="ignore"):
            x = np.asarray(nested, np.float32)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise DataError(f"expected {shape}, each a list of numbers") from None
    if not fits(x.shape[1:], row):
        raise DataError(f"expected {shape}, got shape {list(x.shape[1:])}")
    if not np.isfinite(x).all():
        raise DataError("a row holds a number beyond float32: check its unit")
    return x


@cache
def _nested(depth: int) -> Any:
    kind: Any = float
    for _ in range(depth):
        kind = list[kind]
    return kind


def fits(given: Sequence[int], row: Sequence[int | None]) -> bool:
    """Whether a row of shape `given` is what a model reads; None is any size."""
    return len(given) == len(row) and all(want in (None, got) for want, got in zip(row, given, strict=True))
