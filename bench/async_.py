"""How much sooner a model is there when nobody waits for the slowest: FedBuff in virtual time.

    python -m bench.async_ [--json FILE]

MNIST ($ATOLL_DATA), half of it dealt at random and half sorted by label; 784-100-10; 100 clients
whose tasks take lognormal(0, 1) seconds each, times U(0.9, 1.1). Seconds on the world's clock to
94 % on the test rows, medians of five seeds, for

    synchronous       10 clients a round, wait for all
    over-selection    13 clients a round, the first 10 to answer count
    FedBuff           10 clients in flight, a step per 5 updates, s(tau) = (1 + tau)**-0.5

All three use the same learner, learning rate and server rate 1. The buffer size was fixed at half
the concurrency before any of these seeds ran. The time a device needs follows from the seed and
the client, so all three meet the same devices. `updates` counts the updates that were aggregated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median

from atoll.core.errors import DataError
from atoll.data import load_data, partition
from atoll.data.splits import similarity
from atoll.job import Job
from atoll.learn.buffered import fedbuff
from atoll.learn.dense import mlp
from atoll.learn.select import sample
from atoll.learn.stop import early
from atoll.run import Run, simulate
from atoll.simulate.faults import World, lognormal

from .rows import Row

TARGET = 0.94
SEEDS = (1, 2, 3, 4, 5)
GOALS = {"synchronous": 3.5, "over-selection": 1.3}


def jobs() -> dict[str, Job]:
    """The three ways to spend ten clients' time."""
    stop = early("accuracy", patience=1000, target=TARGET)
    learner = mlp(hidden=(100,), lr=0.1, epochs=1, batch_size=10)
    rounds = Job(learner, cohort=sample(count=10), rounds=400, stop=stop)
    return {
        "synchronous": rounds,
        "over-selection": rounds.replace(cohort=sample(count=10, over=1.3)),
        "fedbuff": rounds.replace(algorithm=fedbuff(size=5), rounds=800),
    }


def play(seed: int) -> dict[str, Run]:
    """Each of them with the same clients, devices and seed. Raises ValueError if one misses the target."""
    data = partition(load_data("mnist"), clients=100, by=similarity(0.5), seed=seed)
    world = World(compute=lognormal(0.0, 1.0), jitter=0.1)
    runs = {name: simulate(job, data, seed, world=world, workers=1) for name, job in jobs().items()}
    for name, run in runs.items():
        if run.metrics["accuracy"] < TARGET:
            raise ValueError(f"{name} with seed {seed} ended at {run.metrics['accuracy']:.4f}")
    return runs


def rows(played: Mapping[int, Mapping[str, Run]]) -> list[Row]:
    """Medians over the seeds: each way's virtual seconds, and how much sooner FedBuff was there."""
    names = list(next(iter(played.values())))
    seconds = {n: median(runs[n].seconds for runs in played.values()) for n in names}
    accuracy = {n: median(runs[n].metrics["accuracy"] for runs in played.values()) for n in names}
    sooner = {other: seconds[other] / seconds["fedbuff"] for other in GOALS}
    return [
        Row(
            name=f"fedbuff to {TARGET:.0%}",
            value=seconds["fedbuff"],
            unit="virtual s",
            ratio=sooner[other],
            against=other,
            accuracy=accuracy["fedbuff"],
            accuracy_against=accuracy[other],
            target=goal,
            engine="world",
            data="mnist, similarity 0.5",
        )
        for other, goal in GOALS.items()
    ]


def main() -> None:
    """Print every seed and the medians, write them where asked, and fail below a goal."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--json", type=Path, metavar="FILE")
    chosen = options.parse_args()
    played = {}
    for seed in SEEDS:
        played[seed] = play(seed)
        for name, run in played[seed].items():
            updates = sum(r.get("clients", 0) for r in run.history)
            print(f"seed {seed}  {name:15} {run.seconds:8.1f} virtual s  {updates:5} updates")
    found = rows(played)
    for row in found:
        print(f"{row.name}: {row.ratio:.2f}x sooner than {row.against} (goal {row.target}x)")
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n", encoding="utf-8")
    if any(row.target is not None and row.ratio < row.target for row in found):
        sys.exit("FedBuff missed a goal")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
