"""A world replayed: `python -m bench replay [--json FILE] [--stations N] [--cores N]`. Needs the Beijing
stations in $ATOLL_DATA.

Twelve stations, hourly, March 2013 to February 2017 (Chen 2019, UCI 501): PM2.5 from the other columns and
the time. One network is learnt federally from the first year. From then on every station is replayed hour
by hour twice: with that model for ever (static), and with a monitor, triggers, a quota and a challenge that
let it fine-tune the model on its own recent rows (renewed). A week is predicted before any label of it is
used.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import atoll as at
from atoll.control.engine.tuning import tuned
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.data.columns import MISSING
from atoll.learn.within import toward
from atoll.serve import monitor, quota, triggers
from atoll.serve.challenge import judged
from atoll.serve.drift.event import Limits
from atoll.serve.quota import Amount, Quota
from atoll.serve.terms import Terms
from atoll.serve.triggers import Rules, What

from .wire import Figure, told

COLUMNS = ("PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM")
WINDS = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")
BEGIN = datetime(2013, 3, 1, tzinfo=UTC).timestamp()
YEAR, WEEK = 365 * 24, 7 * 24  # rows
RECENT, HELD = 52 * WEEK, 8 * WEEK  # rows a fine-tune learns from, and those after them it is judged on
ROUNDS = 40
UNIT = 100.0  # µg/m³: targets near 1
RULES = Rules(cron="0 3 1 * *", cool_down=6 * 86400.0, minutes=1.0)
LIMITS = Limits(stable=8, least=100)
QUOTA = Quota(cpu_minutes=1.0)
Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Station:
    """`x` (n, d) and `y` (n,) by hour; y is NaN where nothing was measured."""

    name: str
    x: Rows
    y: Rows


@dataclass
class Replayed:
    """One station's replay: squared errors of both, µg/m³, and what happened."""

    name: str
    static: list[Rows] = field(default_factory=list)
    renewed: list[Rows] = field(default_factory=list)
    raised: int = 0
    tuned: int = 0
    swapped: int = 0

    @property
    def rmse(self) -> tuple[float, float]:
        """Static and renewed, µg/m³."""
        both = [float(np.sqrt(np.mean(np.concatenate(part)))) for part in (self.static, self.renewed)]
        return both[0], both[1]


def station(path: Path) -> Station:
    """One file. A missing cell is the column's last value, as a node that serves has no other."""
    with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    x = np.array([[number(row[c]) for c in COLUMNS] for row in table])
    angle = np.array([WINDS.index(row["wd"]) if row["wd"] in WINDS else np.nan for row in table]) * np.pi / 8
    hour, month = (np.array([float(row[c]) for row in table]) for c in ("hour", "month"))
    x[:, [0, 1, 2, 3, 4, 8]] = np.log1p(x[:, [0, 1, 2, 3, 4, 8]])
    turns = [angle, hour * np.pi / 12, month * np.pi / 6]
    x = np.column_stack([x, *(f(turn) for turn in turns for f in (np.sin, np.cos))])
    return Station(table[0]["station"], _filled(x), np.array([number(row["PM2.5"]) for row in table]) / UNIT)


def number(cell: str) -> float:
    """A cell, NaN where it is missing."""
    return np.nan if cell.strip() in MISSING else float(cell)


def _filled(x: Rows) -> Rows:
    last = np.where(np.isnan(x), 0, np.arange(len(x))[:, None])
    x = np.take_along_axis(x, np.maximum.accumulate(last, axis=0), axis=0)
    return np.where(np.isnan(x), 0.0, x)  # before the first value there is none


def learnt(stations: list[Station], seed: int) -> tuple[Any, Update, Rows, Rows]:
    """The network of the first year, and the means and spreads that scale its rows."""
    first = [(s.x[:YEAR], s.y[:YEAR]) for s in stations]
    first = [(x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in first]
    pooled = np.concatenate([x for x, _ in first])  # what at.statistics would answer, exactly
    mean, spread = pooled.mean(axis=0), pooled.std(axis=0)
    x = np.concatenate([(x - mean) / spread for x, _ in first]).astype(np.float32)
    y = np.concatenate([y for _, y in first])
    groups = np.concatenate([[s.name] * len(y) for s, (_, y) in zip(stations, first, strict=True)])
    sites = at.partition(at.arrays(x, y, groups), by=at.natural(), holdout=0)
    net = at.mlp(hidden=(32, 16), loss="squared", lr=0.02, batch_size=64, epochs=2, decay=0.97)
    run = at.simulate(at.Job(net, at.fedavg(), rounds=ROUNDS, every=ROUNDS, sites=False), sites, seed=seed)
    return net.sized(x.shape[1], 1), run.params, mean, spread


class Node:
    """One station as a node runs it: predict, notice, renew within the quota, swap only what won."""

    def __init__(self, learner: Any, params: Update, names: int, seed: int) -> None:
        self.learner, self.params, self.first, self.key = learner, params, params, Rng.of(seed)
        self.names = (*(f"column {i}" for i in range(names)), "answer")
        self.monitor = monitor.begun(self.names, values=True)
        self.triggers, self.quota = triggers.State(), quota.State()

    def answers(self, params: Update, x: Rows) -> Rows:
        """PM2.5 of rows, in UNIT."""
        return np.asarray(self.learner.answers(params, x.astype(np.float32))["y"][:, 0], np.float64)

    def week(self, x: Rows, y: Rows, now: float, past: tuple[Rows, Rows], told: Replayed) -> None:
        """A window with its labels is in; `past`: all rows that were labelled before and in it."""
        said = self.answers(self.params, x)
        seen = monitor.Seen(x, said[:, None], np.abs(said - y))
        self.monitor, events = monitor.seen(self.monitor, seen, now, LIMITS)
        told.raised += sum(event.kind == "raised" for event in events)
        what = What(drift=bool(self.monitor.raised), rows=len(x))
        self.triggers, start = triggers.happened(self.triggers, RULES, what, now, UTC)
        if start is None:
            return
        need = Amount(cpu_minutes=(start.until - now) / 60)
        self.quota, refused = quota.reserve(self.quota, QUOTA, "tune", need, now, UTC)
        won = not refused and self._tuned(now, past, told)
        self.triggers, _ = triggers.ended(self.triggers, RULES, now, UTC, won=won)

    def _tuned(self, now: float, past: tuple[Rows, Rows], told: Replayed) -> bool:
        began = time.process_time()
        x, y = (part[-RECENT - HELD :] for part in past)
        rows = at.Examples(x[:-HELD].astype(np.float32), y[:-HELD])
        told.tuned += 1
        key, seconds = self.key.at("tune", told.tuned), 60 * RULES.minutes
        found = tuned(self.learner, self.first, rows, key, seconds=seconds, passes=2, round=ROUNDS)
        fresh = toward(self.first, found.params, 0.5)
        old, new = (np.square(self.answers(p, x[-HELD:]) - y[-HELD:]) for p in (self.params, fresh))
        verdict = judged(old, new, y[-HELD:], Terms(), classes=False)
        took = (time.process_time() - began) / 60
        self.quota = quota.settle(self.quota, "tune", Amount(cpu_minutes=took), now, UTC)
        if verdict.won:
            told.swapped += 1
            self.params = fresh
            self.monitor = monitor.renewed(self.monitor)
        return verdict.won


def replay(one: Station, node: Node, mean: Rows, spread: Rows) -> Replayed:
    """All weeks after the first year."""
    told, first = Replayed(one.name), node.params
    x, labelled = (one.x - mean) / spread, ~np.isnan(one.y)
    for begin in range(YEAR, len(x), WEEK):
        here = np.flatnonzero(labelled[begin : begin + WEEK]) + begin
        if not len(here):
            continue
        for params, errors in ((first, told.static), (node.params, told.renewed)):
            errors.append(np.square(UNIT * (node.answers(params, x[here]) - one.y[here])))
        until = min(begin + WEEK, len(x))
        known = np.flatnonzero(labelled[:until])
        node.week(x[here], one.y[here], BEGIN + until * 3600.0, (x[known], one.y[known]), told)
    return told


def figures(count: int, seed: int, cores: int) -> Iterator[Figure]:
    """Each station's as it comes, and the means."""
    folder = Path(os.environ.get("ATOLL_DATA", "")) / "air_quality_beijing"
    paths = sorted(folder.glob("PRSA_Data_*.csv.gz"))[:count]
    if not paths:
        raise SystemExit(f"no stations in {folder}: set ATOLL_DATA to the data folder")
    stations = [station(path) for path in paths]
    learner, params, mean, spread = learnt(stations, seed)
    nodes = [Node(learner, params, one.x.shape[1], seed) for one in stations]
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        yield from _figures(pool.map(partial(replay, mean=mean, spread=spread), stations, nodes))


def _figures(replays: Iterable[Replayed]) -> Iterator[Figure]:
    found = []
    for one in replays:
        found.append(one.rmse)
        static, renewed = one.rmse
        of = f"static {static:.2f}; {one.raised} alarms, {one.tuned} fine-tunes, {one.swapped} swaps"
        yield Figure(f"{one.name}: RMSE, renewed", renewed, "µg/m³", 1.01 * static, of)
    static, renewed = np.mean(found, axis=0)
    yield Figure("mean RMSE, renewed", float(renewed), "µg/m³", float(static), f"static {static:.2f}")


def main(words: list[str]) -> int:
    """Print the table; 1 where renewing made something worse than the goals allow."""
    parser = argparse.ArgumentParser(prog="python -m bench replay", description=__doc__)
    parser.add_argument("--stations", type=int, default=12, help="so many of the twelve")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1, help="stations at once")
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args(words)
    return told(figures(asked.stations, asked.seed, asked.cores), asked.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
