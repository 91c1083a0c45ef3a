"""How many rounds learning takes on MNIST: `python -m bench.learning [--json FILE] [--only WORD]`.

100 clients, a tenth of them a round, one local epoch in batches of 10, the 784-200-200-10 network
of McMahan et al. 2017, table 2; and one label per client, where published baselines fail (10 clients,
all of them, 50 rounds of 10 epochs in batches of 64, pixels in pooled units). Medians
over three seeds; the seed chooses the partition, the cohorts, the start and every shuffle. Needs MNIST.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import atoll as at

from .rows import Row

SEEDS = (3, 4, 5)  # rates were chosen on seeds 0, 1 and 2


@dataclass(frozen=True)
class Task:
    """Reach `target` accuracy: how many rounds? `most`: our goal. `paper`: what was published.

    With `paper` None the question is which accuracy `rounds` rounds reach, and `target` is the goal.
    """

    name: str
    by: Callable[[], at.Partitioner]
    learner: Callable[[], at.Learner]
    algorithm: at.Algorithm
    target: float
    rounds: int
    most: int | None = None
    paper: int | None = None
    clients: int = 100
    share: float = 0.1
    standardise: bool = False
    against: str = "FedAvg, McMahan et al. 2017, table 2"


def net(lr: float, epochs: int = 1, batch: int = 10, decay: float = 1.0) -> Callable[[], at.Learner]:
    """The network of the paper (199,210 numbers)."""
    return lambda: at.mlp(hidden=(200, 200), lr=lr, epochs=epochs, batch_size=batch, decay=decay)


TASKS = (
    Task("IID to 97 %, FedAvg", at.iid, net(0.2), at.fedavg(), 0.97, 100, 45, 87),
    Task("two shards to 97 %, FedAvg", at.shards, net(0.15), at.fedavg(), 0.97, 400, 330, 664),
    Task("two shards to 97 %, FedDyn", at.shards, net(0.1), at.feddyn(alpha=0.02), 0.97, 200, 150, 664),
    Task("two shards to 95 %, SCAFFOLD", at.shards, net(0.12), at.scaffold(), 0.95, 120, 80),
    Task(
        "one label a client, SCAFFOLD",
        lambda: at.labels(1),
        lambda: at.mlp(hidden=(100,), lr=0.003, epochs=10, batch_size=64),
        at.scaffold(),
        0.95,
        50,
        clients=10,
        share=1,
        standardise=True,
        against="FedAvg, SCAFFOLD, FedProx, FedNova as published by Flower: 0.193, 0.099, 0.518, 0.526",
    ),
)


def once(task: Task, seed: int) -> tuple[int | None, float]:
    """The round that first reached the target (None if none did), and the last round's accuracy."""
    dataset = at.load_data("mnist")
    sites = at.partition(dataset, clients=task.clients, by=task.by(), seed=seed, holdout=0)
    if task.standardise:
        sites = at.standardise(sites, by="all")
    stop = at.early("accuracy", patience=task.rounds, target=task.target) if task.most else None
    cohort = at.everyone() if task.share == 1 else at.sample(task.share)
    job = at.Job(task.learner(), task.algorithm, cohort, rounds=task.rounds, stop=stop, sites=False)
    run = at.simulate(job, sites, seed=seed)
    reached = [r["round"] for r in run.history if r["metrics"]["accuracy"] >= task.target]
    return next(iter(reached), None), run.metrics["accuracy"]


def row(task: Task) -> Row:
    """The medians of one task."""
    found = [once(task, seed) for seed in SEEDS]
    accuracy = median(a for _, a in found)
    if task.most is None:
        return Row(
            task.name,
            accuracy,
            "accuracy",
            accuracy / task.target,
            task.against,
            accuracy,
            task.target,
            1.0,
            str(task.algorithm),
            "mnist",
        )
    rounds = median(float("inf") if r is None else r for r, _ in found)
    paper = task.paper or task.most
    return Row(
        task.name,
        rounds,
        "rounds",
        paper / rounds,
        task.against,
        accuracy,
        task.target,
        paper / task.most,
        str(task.algorithm),
        "mnist",
    )


def main(words: list[str] | None = None) -> int:
    """Print and write the rows; 1 where a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.learning", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    asked = parser.parse_args(words)
    rows = []
    for task in TASKS:
        if asked.only in task.name:
            rows.append(row(task))
            r = rows[-1]
            print(
                f"{r.name:40}{r.value:8.4g} {r.unit:9} goal {(r.target and task.most) or task.target}",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    return int(any(r.target is not None and r.ratio < r.target for r in rows))


if __name__ == "__main__":
    sys.exit(main())
