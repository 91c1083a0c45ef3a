"""What attacks leave of a model, rule by rule: `python -m bench robust [--quick] [--json FILE]`.

Twenty clients share 20,000 images of MNIST, 14 x 14 pixels (means of 2 x 2), alike (IID) or by Dirichlet(1);
an MLP of 32 hidden units trains 100 rounds of one local epoch. A part of the clients lies, in every way of
atoll.attack, knowing what all honest clients send. A cell is one attack, share, split, seed and rule; `kept`
is its accuracy over that of the plain mean while everybody is honest. Beside it: who is suspected after five
rounds of each attack, and who in thirty rounds on Dirichlet(0.3) in which nobody lies. Everything is fixed
here but which cells are run; `--quick`: a fifth of liars, one seed, the plain mean and the recommended rule.
The same for sums that are secret and private stands in masked.py.

With `--json FILE` what is done is kept in FILE, and the same command again goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import atoll as at
from atoll.attack import Attack, attackers, trials
from atoll.core.registry import build, parts
from atoll.data import Dataset, Examples
from atoll.learn.defend import recommended
from atoll.learn.detect import Record, judge, look, suspects
from atoll.learn.rules import Rule, Stack

from . import masked
from .masked import Masked

PARTS = ("open", "masked", "detection")
CLIENTS, ROWS, ROUNDS, SIDE = 20, 20_000, 100, 14
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
SEEDS = (1, 2, 3)
SPLITS = {"iid": at.iid(), "dirichlet(1)": at.dirichlet(1.0)}
RULES: dict[str, Callable[[float], Rule]] = {
    "mean": lambda f: at.average(),
    "recommended": recommended,
    "nnm": lambda f: at.nnm(f, at.trimmed_mean(f)),
    "multi_krum": at.multi_krum,
    "trimmed_mean": at.trimmed_mean,
    "median": lambda f: at.median(),
    "geometric_median": lambda f: at.geometric_median(),
    "centred_clipping": lambda f: at.centred_clipping(),
}
KEEP, OPEN = 0.97, 0.05  # what a cell keeps at least, how often a backdoor works at most
LOST = 0.01  # of the clean accuracy, beside a backdoor


@dataclass(frozen=True)
class Cell:
    """One run: its `accuracy`, `kept` of the clean one, `success` of a backdoor's trigger, in `seconds`."""

    attack: str
    share: float
    split: str
    seed: int
    rule: str
    accuracy: float | None
    kept: float
    success: float | None
    seconds: float


@dataclass(frozen=True)
class Finding:
    """How many cells of a group are as they should be, the target for it, and the worst cell."""

    name: str
    good: int
    cells: int
    target: float | None
    worst: str

    @property
    def missed(self) -> bool:
        """Whether it falls short of its target."""
        return self.target is not None and self.good < self.target * self.cells

    def __str__(self) -> str:
        part = self.good / max(self.cells, 1)
        goal = "" if self.target is None else f"{self.target:.0%}" + (" MISSED" if self.missed else "")
        return f"{self.name:54}{self.good:4} of {self.cells:3} {part:7.1%}  {goal:12}{self.worst}"


@cache
def images() -> Dataset:
    """MNIST from the data folder, made small."""
    if not os.environ.get("ATOLL_DATA"):
        raise SystemExit("set ATOLL_DATA to the data folder: this bench uses MNIST")
    whole = at.load_data("mnist")

    def small(rows: Any, most: int) -> Examples:
        x = np.asarray(rows.x[:most]).reshape(-1, SIDE, 28 // SIDE, SIDE, 28 // SIDE).mean(axis=(2, 4))
        return Examples(x.reshape(len(x), -1).astype(np.float32), rows.y[:most])

    return Dataset("mnist 14x14", small(whole.train, ROWS), small(whole.test, 10_000), classes=whole.classes)


def job(rule: Rule) -> at.Job:
    """The one job, with a rule."""
    learner = replace(at.mlp(hidden=(32,), lr=0.5, batch_size=64), workers=1)  # where others work as well
    return at.Job(learner, at.robust(rule), rounds=ROUNDS, every=ROUNDS, sites=False)


def cells(asked: argparse.Namespace, done: Sequence[Cell] = ()) -> Iterator[Cell]:
    """Every cell that is not done, as it comes in: the plain mean and the recommended rule first."""
    attacks = _attacks(asked.only)
    first = [rule for rule in ("mean", "recommended") if rule in asked.rules]
    kept = {(c.rule, c.split, c.seed, c.share, c.attack): c for c in done}
    for rules in (first, [rule for rule in asked.rules if rule not in first]):
        for seed, split, share in product(asked.seeds, asked.splits, asked.shares):
            where = (split, seed, share)
            left = {rule: [a for a in attacks if (rule, *where, a.name) not in kept] for rule in rules}
            wanted = {rule: some for rule, some in left.items() if some}
            clean = kept.get(("mean", *where, "none"))
            if wanted and clean is None:
                wanted = {"mean": [], **wanted}
            for cell in _group(wanted, where, None if clean is None else clean.accuracy):
                if (key := (cell.rule, *where, cell.attack)) not in kept:
                    kept[key] = cell
                    yield cell


def _attacks(only: Collection[str]) -> list[Attack]:
    return [build("attack", p.name) for p in parts("attack") if not only or p.name in only]


def _group(
    wanted: Mapping[str, Sequence[Attack]], where: tuple[str, int, float], clean: float | None
) -> Iterator[Cell]:
    """Some attacks on each rule, on one federation."""
    split, seed, share = where
    data, liars = federation(split, seed), attackers(CLIENTS, share, seed)
    for rule, attacks in wanted.items():
        began = time.perf_counter()
        for trial in trials({rule: job(RULES[rule](share))}, data, attacks, liars, seed, clean):
            now = time.perf_counter()
            clean = clean or trial.accuracy
            yield Cell(
                trial.attack, share, split, seed, rule, trial.accuracy, round(trial.kept, 4), trial.success,
                round(now - began, 2),
            )  # fmt: skip
            began = now


@cache
def federation(split: str, seed: int) -> at.Sites:
    """The clients' rows."""
    return at.partition(images(), clients=CLIENTS, by=SPLITS[split], seed=seed)


@dataclass(frozen=True)
class Alarm:
    """Who was suspected in one run: how many of the `liars`, and how many `honest` clients wrongly."""

    attack: str
    split: str
    seed: int
    liars: int
    found: int
    honest: int
    wrong: int


def alarms(seeds: Sequence[int], done: Sequence[Alarm] = (), share: float = 0.2) -> Iterator[Alarm]:
    """Every attack, five rounds long; and nobody lying, thirty rounds on clients that are much unlike.

    `done`: those that need not run again.
    """
    whole = 1 + len(SPLITS) * len(parts("attack"))
    kept = {seed: [a for a in done if a.seed == seed] for seed in seeds}
    for seed in seeds:
        if len(kept[seed]) == whole:
            yield from kept[seed]
            continue
        liars = attackers(CLIENTS, share, seed)
        for split in SPLITS:
            data = federation(split, seed)
            for p in parts("attack"):
                yield _alarm(data, share, seed, liars, (p.name, split, 5))
        data = at.partition(images(), clients=CLIENTS, by=at.dirichlet(0.3), seed=seed)
        yield _alarm(data, share, seed, (), ("none", "dirichlet(0.3)", 30))


def _alarm(data: Any, share: float, seed: int, liars: Sequence[int], what: tuple[str, str, int]) -> Alarm:
    attack, split, rounds = what
    rule, records = recommended(share), dict[int, Record]()

    def walk(stack: Stack) -> Any:
        answer = rule.walk(stack)
        missing = [c for c in range(CLIENTS) if c not in stack.peers]
        records.update(judge(records, stack.peers, look(stack, answer, missing)))
        return answer

    watched = job(Rule("watched", walk)).replace(rounds=rounds, every=rounds)
    lies = build("attack", attack if liars else "nan")
    at.simulate(at.poison(watched, liars, lies), data, seed)
    named = set(suspects(records))
    wrong = len(named.difference(liars))
    return Alarm(attack, split, seed, len(liars), len(named.intersection(liars)), CLIENTS - len(liars), wrong)


def told(found: Sequence[Alarm]) -> list[Finding]:
    """What is asked of detection."""
    lies, calm = [a for a in found if a.liars], [a for a in found if not a.liars]
    named = sum(a.found + a.wrong for a in lies)
    missed = ", ".join(dict.fromkeys(f"{a.attack} {a.split}" for a in lies if a.found < a.liars))
    right, all_liars = sum(a.found for a in lies), sum(a.liars for a in lies)
    honest = sum(a.honest for a in calm)
    quiet = honest - sum(a.wrong for a in calm)
    return [
        Finding("detection: liars named within five rounds", right, all_liars, None, missed),
        Finding("detection: who is named lies", right, named, 0.95, ""),
        Finding("detection: honest Dirichlet(0.3) sites left alone", quiet, honest, 0.98, ""),
    ]


def findings(found: Sequence[Cell]) -> list[Finding]:
    """What is asked of the recommended rule, and the other rules beside it."""
    made = []
    for rule in dict.fromkeys(c.rule for c in found):
        mine = [c for c in found if c.rule == rule and c.attack != "none"]
        ours = rule == "recommended"
        groups = (
            ("up to 20 % lie", [c for c in mine if c.share <= 0.2], 0.99),
            ("30 % lie", [c for c in mine if c.share == 0.3], 0.95),
            ("40 % lie, IID", [c for c in mine if c.share == 0.4 and c.split == "iid"], 0.9),
            ("40 % lie, Dirichlet(1)", [c for c in mine if c.share == 0.4 and c.split != "iid"], None),
        )
        for name, group, target in groups:
            if group:
                kept = [c for c in group if c.kept >= KEEP]
                worst = min(group, key=lambda c: c.kept)
                text = f"{rule}: {name}, keeps {KEEP:.0%}"
                goal = target if ours else None
                made.append(Finding(text, len(kept), len(group), goal, _told(worst)))
        doors = [c for c in mine if c.success is not None]
        if doors:
            shut = [c for c in doors if c.success is not None and c.success <= OPEN and c.kept >= 1 - LOST]
            worst = max(doors, key=lambda c: c.success or 0.0)
            text = f"{rule}: backdoor works in {OPEN:.0%} of rows at most"
            made.append(Finding(text, len(shut), len(doors), None, _told(worst)))
    return made


def hidden(found: Sequence[Masked]) -> list[Finding]:
    """What is asked of buckets under secure sums and a promise of privacy."""
    made = []
    for bucket in dict.fromkeys(c.bucket for c in found):
        mine = [c for c in found if c.bucket == bucket and c.attack != "none"]
        if not mine:
            continue
        kept = [c for c in mine if c.kept >= KEEP]
        how = f"buckets of {bucket}" if bucket else "no buckets, no rule"
        text = f"{mine[0].share:.0%} lie, {how}, unit {mine[0].unit}, epsilon {mine[0].epsilon:.3f}"
        worst = min(mine, key=lambda c: c.kept)
        made.append(Finding(text, len(kept), len(mine), 0.95 if bucket else None, _told(worst)))
    return made


def _told(cell: Cell | Masked) -> str:
    door = "" if cell.success is None else f", trigger {cell.success:.1%}"
    return f"{cell.attack} {cell.share:.0%} {cell.split} seed {cell.seed}: {cell.kept:.1%}{door}"


@dataclass
class Sheet:
    """What is done, and the file that holds it."""

    cells: list[Cell]
    masked: list[Masked]
    alarms: list[Alarm]

    @classmethod
    def read(cls, path: Path | None) -> Sheet:
        """What a file holds, where there is one."""
        if path is None or not path.exists():
            return cls([], [], [])
        held = json.loads(path.read_text())
        cells, hidden = [Cell(**c) for c in held["cells"]], [Masked(**c) for c in held.get("masked", [])]
        return cls(cells, hidden, [Alarm(**a) for a in held["alarms"]])

    def write(self, path: Path | None, said: Sequence[Finding] = ()) -> None:
        """All of it, in place of what the file held."""
        if path is None:
            return
        plain: dict[str, Sequence[Any]] = {
            "cells": self.cells,
            "masked": self.masked,
            "alarms": self.alarms,
            "findings": said,
        }
        beside = path.with_suffix(".part")
        beside.write_text(
            json.dumps({name: [asdict(row) for row in rows] for name, rows in plain.items()}, indent=1) + "\n"
        )
        beside.replace(path)


def main(words: list[str]) -> int:
    """Print every cell to standard error, the findings to standard output; 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench robust", description=__doc__)
    parser.add_argument(
        "--json", type=Path, help="keep cells and findings there, and go on from what it holds"
    )
    parser.add_argument("--quick", action="store_true", help="a fifth of liars, one seed, two rules")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--only", nargs="+", default=[], help="attacks of these names")
    asked = parser.parse_args(words)
    if asked.quick:
        asked.shares, asked.seeds, asked.rules = [0.2], [1], ["mean", "recommended"]
    sheet = Sheet.read(asked.json)
    if "open" in asked.parts:
        for cell in cells(asked, sheet.cells):
            print(f"{cell.rule:18}{_told(cell)}  ({cell.seconds} s)", file=sys.stderr, flush=True)
            sheet.cells.append(cell)
            sheet.write(asked.json)
    if "masked" in asked.parts:
        splits = {name: SPLITS[name] for name in asked.splits}
        for found in masked.cells(_attacks(asked.only), splits, asked.seeds, sheet.masked):
            print(
                f"buckets of {found.bucket}      {_told(found)}  ({found.seconds} s)",
                file=sys.stderr,
                flush=True,
            )
            sheet.masked.append(found)
            sheet.write(asked.json)
    if "detection" in asked.parts and not asked.only and len(asked.splits) == len(SPLITS):
        sheet.alarms = list(alarms(asked.seeds, sheet.alarms))
    said = [*findings(sheet.cells), *hidden(sheet.masked), *(told(sheet.alarms) if sheet.alarms else [])]
    sheet.write(asked.json, said)
    for finding in said:
        print(finding)
    return int(any(f.missed for f in said))
