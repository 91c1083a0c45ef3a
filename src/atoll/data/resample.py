"""Bring an image to common axes, a common spacing and a common shape; numpy only.

DICOM PS3.3 C.7.6.2.1.1: the patient's axes grow towards the left hand, the back and the head (L, P, S). An
array is turned so that its axes are those nearest to (S, P, L), in this order and this direction; an image
that lies obliquely is turned to the nearest axes and not resampled along the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from .examples import Array

_ORDER = (2, 1, 0)  # S, P, L of the patient's (L, P, S)


def canonical(array: Array, spacing: Sequence[float], axes: Array) -> tuple[Array, tuple[float, ...]]:
    """The array and its spacing with axes nearest to (S, P, L), growing.

    `array`: (slices, rows, columns), or (rows, columns) of one slice, whose two axes then come in the order
    they have in (S, P, L). `spacing`: mm along each axis. `axes`: (3, 3) unit vectors in (L, P, S): towards
    the next slice, the next row, the next column.
    """
    best = max(permutations(range(3)), key=lambda p: sum(abs(axes[i, p[i]]) for i in range(3)))
    own = list(range(3))[3 - array.ndim :]
    for place, axis in enumerate(own):
        if axes[axis, best[axis]] < 0:
            array = np.flip(array, place)
    order = sorted(range(array.ndim), key=lambda place: _ORDER.index(best[own[place]]))
    return np.transpose(array, order), tuple(float(spacing[place]) for place in order)


def respaced(array: Array, spacing: Sequence[float], wanted: float) -> Array:
    """The array with `wanted` mm between samples on every axis: linear between neighbours, axis by axis.

    The outer edges of the first and the last sample stay where they are. A coarser spacing takes samples
    and does not average.
    """
    for axis, step in enumerate(spacing):
        if step != wanted:
            array = _along(array, axis, step, wanted)
    return array


def _along(array: Array, axis: int, step: float, wanted: float) -> Array:
    had = array.shape[axis]
    count = max(1, round(had * step / wanted))
    at = np.clip((np.arange(count) + 0.5) * wanted / step - 0.5, 0, had - 1)
    low = np.minimum(at.astype(np.int64), max(had - 2, 0))
    part = (at - low).astype(array.dtype).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    below, above = np.take(array, low, axis), np.take(array, np.minimum(low + 1, had - 1), axis)
    between: Array = below + part * (above - below)
    return between


def fitted(array: Array, shape: Sequence[int]) -> Array:
    """The middle of the array in this shape; what is missing around it has its smallest value."""
    new = np.full(tuple(shape), array.min(), array.dtype)
    here, there = [], []
    for had, want in zip(array.shape, shape, strict=True):
        size = min(had, want)
        here.append(slice((had - size) // 2, (had - size) // 2 + size))
        there.append(slice((want - size) // 2, (want - size) // 2 + size))
    new[tuple(there)] = array[tuple(here)]
    return new
