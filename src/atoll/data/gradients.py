"""Histograms of oriented gradients: features of grey images that are fixed, and so cost no privacy.

Dalal, Triggs 2005, "Histograms of oriented gradients for human detection", §6, in small: per cell of pixels
a histogram of the gradients' directions, each weighing its length; cells are divided by the energy of their
neighbourhood, roots are taken, and every image gets length 1. Nothing is learned from the data.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from .examples import Dataset, Examples

_CHUNK = 2048  # images at a time


def oriented_gradients(dataset: Dataset, cell: int = 4, bins: int = 8) -> Dataset:
    """The data set with every image as (side / cell)² histograms of `bins` directions, float32, length 1.

    `dataset`: square grey images, as rows (n, side²) or (n, 1, side, side), of which `cell` divides the side.
    Raises ConfigError for other values, DataError for rows that are no such images.
    """
    if cell < 2 or bins < 2:
        raise ConfigError(f"cell and bins must be at least 2, got {cell} and {bins}")

    def seen(part: Examples) -> Examples:
        x = np.asarray(part.x)
        images = x.reshape(len(x), -1)
        side = round(images.shape[1] ** 0.5)
        if side * side != images.shape[1] or side % cell:
            raise DataError(
                f"rows of {images.shape[1]} numbers are no square images whose side {cell} divides: give"
                " grey ones, and a cell that fits"
            )
        chunks = np.split(images.reshape(-1, side, side), range(_CHUNK, len(images), _CHUNK))
        return Examples(np.concatenate([_features(chunk, cell, bins) for chunk in chunks]), part.y)

    test = None if dataset.test is None else seen(dataset.test)
    return replace(dataset, train=seen(dataset.train), test=test)


def _features(images: NDArray[np.float32], cell: int, bins: int) -> NDArray[np.float32]:
    """(n, side, side) -> (n, (side / cell)² bins)."""
    n, side, _ = images.shape
    across, down = np.zeros_like(images), np.zeros_like(images)
    across[:, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
    down[:, 1:-1] = images[:, 2:] - images[:, :-2]
    length = np.hypot(across, down)
    turn = (np.arctan2(down, across) / (2 * np.pi) % 1.0) * bins
    low = np.floor(turn)
    part = turn - low
    where = low.astype(np.int64) % bins
    cells = side // cell
    place = np.arange(side) // cell
    base = (np.arange(n)[:, None, None] * cells + place[:, None]) * cells + place
    total = np.zeros(n * cells * cells * bins)
    for at, weight in ((where, length * (1 - part)), ((where + 1) % bins, length * part)):
        total += np.bincount((base * bins + at).ravel(), weight.ravel(), len(total))
    found = total.reshape(n, cells, cells, bins)
    energy = np.pad(np.square(found).sum(axis=3), ((0, 0), (1, 1), (1, 1)))
    around = sum(energy[:, i : i + cells, j : j + cells] for i in range(3) for j in range(3)) ** 0.5
    typical = around.mean(axis=(1, 2), keepdims=True)
    found = np.sqrt(found / (around + typical / 2 + 1e-6)[..., None]).reshape(n, -1)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(lengths, 1e-12), np.float32)
