"""The rows of a site as a plain float64 table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import DataError


def cells(data: Any, columns: int) -> NDArray[np.float64]:
    """`data.x`, or `data` itself, as (n, columns) float64; NaN is missing.

    Raises DataError for another width and for infinite cells.
    """
    x = np.asarray(getattr(data, "x", data), np.float64)
    x = x.reshape(len(x), -1) if len(x) else x.reshape(0, columns)
    if x.shape[1] != columns:
        raise DataError(f"expected {columns} columns, this site has {x.shape[1]}: use the same everywhere")
    if np.isinf(x).any():
        raise DataError("some cells are infinite: clean them or make them missing (NaN)")
    return x


def present(data: Any, columns: int) -> NDArray[np.float64]:
    """The same, where no cell may be missing. Raises DataError."""
    x = cells(data, columns)
    if np.isnan(x).any():
        raise DataError("some cells are missing: impute them or drop their rows first")
    return x
