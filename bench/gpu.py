"""What a GPU saves: `python -m bench.gpu [--json FILE] [--turns N]`.

Each network trains its clients once (600 rows of 28 x 28 each, at random) by the engine that the learner
chooses on the CPU, on the GPU, and on the GPU one client after the other. Turn by turn, the fastest of each
stands in the table. The mean losses of CPU and GPU must agree to 1e-3. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import atoll as at
from atoll.core.message import FitContext
from atoll.core.rng import Rng

from .rows import Disagreement
from .workloads import cnn, dense

SEED, ROWS, AGREE = 5, 600, 1e-3


class Data(NamedTuple):
    """One client's rows."""

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.y)


def mlp(*hidden: int) -> nn.Module:
    """Layers of these widths between 784 pixels and ten classes."""
    return nn.Sequential(nn.Flatten(), *dense(784, *hidden, 10)().children())


@dataclass(frozen=True)
class Task:
    """A network, how many clients train it, and in batches of how many rows."""

    name: str
    make: Callable[[], nn.Module]
    clients: int
    batch: int


TASKS = (
    Task("MLP, 25 k numbers, batches of 10", lambda: mlp(32), 100, 10),
    Task("CNN, 1.66 M, batches of 10", cnn, 10, 10),
    Task("CNN, 1.66 M, batches of 50", cnn, 10, 50),
    Task("MLP, 5.8 M, batches of 50", lambda: mlp(2048, 2048), 10, 50),
)
WAYS = {"cpu": ("cpu", "auto"), "gpu": ("cuda", "auto"), "gpu, one by one": ("cuda", "plain")}


@dataclass
class Figure:
    """Seconds of a round's training by device, and the mean losses."""

    task: str
    clients: int
    engines: dict[str, str]
    seconds: dict[str, float]
    losses: dict[str, float]


def measured(task: Task, turns: int) -> Figure:
    """The fastest of `turns`, ways in turn. Raises Disagreement where losses differ."""
    rng = np.random.default_rng(SEED)
    data = [
        Data(rng.normal(size=(ROWS, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, ROWS))
        for _ in range(task.clients)
    ]
    ctxs = [FitContext(Rng.of(SEED).at("client", i), client=i) for i in range(task.clients)]
    figure = Figure(task.name, task.clients, {}, dict.fromkeys(WAYS, float("inf")), {})
    learners = {
        way: at.torch_learner(task.make, lr=0.05, batch_size=task.batch, device=device, engine=engine)
        for way, (device, engine) in WAYS.items()
    }
    for turn in range(turns + 1):  # the first warms up
        for way, learner in learners.items():
            params = learner.init(np.random.default_rng(SEED))
            began = time.perf_counter()
            made = learner.fit_many(params, data, ctxs)
            if turn:
                figure.seconds[way] = min(figure.seconds[way], time.perf_counter() - began)
            figure.engines[way] = learner.chosen
            figure.losses[way] = mean(float(c.metrics["loss"]) for c in made)
    if max(figure.losses.values()) - min(figure.losses.values()) > AGREE:
        raise Disagreement(f"{task.name}: the mean losses differ: {figure.losses}")
    return figure


def main(words: list[str] | None = None) -> int:
    """Print the table; 2 without a GPU, 1 where a GPU learns something else."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--turns", type=int, default=2, help="measured turns, after one that warms up")
    asked = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("there is no GPU here, or PyTorch was built without CUDA", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()} beside {len(os.sched_getaffinity(0))} cores")
    figures = []
    try:
        for task in TASKS:
            figures.append(figure := measured(task, asked.turns))
            told = ", ".join(f"{way} ({figure.engines[way]}) {figure.seconds[way]:.2f} s" for way in WAYS)
            print(f"{task.name}, {task.clients} clients: {told}", flush=True)
    except Disagreement as error:
        print(error, file=sys.stderr)
        return 1
    if asked.json:
        asked.json.write_text(json.dumps([asdict(f) for f in figures], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
