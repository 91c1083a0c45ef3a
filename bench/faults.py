"""`python -m bench faults [--quick] [--json FILE] [--only TEXT]`: what breaks, and what then holds.

Each row plays one kind of fault against whole federations and looks at every invariant after each case
(tests/federation/invariants.py). The table in docs/reference/faults.md is what this prints.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median


@dataclass
class Row:
    """One kind of fault: how many cases, which broke an invariant and how, seconds to recover."""

    fault: str
    cases: int = 0
    broken: list[str] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    def line(self) -> str:
        """As one line of the table."""
        back = f"{median(self.recovery):.2f} | {max(self.recovery):.2f}" if self.recovery else " | "
        return f"| {self.fault} | {self.cases} | {len(self.broken)} | {back} | {self.note} |"


@dataclass(frozen=True)
class Size:
    """How much of each: `seeds` of every kill, `cores` cases at once."""

    quick: bool
    cores: int
    seeds: tuple[int, ...]
    worlds: int


Suite = Callable[[Size], Iterator[Row]]


def kills(size: Size) -> Iterator[Row]:
    """kill -9 at every failpoint of each role, three-tier federation, real processes."""
    from tests.federation.kills import VICTIMS, Case, Outcome, Sweep

    with Sweep() as sweep:
        cases = list(sweep.cases(size.seeds))
        if size.quick:
            cases = cases[::12]

        def play(case: Case) -> Outcome:
            found = sweep.kill(case)
            say = "ok" if not found.broken else "BROKEN " + found.broken[0][:300]
            what = f"{case.role} {case.point}:{case.hit} seed {case.seed}"
            print(f"  {what}: {say} ({found.seconds:.1f} s)", file=sys.stderr)
            return found

        with ThreadPoolExecutor(size.cores) as pool:
            outcomes = list(pool.map(play, cases))
    for role in VICTIMS:
        mine = [o for o in outcomes if o.case.role == role]
        points = len({o.case.point for o in mine})
        row = Row(f"kill -9 of the {role}, {points} places x {len(size.seeds)} seeds", len(mine))
        row.broken = [f"{o.case}: {o.broken[0]}" for o in mine if o.broken]
        row.recovery = [o.back for o in mine if o.back is not None]
        row.seconds = sum(o.seconds for o in mine)
        yield row


SUITES: dict[str, Suite] = {"kills": kills}


def main(words: list[str] | None = None) -> int:
    """Print the table, write the file; 1 where an invariant broke."""
    parser = argparse.ArgumentParser(prog="python -m bench faults", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--only", default="", help="suites whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a sample of each, a few minutes in all")
    parser.add_argument("--cores", type=int, default=2, help="cases at once")
    parser.add_argument("--worlds", type=int, default=200, help="seeds of the deterministic world")
    asked = parser.parse_args(words)
    size = Size(asked.quick, asked.cores, (1,) if asked.quick else (1, 2, 3), asked.worlds)
    print("| fault | cases | broken | recovery, median s | longest s | |\n|---|---:|---:|---:|---:|---|")
    rows: list[Row] = []
    for name, suite in SUITES.items():
        if asked.only in name:
            began = time.monotonic()
            for row in suite(size):
                rows.append(row)
                print(row.line(), flush=True)
            print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
            if asked.json:
                asked.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    for row in rows:
        for text in row.broken:
            print(f"{row.fault}: {text}", file=sys.stderr)
    return 1 if any(row.broken for row in rows) else 0
