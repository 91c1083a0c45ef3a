"""What is trained: the workloads of the speed bench and their data.

    W1  784-200-200-10       100 clients x 600,  10 a round, E 1, B 10
    W2  the FedAvg paper's CNN, 1,663,370 numbers, as W1
    W3  softmax 784-10     1,000 clients x  60, 100 a round, E 1, B 10
    W4  30-32-16-1         1,000 clients x  50, 100 a round, E 5, B 16

W1, W2 and W3 read MNIST from $ATOLL_DATA, else scikit-learn's digits enlarged to 28 x 28; pixels are
in 0..1. "W1 standardised" reads the same pixels with mean 0 and deviation 1 over the set, where no
pixel is zero and the kernel has nothing to skip. W4 reads breast_cancer, resampled with noise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from atoll.adapt.torch import torch_learner
from atoll.data import mnist
from atoll.learn.dense import mlp, softmax

Array = NDArray[Any]


class Rows(NamedTuple):
    """`x` (n, d) float32, `y` (n,) int64."""

    x: Array
    y: Array


class Set(NamedTuple):
    """Train and test rows, and what to call them."""

    train: Rows
    test: Rows
    name: str


@dataclass(frozen=True)
class Workload:
    """`clients` of `each` rows, `cohort` of them a round; `goals` are ratios for 1 and 2 cores.

    `module`: the same network in PyTorch, for the bare loop.
    """

    name: str
    learner: Any
    module: Callable[[], nn.Module]
    load: Callable[[], Set]
    clients: int
    each: int
    cohort: int
    rounds: int
    goals: tuple[float | None, float | None]

    def shards(self) -> list[Rows]:
        """Each client's rows, views of one array."""
        train = self.load().train
        cuts = [slice(k * self.each, (k + 1) * self.each) for k in range(self.clients)]
        return [Rows(train.x[cut], train.y[cut]) for cut in cuts]


@cache
def images() -> Set:
    """MNIST, or the enlarged digits; 60,000 and 10,000 rows of 784."""
    folder = Path(os.environ.get("ATOLL_DATA", "")) / "mnist"
    if os.environ.get("ATOLL_DATA") and folder.is_dir():
        found = mnist()
        test = found.test or found.train  # it has test rows of its own
        return Set(Rows(found.train.x, found.train.y), Rows(test.x, test.y), "mnist")
    return _digits()


@cache
def standardised() -> Set:
    """The same images with mean 0 and deviation 1 over the whole set."""
    train, test, name = images()
    mean, deviation = train.x.mean(dtype=np.float64), train.x.std(dtype=np.float64)

    def scale(rows: Rows) -> Rows:
        return Rows(((rows.x - mean) / deviation).astype(np.float32), rows.y)

    return Set(scale(train), scale(test), f"{name}, standardised")


def _digits() -> Set:
    """Each 8 x 8 digit three times as large, somewhere in 28 x 28, some fainter than others."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(0)
    small, labels = load_digits(return_X_y=True)
    picked = rng.integers(0, len(small), 70_000)
    ink = (small[picked] / 16 * rng.uniform(0.6, 1, (70_000, 1))).astype(np.float32).reshape(-1, 8, 8)
    x = np.zeros((70_000, 28, 28), np.float32)
    place = rng.integers(0, 5, (70_000, 2))
    for down, right in np.ndindex(5, 5):
        here = np.flatnonzero((place == (down, right)).all(axis=1))
        x[here, down : down + 24, right : right + 24] = ink[here].repeat(3, axis=1).repeat(3, axis=2)
    flat, y = x.reshape(-1, 784), labels[picked].astype(np.int64)
    return Set(Rows(flat[:60_000], y[:60_000]), Rows(flat[60_000:], y[60_000:]), "digits enlarged")


@cache
def tumours() -> Set:
    """breast_cancer, standardised, resampled to 50,000 and 10,000 rows with noise of deviation 0.5."""
    from sklearn.datasets import load_breast_cancer

    rng = np.random.default_rng(0)
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    picked = rng.integers(0, len(x), 60_000)
    more = (x[picked] + rng.normal(0, 0.5, (60_000, 30))).astype(np.float32)
    label = y[picked].astype(np.int64)
    return Set(
        Rows(more[:50_000], label[:50_000]), Rows(more[50_000:], label[50_000:]), "breast_cancer resampled"
    )


@cache
def pictures() -> Set:
    """The images as (n, 1, 28, 28)."""
    train, test, name = images()
    square = [Rows(rows.x.reshape(-1, 1, 28, 28), rows.y) for rows in (train, test)]
    return Set(square[0], square[1], name)


def cnn() -> nn.Module:
    """conv 5x5-32, pool, conv 5x5-64, pool, 512, 10: McMahan et al. 2017, section 3."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def dense(*widths: int) -> Callable[[], nn.Module]:
    """Linear layers of these widths, with ReLU between."""
    pairs = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return lambda: nn.Sequential(*[layer for pair in pairs for layer in pair][:-1])


_paper = torch_learner(cnn, lr=0.05, batch_size=10)
_two = mlp((200, 200), features=784, outputs=10, lr=0.1, batch_size=10)
_flat = softmax(features=784, outputs=10, lr=0.1, batch_size=10)
_tiny = mlp((32, 16), loss="logistic", features=30, outputs=1, lr=0.1, epochs=5, batch_size=16)

WORKLOADS = (
    Workload("W1 mlp 784-200-200-10", _two, dense(784, 200, 200, 10), images, 100, 600, 10, 20, (2.2, 4.0)),
    Workload("W1 standardised", _two, dense(784, 200, 200, 10), standardised, 100, 600, 10, 20, (None, None)),
    Workload("W2 cnn 1.66M", _paper, cnn, pictures, 100, 600, 10, 4, (1.2, 2.15)),
    Workload("W3 softmax 784-10", _flat, dense(784, 10), images, 1000, 60, 100, 40, (None, 6.0)),
    Workload("W4 mlp 30-32-16-1", _tiny, dense(30, 32, 16, 1), tumours, 1000, 50, 100, 20, (None, 40.0)),
)
