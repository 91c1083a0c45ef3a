"""Turn square images by an angle, bilinearly; what lies outside the picture is 0."""

from __future__ import annotations

from math import isqrt

import numpy as np

from atoll.core.errors import ConfigError

from .examples import Array


def rotated(x: Array, degrees: float) -> Array:
    """The images of x, (n, ..., h, h) or (n, h*h), turned counter-clockwise about their centre.

    Raises ConfigError if the rows of x are not square images.
    """
    flat = x.ndim == 2
    side = isqrt(x.shape[1]) if flat else x.shape[-1]
    if (side * side != x.shape[1]) if flat else (x.ndim < 3 or x.shape[-2] != side):
        raise ConfigError(f"rotation needs square images, got rows of shape {x.shape[1:]}", "$.by.rotation")
    images = x.reshape(-1, side, side)
    turn, centre = np.deg2rad(degrees), (side - 1) / 2
    v, u = np.mgrid[:side, :side] - centre  # row and column of each target pixel from the centre
    row = centre + np.cos(turn) * v + np.sin(turn) * u
    column = centre - np.sin(turn) * v + np.cos(turn) * u
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    total = np.zeros(images.shape, np.float64)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - np.abs(row - top - i)) * (1 - np.abs(column - left - j))
        r, c = top + i, left + j
        inside = (r >= 0) & (r < side) & (c >= 0) & (c < side)
        total += np.where(inside, weight, 0) * images[:, np.clip(r, 0, side - 1), np.clip(c, 0, side - 1)]
    return total.reshape(x.shape).astype(x.dtype)
