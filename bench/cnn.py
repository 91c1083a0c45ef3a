"""W2: the CNN of the FedAvg paper against a bare PyTorch loop, interleaved in one process.

McMahan et al. (2017), "Communication-efficient learning of deep networks from decentralized data",
section 3: 1,663,370 parameters; here 100 clients of 600 rows, 10 a round, B = 10, E = 1, float32.
The bare loop is one reused module: weights copied in place, tensors indexed directly,
torch.optim.SGD, one thread. Both visit the same rows in the same order, so both must reach the
same accuracy, and `rows` fails where they do not.

    python -m bench.cnn [rounds]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atoll.adapt.torch import TorchLearner, torch_learner
from atoll.core.message import FitContext
from atoll.core.rng import Rng, shuffles
from atoll.core.update import Update

CLIENTS, N, COHORT, BATCH, LR = 100, 600, 10, 10, 0.05


@dataclass(frozen=True)
class Rows:
    """A client's rows: `x` (n, 1, 28, 28) float32, `y` (n,) int64."""

    x: Any
    y: Any

    def __len__(self) -> int:
        return len(self.y)


def net() -> Any:
    """conv 5x5-32, pool, conv 5x5-64, pool, 512, 10."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def digits(seed: int) -> tuple[list[Rows], Rows]:
    """Shapes and difficulty like MNIST's, from scikit-learn's digits: shifted, scaled, with noise."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    images, classes = load_digits(return_X_y=True)
    pick = rng.integers(0, len(images), CLIENTS * N + 2000)
    big = np.kron(images[pick].reshape(-1, 8, 8) / 16, np.ones((1, 3, 3)))
    x = np.zeros((len(pick), 28, 28), np.float32)
    for dx in range(4):
        mine = rng.integers(0, 4, len(pick)) == dx
        x[mine, dx : dx + 24, 4 - dx : 28 - dx] = big[mine]
    x += rng.normal(0, 0.2, x.shape).astype(np.float32)
    x, y = x[:, None], classes[pick]
    parts = [Rows(x[i : i + N], y[i : i + N]) for i in range(0, CLIENTS * N, N)]
    return parts, Rows(x[CLIENTS * N :], y[CLIENTS * N :])


def bare(start: Update, data: list[Rows], cohorts: list[Any], root: Rng) -> Iterator[Update]:
    """The loop to beat: yields the params after each round."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(1)
    module, params = net(), {k: torch.tensor(v) for k, v in start.items()}
    leaves = dict(module.named_parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    tensors = [(torch.tensor(d.x), torch.tensor(d.y)) for d in data]
    for number, cohort in enumerate(cohorts):
        total = {k: torch.zeros_like(v) for k, v in params.items()}
        for client in cohort:
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.copy_(params[name])
            x, y = tensors[client]
            order = torch.tensor(shuffles(_keys(root, client, number), 1, N)[0, 0])
            for i in range(0, N, BATCH):
                rows = order[i : i + BATCH]
                optimizer.zero_grad()
                cross_entropy(module(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                for name, leaf in leaves.items():
                    total[name].add_(leaf, alpha=1 / len(cohort))
        params = total
        yield Update.of({k: v.numpy() for k, v in params.items()})


def ours(
    learner: TorchLearner, start: Update, data: list[Rows], cohorts: list[Any], root: Rng
) -> Iterator[Update]:
    """The same rounds by `fit_many`."""
    params = start
    for number, cohort in enumerate(cohorts):
        ctxs = [FitContext(root.at("client", int(c), number), round=number, client=int(c)) for c in cohort]
        change = params.zeros()
        for answer in learner.fit_many(params, [data[c] for c in cohort], ctxs):
            change = change + answer.update.scale(1 / len(cohort))
        params = params + change
        yield params


def _keys(root: Rng, client: Any, number: int) -> Any:
    return np.array([root.at("client", int(client), number).key], np.uint64)


def rows(
    rounds: int = 3, seed: int = 0, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, Any]]:
    """Seconds a round on one and two workers: {name, value, unit, ratio, against, accuracy}.

    Rounds are interleaved and medians taken; one more round goes before, unmeasured.
    Raises ArithmeticError where an accuracy is off the bare loop's by more than a point.
    """
    data, test = digits(seed)
    root = Rng.of(seed)
    learner = torch_learner(net, lr=LR, batch_size=BATCH)
    start = learner.init(root.at("init").generator())
    draw = root.at("cohorts").generator()
    cohorts = [draw.choice(CLIENTS, COHORT, replace=False) for _ in range(rounds + 1)]
    runs = {"bare loop": bare(start, data, cohorts, root)}
    for workers in (1, 2):
        runs[f"atoll, {workers} workers"] = ours(
            replace(learner, workers=workers), start, data, cohorts, root
        )
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    last: dict[str, Update] = {}
    for _ in cohorts:
        for name, run in runs.items():
            begun = clock()
            last[name] = next(run)
            seconds[name].append(clock() - begun)
    right = {n: learner.evaluate(p, test, FitContext(root))["accuracy"] for n, p in last.items()}
    if any(abs(a - right["bare loop"]) > 0.01 for a in right.values()):
        raise ArithmeticError(f"accuracies disagree: {right}")
    took = {name: statistics.median(s[1:]) for name, s in seconds.items()}
    return [
        {
            "name": f"W2 CNN 1.66M, {name}",
            "value": round(seconds_a_round, 4),
            "unit": "s/round",
            "ratio": round(took["bare loop"] / seconds_a_round, 3),
            "against": "bare loop",
            "accuracy": round(right[name], 4),
        }
        for name, seconds_a_round in took.items()
    ]


if __name__ == "__main__":
    for row in rows(int(sys.argv[1]) if sys.argv[1:] else 3):
        print(json.dumps(row))
