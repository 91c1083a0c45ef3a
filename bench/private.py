"""What a promise of privacy leaves: `python -m bench private [--seeds N] [--json FILE]`.

MNIST from the data folder, features that use no data (oriented gradients), softmax, epsilon 2 at delta 1e-5:
60,000 rows at 100 sites whose single rows are hidden, and 1,000 clients of 60 rows that are hidden whole,
all of whom take part in every round. Step sizes, clips and rounds were chosen by a dozen trials on MNIST
itself; that choice is declared here and not accounted. Test accuracy, and CPU seconds with the features.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

import atoll as at

from .wire import Figure

LIMIT = 60.0  # CPU seconds


def rows(dataset: at.Dataset) -> tuple[at.Job, at.Sites]:
    """Single rows hidden."""
    sites = at.partition(dataset, clients=100, seed=1, holdout=0)
    job = at.Job(at.softmax(), at.fedavgm(lr=40.0, momentum=0.9), rounds=400, every=400, sites=False)
    private = job.private(epsilon=2.0, delta=1e-5, clip=0.1, unit="example", rate=0.1, population=60_000)
    return private, sites


def clients(dataset: at.Dataset) -> tuple[at.Job, at.Sites]:
    """Whole clients hidden, without any sampling."""
    sites = at.partition(dataset, clients=1000, seed=1, holdout=0)
    learner = at.softmax(lr=5.0, batch_size=None, epochs=2)
    algorithm = at.fedavgm(lr=8.0, momentum=0.0)
    job = at.Job(learner, algorithm, rounds=50, every=50, sites=False)
    return job.private(epsilon=2.0, delta=1e-5, clip=0.3), sites


def figures(seeds: int) -> Iterator[Figure]:
    """Both."""
    began = time.process_time()
    dataset = at.oriented_gradients(at.load_data("mnist"))
    features = time.process_time() - began
    yield Figure("features, oriented gradients of 70,000 images", features, "s CPU")
    for name, made, least in (("examples", rows, 0.97), ("1,000 clients, q = 1", clients, 0.93)):
        job, sites = made(dataset)
        found, spent = [], []
        for seed in range(seeds):
            began = time.process_time()
            found.append(at.simulate(job, sites, seed=seed).metrics["accuracy"])
            spent.append(time.process_time() - began + features)
        plan, seen = job.epsilon(), f"seeds {min(found):.4f}-{max(found):.4f}"
        of = f"at least {least}; epsilon {plan.epsilon:.3f}, sigma {plan.release.sigma}, {seen}"
        yield Figure(f"{name}: accuracy", median(found), "", None, of)
        yield Figure(f"{name}: CPU with features", median(spent), "s", LIMIT)


def main(words: list[str]) -> int:
    """Print the figures, write the file."""
    parser = argparse.ArgumentParser(prog="python -m bench private", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args(words)
    found = []
    for figure in figures(asked.seeds):
        print(figure, flush=True)
        found.append(figure)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(figure) for figure in found], indent=1) + "\n")
    return 0
