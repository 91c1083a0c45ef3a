"""A model whose numbers must be finite, and a first look at one that is new."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import StateError
from .model import Model

ROWS = 8  # of a first look
_LARGEST = 1 << 24  # numbers in them,
_DRAWN = 4093  # of which so many differ: a prime, so that no two rows are the same


class Strict:
    """A Model that raises StateError for rows which it answers with numbers that are not finite."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.answers, self.row, self.many = model.answers, model.row, model.many
        self.classes = model.classes

    def run(self, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """As Model.run."""
        found = self._model.run(x)
        if not all(np.isfinite(values).all() for values in found.values() if values.dtype.kind == "f"):
            raise StateError("the model answered with numbers that are not finite")
        return found


def looked_at(model: Model, name: str) -> None:
    """Raises StateError for a model that has a finite answer to none of a few plain rows.

    One of them is enough: a model may have rows of its own that it cannot answer. Where it does not say how
    large a row is, nothing is tried.
    """
    shape = tuple(n for n in model.row if n is not None)
    if len(shape) < len(model.row) or ROWS * math.prod(shape) > _LARGEST:
        return
    draw = random.Random(0)  # numpy's own takes three megabytes that serving has no other use for
    some = np.array([draw.gauss() for _ in range(_DRAWN)], np.float32)
    rows = np.resize(some, (ROWS, *shape))
    rows[0] = 0.0
    found = model.run(rows)
    bad = np.zeros(ROWS, bool)
    for values in found.values():
        if values.dtype.kind == "f" and len(values) == ROWS:
            bad |= ~np.isfinite(values.reshape(ROWS, -1)).all(axis=1)
    if bad.all():
        raise StateError(f"{name} answers no plain row with finite numbers: it is not served")
