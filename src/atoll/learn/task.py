"""What an engine is given: the work all clients of a call share, and each client's own part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atoll.core.update import Leaf

Array = NDArray[Any]
Loss: TypeAlias = Callable[[Array, Array], tuple[Array, Array, Array]]


class Work(NamedTuple):
    """The network and its optimiser.

    `dims`: (features, hidden..., outputs). `loss`: squared, logistic or softmax, or for batched.py a function
    as its `losses`, of z and y. `activation`:
    relu or tanh. `batch`: rows a step, at least 1; the last one of an epoch may be shorter.
    `start`: (size,) weights, layer by layer W (in, out) then b (out,).
    """

    dims: tuple[int, ...]
    loss: str | Loss
    activation: str
    epochs: int
    batch: int
    momentum: float
    weight_decay: float
    start: Array


class Task(NamedTuple):
    """One client's rows, in the order its steps visit them, and its terms of the objective.

    `x`: (n, features); `y`: (n,) int64 labels or (n, outputs) targets; `order`: (epochs, n).
    The gradient gains `mu * (w - anchor) + slope`; `anchor` None is the start, `slope` None is 0.
    `moves`: for each leaf, whether it may change.
    """

    x: Array
    y: Array
    order: NDArray[np.int64]
    lr: float
    mu: float
    anchor: Array | None
    slope: Array | None
    moves: tuple[bool, ...]

    def where(self) -> str:
        """Columns of x that hold NaN or infinity, to name in an error: "" where there are none."""
        bad = np.flatnonzero(~np.isfinite(self.x).all(axis=0))
        return ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")


class Tally(NamedTuple):
    """What training saw, one number a client: `loss` summed over the rows visited, each under the
    weights its batch met; `hits`: rows whose class was right; `finite`: no NaN or infinity in
    loss or weights; `fault`: a label was outside its range and training stopped.
    """

    loss: NDArray[np.float64]
    hits: NDArray[np.int64]
    finite: NDArray[np.bool_]
    fault: NDArray[np.bool_]


def leaves(dims: tuple[int, ...]) -> tuple[Leaf, ...]:
    """`layer0.weight` (in, out), `layer0.bias` (out,), `layer1.weight`, ..."""
    return tuple(leaf for at, shape in enumerate(pairwise(dims)) for leaf in _layer(at, shape))


def _layer(at: int, shape: tuple[int, int]) -> Iterator[Leaf]:
    yield Leaf(f"layer{at}.weight", shape)
    yield Leaf(f"layer{at}.bias", shape[1:])


def metrics(loss: str, total: float, hits: int, rows: int) -> Mapping[str, float]:
    """Means over `rows`: loss and accuracy, or loss and mse. Zeros where there are no rows."""
    mean = total / rows if rows else 0.0
    if loss == "squared":
        return {"loss": mean, "mse": mean}
    return {"loss": mean, "accuracy": hits / rows if rows else 0.0}
