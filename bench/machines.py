"""Two sets of machines, learnt federally: `python -m bench machines [--json FILE]`. Needs $ATOLL_DATA.

AI4I 2020 (Matzka 2020): 10,000 operations of a milling machine, three product types as sites; the area
under the ROC curve of 5-fold cross-validation. FD001 (Saxena et al. 2008): 100 engines run to failure, as
ten sites of ten; the error of the remaining life of the 100 test engines, in cycles. Networks of dense
layers, FedAvg, rows scaled by the federation's figures.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import atoll as at

from .wire import Figure, told

SEEDS = (1, 2, 3)
LAST, CAP = 30, 125.0  # cycles of a window; a life that is further away counts as so many
Rows = NDArray[np.float64]


def area(y: NDArray[np.int64], scores: Rows) -> float:
    """Under the ROC curve, by ranks; scores without ties."""
    ranks = np.argsort(np.argsort(scores)) + 1.0
    ones = int(y.sum())
    return float((ranks[y == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(y) - ones)))


def learnt(x: Rows, y: Any, sites: Any, net: Any, rounds: int, seed: int) -> Any:
    """What answers rows: a network learnt from the sites' scaled rows."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scaled = ((x - mean) / spread).astype(np.float32)
    parts = at.partition(at.arrays(scaled, y, sites), by=at.natural(), holdout=0)
    run = at.simulate(at.Job(net, at.fedavg(), rounds=rounds, every=rounds, sites=False), parts, seed=seed)
    made = net.sized(x.shape[1], 2 if net.loss == "softmax" else 1)
    return lambda rows: made.answers(run.params, ((rows - mean) / spread).astype(np.float32))


def mill(seed: int) -> float:
    """AI4I's mean AUC of five folds; beside its columns the physics of a cut: heat, power, strain."""
    found = at.load_data("ai4i2020")
    y = found.train.y
    kind, air, process, speed, torque, wear = found.train.x.T
    strain = wear * torque
    columns = [kind == 0, kind == 1, kind == 2, air, process, speed, torque, wear, process - air]
    x = np.column_stack([*columns, torque * speed, strain, strain - (11_000 + 1_000 * kind)]).astype(
        np.float64
    )
    fold = np.random.default_rng(seed).permutation(len(y)) % 5
    net = at.mlp(
        hidden=(32, 16),
        activation="tanh",
        lr=0.05,
        batch_size=64,
        momentum=0.9,
        weight_decay=1e-4,
        decay=0.99,
    )
    areas = []
    for held in range(5):
        rest, sites = fold != held, np.asarray(found.sites)
        answer = learnt(x[rest], np.array(["no", "yes"])[y[rest]], sites[rest], net, 150, seed)
        areas.append(area(y[~rest], answer(x[~rest])["probabilities"][:, 1]))
    return float(np.mean(areas))


def table(name: str) -> Rows:
    """One file of FD001: unit, cycle, three settings, 21 sensors."""
    path = Path(os.environ.get("ATOLL_DATA", "")) / "cmapss_fd001" / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return np.loadtxt(file)


def features(window: Rows) -> Rows:
    """Of a window (cycles, sensors): means, slopes, spreads, the means of its last five, its last."""
    t = np.arange(len(window)) - (len(window) - 1) / 2
    slope = t @ window / (t @ t)
    parts = [window.mean(axis=0), slope, window[-5:].mean(axis=0), window.std(axis=0), window[-1]]
    return np.concatenate(parts)


def engines(seed: int) -> float:
    """FD001's root mean squared error over the 100 test engines, lives not capped."""
    train, test, life = (table(f) for f in ("train_FD001.txt.gz", "test_FD001.txt.gz", "RUL_FD001.txt"))
    sensors = [c for c in range(5, 26) if train[:, c].std() > 1e-6 and c != 9]  # c 9 takes two values
    x, y, sites = [], [], []
    for unit in np.unique(train[:, 0]):
        run = train[train[:, 0] == unit][:, sensors]
        for end in range(LAST, len(run) + 1):
            x.append(features(run[end - LAST : end]))
            y.append(min(len(run) - end, CAP) / CAP)
            sites.append(int(unit) % 10)
    net = at.mlp(
        hidden=(100,), activation="tanh", loss="squared", lr=0.01, batch_size=64, momentum=0.9, decay=0.97
    )
    answer = learnt(np.array(x), np.array(y), sites, net, 30, seed)
    units = [test[test[:, 0] == unit][:, sensors] for unit in np.unique(test[:, 0])]
    said = CAP * answer(np.array([features(unit[-LAST:]) for unit in units]))["y"][:, 0]
    return float(np.sqrt(np.mean((np.clip(said, 0, CAP) - life) ** 2)))


def figures() -> Iterator[Figure]:
    """Medians of the seeds, with all of them beside."""
    errors = [engines(seed) for seed in SEEDS]
    yield Figure(
        "FD001: RMSE of 100 engines", median(errors), "cycles", 15.5, f"{min(errors):.2f}–{max(errors):.2f}"
    )
    areas = [mill(seed) for seed in SEEDS]
    of = f"goal at least 0.975; {min(areas):.4f}–{max(areas):.4f}"
    yield Figure("AI4I 2020: 1 - AUC, 5 folds", 1 - median(areas), "", 0.025, of)


def main(words: list[str]) -> int:
    """Print the figures; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench machines", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args(words)
    return told(figures(), asked.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
